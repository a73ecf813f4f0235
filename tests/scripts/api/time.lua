-- time: durations, moments, and waiting.

assert(time.seconds "1h30m" == 5400 and time.seconds(2.5) == 2.5 and time.seconds "250ms" == 0.25)
assert(time.format(0) == "1970-01-01T00:00:00Z")
assert(time.parse "2026-11-23T03:30:00Z" == 1795404600)
assert(time.parse(time.format(1795404600)) == 1795404600)
local before = time.now()
time.sleep "20ms"
local waited = time.now() - before
assert(waited >= 0.02 and waited < 5, waited)
for _, wrong in { "soon", "5x", {} } do
  assert(not pcall(time.seconds, wrong))
end
