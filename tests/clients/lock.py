"""Holds a lock as long as it lives: lock.py PORT NAME. Says so on its standard output."""

import sys
import time

import consul

c = consul.Consul(host="127.0.0.1", port=int(sys.argv[1]))
session = c.session.create(sys.argv[2], ttl=10, lock_delay=1)
index = None
while not c.kv.put("service/leader", sys.argv[2], acquire=session):
    index, found = c.kv.get("service/leader", index=index, wait="2s")
    c.session.renew(session)
    if found is None or "Session" not in found:
        time.sleep(0.2)
print("leads", flush=True)
while True:
    time.sleep(2)
    c.session.renew(session)
