-- registry.lua: logs the cluster in at a registry with a token from a file, and says where it is logged in.
--   neap run scripts/registry.lua HOST USER TOKEN-FILE
--   neap run scripts/registry.lua                          says it alone

local host, user, file = ...
if host then
  assert(user and file, "usage: neap run scripts/registry.lua HOST USER TOKEN-FILE")
  registry.login(host, { username = user, password = (fs.read(file):gsub("%s+$", "")) })
end
for _, login in registry.logins() do
  print(`{login.registry}: {login.username}{if login.verified then "" else " (nobody asked it)"}`)
end
