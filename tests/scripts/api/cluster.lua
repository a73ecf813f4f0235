-- nodes, kv, secrets, scripts, crons, events.

local node = nodes.list()[1]
assert(nodes.get(node.hostname).id == node.id and node.cpu > 0)
node:update { label_add = { tested = "yes" } }
assert(nodes.get(node.id).labels.tested == "yes")
node:update { label_rm = { "tested" } }
assert(#node:tasks() == 0)
local info = cluster.info()
assert(info.engine == "process" and info.pid > 0)
-- A daemon alone: there is nobody to join, and processes have no images.
local joined, why_alone = pcall(cluster.join_token, "worker")
assert(not joined and tostring(why_alone):find "its state is not in a Swarm", tostring(why_alone))
assert(not pcall(cluster.rotate_join_token, "worker"))
local joined, why_role = pcall(cluster.join_token, "leader")
assert(not joined and tostring(why_role):find "neither", tostring(why_role))
local wrong, why_wrong = pcall(cluster.join, { address = "10.0.0.1", tokn = "x" })
assert(not wrong and tostring(why_wrong):find "token", tostring(why_wrong))
for _, odd in { { advertise = "x" }, { force = true } } do
  local wrong, why_wrong = pcall(cluster.init, odd)
  assert(not wrong and tostring(why_wrong):find "unknown field", tostring(why_wrong))
end
local unlocked, why_locked = pcall(cluster.unlock, { key = "x", kye = "y" })
assert(not unlocked and tostring(why_locked):find "unknown field", tostring(why_locked))
local pruned, why_pruned = pcall(function() return node:prune_images { created_before = "72h" } end)
assert(not pruned and tostring(why_pruned):find "no images", tostring(why_pruned))
assert(node.agent == nil and not pcall(function() node:forget_agent() end))
local removed, why_not = pcall(node.remove, node, { force = true })
assert(not removed and why_not.kind == "unsupported", tostring(why_not))
local promoted, why_no_role = pcall(node.update, node, { role = "manager" })
assert(not promoted and tostring(why_no_role):find "knows no roles", tostring(why_no_role))

local first = kv.set("t/a", "one", { version = 0 })
local value, version = kv.get "t/a"
assert(value == "one" and version == first)
assert(not pcall(kv.set, "t/a", "two", { version = 0 }))
local ok, why = pcall(kv.set, "t/a", "two", { version = first + 1000 })
assert(not ok and why.kind == "conflict" and tostring(why):find("by now"), tostring(why))
assert(kv.set("t/a", 2, { version = first }) > first)
kv.set("t/b", true)
assert(#kv.list "t/" == 2 and kv.list("t/")[1].value == "2")
local seen = kv.watch("t/", function(key, value) return key == "t/b" and value end, { timeout = "5s" })
assert(seen == "true")
assert(kv.watch("t/", function() end, { timeout = "50ms" }) == nil)
assert(kv.update("t/n", function(count) return (tonumber(count) or 0) + 1 end) == "1")
assert(kv.update("t/n", function(count) return (tonumber(count) or 0) + 1 end) == "2" and kv.get "t/n" == "2")
assert(kv.update("t/n", function() return nil end) == nil and kv.get "t/n" == "2")
-- Somebody else is faster, once: it is asked again with what that left.
local asked = 0
kv.update("t/n", function(count)
  asked += 1
  if asked == 1 then kv.set("t/n", "10") end
  return count .. "!"
end)
assert(asked == 2 and kv.get "t/n" == "10!")
kv.remove "t/n"
local ok, why = pcall(kv.watch, "t/", function() end, { timout = "1s" })
assert(not ok and tostring(why):find "did you mean \"timeout\"", tostring(why))
assert(kv.remove "t/a" == true and kv.remove "t/a" == false and kv.get "t/a" == nil)
assert(not pcall(kv.set, "t/c", {}))

assert(secrets.set("t/secret", "x") == 1 and secrets.set("t/secret", "y") == 2)
local listed = secrets.list()
assert(listed[1].name == "t/secret" and listed[1].version == 2 and rawget(listed[1], "value") == nil)
secrets.remove "t/secret"
assert(not pcall(secrets.remove, "t/secret"))

-- Processes have neither.
local ok, why = pcall(networks.list)
assert(not ok and tostring(why):find("the process engine has none"), tostring(why))
assert(not pcall(volumes.list) and not pcall(volumes.create, { name = "data" }))

local version, rolled_out = configs.set("t/config", "a = 1\n", { only_new = true })
assert(version == 1 and #rolled_out == 0)
assert(not pcall(configs.set, "t/config", "a = 2", { only_new = true }))
assert(configs.set("t/config", "a = 2", { rollout = false }) == 2)
local value, number = configs.get "t/config"
assert(value == "a = 2" and number == 2 and configs.get "t/none" == nil)
assert(configs.list()[1].name == "t/config" and rawget(configs.list()[1], "value") == nil)
configs.remove "t/config"
assert(not pcall(configs.remove, "t/config"))

-- A process needs no image: nobody could be asked, and what is kept serves Docker Engines alone.
assert(#registry.logins() == 0)
local verified, why_login = pcall(registry.login, "registry.example", { username = "ci", password = "t" })
assert(not verified and tostring(why_login):find "pulls no images", tostring(why_login))
local login = registry.login("https://registry.example/", { username = "ci", password = "t", unverified = true })
assert(login.registry == "registry.example" and not login.verified and rawget(login, "password") == nil)
assert(registry.logins()[1].username == "ci")
registry.logout "registry.example"
assert(not pcall(registry.logout, "registry.example"))
assert(not pcall(registry.login, "a b", { username = "ci", password = "t", unverified = true }))

local brought = scripts "hosted/*.lua"
scripts.push("tested", brought)
assert(scripts.list()[1].set.name == "tested")
assert(scripts.get("tested").bundle.files["hosted/jobs.lua"]:find("nightly"))
assert(not pcall(scripts.rollback, "tested"))
assert(type(scripts.calls()) == "table")

assert(#crons.list() == 2)
local nightly = crons.get "nightly"
assert(nightly.schedule == "30 3 * * *" and nightly.timezone == "Europe/Amsterdam" and nightly.next_at > time.now())
local run = nightly:run()
assert(run.outcome == "ok" and run.output == "nightly ran\n", json.encode(run))
local ok, why_field = pcall(function() return run.outcom end)
assert(not ok and tostring(why_field):find 'did you mean "outcome"', tostring(why_field))
local ran, why_not = pcall(function() return crons.get("broken"):run() end)
assert(not ran and tostring(why_not):find "run 1 ended: failed" and tostring(why_not):find "so far", tostring(why_not))
assert(nightly:pause().paused and not nightly:resume().paused)
assert(#crons.get("nightly").history == 1)

assert(events.wait { what = "task.failed", timeout = "50ms" } == nil)
assert(not pcall(events.wait, { what = "task.faild" }))
service("short") { command = "exit 3", restart = { condition = "none" } }:apply()
assert(#events.failed() == 0)
services.get("short"):remove { wait = "20s" }
scripts.remove "tested"
assert(#crons.list() == 0)
