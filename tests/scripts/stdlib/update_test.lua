-- What an update changes of a description, and what it leaves.

test "it changes some variables and labels, and keeps what refers to keys" {
  nodes = 1,
  run = function(t)
    t.cluster:program("shop", {})
    kv.set("shop/level", "info")
    local shop = service "shop" {
      command = "shop",
      env = { LEVEL = kv.ref "shop/level", MODE = "fast", OLD = 1 },
      labels = { tier = "front", team = "a" },
    }:apply { wait = "1m" }
    local plan = shop:plan { replicas = 2, env_add = { MODE = "slow" } }
    assert(not plan.empty and #plan.steps == 2 and tostring(plan):find("MODE", 1, true), tostring(plan))
    assert(shop:plan { replicas = 1, env_add = { MODE = "fast" } }.empty)
    assert(shop:refresh().revision == 1)
    shop = shop:update({ env_add = { MODE = "slow", PORT = 80 }, env_rm = { "OLD", "NEVER" }, label_rm = "team" }, { wait = "1m" })
    local spec = shop.spec
    assert(spec.env.MODE == "slow" and spec.env.PORT == "80" and rawget(spec.env, "OLD") == nil, json.encode(spec.env))
    assert(spec.env_kv.LEVEL == "shop/level" and rawget(spec.env, "LEVEL") == nil)
    assert(spec.labels.tier == "front" and rawget(spec.labels, "team") == nil)
    -- A key takes the place of a value, and a value that of a key.
    shop = shop:update { env_add = { LEVEL = "debug", MODE = kv.ref "shop/level" }, label_add = { tier = "back" } }
    spec = shop.spec
    assert(spec.env.LEVEL == "debug" and spec.env_kv.MODE == "shop/level" and rawget(spec.env, "MODE") == nil)
    assert(spec.labels.tier == "back" and rawget(spec.env_kv, "LEVEL") == nil)
    -- The whole field, and then something in it.
    shop = shop:update { env = { ONE = "1" }, env_add = { TWO = "2" }, env_rm = {} }
    assert(json.encode(shop.spec.env) == json.encode { ONE = "1", TWO = "2" }, json.encode(shop.spec.env))
    assert(rawget(shop.spec, "env_kv") == nil)
  end,
}

test "what it does not understand changes nothing" {
  nodes = 1,
  run = function(t)
    t.cluster:program("shop", {})
    local shop = service "shop" { command = "shop", env = { MODE = "fast" } }:apply { wait = "1m" }
    local function refused(changes, why)
      local ok, error = pcall(shop.update, shop, changes)
      assert(not ok and tostring(error):find(why, 1, true), tostring(error))
    end
    refused({ env_add = "MODE=slow" }, "env_add: expected a table of names and values")
    refused({ env_rm = { MODE = true } }, "env_rm: expected a name, or a list of names")
    refused({ env_add = { ["A=B"] = "1" } }, "is not a variable's name")
    refused({ env_adds = { A = "1" } }, "env_adds")
    assert(shop:refresh().revision == 1 and shop:refresh().spec.env.MODE == "fast")
  end,
}
