# A WebSocket server on a port that it prints, or a client of one: websocket.py serve | talk URL
import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    if sys.argv[1] == "serve":
        async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
            print(server.sockets[0].getsockname()[1], flush=True)
            await server.serve_forever()
    async with connect(sys.argv[2], max_size=None) as socket:
        for message in ["hello", "x" * 1_000_000, b"\x00\xff" * 1000, ""]:
            await socket.send(message)
            assert await socket.recv() == message
        await socket.ping()
    print("ok")


asyncio.run(main())
