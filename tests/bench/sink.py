"""An OTLP receiver that takes everything and keeps nothing. Says its port, ends with its stdin."""

from __future__ import annotations

import json
import sys
from concurrent import futures

import grpc


class _Take(grpc.GenericRpcHandler):
    """Any unary call: bytes in, an empty answer out."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")


def main() -> None:
    """Serve until stdin ends."""
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[_Take()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"port": port}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"port": port, "asked": line.strip()}), flush=True)
    server.stop(0)


if __name__ == "__main__":
    main()
