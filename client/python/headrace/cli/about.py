"""`version` and `completion`: about the command line itself."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click
from click.shell_completion import get_completion_class

from headrace.cli.output import echo_fields, echo_json, json_option

_PACKAGES = ("headrace", "grpcio", "protobuf", "mlx", "mlx-lm")


@click.command("version")
@json_option
def version_command(as_json: bool) -> None:
    """Show the versions of Headrace and of what it stands on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if as_json:
        echo_json(versions)
    else:
        echo_fields([(name, versions[name]) for name in (*_PACKAGES, "python") if name in versions])


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash:  eval "$(headrace completion bash)"
    zsh:   eval "$(headrace completion zsh)"
    fish:  headrace completion fish | source
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "headrace", "_HEADRACE_COMPLETE").source())
