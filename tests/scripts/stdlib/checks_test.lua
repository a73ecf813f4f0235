-- A check of a number instead of a named port: asked in each replica's own network.

test "a worker without ports is asked" {
  nodes = 2,
  run = function(t)
    t.cluster:program("worker:1", { answers = { ["/lag"] = { status = 503, body = "behind" } } })
    local worker = service "worker" {
      image = "worker:1", replicas = 2, check = { http = "/lag", port = 9090, every = "1s", on_fail = "none" },
    }:apply { wait = false }
    t.clock:advance "20s"
    worker = worker:refresh()
    assert(worker.healthy == 0 and #worker.tasks == 2)
    assert(worker.tasks[1].reason:find "status 503: behind", json.encode(worker.tasks))
    worker = worker:update({ check = { http = "/", port = 9090, every = "1s" } }, { wait = "1m" })
    assert(worker.healthy == 2, json.encode(worker.tasks))
    worker = worker:update({ check = { tcp = 9090, every = "1s" } }, { wait = "1m" })
    assert(worker.healthy == 2)
  end,
}
