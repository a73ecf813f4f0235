-- rebalance: replicas go where their policy likes it better by now; the others stay.

local function counts(name)
  local counts = { n1 = 0, n2 = 0, n3 = 0 }
  for _, task in services.get(name).tasks do
    local host = nodes.get(task.node).hostname
    counts[host] += 1
  end
  return `{counts.n1} {counts.n2} {counts.n3}`
end

local function ids(name)
  local ids = {}
  for _, task in services.get(name).tasks do ids[task.id] = true end
  return ids
end

test "a node that comes back gets its share, and nobody else moves" {
  nodes = 3,
  run = function(t)
    service "web" { command = "server", replicas = 6 }:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n1"):update { availability = "active" }
    t.clock:advance "1m"
    assert(counts "web" == "0 3 3", counts "web")
    local web, before = services.get "web", ids "web"
    assert(#web:rebalance { dry_run = true } == 2 and counts "web" == "0 3 3")
    assert(#web:rebalance { max = 1, wait = "1m" } == 1 and counts "web" == "1 3 2" or counts "web" == "1 2 3", counts "web")
    local moved = web:rebalance { wait = "1m" }
    assert(#moved == 1 and moved[1].to == "n1" and moved[1].after > moved[1].before, json.encode(moved))
    assert(counts "web" == "2 2 2", counts "web")
    local stayed = 0
    for id in ids "web" do stayed += before[id] and 1 or 0 end
    assert(stayed == 4, stayed)
    -- Said again, nothing is better anywhere.
    assert(#web:rebalance() == 0)
    t.clock:advance "1m"
    assert(counts "web" == "2 2 2" and services.get("web").settled)
  end,
}

test "one after the other, and each serves until its successor does" {
  nodes = 3,
  run = function(t)
    t.cluster:program("server", { start = "1s", ready = "2s" })
    service "web" { command = "server", replicas = 6, ports = { http = 8080 }, check = { http = "/", every = "1s" } }:apply { wait = "1m" }
    nodes.get("n3"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n3"):update { availability = "active" }
    assert(#services.get("web"):rebalance() == 2)
    local most = 0
    for _ = 1, 60 do
      t.clock:advance "200ms"
      local web, serving = services.get "web", 0
      for _, task in web.tasks do serving += task.health == "healthy" and 1 or 0 end
      assert(web.healthy == 6 and serving >= 6, `{web.healthy} healthy, {serving} serve`)
      most = math.max(most, #web.tasks)
    end
    -- The one that drains, the next one's successor, and the six.
    assert(most <= 8, most)
    assert(services.get("web").settled and counts "web" == "2 2 2", counts "web")
  end,
}

test "a gain that is too small moves nobody" {
  nodes = 2,
  run = function(t)
    for number = 1, 4 do
      service(`s{number}`) { command = "server", constraints = { number < 4 and "node.hostname==n1" or "node.hostname!=n9" } }:apply { wait = "1m" }
    end
    local name = nodes.get(services.get("s4").tasks[1].node).hostname
    assert(name == "n2")
    services.get("s1"):update { constraints = { "node.hostname!=n9" } }
    -- Three beside it here, one there.
    local would = services.get("s1"):rebalance { dry_run = true }
    assert(#would == 1 and would[1].to == "n2", json.encode(would))
    assert(#services.get("s1"):rebalance { min_gain = 0.5 } == 0)
    assert(not pcall(function() services.get("s1"):rebalance { min_gain = -1 } end))
  end,
}

test "a replica whose successor fails stays where it is" {
  nodes = { { name = "n1" }, { name = "n2" }, { name = "n3" } },
  run = function(t)
    service "web" { command = "server", replicas = 2, constraints = { "node.hostname!=n3" } }:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n1"):update { availability = "active" }
    local before = ids "web"
    t.cluster:program("server", { reject = "no such image" })
    assert(#services.get("web"):rebalance() == 1)
    t.clock:advance "1m"
    local web = services.get "web"
    assert(web.settled and web.healthy == 2 and counts "web" == "0 2 0", counts "web")
    for id in ids "web" do assert(before[id], "the same tasks") end
    local stays = t.cluster:events "task.stays"
    assert(#stays == 1 and stays[1].message:find "no such image", json.encode(stays))
    -- What was tried says nothing of the slot: it is replaced and drained as before.
    t.cluster:program("server", {})
    nodes.get("n2"):update { availability = "drain" }
    services.get("web"):wait "5m"
    assert(counts "web" == "2 0 0", counts "web")
    -- Whoever waits is told.
    nodes.get("n2"):update { availability = "active" }
    t.cluster:program("server", { exit_after = "2s", exit_code = 1 })
    local ok, why = pcall(web.rebalance, web, { wait = "1m" })
    assert(not ok and tostring(why):find "1 of 1 stay where they are", tostring(why))
    assert(counts "web" == "2 0 0", counts "web")
  end,
}

test "one that may not be started again stays, and can still be drained" {
  nodes = 3,
  run = function(t)
    local once = service "web" { command = "server", replicas = 2, restart = { condition = "none" }, constraints = { "node.hostname!=n3" } }
    once:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n1"):update { availability = "active" }
    t.cluster:program("server", { exit_after = "100ms", exit_code = 1 })
    services.get("web"):rebalance()
    t.clock:advance "1m"
    assert(services.get("web").settled and counts "web" == "0 2 0", counts "web")
    t.cluster:program("server", {})
    nodes.get("n2"):update { availability = "drain" }
    services.get("web"):wait "5m"
    assert(counts "web" == "2 0 0", counts "web")
  end,
}

test "one rebalance at a time, and it can be ended" {
  nodes = 3,
  run = function(t)
    service "web" { command = "server", replicas = 9 }:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n1"):update { availability = "active" }
    t.cluster:program("server", { start = "20s" })
    local web = services.get "web"
    assert(#web:rebalance() == 3)
    local ok, why = pcall(web.rebalance, web)
    assert(not ok and tostring(why):find "is being rebalanced already", tostring(why))
    t.clock:advance "5s"
    assert(#web:rebalance { cancel = true } == 0)
    t.clock:advance "1m"
    assert(web:refresh().settled and counts "web" == "0 5 4" or counts "web" == "0 4 5", counts "web")
    assert(#t.cluster:events "task.stays" == 3)
    assert(#web:rebalance { wait = "5m" } == 3 and counts "web" == "3 3 3", counts "web")
  end,
}

test "a rollout in the middle of it has its way" {
  nodes = 3,
  run = function(t)
    service "web" { image = "web:1", replicas = 6 }:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait "5m"
    nodes.get("n1"):update { availability = "active" }
    t.cluster:program("web:1", { start = "3s" })
    assert(#services.get("web"):rebalance() == 2)
    t.clock:advance "1s"
    local web = services.get("web"):update({ image = "web:2" }, { wait = "5m" })
    assert(web.settled and web.healthy == 6 and #web.tasks == 6)
    for _, task in web.tasks do assert(task.revision == 2 and not task.leaving) end
  end,
}

test "what cannot be rebalanced says so" {
  nodes = 3,
  run = function()
    service "all" { command = "server", mode = "global" }:apply { wait = "1m" }
    local ok, why = pcall(function() services.get("all"):rebalance() end)
    assert(not ok and tostring(why):find "is global", tostring(why))
  end,
}
