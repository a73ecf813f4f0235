-- usage.lua: what each host uses, its largest containers, and whatever is nearly full.
--   neap run scripts/usage.lua           the three largest containers of each host
--   neap run scripts/usage.lua 10        the ten largest

local shown = tonumber((...)) or 3

for _, node in nodes.stats { containers = true } do
  local host = node.host
  if not host then
    warn(`{node.node}: {node.reason}`)
    continue
  end
  local memory = host.memory / host.memory_total
  print(string.format("%-16s %5.1f of %d cores, load %.2f, memory %3.0f%%, %s old", node.node, host.cpu, host.cores,
    host.load, memory * 100, node.age))
  if memory > 0.9 then warn(`{node.node}: its memory is nearly full`) end
  if host.disk and host.disk > 0.85 * host.disk_total then warn(`{node.node}: the disk of its containers is nearly full`) end
  if host.pressure and host.pressure.io > 0.5 then warn(`{node.node}: half of the time something waits for its disk`) end
  local containers = node.containers or {}
  table.sort(containers, function(a, b) return a.memory > b.memory end)
  for at = 1, math.min(shown, #containers) do
    local one = containers[at]
    local name = one.task or one.name or one.container
    print(string.format("  %-30s %6.1f%% %8.1f MiB", name, one.cpu * 100, one.memory / 2 ^ 20))
  end
end
