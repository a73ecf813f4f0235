-- routes_test.lua: a canary behind one host name, tried on a cluster in memory. Run it: neap test scripts

local function deploy(name, replicas)
  service(name) { command = name, replicas = replicas, ports = { http = { target = 8080 } } }:apply():wait "1m"
end

test("a share goes to the new version, and the rest is as it was", function(t)
  t.cluster:program("shop", { answers = { ["/"] = "old" } })
  t.cluster:program("shop-next", { answers = { ["/"] = "new" } })
  deploy("shop", 3)
  deploy("shop-next", 1)
  route "shop" {
    host = "shop.test", to = { { service = "shop", weight = 90 }, { service = "shop-next", weight = 10 } },
  }:apply()
  local new = 0
  for _ = 1, 100 do
    local reply = http.get "http://shop.test/"
    assert(reply.status == 200)
    if reply.body == "new" then new += 1 end
  end
  assert(new == 10, `{new} of 100 went to the new version`)
  assert(http.get("http://localhost/").status == 404)
  routes.remove "shop"
  assert(not pcall(http.get, "http://shop.test/"))
end)
