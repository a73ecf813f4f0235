-- quickstart_test.lua: the rules of quickstart/, tried on a cluster in memory. Run it: neap test scripts

local rules = scripts "quickstart/*.lua"

local function web(replicas)
  return service "web" {
    command = "server", replicas = replicas, ports = { http = "8080" }, policy = "quietest", check = "answers",
  }
end

test "the quietest node is chosen, and hosts of databases take nothing" {
  nodes = { { name = "web", count = 2 }, { name = "db", count = 3, labels = { tier = "db" } } },
  run = function()
    web(4):apply { with = rules, wait = "1m" }
    local counts = {}
    for _, task in services.get("web").tasks do counts[task.node] = (counts[task.node] or 0) + 1 end
    assert(counts.web1 == 2 and counts.web2 == 2, json.encode(counts))
  end,
}

test("what says that it is ill is restarted, until it is well", function(t)
  web(1):apply { with = rules, wait = "1m" }
  assert(http.get("http://localhost:8080/").status == 200)
  local first = services.get("web").tasks[1].id
  t.cluster:program("server", { healthy = false })
  t.clock:advance "30s"
  assert(#t.cluster:events "task.failed" >= 1 and not services.get("web").settled)
  t.cluster:program("server", { healthy = true })
  t.clock:advance "2m"                                -- it waits longer after each failure
  assert(services.get("web").settled)
  assert(services.get("web").tasks[1].id ~= first)
end)

test("a replica that ends is started again", function(t)
  web(2):apply { with = rules, wait = "1m" }
  t.cluster:kill("web.2", 1)
  t.clock:advance "1ms"
  assert(services.get("web").healthy == 1)
  assert(services.get("web"):wait("1m").healthy == 2)
end)
