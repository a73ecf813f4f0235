-- What a rollout does when new tasks fail: one place for every rollout that offers `on_failure`.

local failure = {}

-- What a service may ask for as `on_failure`.
failure.actions = { "rollback", "pause", "continue" }

-- Returns an intent if too many new tasks failed, else nothing.
function failure.judge(release, options)
  local allowed = (options.max_failure_ratio or 0) * release.replicas
  if release.failed_tasks <= allowed then return nil end
  local action = options.on_failure or "rollback"
  if action == "rollback" then return release:rollback "a new task failed" end
  if action == "pause" then return release:pause "a new task failed" end
  if action == "continue" then return nil end
  error(`on_failure is "{action}"; known: {table.concat(failure.actions, ", ")}`, 0)
end

return failure
