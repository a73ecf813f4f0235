-- maintenance_test.lua: two nights and a summer's beginning in a few milliseconds. Run it: neap test scripts

local rules = scripts "maintenance.lua"

test "failures are counted and told every morning at half past six, also when the clocks change" {
  starts = "2026-03-28T00:00:00Z",                    -- on the 29th at 02:00 the clocks of Amsterdam go to 03:00
  programs = { breaks = { exit_after = "1s", exit_code = 1 } },
  run = function(t)
    scripts.push("maintenance", rules)
    service "shop" { command = "breaks", restart = { condition = "none" }, replicas = 3 }:apply()
    t.clock:advance "2d"
    local runs = crons.get("morning-report").history
    assert(#runs == 2, json.encode(runs))
    assert(time.format(runs[1].due_at) == "2026-03-28T05:30:00Z", time.format(runs[1].due_at))
    assert(time.format(runs[2].due_at) == "2026-03-29T04:30:00Z", time.format(runs[2].due_at))
    assert(runs[1].output:find "shop: 3 tasks failed", runs[1].output)
    assert(runs[2].output:find "shop: 0 of 3 healthy" and not runs[2].output:find "tasks failed", runs[2].output)
    assert(kv.get "maintenance/failures/shop" == nil)
  end,
}

test "a quiet night is told as one, and a drained node is not forgotten" {
  nodes = 2,
  run = function(t)
    scripts.push("maintenance", rules)
    assert(crons.get("morning-report"):run().output == "all is well\n")
    nodes.get("n2"):update { availability = "drain" }
    assert(crons.get("morning-report"):run().output == "n2: ready, drain\n")
  end,
}
