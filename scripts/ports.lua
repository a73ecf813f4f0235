-- ports.lua: what every host listens on: who is behind it, what went by, and what is wrong.
--   neap run scripts/ports.lua            all ports
--   neap run scripts/ports.lua trouble    those with a problem, with nobody behind them, or that turn people away

local only = ... == "trouble"
for _, port in ports.list() do
  local flowed = port.flowed
  local away = flowed.refused + flowed.unrouted + flowed.malformed
  if not only or port.problem or port.serving == 0 or away > 0 then
    local whose = port.service or "routes"
    print(string.format("%5d/%-5s %-12s %3d serve  %6d open  %8d came  %5d turned away", port.port, port.speaks, whose,
      port.serving, flowed.open, flowed.connections, away))
    if port.problem then warn(`{port.name}: {port.problem}`) end
  end
end
