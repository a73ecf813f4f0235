-- no.lua: a rollout that goes back before anything has moved.
rollout "no" { step = function(release) return release:rollback "not today" end }
