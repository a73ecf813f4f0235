-- udp.lua: a service behind a port of UDP; its check asks a port of TCP beside it.
--   neap run scripts/udp.lua PORT            deploys it: each datagram is answered by one
--   neap run scripts/udp.lua PORT VERSION    rolls out another version: no question goes unanswered
--   echo -n hello | nc -u -w1 127.0.0.1 PORT

local usage = "usage: neap run scripts/udp.lua PORT [VERSION]"
local port = tonumber((...)) or error(usage)
local version = select(2, ...) or "v1"
local program = env.get("NEAP_PROGRAM", "/proc/self/exe")

service "echo" {
  command = { program, "demo", "--answer", version },
  replicas = 2,
  ports = {
    http = { target = 8080 },
    udp = { published = port, protocol = "udp" },
  },
  check = { http = "/healthz", port = "http", every = "200ms" },
  rollout = { use = "rolling", min_healthy = "100ms" },
  stop = { grace = "2s", drain = "5s" },
}:apply { wait = "1m" }

print(`echo {version} answers at port {port} of UDP, on every host`)
