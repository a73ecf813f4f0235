-- discovery.lua: tells the catalogue of a database outside of the cluster, and waits until it answers.
--   neap run scripts/discovery.lua HOST:PORT            registers it as "db"
--   neap run scripts/discovery.lua HOST:PORT --remove   takes it out again

local where, word = ...
local address, port = string.match(where or "", "^(.+):(%d+)$")
if not address then error "usage: neap run scripts/discovery.lua HOST:PORT [--remove]" end
local on = { node = "outside" }

if word == "--remove" then
  discovery.deregister("db", on)
  print "db is taken out"
  return
end

discovery.register {
  service = "db", node = on.node, address = address, port = tonumber(port), tags = { "primary" },
  checks = { { tcp = where, every = "1s", unhealthy = 3 } },
}
local found = discovery.watch("db", function(instances) return instances[1] end, { passing = true, timeout = "10s" })
if not found then error(`nobody answers at {where}`) end
print(`db is {found.status} on {found.node}`)
print(`resolved: {table.concat(discovery.resolve "db", " ")}`)
