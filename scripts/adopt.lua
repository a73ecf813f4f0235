-- adopt.lua: takes services of the Swarm's own over, one after the other, and says what each cost.
--   neap run scripts/adopt.lua shop_        says what would become of all whose names begin so
--   neap run scripts/adopt.lua shop_ --do   does it, and stops at the first that does not come up

local prefix, go = ...
assert(prefix, "usage: neap run scripts/adopt.lua PREFIX [--do]")

for _, native in natives.list { prefix = prefix } do
  local ok, made = pcall(natives.adopt, native.name, { dry_run = true })
  if not ok then
    warn(`{native.name}: {made}`)
  elseif go ~= "--do" then
    print(`{native.name} becomes {made.service.name}`)
    for _, note in made.notes do print(`  {note}`) end
  else
    local _, service = natives.adopt(native.name, { wait = "10m" })
    print(`{native.name} is {service.name} now: {service.healthy} of {service.replicas} healthy`)
  end
end
