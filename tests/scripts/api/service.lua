-- service and services: a life from description to removal.

local description = service "life" { command = "echo begun; sleep 1000", replicas = 2, stop = { drain = "50ms", grace = "1s" } }
assert(description.name == "life" and description.spec.replicas == 2)
local plan = description:plan()
assert(not plan.empty and tostring(plan):find("life.2"))
local life = description:apply { wait = "10s" }
assert(life.name == "life" and life.replicas == 2 and life.healthy == 2 and life.settled and #life.tasks == 2)
assert(description:plan().empty)
assert(life:refresh().revision == 1)
life = life:scale(3, { wait = "10s" })
assert(life.replicas == 3)
life = life:update({ env = { A = "1" } }, { wait = "60s" })
assert(life.revision == 2 and life.spec.env.A == "1")
assert(life:wait("5s").settled)
local seen = {}
for _, line in life:logs { tail = 50 } do seen[line.task] = line.text end
assert(seen["life.1"] == "begun", json.encode(seen))
for _, row in life:stats() do
  local stats = row.stats
  assert(row.task:find("^life%.%d$") and stats.pids >= 1 and stats.memory > 0 and stats.cpu < 1, json.encode(row))
end

-- A release by hand: held, let go, ended half-way, moved at once.
life:update { env = { A = "2" } }
assert(life:pause().release.state == "paused")
assert(life:resume().release.state == "running")
local function has_moved()
  for _, task in life:refresh().tasks do
    if task.revision == 3 and task.state == "running" then return true end
  end
  return false
end
repeat time.sleep "20ms" until has_moved()
local half = life:abort()
assert(half.release.state == "failed")
local ok, why = pcall(half.wait, half:refresh(), "5s")
assert(not ok and tostring(why):find "stopped half%-way", tostring(why))
life = life:rollback():wait "30s"
assert(life.settled)
life:update { env = { A = "3" } }
life:promote { wait = "60s" }
assert(services.get("life").spec.env.A == "3")

-- A replica as tables show it, and fields that it does not have.
local task = life:refresh().tasks[1]
assert(task.name == "life.1" and task.slot == "1" and task.node == nodes.list()[1].name and task.node_id == nodes.list()[1].id)
assert(task.started_at < time.now() + 1 and task.exit == nil and next(task.ports) == nil)
local ok, why = pcall(function() return task.nod end)
assert(not ok and tostring(why):find 'did you mean "node"', tostring(why))

-- Which services, and a wait for what a verb has begun.
assert(#services.list { prefix = "lif" } == 1 and #services.list { prefix = "x" } == 0)
life = life:update({ labels = { tier = "back" } }):wait "30s"
assert(#services.list { labels = { tier = "back" } } == 1 and #services.list { labels = { tier = "front" } } == 0)
assert(#services.list { stack = "none" } == 0 and not pcall(services.list, { prefx = "" }))
assert(#nodes.list { state = "ready", availability = "active" } == 1 and #nodes.list { labels = { a = "b" } } == 0)

-- Options are read strictly.
for verb, options in { scale = { wiat = "1s" }, remove = { force = true }, pause = { wait = 5 }, update = { wit = true } } do
  local call = function()
    if verb == "scale" then return life:scale(3, options) end
    if verb == "update" then return life:update({}, options) end
    return life[verb](life, options)
  end
  local ok, why = pcall(call)
  assert(not ok and tostring(why):find(verb), verb .. ": " .. tostring(why))
end

local ok, why = pcall(services.get, "lief")
assert(not ok and why.kind == "not_found" and why.help:find("life"), tostring(why))
assert(#services.list() >= 1)
life:remove { wait = "20s" }
assert(not pcall(services.get, "life"))
