-- practice.lua: the whole practice by a script alone, run on a manager of a cluster of three:
--   neap run tests/scripts/practice.lua IMAGE NEXT_IMAGE BUSYBOX URL...      one URL for each host

local image, next_image, busybox = ...
local urls = { select(4, ...) }

local shop = service "shop" {
  image    = image,
  replicas = 2,
  ports    = { http = "8080:8080" },
  networks = { "practice" },
  policy   = "spread",
  stop     = { grace = "1s" },
  rollout  = { use = "rolling", batch = 2, min_healthy = "300ms", on_failure = "rollback" },
}
local live = shop:apply { wait = "2m" }

-- From outside through every host, and by name from another container.
for _, url in urls do
  local reply = http.get(url)
  assert(reply.status == 200 and reply:json().version == "1", `{url}: {reply.status} {reply.body}`)
end
local asks = service "asks" {
  image = busybox, command = { "sleep", "1000" }, networks = { "practice" }, constraints = { "node.hostname==n1" },
}
local asking = asks:apply { wait = "1m" }
local container = sh("docker ps -q --filter label=neap.service=asks").stdout:gsub("%s", "")
local answer = sh { "docker", "exec", container, "wget", "-q", "-O", "-", "http://shop:8080/" }.stdout
assert(answer:find '"version":"1"', answer)

live = live:scale(4, { wait = "2m" })
assert(live.healthy == 4)

-- One that is killed is replaced.
local victims = sh("docker ps -q --filter label=neap.service=shop").stdout
local before = {}
for _, task in live.tasks do before[task.id] = true end
sh { "docker", "kill", victims:match "%S+" }
local function others(): number
  local count = 0
  for _, task in live.tasks do if not before[task.id] then count += 1 end end
  return count
end
repeat
  time.sleep "100ms"
  live = live:refresh()
until others() == 1
live = live:wait "1m"
assert(live.healthy == 4 and others() == 1, `{live.healthy} healthy, {others()} of them new`)

-- Rolled out and back, asked through every host meanwhile.
local loads = {}
for _, url in urls do table.insert(loads, http.load { url = url, connections = 2 }) end
live = live:update({ image = next_image }, { wait = "3m" })
assert(http.get(urls[1]):json().version == "2")
live = live:rollback { wait = "3m" }
assert(http.get(urls[2]):json().version == "1")
local asked = 0
for _, load in loads do
  local during = load:stop()
  assert(during.failed == 0, `{during.failed} of {during.requests} requests failed`)
  asked += during.requests
end

asking:remove { wait = "1m" }
live:remove { wait = "1m" }
assert(#services.list() == 0)
assert(sh("docker service ls -q").stdout == "", "nothing is left in the Swarm")
print(`the practice by a script: {asked} requests, 0 failed`)
