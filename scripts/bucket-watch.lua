-- bucket-watch.lua: says when the registry's bucket has not everything, and when it has again.
--   neap script push bucket-watch scripts/bucket-watch.lua
--   neap registry stats                      how it stands with the bucket

local well = true

cron "bucket-watch" {
  schedule = "* * * * *",
  run = function()
    local bucket = registry.stats().replica
    if not bucket then return end
    local is_well = bucket.state == "whole" and bucket.why == nil
    if is_well ~= well then
      well = is_well
      -- http.post to whoever is to hear of it, here.
      print(is_well and `{bucket.place} has everything` or `{bucket.place} is {bucket.state}: {bucket.why or "not yet whole"}`)
    end
  end,
}
