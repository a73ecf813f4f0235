"""All of py-consul's namespaces against one agent: whole.py PORT"""

import sys
import threading
import time

import consul
import consul.exceptions

c = consul.Consul(host="127.0.0.1", port=int(sys.argv[1]))


def fails(kind, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"{call} should raise {kind}")


def until(what, condition):
    end = time.time() + 20
    while time.time() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"not in time: {what}")


# status, agent
assert c.status.leader().count(":") == 1 and len(c.status.peers()) == 1
me = c.agent.self()["Config"]["NodeName"]
assert [member["Name"] for member in c.agent.members()] == [me]
assert c.agent.service.register(
    "web", service_id="web:1", address="10.9.8.7", port=81, tags=["v1", "blue"], meta={"rack": "r1"},
    check=consul.Check.ttl("10s"), weights={"Passing": 7, "Warning": 2},
)
assert c.agent.service.register("web", service_id="web:2", port=82, tags=["v2"])
assert set(c.agent.services()) == {"web:1", "web:2"}
assert set(c.agent.services(filter_expr='"v1" in Tags')) == {"web:1"}
assert c.agent.service_definition("web:1")["Weights"] == {"Passing": 7, "Warning": 2}
assert c.agent.check.register("memory", check=consul.Check.ttl("1m"), check_id="mem", service_id="web:2")
assert set(c.agent.checks()) == {"service:web:1", "mem"}
assert [check["CheckID"] for check in c.health.checks("web")[1]] == ["service:web:1", "mem"]


def passing():
    return sorted(found["Service"]["ID"] for found in c.health.service("web", passing=True)[1])


assert passing() == []
assert c.agent.check.ttl_pass("service:web:1", "all well") and c.agent.check.ttl_warn("mem")
assert passing() == ["web:1"]
assert c.agent.check.ttl_pass("mem") and passing() == ["web:1", "web:2"]
assert c.agent.check.ttl_fail("mem", "broken") and passing() == ["web:1"]
assert c.agent.service.maintenance("web:1", True, "a reason") and passing() == []
assert c.agent.service.maintenance("web:1", False) and passing() == ["web:1"]
assert c.agent.maintenance(True) and passing() == []
assert c.agent.maintenance(False) and passing() == ["web:1"]

# health, catalog
assert [f["Service"]["ID"] for f in c.health.service("web", tag="v2")[1]] == ["web:2"]
assert [f["Service"]["ID"] for f in c.health.service("web", filter_expr="Service.Port == 82")[1]] == ["web:2"]
assert {check["CheckID"] for check in c.health.node(me)[1]} == {"serfHealth", "service:web:1", "mem"}
assert [check["CheckID"] for check in c.health.state("critical")[1]] == ["mem"]
assert c.catalog.datacenters() == ["dc1"]
assert [node["Node"] for node in c.catalog.nodes()[1]] == [me]
assert c.catalog.services()[1] == {"web": ["blue", "v1", "v2"]}
assert c.catalog.node(me)[1]["Services"]["web:1"]["Address"] == "10.9.8.7"
assert {found["ServicePort"] for found in c.catalog.service("web")[1]} == {81, 82}
assert c.catalog.register("outside", "10.0.0.9", service={"service": "db", "id": "db:1", "port": 5432})
assert [node["Node"] for node in c.catalog.nodes(filter_expr="Node != " + me)[1]] == ["outside"]
assert c.catalog.deregister("outside", service_id="db:1") and c.catalog.service("db")[1] == []
assert c.catalog.deregister("outside") and c.catalog.node("outside")[1] is None

