-- fs, env, sh, args: what is the user's own.

local folder = "made/by/a/script"
fs.mkdir(folder)
fs.write(folder .. "/a.txt", "one\ntwo")
assert(fs.read(folder .. "/a.txt") == "one\ntwo")
assert(fs.exists(folder .. "/a.txt") and not fs.exists(folder .. "/b.txt"))
assert(#fs.list(folder) == 1 and fs.list(folder)[1] == "a.txt")
assert(not pcall(fs.remove, "made"))
fs.remove("made", { recursive = true })
assert(not fs.exists "made")
assert(not pcall(fs.read, "nothing/here"))

assert(env.get("NEAP_NO_SUCH_VARIABLE") == nil and env.get("NEAP_NO_SUCH_VARIABLE", "x") == "x")
assert(env.require "PATH" == env.get "PATH")
local ok, why = pcall(env.require, "NEAP_NO_SUCH_VARIABLE")
assert(not ok and tostring(why):find("NEAP_NO_SUCH_VARIABLE"), tostring(why))

local out = sh("printf %s-%s a b")
assert(out.stdout == "a-b" and out.code == 0)
assert(sh({ "cat" }, { stdin = "in" }).stdout == "in")
assert(sh("exit 3", { check = false }).code == 3)
assert(not pcall(sh, "exit 3"))

assert(args[1] == "--tag" and args[2] == "v1")
local options = args.parse { tag = { required = true } }
assert(options.tag == "v1")
