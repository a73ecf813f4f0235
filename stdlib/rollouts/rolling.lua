-- Replaces tasks, so many at once: as soon as one is healthy, the next begins. With a delay batch by batch, each of which
-- has to be healthy, and is followed by the delay.
-- rollout = "rolling"  or
-- rollout = { use = "rolling", batch = "25%", order = "stop-first", min_healthy = "5s", batch_deadline = "5m",
--             delay = "10s", on_failure = "rollback" | "pause" | "continue", max_failure_ratio = 0.1, deadline = "1h" }

local failure = require "@neap/lib/failure"

rollout "rolling" {
  deadline = "1h",
  options = {
    batch = "portion",
    order = { "start-first", "stop-first" },
    min_healthy = "duration",
    batch_deadline = "duration",
    delay = "duration",
    on_failure = failure.actions,
    max_failure_ratio = "number",
    deadline = "duration",
  },
  step = function(release)
    local options = release.options
    local verdict = failure.judge(release, options)
    if verdict then return verdict end
    if release.remaining == 0 then return release:promote() end
    return release:batch {
      tasks = options.batch or 1,
      order = options.order or "start-first",
      min_healthy = options.min_healthy or "5s",
      deadline = options.batch_deadline or "5m",
      hold = options.delay,
      refill = not options.delay,
    }
  end,
}
