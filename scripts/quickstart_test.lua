-- quickstart_test.lua: the rules of quickstart/, tried on a cluster in memory. Run it: neap test scripts

local rules = scripts "quickstart/*.lua"

local function web(replicas)
  return service "web" {
    command = "server", replicas = replicas, ports = { http = "8080" }, with = rules, policy = "quietest", check = "answers",
  }
end

test "the quietest node is chosen, and hosts of databases take nothing" {
  nodes = { { name = "web", count = 2 }, { name = "db", count = 3, labels = { tier = "db" } } },
  run = function()
    web(4):apply():wait "1m"
    assert(#nodes.get("web1"):tasks() == 2 and #nodes.get("web2"):tasks() == 2)
  end,
}

test("what says that it is ill is restarted, until it is well", function(t)
  web(1):apply():wait "1m"
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
  web(2):apply():wait "1m"
  t.cluster:kill("web.2", 1)
  t.clock:advance "1ms"
  assert(services.get("web").healthy == 1)
  assert(services.get("web"):wait("1m").healthy == 2)
end)
