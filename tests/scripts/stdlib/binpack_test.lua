-- binpack: one node is filled before the next.

test "fills one node before the next" {
  nodes = { { name = "n", count = 4, cpu = 4, memory = "4GiB" } },
  run = function()
    service "web" {
      command = "server", replicas = 6, policy = "binpack", reservations = { cpu = 1, memory = "1GiB" },
    }:apply { wait = "1m" }
    local counts = {}
    for _, task in services.get("web").tasks do counts[task.node] = (counts[task.node] or 0) + 1 end
    assert(counts.n1 == 4 and counts.n2 == 2 and counts.n3 == nil, json.encode(counts))
  end,
}

test "the fullest node that still fits" {
  nodes = { { name = "a", count = 3, memory = "4GiB" } },
  run = function()
    local function where(name, memory)
      service(name) { command = "server", policy = "binpack", reservations = { memory = memory } }:apply { wait = "1m" }
      return services.get(name).tasks[1].node
    end
    assert(where("most", "3GiB") == "a1")
    assert(where("half", "2GiB") == "a2", "it does not fit beside the first")
    assert(where("rest", "1GiB") == "a1", "it fits into the fuller one")
    assert(where("more", "1GiB") == "a2")
  end,
}
