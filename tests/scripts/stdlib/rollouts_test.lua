-- rolling and all-at-once: how a new version comes in, and how a bad one goes back.

local function web(version, rollout, rollback)
  return service "web" {
    command = { "server", version },
    replicas = 6,
    ports = { http = "80" },
    check = { http = "/healthz", every = "1s", unhealthy = 2, start_period = version == "slow" and "1m" or "0s" },
    rollout = rollout,
    rollback = rollback,
    stop = { drain = "1s" },
  }
end

local programs = {
  ["server v1"] = { answers = { ["/"] = "v1" } },
  ["server v2"] = { answers = { ["/"] = "v2" } },
  ["server slow"] = { ready = "20s", answers = { ["/"] = "slow" } },
  ["server bad"] = { healthy = false, answers = { ["/"] = "bad" } },
  ["server crash"] = { exit_after = "300ms", exit_code = 3 },
}

-- Of so many requests, how many each version answers.
local function shares(count)
  local found = {}
  for _ = 1, count do
    local body = http.get("http://localhost/").body
    found[body] = (found[body] or 0) + 1
  end
  return found
end

-- The most tasks in a state at once, of all that happened.
local function most(t, from, to)
  local now, top = 0, 0
  local seen = {}
  for _, event in t.cluster:events() do
    if event.what == from and not seen[event.task_id] then
      seen[event.task_id] = true
      now += 1
    elseif event.what == to and seen[event.task_id] then
      seen[event.task_id] = false
      now -= 1
    end
    top = math.max(top, now)
  end
  return top
end

test "rolling replaces batch by batch" {
  nodes = 3, programs = programs,
  run = function(t)
    web("v1"):apply { wait = "1m" }
    assert(shares(60).v1 == 60)
    web("v2", { use = "rolling", batch = 2, min_healthy = "5s" }):apply { wait = "10m" }
    assert(shares(60).v2 == 60)
    -- Two more than wanted ran at once, and no more.
    assert(most(t, "task.assigned", "task.ended") == 8)
    local release = services.get("web").release
    assert(release.state == "promoted" and release.step >= 4, json.encode(release))
  end,
}

test "rolling waits for what starts slowly" {
  programs = programs,
  run = function(t)
    web("v1"):apply { wait = "1m" }
    local before = t.clock:now()
    web("slow", { use = "rolling", batch = 3 }):apply { wait = "10m" }
    assert(t.clock:now() - before > 40 and shares(60).slow == 60)
  end,
}

for _, bad in { "bad", "crash" } do
  test(`rolling goes back when a task is {bad}`, function(t)
    for name, program in programs do t.cluster:program(name, program) end
    web("v1"):apply { wait = "1m" }
    local ok, why = pcall(function() web(bad):apply { wait = "10m" } end)
    assert(not ok and tostring(why):find("rolled back to revision 1"), tostring(why))
    assert(services.get("web").settled and shares(60).v1 == 60)
  end)
end

test "rolling can stop, or go on, instead" {
  programs = programs,
  run = function(t)
    web("v1"):apply { wait = "1m" }
    assert(not pcall(function() web("bad", { use = "rolling", on_failure = "pause" }):apply { wait = "10m" } end))
    assert(services.get("web").release.state == "paused" and shares(60).v1 == 60)
    services.get("web"):rollback { wait = "5m" }
    web("v2", { use = "rolling", batch = "50%", delay = "30s", on_failure = "continue" }):apply { wait = "10m" }
    assert(shares(60).v2 == 60)
  end,
}

test "all-at-once never runs two versions" {
  nodes = 2, programs = programs,
  run = function(t)
    web("v1", "all-at-once"):apply { wait = "1m" }
    web("v2", "all-at-once"):apply { wait = "10m" }
    assert(most(t, "task.assigned", "task.ended") == 6)
    assert(shares(60).v2 == 60)
    local crash = web("crash", { use = "all-at-once", min_healthy = "2s" })
    assert(not pcall(function() crash:apply { wait = "10m" } end))
    assert(services.get("web"):wait("5m").settled and shares(60).v2 == 60)
  end,
}

test "a rollback goes the way that was asked for it" {
  programs = programs,
  run = function(t)
    local back = { use = "rolling", batch = 1, delay = "20s", min_healthy = "1s", on_failure = "pause" }
    web("v1", nil, back):apply { wait = "1m" }
    web("v2", nil, back):apply { wait = "10m" }
    services.get("web"):rollback()
    t.clock:advance "30s"
    local web = services.get "web"
    assert(not web.settled and web.release.rollout.delay == "20s", json.encode(web.release.rollout))
    web:wait "10m"
    assert(shares(60).v1 == 60)
    -- It stays so, and the way of a release as well.
    local spec = services.get("web").spec
    assert(spec.rollback.delay == "20s" and (spec.rollout == "rolling" or spec.rollout.use == "rolling"), json.encode(spec))
  end,
}

