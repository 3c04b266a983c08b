"""`health`: one question to `grpc.health.v1`, for the probes of what watches over a server.

It is asked every few seconds: nothing is started, exported or traced for it.
"""

from __future__ import annotations

import os

import click


@click.command("health")
@click.argument("service", default="")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the answer.",
)
def health_command(service: str, timeout: float) -> int:
    """Say whether the server at HEADRACE_HOST is ready, for probes.

    SERVICE may be model/NAME, for a model that has to be loaded, or a service's full name. Exits
    with 0 where it serves, and with 4 where it does not or does not answer.
    """
    # gRPC's own log lines would end up in the middle of an answer.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from headrace.client import Client

    with Client() as client:
        serving = client.health(service, timeout=timeout)
    click.echo("serving" if serving else "not serving", err=not serving)
    return 0 if serving else 4
