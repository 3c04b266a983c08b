"""`cert`: certificates to try TLS with, of an authority of one's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

_LOCAL = ("localhost", "127.0.0.1", "::1")
_DAYS = 825
"""The most that Apple's systems take of a server's certificate."""


@click.group("cert")
def cert_command() -> None:
    """Make certificates to try TLS with."""


@cert_command.command("dev")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name or address of the server beside localhost. May be given several times.",
)
@click.option(
    "--days",
    type=click.IntRange(1, _DAYS),
    default=30,
    show_default=True,
    help="How long the certificates hold.",
)
def dev(directory: Path, hosts: tuple[str, ...], days: int) -> None:
    """Write a certificate authority, a server's certificate and a client's into DIRECTORY.

    An authority that is there already signs again, so that who trusts it trusts the new ones too.
    For development: the authority's key lies beside what it signs.
    """
    if not find_spec("cryptography"):
        raise click.ClickException("this needs a library: pip install 'headrace[server]'")
    from headrace.cli.authority import Authority, AuthorityError

    directory.mkdir(parents=True, exist_ok=True)
    try:
        authority = Authority(directory)
        authority.issue("server", [*_LOCAL, *hosts], days, server=True)
        authority.issue("client", ["headrace-client"], days, server=False)
    except AuthorityError as error:
        raise click.ClickException(str(error)) from None
    except ValueError as error:  # A name that none can be: "a b".
        raise click.BadParameter(str(error), param_hint="--host") from None
    at = directory
    click.echo(
        f"wrote ca.crt, ca.key, server.crt, server.key, client.crt and client.key to {at}\n\n"
        f"serve:   headrace serve --tls-cert {at}/server.crt --tls-key {at}/server.key\n"
        f"         and, so that clients need a certificate too: --tls-client-ca {at}/ca.crt\n"
        f"call:    export HEADRACE_HOST=https://localhost HEADRACE_TLS_CA={at}/ca.crt\n"
        f"         and, with a certificate: HEADRACE_CLIENT_CERT={at}/client.crt"
        f" HEADRACE_CLIENT_KEY={at}/client.key"
    )
