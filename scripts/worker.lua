-- worker.lua: replicas that serve nobody, and tell on a port of their own how they are. The port is not published: the
-- check asks it in each replica's own network, where it may listen on 127.0.0.1 alone.
--   neap run scripts/worker.lua IMAGE PORT [PATH] [REPLICAS]

local image, port, path, replicas = ...
assert(image and tonumber(port), "usage: neap run scripts/worker.lua IMAGE PORT [PATH] [REPLICAS]")

local worker = service "worker" {
  image = image,
  replicas = tonumber(replicas or "1"),
  check = { http = path or "/healthz", port = tonumber(port), every = "5s" },
}

for _, task in worker:apply():wait("5m").tasks do print(task.name, task.node, task.health) end
