-- retention.lua: tags that nobody needs go at night; what runs, and what a service could go back to, stays whatever its age.
--   neap script push retention scripts/retention.lua
--   neap registry prune 'shop/*' --keep 20 --dry-run       only says what would go

cron "retention" {
  schedule = "15 3 * * *",
  run = function()
    -- What is built for a pull request is of no use two weeks later.
    registry.prune { repositories = "*", tags = "pr-*", older_than = "14d" }
    -- Of all else the newest 20 of a repository, and what is younger than 90 days.
    local gone = registry.prune { repositories = "*", keep = 20, older_than = "90d", untagged = true }
    if #gone.images > 0 then print(`{#gone.images} images are not kept any more; {gone.in_use} stay, for they run`) end
    registry.gc()
  end,
}
