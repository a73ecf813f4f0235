-- The same, mended.
rollout "mine" {
  step = function(release) return release:batch { tasks = 1, min_healthy = "1s" } end,
}
