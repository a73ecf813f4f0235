-- quickstart.lua: deploys, scales, rolls out, and survives a bad version. Try it without a daemon:
--   neap run --standalone scripts/quickstart.lua

local program = env.get("NEAP_PROGRAM", "/proc/self/exe")
local url = "http://127.0.0.1:" .. env.get("PORT", "8080") .. "/"
local rules = scripts "quickstart/*.lua"              -- a policy and a check, hosted beside the scheduler

local function web(version, flags)
  local command = { program, "demo", "--answer", version }
  for _, flag in flags or {} do table.insert(command, flag) end
  return service "web" {
    command  = command,
    replicas = 3,
    ports    = { http = env.get("PORT", "8080") },
    with     = rules,                                  -- come along whenever it is planned or applied
    policy   = "quietest",                             -- quickstart/quietest.lua
    check    = "answers",                              -- quickstart/answers.lua
    rollout  = { use = "rolling", batch = 1, min_healthy = "500ms", on_failure = "rollback" },
    stop     = { drain = "1s" },
  }
end

local function show(title, load)
  print(`{title}: {load.requests} requests, {load.failed} failed, {math.floor(load.per_second)} a second`)
  for body, count in load.bodies do print(`  {count} x {body}`) end
  for why, count in load.failures do print(`  {count} x {why}`) end
end

print(web("v1"):plan())
local live = web("v1"):apply():wait "30s"
show("three replicas", http.load { url = url, requests = 1000, connections = 8 }:wait())

live = live:scale(5, { wait = "30s" })

local load = http.load { url = url, connections = 8 }  -- goes on while the new version comes in
live = live:update({ command = web("v2").spec.command }):wait "1m"
local during = load:stop()
show("rolled out v2 under load", during)
assert(during.failed == 0, "a request failed during the rollout")

local ok, why = pcall(function()
  live:update({ command = web("v3", { "--fail-check" }).spec.command }):wait "1m"
end)
assert(not ok, "v3 fails its check and should have been rolled back")
print(`v3: {why}`)

print(services.get "web")
live:remove { wait = "30s" }
