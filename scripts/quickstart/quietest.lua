-- quietest.lua: the node with the fewest tasks wins; a node labelled "tier=db" takes none.

policy "quietest" {
  filter = function(node)
    return node.labels.tier ~= "db", "is a database host"
  end,
  score = function(node, task, view)
    return -view:count { node = true }
  end,
}