test "so many are on their way all the time" {
  nodes = 3,
  run = function(t)
    t.cluster:program("web:1", {})
    t.cluster:program("web:2", { ready = "2s" })
    local web = service "web" { image = "web:1", replicas = 8, check = { http = "/", port = 80, every = "1s" } }
    web = web:apply { wait = "1m" }
    local most, healthy = 0, 8
    web:update({ image = "web:2", rollout = { use = "rolling", batch = 3, min_healthy = "0s" } }, { wait = false })
    for _ = 1, 400 do
      t.clock:advance "100ms"
      local now = services.get "web"
      local starting, serving = 0, 0
      for _, task in now.tasks do
        local serves = task.state == "running" and task.health == "healthy" and task.stop == nil
        if serves then serving += 1 end
        if task.revision == 2 and not serves and task.state ~= "shutdown" then starting += 1 end
      end
      most, healthy = math.max(most, starting), math.min(healthy, serving)
      if now.release.state == "promoted" then break end
    end
    web = services.get "web"
    assert(web.release.state == "promoted" and web.release.step >= 6, json.encode(web.release))
    assert(most == 3, `{most} at once`)
    assert(healthy == 8, `{healthy} healthy`)
  end,
}

test "what hangs is judged by its own time" {
  nodes = 3,
  run = function(t)
    t.cluster:program("web:1", {})
    local web = service "web" { image = "web:1", replicas = 20 }:apply { wait = "1m" }
    t.cluster:program("web:2", { answers = { ["/"] = { status = 503, body = "hangs" } } })
    local ok, why = pcall(web.update, web, {
      image = "web:2", check = { http = "/", port = 80, every = "1s", on_fail = "none", unhealthy = 1000 },
      rollout = { use = "rolling", batch = 2, min_healthy = "0s", batch_deadline = "20s" },
    }, { wait = "5m" })
    assert(not ok and tostring(why):find "was not healthy within 20s", tostring(why))
    t.clock:advance "1m"
    web = services.get "web"
    assert(web.release.state == "rolled_back" and web.release.step <= 3, json.encode(web.release))
  end,
}

test "an abort leaves each slot as it is, whichever way it was going" {
  programs = programs,
  run = function(t)
    web("v1"):apply { wait = "1m" }
    -- On its way forward with two of six, told to move the rest, and stopped before any of those answers.
    web("slow", { use = "rolling", batch = 2, min_healthy = "30s" }):apply()
    t.clock:advance "25s"
    local live = services.get("web"):promote()
    t.clock:advance "1s"
    live = live:abort()
    t.clock:advance "2m"
    local now = shares(60)
    assert(now.v1 == 40 and now.slow == 20, json.encode(now))
    assert(services.get("web").release.state == "failed")
    -- Going back from there, and stopped again: none is sent forward once more.
    live = services.get("web"):rollback { wait = "5m" }
    assert(shares(60).v1 == 60)
  end,
}

