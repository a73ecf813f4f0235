-- internal.lua: a service for other services alone, at one address that stays, while its replicas come and go behind it.
--   neap run scripts/internal.lua            deploys it, and asks it at its address
--   neap run scripts/internal.lua VERSION    rolls out another version; the address stays

local version = ... or "v1"
local program = env.get("NEAP_PROGRAM", "/proc/self/exe")

service "prices" {
  command = { program, "demo", "--answer", version },
  replicas = 2,
  ports = { http = { target = 8080 } },   -- published nowhere
  internal = "balanced",                  -- Docker's --endpoint-mode vip
  check = { http = "/healthz", every = "200ms" },
  rollout = { use = "rolling", min_healthy = "100ms" },
}:apply { wait = "1m" }

local prices = services.get "prices"
local url = `http://{prices.address}:8080/`
print(`prices is at {url}, also as prices.virtual.neap`)
print(http.get(url).body)
