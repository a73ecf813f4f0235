-- images.lua: removes old images every night. Hosted: neap script push images scripts/images.lua
-- What a container uses, what services run and what they could go back to stays. Run it now with:
-- neap cron run prune-images

cron "prune-images" {
  schedule = "30 3 * * *", timezone = "Europe/Amsterdam", overlap = "skip", timeout = "10m",
  run = function()
    for _, node in nodes.list() do
      -- A node that cannot be asked now is asked tomorrow; the others need not wait for it.
      local ok, pruned = pcall(node.prune_images, node, { created_before = "72h" })
      if ok then
        print(`{node.name}: {#pruned.removed} images, {pruned.bytes // 1048576} MiB`)
      else
        warn(`{node.name}: {pruned}`)
      end
    end
  end,
}
