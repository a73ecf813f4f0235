-- maintenance.lua: counts what fails, and tells every morning. Hosted: neap script push maintenance scripts/maintenance.lua
-- Look at it with: neap cron history morning-report; run it now with: neap cron run morning-report

local prefix = "maintenance/failures/"

-- Each failure of a task is counted under its service. Events of one subject come in order, one at a time; two tasks of
-- one service may fail at once, and `kv.update` loses neither.
on "task.failed" {
  name = "count-failures",
  run = function(event)
    kv.update(prefix .. event.service, function(count) return (tonumber(count) or 0) + 1 end)
  end,
}

-- What failed since the last report, what is not as described, and nodes that take no work.
cron "morning-report" {
  schedule = "30 6 * * *", timezone = "Europe/Amsterdam", overlap = "skip", timeout = "5m",
  run = function()
    local quiet = true
    local function tell(line)
      quiet = false
      print(line)
    end
    for _, entry in kv.list(prefix) do
      tell(`{entry.key:sub(#prefix + 1)}: {entry.value} tasks failed`)
      kv.remove(entry.key, { version = entry.version })
    end
    for _, service in services.list() do
      if not service.settled then tell(`{service.name}: {service.healthy} of {service.replicas} healthy`) end
    end
    for _, node in nodes.list() do
      if node.availability ~= "active" or node.state ~= "ready" then
        tell(`{node.name}: {node.state}, {node.availability}`)
      end
    end
    if quiet then print "all is well" end
  end,
}