# kv
assert c.kv.put("shop/a", "1") and c.kv.put("shop/b/c", b"\x00\xff", flags=42) and c.kv.put("shop/b/d", None)
index, found = c.kv.get("shop/b/c")
assert (found["Value"], found["Flags"], found["ModifyIndex"]) == (b"\x00\xff", 42, int(index))
assert c.kv.get("shop/b/d")[1]["Value"] in (None, b"")
assert [found["Key"] for found in c.kv.get("shop/", recurse=True)[1]] == ["shop/a", "shop/b/c", "shop/b/d"]
assert c.kv.get("shop/", keys=True, separator="/")[1] == ["shop/a", "shop/b/"]
index, nothing = c.kv.get("nothing")
assert index and nothing is None
assert not c.kv.put("shop/a", "2", cas=0) and c.kv.put("shop/a", "2", cas=c.kv.get("shop/a")[1]["ModifyIndex"])
index = c.kv.get("shop/", recurse=True)[0]
later = threading.Timer(0.3, lambda: c.kv.put("shop/new", "x"))
later.start()
began = time.time()
woken, _ = c.kv.get("shop/", recurse=True, index=index, wait="20s")
assert int(woken) > int(index) and time.time() - began < 10
assert c.kv.delete("shop/a", cas=1) is False or c.kv.get("shop/a")[1]
assert c.kv.delete("shop/b/", recurse=True) and c.kv.get("shop/b/", recurse=True)[1] is None
assert c.kv.put("ü/ x?&%", "odd") and c.kv.get("ü/ x?&%")[1]["Value"] == b"odd"

# session
one = c.session.create("one", ttl=10, lock_delay=0, behavior="delete")
two = c.session.create("two", lock_delay=0)
assert {found["ID"] for found in c.session.list()[1]} == {one, two}
assert c.session.info(one)[1]["Name"] == "one" and len(c.session.node(me)[1]) == 2
assert c.kv.put("lock", "1", acquire=one) and not c.kv.put("lock", "2", acquire=two)
assert c.kv.get("lock")[1]["Session"] == one and c.kv.get("lock")[1]["LockIndex"] == 1
assert c.session.renew(one)["TTL"] == "10s"
assert c.session.destroy(one) and c.kv.get("lock")[1] is None
fails(consul.NotFound, c.session.renew, one)
fails(consul.ConsulException, c.kv.put, "lock", "1", acquire=one)
assert c.kv.put("lock", "2", acquire=two) and c.kv.put("lock", "3", release=two)
assert "Session" not in c.kv.get("lock")[1]

# txn
import base64

b64 = base64.b64encode(b"v").decode()
done = c.txn.put([{"KV": {"Verb": "set", "Key": "t/a", "Value": b64}}, {"KV": {"Verb": "get", "Key": "t/a"}}])
assert done["Errors"] is None and done["Results"][1]["KV"]["Value"] == b64
fails(consul.exceptions.ClientError, c.txn.put, [{"KV": {"Verb": "check-not-exists", "Key": "t/a"}}])

registered = c.txn.put([
    {"Node": {"Verb": "set", "Node": {"Node": "txn-node", "Address": "10.7.0.1"}}},
    {"Service": {"Verb": "set", "Node": "txn-node", "Service": {"ID": "t1", "Service": "txn-service", "Port": 99}}},
])
assert registered["Results"][1]["Service"]["Port"] == 99
assert c.catalog.service("txn-service")[1][0]["Address"] == "10.7.0.1"
c.txn.put([{"Node": {"Verb": "delete", "Node": {"Node": "txn-node"}}}])
assert c.catalog.service("txn-service")[1] == []

# event
fired = c.event.fire("deploy", "body")
assert c.event.list("deploy")[1][0]["Payload"] == b"body" and c.event.list("other")[1] == []
index = c.event.list()[0]
threading.Timer(0.3, lambda: c.event.fire("again")).start()
assert [event["Name"] for event in c.event.list(index=index, wait="20s")[1]] == ["deploy", "again"]

# query
query = c.query.create("web", "find-web", onlypassing=True, tags=["v1"], ttl="10s")["ID"]
assert [found["ID"] for found in c.query.list()] == [query]
assert c.query.get(query)[0]["Service"]["OnlyPassing"] is True
until("the query finds it", lambda: len(c.query.execute("find-web")["Nodes"]) == 1)
assert c.query.execute(query)["DNS"]["TTL"] == "10s"
assert c.query.explain("find-web-again")["Query"]["Service"]["Service"] == "web"
assert c.query.update(query, "web", "find-web", tags=["!v1"]) and c.query.delete(query)
assert c.query.list() == []

# coordinate
assert c.coordinate.datacenters() is not None and c.coordinate.nodes()[1] == []

assert c.agent.check.deregister("mem") and c.agent.service.deregister("web:1") and c.agent.service.deregister("web:2")
assert c.agent.services() == {}
print("all of it")
