-- jobs.lua: pushed by cluster.lua.

cron "nightly" {
  schedule = "30 3 * * *", timezone = "Europe/Amsterdam", overlap = "skip", timeout = "10m",
  run = function() print "nightly ran" end,
}

cron "broken" { schedule = "@yearly", run = function() print "so far"; error "no further" end }

on "service.removed" { name = "goodbye", run = function(event) print(event.subject) end }

rollout "stuck" { step = function(release) return release:fail "by design" end }
