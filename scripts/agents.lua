-- agents.lua: an agent on each worker, as one service of the Swarm, and who is still without one.
--   neap run scripts/agents.lua registry.example.com/neap:1      makes the service, or brings it to this image
--   neap run scripts/agents.lua remove                           removes it, and forgets its agents

local image = ... or error "usage: neap run scripts/agents.lua IMAGE|remove [PROGRAM]"
local program = select(2, ...)

if image == "remove" then
  print(`removed: {cluster.remove_agents()}`)
  return
end
local made = cluster.install_agents { image = image, program = program }
print(`{made.service} puts an agent on: {table.concat(made.hosts, ", ")}`)
if #made.others > 0 then print(`have one of their own: {table.concat(made.others, ", ")}`) end

for _ = 1, 60 do
  local missing = {}
  for _, node in nodes.list { role = "worker", state = "ready" } do
    if not (node.agent and node.agent.connected) then table.insert(missing, node.name) end
  end
  if #missing == 0 then
    print "every worker has an agent"
    return
  end
  time.sleep "1s"
end
error "some workers have no agent yet; `neap service ps neap-agent` says why"
