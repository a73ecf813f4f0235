-- canary_test.lua: who gets the new version, tried on a cluster in memory. Run it: neap test scripts

local function deploy(name, answer)
  service(name) { command = name, replicas = 2, ports = { http = { target = 8080 } } }:apply():wait "1m"
end

test("a header chooses, and who says nothing has the shares", function(t)
  t.cluster:program("shop", { answers = { ["/"] = "old" } })
  t.cluster:program("shop-next", { answers = { ["/"] = "new" } })
  deploy "shop"
  deploy "shop-next"
  local set = route "shop" {
    host = "shop.test",
    to = { { service = "shop", weight = 100 }, { service = "shop-next", weight = 0 } },
    choose = [[return function(request)
      if request.path == "/broken" then error "not mine" end
      if request:header "X-Canary" == "yes" or request:cookie "beta" == "1" then return "shop-next" end
      if request.query == "next=1" then return "shop-next" end
      if request.path == "/nobody" then return "shop-later" end
    end]],
  }:apply()
  assert(set.spec.choose)
  local function got(path, headers) return http.get("http://shop.test" .. path, { headers = headers }).body end
  assert(got("/") == "old")
  assert(got("/", { ["X-Canary"] = "yes" }) == "new")
  assert(got("/", { ["X-Canary"] = "no" }) == "old")
  assert(got("/", { Cookie = "a=b; beta=1" }) == "new")
  assert(got("/?next=1") == "new")
  -- Where nobody of the chosen serves, the others do.
  services.get("shop-next"):remove()
  t.clock:advance "1m"
  assert(got("/", { ["X-Canary"] = "yes" }) == "old")
end)

test("what cannot be loaded is refused", function(t)
  t.cluster:program("shop", { answers = { ["/"] = "old" } })
  deploy "shop"
  for source, why in {
    ["return 1"] = "not a function",
    ["return function("] = "choose.lua:1",
    ["while true do end"] = "computing",
    ["print 'x' return function() end"] = "print",
  } do
    local ok, failure = pcall(function()
      route "shop" { host = "shop.test", to = { "shop", "shop" }, choose = source }:apply()
    end)
    assert(not ok and tostring(failure):find(why, 1, true), `{source}: {failure}`)
  end
end)
