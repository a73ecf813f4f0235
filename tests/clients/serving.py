# A server of gRPC that tells its health, on a port that it prints; a line on its input is the status from then on.
import sys
import threading
from concurrent import futures

import grpc

state = {"status": 1}


def check(request, context):
    # The first field of the question is the service; "" is the server as a whole.
    service = request[2:] if request else b""
    if service not in (b"", b"shop.Api"):
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return bytes([8, state["status"]])


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(check, request_deserializer=bytes, response_serializer=bytes)


server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Handler(),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
for line in sys.stdin:
    state["status"] = int(line)
