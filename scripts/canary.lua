-- canary.lua: a new version for those who ask for it, for the staff, and for one user in twenty; everybody else has the old one.
--   neap run scripts/canary.lua HOST SERVICE NEXT [PORT]
--   curl -H 'X-Canary: yes' http://HOST/

local host, current, upcoming, port = ...
if not upcoming then error("usage: neap run scripts/canary.lua HOST SERVICE NEXT [PORT]") end

-- Runs in the balancer of each host, for each request: up to 5 ms, and nothing but Luau's own libraries.
local choose = [[
local staff = { alice = true, bob = true }
return function(request)
  if request:header "x-canary" == "yes" then return "NEXT" end
  if request:header "x-canary" == "no" then return "CURRENT" end
  local user = request:cookie "user"
  if user and (staff[user] or request:share(user) < 0.05) then return "NEXT" end
  return nil
end
]]

local set = route(current) {
  host = host,
  listen = tonumber(port),
  to = { { service = current, weight = 100 }, { service = upcoming, weight = 0 } },
  choose = choose:gsub("NEXT", upcoming):gsub("CURRENT", current),
}:apply()
print(`{set.url}: {upcoming} for whoever is chosen, {current} for the rest`)
if set.passed.why_unchosen then warn(set.passed.why_unchosen) end
