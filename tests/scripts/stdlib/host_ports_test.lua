-- Ports in mode host: a host's port has one replica at most, whoever else asks for it, and is replaced stop-first.

local function on(name)
  local hosts = {}
  for _, task in services.get(name).tasks do
    if task.state == "running" and not task.stop then table.insert(hosts, nodes.get(task.node).hostname) end
  end
  table.sort(hosts)
  return table.concat(hosts, " ")
end

local function waiting(name)
  for _, task in services.get(name).tasks do
    if task.state == "pending" then return task.reason end
  end
  return nil
end

test "one a host, and what finds no place says why" {
  nodes = 3,
  run = function(t)
    local ports = { metrics = { published = 9100, target = 9100, mode = "host" } }
    service "metrics" { command = "server", replicas = 4, ports = ports }:apply()
    t.clock:advance "10s"
    assert(on "metrics" == "n1 n2 n3", on "metrics")
    assert(waiting("metrics"):find("port 9100/tcp in use on 3 nodes", 1, true), waiting "metrics")
    -- The same number in the other protocol is another port; the same one of another service waits.
    service "dns" { command = "server", replicas = 3, ports = { dns = { published = 9100, mode = "host", protocol = "udp" } } }:apply()
    service "late" { command = "server", ports = { x = { published = 9100, mode = "host" } } }:apply()
    t.clock:advance "10s"
    assert(on "dns" == "n1 n2 n3" and on "late" == "", on "dns" .. " / " .. on "late")
    services.get("metrics"):scale(2)
    t.clock:advance "10s"
    assert(#services.get("late").tasks == 1 and on("late") ~= "", on "late")
    -- A balancer's port on every host is nobody's beside it.
    local ok, why = pcall(function() service "web" { command = "server", ports = { http = 9100 } }:apply() end)
    assert(not ok and tostring(why):find("9100 is published by service", 1, true), tostring(why))
  end,
}

test "a rollout ends the one before it begins the next, whatever is asked" {
  nodes = 2,
  run = function(t)
    local function describe(version)
      return service "edge" {
        command = { "server", version }, replicas = 2, rollout = { use = "rolling", order = "start-first", min_healthy = "1s" },
        ports = { http = { published = 80, target = 8080, mode = "host" } },
      }
    end
    describe("1"):apply { wait = "1m" }
    describe("2"):apply()
    local most = 0
    for _ = 1, 200 do
      t.clock:advance "200ms"
      local alive = 0
      for _, task in services.get("edge").tasks do
        if task.node and (task.state == "running" or task.state == "starting") then alive += 1 end
      end
      most = math.max(most, alive)
    end
    assert(services.get("edge").settled and on "edge" == "n1 n2", on "edge")
    assert(most == 2, most)
    for _, task in services.get("edge").tasks do assert(task.state ~= "running" or task.revision == 2) end
  end,
}

test "udp is forwarded, or with mode host its host's own, and is not asked by a check" {
  nodes = 2,
  run = function()
    service "names" { command = "server", ports = { dns = "53:53/udp" } }:apply { wait = true }
    assert(services.get("names").spec.ports.dns.protocol == "udp")
    local ok, why = pcall(function()
      service "dns" {
        command = "server", ports = { dns = { published = 53, protocol = "udp", mode = "host" } }, check = { tcp = "dns" },
      }:apply()
    end)
    assert(not ok and tostring(why):find("which is udp", 1, true), tostring(why))
  end,
}

test "a port changes its mode by being taken out first" {
  nodes = 2,
  run = function(t)
    local function describe(ports)
      return service "edge" { command = "server", replicas = 2, ports = ports }
    end
    describe({ http = 80 }):apply { wait = "1m" }
    local ok, why = pcall(function() describe({ http = { published = 80, mode = "host" } }):apply() end)
    assert(not ok and tostring(why):find("take the port out first", 1, true), tostring(why))
    describe({}):apply { wait = "5m" }
    local host = describe { http = { published = 80, mode = "host" } }
    assert(#host:plan().steps == 2 and host:plan().steps[1].action == "replace", json.encode(host:plan()))
    host:apply { wait = "5m" }
    -- What is made anew on the same nodes has a place, whatever is there now.
    for _, step in service("edge") { command = { "server", "2" }, replicas = 2, ports = { http = { published = 80, mode = "host" } } }:plan().steps do
      assert(step.action == "replace", json.encode(step))
    end
    -- Back to the balancer's: it waits for the last replica that has it.
    services.get("edge"):rollback()
    t.clock:advance "5m"
    assert(services.get("edge").settled)
  end,
}
