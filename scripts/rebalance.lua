-- rebalance.lua: when a node comes back, it gets its share again. Hosted: neap script push rebalance scripts/rebalance.lua
-- What counts as better is each service's own policy; nobody moves for a gain of less than one.

on "node.ready" {
  name = "share-with-it",
  run = function(event)
    for _, service in services.list() do
      -- One in the middle of a rollout places its replicas anew by itself; a global one is there already.
      local ok, moved = pcall(service.rebalance, service, { min_gain = 0.9 })
      if ok and #moved > 0 then
        print(`{event.subject} is back: {service.name} moves {#moved} of {service.replicas} replicas`)
      end
    end
  end,
}
