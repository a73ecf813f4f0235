-- stats.lua: what all replicas use, the largest first, and whose memory is nearly at its limit.
--   neap run scripts/stats.lua          every service
--   neap run scripts/stats.lua shop-    those whose names begin so

local prefix = ... or ""
local rows = {}
for _, service in services.list { prefix = prefix } do
  if not service.spec.engine_native then
    local ok, stats = pcall(service.stats, service)
    if not ok then warn(`{service.name}: {stats}`) end
    for _, row in ok and stats or {} do
      if row.stats then table.insert(rows, row) else warn(`{row.task} on {row.node}: {row.reason}`) end
    end
  end
end
table.sort(rows, function(a, b) return a.stats.memory > b.stats.memory end)
for _, row in rows do
  local stats = row.stats
  print(string.format("%-20s %-12s %6.1f%% %8.1f MiB", row.task, row.node, stats.cpu * 100, stats.memory / 2 ^ 20))
  if stats.memory_limit and stats.memory > 0.9 * stats.memory_limit then warn(`{row.task} is near its limit`) end
end
