-- containers.lua: the whole practice on a Docker Engine or a Swarm: publish, scale, roll out, go back, remove.
--   neap run scripts/containers.lua IMAGE NEXT_IMAGE URL     with images that answer 200 at / on port 8080

local image, next_image, url = ...
if not url then error "usage: neap run containers.lua IMAGE NEXT_IMAGE URL" end

local shop = service "shop" {
  image    = image,
  replicas = 2,
  ports    = { http = "8080:8080" },                   -- every replica behind one port of the daemon's host
  networks = { "shop" },                               -- made where it is missing; "shop" leads to each replica
  hostname = "{{.Service.Name}}-{{.Task.Slot}}",
  env      = { ON = "{{.Node.Hostname}}" },
  limits   = { memory = "64MiB", pids = 50 },
  check    = { http = "/", every = "1s" },
  rollout  = { use = "rolling", batch = 2, min_healthy = "500ms", on_failure = "rollback" },
}

print(shop:plan())
local live = shop:apply():wait "2m"
live = live:scale(4, { wait = "2m" })

local load = http.load { url = url, connections = 4 }  -- goes on while the new image comes in, and goes again
live = live:update({ image = next_image }):wait "3m"
live = live:rollback { wait = "3m" }
local during = load:stop()
print(`rolled out and back under load: {during.requests} requests, {during.failed} failed`)
assert(during.failed == 0, "a request failed during the rollout")

print(live)
for _, node in nodes.list() do print(node.name, table.concat(node:tasks(), " ")) end
live:remove { wait = "1m" }
