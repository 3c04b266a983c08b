"""What a runner's channel is made with."""

from __future__ import annotations

import pytest

from headrace.rpc.options import MAX_MESSAGE_BYTES
from headrace_server.scheduling.planner import runner_options


@pytest.mark.parametrize("address", ["unix:/run/r.sock", "127.0.0.1:5"])
def test_gRPC_never_takes_a_runner_that_is_silent_for_one_that_is_gone(address: str) -> None:
    """How long it may be silent is the operator's to say: the stall timeout has no upper bound."""
    options = dict(runner_options(address))
    assert not [name for name in options if "keepalive" in name]
    assert options["grpc.max_receive_message_length"] == MAX_MESSAGE_BYTES
    assert options["grpc.enable_retries"] == 0
