-- What happens, as a script hears of it.

test "a watch misses nothing of what happens between two looks" {
  nodes = 2,
  run = function(t)
    t.cluster:program("web", {})
    local next = events.watch { what = "task.running", service = "web", timeout = "1m" }
    local others = events.watch { service = "other", timeout = "1s" }
    service "web" { command = "web", replicas = 3 }:apply { wait = "1m" }
    local seen = {}
    for _ = 1, 3 do table.insert(seen, next().task) end
    table.sort(seen)
    assert(table.concat(seen, " ") == "web.1 web.2 web.3", table.concat(seen, " "))
    t.cluster:kill("web.2", 1)
    local again = next()
    assert(again.task == "web.2" and again.what == "task.running")
    -- Quiet for a minute, and the loop is over; of another service there was nothing.
    for event in next do error(event.message) end
    for event in others do error(event.message) end
    local ok, why = pcall(events.watch, { what = "task.runing" })
    assert(not ok and tostring(why):find "task.running", tostring(why))
  end,
}

test "a script has so many watches open, and no more" {
  nodes = 1,
  run = function()
    local open = {}
    for i = 1, 8 do open[i] = events.watch {} end
    local ok, why = pcall(events.watch)
    assert(not ok and tostring(why):find "more than 8 watches", tostring(why))
    -- Those that it has let go of do not count.
    open = nil
    for _ = 1, 20 do events.watch {} end
  end,
}
