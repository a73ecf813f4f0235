-- spread: evenly over nodes, or over the values of a field.

local function count_by(name, key)
  local counts = {}
  for _, task in services.get(name).tasks do
    local value = key(nodes.get(task.node))
    counts[value] = (counts[value] or 0) + 1
  end
  return counts
end

local function by_node(node) return node.hostname end
local function by_zone(node) return node.labels.zone end

test "one node after the other" {
  nodes = 4,
  run = function()
    service "web" { command = "server", replicas = 8 }:apply { wait = "1m" }
    for name, count in count_by("web", by_node) do assert(count == 2, `{name}: {count}`) end
  end,
}

test "nodes with fewer tasks of others first" {
  nodes = 2,
  run = function()
    service "first" { command = "server" }:apply { wait = "1m" }
    service "second" { command = "server" }:apply { wait = "1m" }
    assert(services.get("first").tasks[1].node ~= services.get("second").tasks[1].node)
  end,
}

test "over zones of different size" {
  nodes = {
    { name = "a", count = 6, labels = { zone = "a" } },
    { name = "b", count = 2, labels = { zone = "b" } },
    { name = "c", count = 1, labels = { zone = "c" } },
  },
  run = function()
    service "web" { command = "server", replicas = 6, policy = { use = "spread", over = "labels.zone" } }:apply { wait = "1m" }
    for zone, count in count_by("web", by_zone) do assert(count == 2, `{zone}: {count}`) end
    -- Within a zone the emptiest node.
    for name, count in count_by("web", by_node) do
      assert(count == (name:sub(1, 1) == "c" and 2 or 1), `{name}: {count}`)
    end
  end,
}

test "a drained node gives its tasks away, one after the other" {
  nodes = 3,
  run = function(t)
    service "web" { command = "server", replicas = 6 }:apply { wait = "1m" }
    nodes.get("n1"):update { availability = "drain" }
    services.get("web"):wait("5m")
    local counts = count_by("web", by_node)
    assert(counts.n1 == nil and counts.n2 == 3 and counts.n3 == 3, json.encode(counts))
    nodes.get("n1"):update { availability = "active" }
    services.get("web"):scale(9, { wait = "1m" })
    assert(count_by("web", by_node).n1 == 3)
  end,
}

test "a drain is waited for, and says what has no other place" {
  nodes = 3,
  run = function(t)
    service "web" { command = "server", replicas = 3 }:apply { wait = "1m" }
    service "pinned" { command = "server", constraints = { "node.hostname==n1" } }:apply { wait = "1m" }
    nodes.get("n2"):drain()
    assert(#nodes.get("n2"):tasks() == 0)
    local ok, why = pcall(function() nodes.get("n1"):drain { timeout = "10s" } end)
    assert(not ok and tostring(why):find("1 left: pinned.1: no suitable node", 1, true), tostring(why))
    assert(#nodes.get("n1"):tasks() == 1)
    nodes.get("n1"):drain { force = true }
    assert(#nodes.get("n1"):tasks() == 0 and #nodes.get("n3"):tasks() == 3)
    local forced, wrong = pcall(function() nodes.get("n3"):update { force = true } end)
    assert(not forced and tostring(wrong):find("goes with a drain alone"), tostring(wrong))
  end,
}

test "nowhere to go says why" {
  nodes = { { name = "a", count = 2, memory = "1GiB" }, { name = "off", availability = "drain" } },
  run = function(t)
    service "big" { command = "server", reservations = { memory = "2GiB" } }:apply()
    t.clock:advance "10s"
    local task = services.get("big").tasks[1]
    assert(task.state == "pending")
    assert(task.reason:find("1 node drained") and task.reason:find("insufficient memory on 2 nodes"), task.reason)
  end,
}
