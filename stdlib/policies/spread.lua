-- Spreads a service evenly: over nodes, or over the values of any field.
-- policy = "spread"  or  policy = { use = "spread", over = "labels.zone" }

policy "spread" {
  options = { over = "text" },
  score = function(node, task, view)
    local over = task.options.over
    local here = view:count { service = task.service, node = true }
    if not over then
      return -here - view:count { node = true } / 1000
    end
    -- The emptiest group first; within it, the emptiest node.
    return -view:count { service = task.service, same = over } - here / 1000
  end,
}
