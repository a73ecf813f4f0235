-- routes.lua: two versions of an application behind one host name, one of them for a few requests only.
--   neap run scripts/routes.lua PORT            deploys both, and sends 10 of 100 requests to the new one
--   neap run scripts/routes.lua PORT --finish   sends all to the new one
--   neap run scripts/routes.lua PORT --remove   takes everything away again

local port = tonumber((...) or "8080") or error "usage: neap run scripts/routes.lua [PORT [--finish|--remove]]"
local program = env.get("NEAP_PROGRAM", "/proc/self/exe")

-- Each has a port that is found by its name; none is published. The first has a route of its own as well.
service "shop" {
  command = { program, "demo", "--answer", "v1" }, replicas = 2,
  ports = { http = { target = 8080 } }, check = { http = "/healthz", every = "1s" },
  routes = { { host = "old.shop.test", listen = port } },
}:apply { wait = "1m" }
service "shop-next" {
  command = { program, "demo", "--answer", "v2" }, replicas = 1,
  ports = { http = { target = 8080 } }, check = { http = "/healthz", every = "1s" },
}:apply { wait = "1m" }

route "shop" {
  host = "shop.test", listen = port,
  to = { { service = "shop", weight = 90 }, { service = "shop-next", weight = 10 } },
}:apply()

for _, found in routes.list() do
  print(`{found.name}: {found.url}, {found.serving} replicas`)
end

-- Once the new version has proved itself, the route leads to it alone; and once nobody needs the route any more, it goes.
if select(2, ...) == "--finish" then
  assert(routes.get "shop", "the route is set")
  route "shop" { host = "shop.test", listen = port, to = "shop-next" }:apply()
  print(`all of {routes.get("shop").url} goes to the new version`)
elseif select(2, ...) == "--remove" then
  routes.remove "shop"
  services.get("shop"):remove()
  services.get("shop-next"):remove()
  print "route and services are removed"
end
