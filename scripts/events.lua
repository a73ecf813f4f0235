-- Tells what happens to a service, until nothing has for a while: neap run scripts/events.lua SERVICE [QUIET]

local name = args[1]
assert(name, "say which service: neap run scripts/events.lua SERVICE [QUIET]")
local quiet = args[2] or "30s"

local began = time.now()
for event in events.watch { service = name, timeout = quiet } do
  print(string.format("%7.1f s  %-18s %-12s %s", event.at - began, event.what, event.subject, event.message))
end
print(`quiet for {quiet}`)
