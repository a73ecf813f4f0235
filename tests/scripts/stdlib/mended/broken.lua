-- A rollout with a mistake that only its first step shows.
rollout "mine" {
  step = function(release) return release:batch { tasks = 1, min_heathy = "1s" } end,
}
