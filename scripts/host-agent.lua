-- host-agent.lua: one replica on every host, at that host's own port, as exporters and resolvers are run.
--   neap run scripts/host-agent.lua IMAGE [PORT]      tcp, such as prom/node-exporter 9100
--   neap run scripts/host-agent.lua IMAGE PORT udp

local image, port, protocol = ...
assert(image, "usage: neap run scripts/host-agent.lua IMAGE [PORT] [udp]")
port = assert(tonumber(port or "9100"), "PORT is a number")

local agent = service "host-agent" {
  image = image,
  mode = "global",
  ports = { agent = { published = port, target = port, protocol = protocol or "tcp", mode = "host" } },
}
for _, task in agent:apply():wait("5m").tasks do
  if task.state == "running" then print(task.node, task.ports.agent) end
end
