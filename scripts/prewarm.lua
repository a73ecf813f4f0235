-- prewarm.lua: brings an image from a host's Docker Engine into the registry, lets every host get it, and only then rolls it out.
--   neap run scripts/prewarm.lua LOCAL-IMAGE NAME:TAG SERVICE [NODE]
--   neap run scripts/prewarm.lua api:dev shop/api:1.1 api n1

local have, name, service_name, node = ...
assert(have and name and service_name, "usage: neap run scripts/prewarm.lua LOCAL-IMAGE NAME:TAG SERVICE [NODE]")

registry.push(have, { to = name, node = node })
local image = registry.resolve(name)
for _, on in registry.pull(image).nodes do
  print(`{on.node}: {on.digest}`)
end
services.get(service_name):update({ image = image }, { wait = "5m" })
