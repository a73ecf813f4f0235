-- A replica that may end: it has done what it was for when it ends well.

test "it ends well, and that is as described" {
  nodes = 2,
  run = function(t)
    t.cluster:program("migrate:1", { exit_after = "3s", exit_code = 0 })
    local migrate = service "migrate" { image = "migrate:1", restart = { condition = "none" } }:apply { wait = "1m" }
    t.clock:advance "10s"
    migrate = migrate:refresh()
    assert(migrate.settled and migrate.healthy == 0 and #migrate.tasks == 0)
    -- Another revision runs once more, and is no failure.
    t.cluster:program("migrate:2", { exit_after = "500ms", exit_code = 0 })
    migrate = migrate:update({ image = "migrate:2" }, { wait = "1m" })
    assert(migrate.settled and migrate.revision == 2, json.encode(migrate.release))
    t.clock:advance "1m"
    assert(migrate:refresh().settled and migrate:refresh().revision == 2)
  end,
}

test "it fails, and whoever waits is told" {
  nodes = 1,
  run = function(t)
    t.cluster:program("migrate", { exit_after = "500ms", exit_code = 3 })
    local ok, why = pcall(function()
      service "migrate" { command = "migrate", restart = { condition = "none" } }:apply { wait = "1m" }
    end)
    assert(not ok and tostring(why):find "migrate.1: exit code 3", tostring(why))
    assert(not services.get("migrate").settled)
  end,
}

test "a new revision that fails goes back" {
  nodes = 1,
  run = function(t)
    t.cluster:program("migrate:1", { exit_after = "500ms", exit_code = 0 })
    t.cluster:program("migrate:2", { exit_after = "500ms", exit_code = 1 })
    local migrate = service "migrate" { image = "migrate:1", restart = { condition = "none" } }:apply { wait = "1m" }
    local ok, why = pcall(migrate.update, migrate, { image = "migrate:2" }, { wait = "1m" })
    assert(not ok and tostring(why):find "rolled back", tostring(why))
    migrate = migrate:refresh()
    assert(migrate.settled and migrate.spec.image == "migrate:1")
  end,
}
