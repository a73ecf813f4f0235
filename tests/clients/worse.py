# A bad way between two links: frames are lost, doubled, late and out of order. worse.py LINK LINK LOSS DUPLICATE REORDER DELAY
# (shares from 0 to 1, and milliseconds). What tc's netem does, where the kernel has none.
import heapq
import random
import select
import socket
import sys
import time

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 15, 23, 3


def opened(link):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    # Checksums and large frames as the kernel hands them on.
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((link, ETH_P_ALL))
    sock.setblocking(False)
    return sock


one, two = opened(sys.argv[1]), opened(sys.argv[2])
loss, double, reorder, delay = map(float, sys.argv[3:7])
delay /= 1000
chance = random.Random(1)
other = {one: two, two: one}
waiting, count = [], 0
print("ready", flush=True)
while True:
    now = time.monotonic()
    while waiting and waiting[0][0] <= now:
        _, _, to, frame = heapq.heappop(waiting)
        try:
            to.send(frame)
        except OSError:
            pass
    wait = max(waiting[0][0] - now, 0) if waiting else None
    ready, _, _ = select.select([one, two], [], [], wait)
    for sock in ready:
        for _ in range(64):
            try:
                frame = sock.recv(1 << 17)
            except (BlockingIOError, OSError):
                break
            if chance.random() < loss:
                continue
            for _ in range(2 if chance.random() < double else 1):
                # One that overtakes those before it does not wait.
                at = time.monotonic() + (0 if chance.random() < reorder else delay)
                count += 1
                heapq.heappush(waiting, (at, count, other[sock], frame))
