-- compose.lua: applies a Compose file with a change for this place, and looks at what became of it.
--   neap run scripts/compose.lua FILE NAME

local file, name = ...
if not name then error "usage: neap run compose.lua FILE NAME" end

local stack = compose.load(file, { name = name })
for _, warning in stack.warnings do warn(warning) end

-- What the file describes are ordinary descriptions: whatever Compose has no word for is added here.
for key, service in stack.services do
  service.labels = service.labels or {}
  service.labels.applied_by = "compose.lua"
  print(`{key} is {service.name}: {service.image}`)
end

compose.apply(stack, { wait = "2m", prune = true })

for _, service in services.list { stack = name } do
  print(`{service.name}: {service.healthy} of {service.replicas} healthy, settled: {service.settled}`)
end
