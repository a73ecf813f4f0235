-- hosts.lua: hosts and their cluster, without a word of shell. Run it on the host that is meant.
--   neap run scripts/hosts.lua init                   this host becomes a cluster
--   neap run scripts/hosts.lua join ADDRESS TOKEN     this host comes to one
--   neap run scripts/hosts.lua leave                  this host leaves it

local what, address, token = ...
if what == "init" then
  local ticket = cluster.init()
  print(`cluster {cluster.info().cluster} is up; others join with:`)
  print(`neap run scripts/hosts.lua join {ticket.addresses[1]} {ticket.token}`)
elseif what == "join" then
  local joined = cluster.join { address = address, token = token }
  print(`this host is a {joined.role} of {joined.cluster} now`)
elseif what == "leave" then
  cluster.leave()
  print "this host is nobody's"
else
  error "usage: neap run scripts/hosts.lua init | join ADDRESS TOKEN | leave"
end
