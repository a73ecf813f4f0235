-- Fills one node before the next, so that others stay empty: the node with the least room left that still fits.
-- policy = "binpack"

policy "binpack" {
  options = {},
  score = function(node, task, view)
    local cpu = node.cpu > 0 and node.free_cpu / node.cpu or 0
    local memory = node.memory > 0 and node.free_memory / node.memory or 0
    return -(cpu + memory) + view:count { node = true } / 1000
  end,
}
