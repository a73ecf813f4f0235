-- http: every verb against a real server, what an answer holds, and what a failure says.

local port = env.get "HTTP_PORT"
service "answers" {
  command = { env.get "NEAP_PROGRAM", "demo", "--answer", "hello" },
  ports = { http = port },
  check = { http = "/healthz", every = "50ms" },
  stop = { drain = "100ms" },
}:apply { wait = "20s" }
local url = `http://127.0.0.1:{port}/`
local reply = http.get(url, { headers = { ["x-test"] = "1" } })
assert(reply.status == 200 and reply:json().version == "hello" and reply.headers["content-type"]:find("json"))
-- It answers GET alone: that is an answer too, not an error.
assert(http.head(url).status > 0)
assert(http.post(url, { json = { a = 1 } }).status == 404 and http.put(url, { body = "x" }).status == 404)
assert(http.patch(url, { body = "x" }).status == 404 and http.delete(url).status == 404)
assert(http.request({ method = "OPTIONS", url = url }).status > 0)
local ok, why = pcall(http.get, "http://127.0.0.1:1/")
assert(not ok and why.kind == "unavailable" and tostring(why):find("cannot connect"), tostring(why))
local ok, why = pcall(http.get, url, { max_body = 1 })
assert(not ok and why.kind == "exhausted", tostring(why))
assert(not pcall(http.post, url, { body = "a", json = {} }))
local load = http.load({ url = url, requests = 50, connections = 2 }):wait()
assert(load.requests == 50 and load.failed == 0)
services.get("answers"):remove { wait = "20s" }
