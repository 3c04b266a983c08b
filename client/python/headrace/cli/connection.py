"""Finds the controller that a command talks to: the one that listens, or a private one.

A private controller is started before gRPC is imported, so that both happen at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from headrace._target import is_local, resolve_target
from headrace.cli.private import ControllerDied, PrivateController

if TYPE_CHECKING:
    from headrace.client import Client

_CONNECT_SECONDS = 2.0
_END_SECONDS = 2.0
"""For a controller of one's own that answers no more to be gone."""


@contextmanager
def controller(*, private: bool, preload: str | None = None) -> Iterator[Client]:
    """A client of the controller at HEADRACE_HOST.

    Args:
        private: whether to start a private controller where none listens.
        preload: a model that a private controller loads at once.

    Raises:
        Unavailable: none listens, and none could be started.
    """
    target = resolve_target()
    with ExitStack() as stack:
        own = None
        if not listening(target):
            # Nobody names another machine in vain.
            if not (private and is_local(target) and find_spec("headrace_server")):
                raise _nobody_listens(target, private)
            own = stack.enter_context(PrivateController(preload))
            target = own.target

        # gRPC's own log lines would end up in the middle of an answer.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from headrace.client import Client
        from headrace.errors import HeadraceError, Unavailable

        if any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
            from headrace.telemetry.setup import configure

            telemetry = configure(
                "headrace-cli", instance_id=str(os.getpid()), log_format="text", level="WARNING"
            )
            stack.callback(telemetry.shutdown)
        # The environment says also by what way, and as whom.
        client = stack.enter_context(Client(own.target if own else None))
        try:
            if own:
                own.wait()
            yield client
        except ControllerDied as died:
            failed = Unavailable(f"the private controller could not be started: {died}")
            if own:
                failed.add_note(own.log_tail())
            raise failed from None
        except HeadraceError as error:
            lost = isinstance(error, Unavailable) and not error.reason
            if own and own.has_ended(_END_SECONDS if lost else 0.0):
                error.add_note("the private controller has ended; its last words:")
                error.add_note(own.log_tail())
            raise


def listening(target: str) -> bool:
    """Whether something accepts connections there. Targets that only gRPC can read: true."""
    try:
        if target.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_SECONDS)
                probe.connect(target.removeprefix("unix:").removeprefix("//"))
        elif "/" not in target:
            host, _, port = target.rpartition(":")
            address = (host.strip("[]"), int(port))
            socket.create_connection(address, _CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _nobody_listens(target: str, private: bool) -> Exception:
    from headrace.errors import Unavailable

    error = Unavailable(f"no controller listens at {target}")
    if private and is_local(target):
        error.add_note("to start one here, install it: pip install 'headrace[server,runner]'")
    else:
        error.add_note("`headrace serve` starts one; HEADRACE_HOST says where it listens")
    return error
