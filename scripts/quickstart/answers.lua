-- answers.lua: a replica is healthy when it says so itself.

check "answers" {
  every = "1s", timeout = "1s", healthy = 1, unhealthy = 2,
  run = function(task)
    local reply = http.get("http://" .. task:address("http") .. "/healthz")
    return reply.status == 200, `status {reply.status}`
  end,
}
