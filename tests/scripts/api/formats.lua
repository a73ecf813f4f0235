-- json, yaml, toml: there and back, and what a mistake says.

local wrong = { json = "{", yaml = "a: [", toml = "= {" }
for name, format in { json = json, yaml = yaml, toml = toml } do
  local text = format.encode({ a = 1, list = { 1, 2, 3 }, inner = { deep = true } })
  local back = format.decode(text)
  assert(back.a == 1 and #back.list == 3 and back.inner.deep, `{name}: {text}`)
  local ok, why = pcall(format.decode, wrong[name])
  assert(not ok and why.subject == `{name}.decode`, tostring(why))
end
assert(json.encode({ 1, 2 }) == "[1,2]")
assert(json.encode({ x = {} }, { pretty = true }):find("\n"))
assert(not pcall(yaml.encode, { x = 1 }, { pretty = true }))
assert(json.decode("[1, null, 3]")[3] == 3)
assert(yaml.decode("a: [1, 2]").a[2] == 2 and yaml.encode({ b = 1 }) == "b: 1\n")
assert(toml.decode("[t]\nk = 'v'").t.k == "v" and toml.encode({ k = "v" }) == 'k = "v"\n')
local ok, why = pcall(json.encode, { f = print })
assert(not ok and tostring(why):find("f: is a function"), tostring(why))
