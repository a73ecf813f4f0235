-- Replaces every task at once: for what may be down for a moment, or must never run in two versions.
-- rollout = "all-at-once"

local failure = require "@neap/lib/failure"

rollout "all-at-once" {
  deadline = "1h",
  options = {
    order = { "start-first", "stop-first" },
    min_healthy = "duration",
    batch_deadline = "duration",
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
      tasks = release.remaining,
      order = options.order or "stop-first",
      min_healthy = options.min_healthy or "0s",
      deadline = options.batch_deadline or "5m",
    }
  end,
}