test "a release that ends at once is told" {
  programs = programs,
  run = function(t)
    local with = scripts "brought/*.lua"
    web("v1"):apply { wait = "1m" }
    local ok, why = pcall(function() web("v2", "no"):apply { with = with, wait = "1m" } end)
    assert(not ok and tostring(why):find "rolled back to revision 1" and tostring(why):find "not today", tostring(why))
    -- The same as what runs is nothing new, though the release before went back; and is told as no failure.
    local same = web("v1")
    assert(same:plan().empty, tostring(same:plan()))
    same:apply { wait = "1m" }
    local other = web("v2", "no"):plan { with = with }
    assert(not other.empty and #other.steps == 6, tostring(other))
  end,
}

for _, order in { "start-first", "stop-first" } do
  test(`a paused node keeps what it has, and holds up no release: {order}`) {
    nodes = 3, programs = programs,
    run = function(t)
      local function agent(version)
        return service "agent" {
          command = { "server", version }, mode = "global", rollout = { use = "rolling", order = order, min_healthy = "1s" },
        }
      end
      local function revisions()
        local found = { 0, 0, 0 }
        for _, task in services.get("agent").tasks do
          if task.state == "running" then found[task.revision] += 1 end
        end
        return table.concat(found, " ")
      end
      agent("v1"):apply { wait = "1m" }
      local paused = nodes.list()[2]:update { availability = "pause" }
      agent("v2"):apply { wait = "5m" }
      assert(revisions() == "1 2 0", revisions())
      -- Back again, and it is as everywhere.
      paused:update { availability = "active" }
      t.clock:advance "1m"
      assert(services.get("agent"):wait("1m").settled and revisions() == "0 3 0", revisions())
    end,
  }
end

test "a rollout that breaks holds its release up, which is no success, until the mended one is applied" {
  programs = programs,
  run = function(t)
    local function mine(version, which)
      return service "web" {
        command = { "server", version }, replicas = 3, rollout = "mine", with = scripts(`mended/{which}.lua`),
      }
    end
    mine("v1", "broken"):apply():wait "1m"
    local ok, why = pcall(function() mine("v2", "broken"):apply():wait "1m" end)
    assert(not ok and tostring(why):find 'did you mean "min_healthy"', tostring(why))
    -- Asked for again, it is not there yet, and says so.
    local plan = mine("v2", "broken"):plan()
    assert(not plan.empty and plan.release and tostring(plan):find "paused, 0 of 3 moved", tostring(plan))
    assert(not pcall(function() mine("v2", "broken"):apply():wait "1m" end))
    assert(mine("v2", "right"):apply():wait("1m").revision == 2)
    assert(mine("v2", "right"):plan().empty)
    for _, task in services.get("web").tasks do assert(task.revision == 2) end
  end,
}

test "between batches it waits as long as is asked for, and not after the last" {
  programs = programs,
  run = function(t)
    local function web(version)
      return service "web" {
        command = { "server", version }, replicas = 4,
        rollout = { use = "rolling", batch = 2, min_healthy = "1s", delay = "20s" },
      }
    end
    web("v1"):apply():wait "1m"
    local begun = time.now()
    local live = web("v2"):apply()
    -- Held up and let go in between, the waits are as before.
    t.clock:advance "5s"
    live:pause()
    live:resume()
    live = live:wait "5m"
    local took = time.now() - begun
    assert(took >= 20 and took < 60, took)
  end,
}

test "what a service gives a policy or a rollout is checked when it is applied" {
  run = function()
    for said, fields in {
      ['did you mean "over"'] = { policy = { use = "spread", ovr = "labels.zone" } },
      ['expected a text'] = { policy = { use = "spread", over = 5 } },
      ['did you mean "start%-first"'] = { rollout = { use = "rolling", order = "start_first" } },
      ['batch: expected a number of replicas'] = { rollout = { use = "rolling", batch = 0 } },
      ['delay: "5 sec" has an unknown unit'] = { rollout = { use = "rolling", delay = "5 sec" } },
      ['max_failure_ratio: expected a number'] = { rollout = { use = "rolling", max_failure_ratio = "10%" } },
      ['did you mean "rollback"'] = { rollout = { use = "rolling", on_failure = "rolback" } },
      ['deadline: "2 hours"'] = { rollout = { use = "all-at-once", deadline = "2 hours" } },
    } do
      fields.command = "server"
      local ok, why = pcall(function() service "web"(fields):apply() end)
      assert(not ok and tostring(why):find(said), said .. ": " .. tostring(why))
    end
  end,
}

test "a correction that fails where nothing ever ran says what is wrong with the correction" {
  programs = { gone = { reject = "no such folder" }, lost = { reject = "no such program" } },
  run = function()
    local first = pcall(function() service "web" { command = "gone" }:apply():wait "5m" end)
    local begun = time.now()
    local ok, why = pcall(function() service "web" { command = "lost" }:apply():wait "10m" end)
    assert(not first and not ok and tostring(why):find "to which it goes back, does not run", tostring(why))
    assert(tostring(why):find "no such program" and time.now() - begun < 300, tostring(why))
  end,
}

test "a failure that is let pass does not hurry the next batch" {
  programs = programs,
  run = function(t)
    web("v1"):apply { wait = "1m" }
    local live = web("crash", { use = "rolling", batch = 2, delay = "1m", on_failure = "continue" }):apply()
    for _, step in { { "30s", 2 }, { "20s", 2 }, { "30s", 4 }, { "60s", 6 } } do
      t.clock:advance(step[1])
      local moved = live:refresh().release.moved
      assert(#moved == step[2], `after {step[1]} more {#moved} have moved, and not {step[2]}`)
    end
  end,
}

test "nor does another one while that is waited out" {
  nodes = 2,
  run = function(t)
    t.cluster:program("web:1", {})
    t.cluster:program("web:2", {})
    local web = service "web" { image = "web:1", replicas = 6 }:apply { wait = "1m" }
    web:update { image = "web:2", rollout = { use = "rolling", batch = 2, min_healthy = "2s", delay = "1m", on_failure = "continue" } }
    t.clock:advance "10s"
    local new = {}
    for _, task in services.get("web").tasks do
      if task.revision == 2 then table.insert(new, task.name) end
    end
    assert(#new == 2, json.encode(new))
    local step = services.get("web").release.step
    for _, name in new do
      t.cluster:kill(name, 1)
      t.clock:advance "5s"
    end
    t.clock:advance "35s"
    local release = services.get("web").release
    assert(#release.moved == 2 and release.failed, json.encode(release))
    t.clock:advance "30s"
    release = services.get("web").release
    assert(#release.moved == 4 and release.step == step + 1, json.encode(release))
  end,
}
