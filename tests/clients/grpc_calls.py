# A server of gRPC on a port that it prints, or calls of all four kinds to one: grpc_calls.py serve | call PORT AUTHORITY
import sys
from concurrent import futures

import grpc

plain = dict(request_deserializer=bytes, response_serializer=bytes)


def once(request, context):
    context.set_trailing_metadata((("served-by", "once"),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked for")
    forwarded = dict(context.invocation_metadata()).get("x-forwarded-for", "")
    return request[::-1] + b" " + forwarded.encode()


def many(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def joined(requests, context):
    return b"+".join(requests)


def echoed(requests, context):
    yield from requests


class Handler(grpc.GenericRpcHandler):
    kinds = {
        "/neap.Test/Once": grpc.unary_unary_rpc_method_handler(once, **plain),
        "/neap.Test/Many": grpc.unary_stream_rpc_method_handler(many, **plain),
        "/neap.Test/Joined": grpc.stream_unary_rpc_method_handler(joined, **plain),
        "/neap.Test/Echoed": grpc.stream_stream_rpc_method_handler(echoed, **plain),
    }

    def service(self, details):
        return self.kinds.get(details.method)


if sys.argv[1] == "serve":
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()

options = [("grpc.default_authority", sys.argv[3])]
with grpc.insecure_channel(f"127.0.0.1:{sys.argv[2]}", options) as channel:
    def call(kind, name):
        return getattr(channel, kind)(f"/neap.Test/{name}", request_serializer=bytes, response_deserializer=bytes)

    for _ in range(50):
        answer, about = call("unary_unary", "Once").with_call(b"abc", timeout=10)
        assert answer == b"cba 127.0.0.1", answer
        assert ("served-by", "once") in about.trailing_metadata(), about.trailing_metadata()
    try:
        call("unary_unary", "Once")(b"fail", timeout=10)
        raise AssertionError("it should fail")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "as asked for", error
    assert list(call("unary_stream", "Many")(b"1000", timeout=20)) == [b"%d" % number for number in range(1000)]
    large = bytes(100_000)
    assert call("stream_unary", "Joined")(iter([large] * 20), timeout=20) == b"+".join([large] * 20)

    # Answers come while requests still go: one waits for the other.
    answers, turn = [], []

    def requests():
        for number in range(20):
            while len(answers) < number:
                pass
            yield b"%d" % number

    for answer in call("stream_stream", "Echoed")(requests(), timeout=20):
        answers.append(answer)
    assert len(answers) == 20, answers
print("ok")
