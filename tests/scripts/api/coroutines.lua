-- coroutines.lua: API calls and long runs inside coroutines of the script's own.
local names = {}
for _, n in { 1, 2, 3 } do table.insert(names, n) end
local seen = {}
local each = coroutine.wrap(function(first)
  assert(first == "go")
  for _, name in names do
    time.sleep "10ms"
    local got = coroutine.yield(name)
    assert(got == `back {name}`)
  end
  return "end"
end)
local value = each "go"
while value ~= "end" do
  table.insert(seen, value)
  value = each(`back {value}`)
end
assert(#seen == 3 and seen[3] == 3)
assert(not pcall(each, "once more"))
local thread = coroutine.create(function(a, b) time.sleep "1ms"; coroutine.yield(a + b, nil, "x"); error { code = 7 } end)
local packed = table.pack(coroutine.resume(thread, 1, 2))
assert(packed.n == 4 and packed[1] and packed[2] == 3 and packed[4] == "x")
local ok, why = coroutine.resume(thread)
assert(not ok and why.code == 7 and coroutine.status(thread) == "dead")
-- One within another.
local inner = coroutine.wrap(function() time.sleep "1ms"; coroutine.yield "inner" end)
local outer = coroutine.wrap(function() coroutine.yield(inner()); time.sleep "1ms"; return "outer" end)
assert(outer() == "inner" and outer() == "outer")
-- Longer than a turn: what it counts is what comes back.
local long = coroutine.wrap(function() local n = 0 for i = 1, 30000000 do n = n + i % 7 end return n end)
assert(long() == 89999997)
