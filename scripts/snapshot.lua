-- snapshot.lua: keeps what clients have registered and written (instances, keys, sessions, prepared queries) in a file, or puts it back.
--   neap run scripts/snapshot.lua catalog.tgz
--   neap run scripts/snapshot.lua catalog.tgz --restore

local file, word = ...
if not file or word and word ~= "--restore" then error "usage: neap run scripts/snapshot.lua FILE [--restore]" end

if word == "--restore" then
  local done = discovery.restore(fs.read(file))
  print(`{done.registrations} registrations and {done.others} keys, sessions and queries put back; {done.removed} removed`)
  return
end

fs.write(file, discovery.snapshot())
print(`{#discovery.services()} services and {#kv.list()} keys are kept in {file}`)
