-- Stacks, as they are applied: what waits, and what is whose.

local function one(image, more)
  local spec = { name = "", image = image, labels = { ["com.docker.stack.namespace"] = "shop" }, stop = { drain = "0s", grace = "1s" } }
  for key, value in more or {} do spec[key] = value end
  return spec
end

local function stack(services, depends_on, name)
  for key, spec in services do spec.name = `{name or "shop"}-{key}` end
  return { name = name or "shop", services = services, depends_on = depends_on or {} }
end

test "whoever waits for one that fails is not deployed" {
  nodes = 2,
  run = function(t)
    t.cluster:program("migrate:1", { exit_after = "500ms", exit_code = 0 })
    t.cluster:program("migrate:2", { exit_after = "500ms", exit_code = 1 })
    local function version(n, required)
      local once = { restart = { condition = "none" } }
      return stack(
        { api = one(`api:{n}`), migrate = one(`migrate:{n}`, once) },
        { api = { migrate = { ["until"] = "completed", required = required } } }
      )
    end
    compose.apply(version(1, true), { wait = "1m" })
    local ok, why = pcall(compose.apply, version(2, true), { wait = "1m" })
    assert(not ok and tostring(why):find "rolled back", tostring(why))
    assert(services.get("shop-api").spec.image == "api:1", "deployed although its migration failed")
    -- Where it is not needed, that is told and no more.
    compose.apply(version(2, false), { wait = "1m" })
    assert(services.get("shop-api").spec.image == "api:2")
  end,
}

test "a port goes from one service to another" {
  nodes = 1,
  run = function(t)
    local port = { ports = { http = 8080 } }
    compose.apply(stack({ web = one("web", port), zoo = one("zoo") }), { wait = "1m" })
    -- Renamed: what is named no more goes first.
    compose.apply(stack({ frontend = one("web", port), zoo = one("zoo") }), { prune = true, wait = "1m" })
    assert(#services.list() == 2 and services.get("shop-frontend").settled)
    -- Taken by another one that stays, whatever the letters say.
    compose.apply(stack({ frontend = one("web", port), alpha = one("alpha"), zoo = one("zoo") }), { wait = "1m" })
    compose.apply(stack({ alpha = one("alpha", port), frontend = one("web"), zoo = one("zoo") }), { wait = "1m" })
    assert(services.get("shop-alpha").spec.ports.http.published == 8080)
    assert(services.get("shop-frontend").spec.ports == nil)
  end,
}

test "what is of another stack, or of none, is left alone" {
  nodes = 1,
  run = function(t)
    compose.apply(stack { ["web-api"] = one "a" }, { wait = "1m" })
    local other = stack({ api = one "b" }, nil, "shop-web")
    other.services.api.labels = { ["com.docker.stack.namespace"] = "shop-web" }
    local ok, why = pcall(compose.apply, other)
    assert(not ok and tostring(why):find 'is of stack "shop"', tostring(why))
    service "shop-web" { image = "mine" }:apply { wait = "1m" }
    local ok, why = pcall(compose.apply, stack { web = one "c" })
    assert(not ok and tostring(why):find "is of no stack", tostring(why))
    assert(services.get("shop-web").spec.image == "mine" and services.get("shop-web-api").spec.image == "a")
    compose.remove "shop"
    assert(#services.list() == 1)
  end,
}
