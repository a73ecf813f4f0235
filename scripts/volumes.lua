-- volumes.lua: lists volumes that no task mounts, and removes those with a label.
--   neap run scripts/volumes.lua            says what would go
--   neap run scripts/volumes.lua --remove   removes what carries the label scratch=yes

local remove = ... == "--remove"

local found, missing = volumes.list()
for host, why in missing or {} do warn(`{host}: {why}`) end

for _, volume in found do
  if #volume.used_by == 0 then
    local scratch = volume.labels.scratch == "yes"
    print(`{volume.hostname}: {volume.name} is not mounted{if scratch then ", and is scratch" else ""}`)
    -- A container that Neap did not start may mount it: then Docker keeps it, and says so.
    if remove and scratch then
      local ok, why = pcall(volumes.remove, volume.name, { node = volume.node })
      if ok then print(`{volume.hostname}: {volume.name} is removed`) else warn(why) end
    end
  end
end
