"""`doctor`: what was found on this machine, and what would help."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace._target import resolve_target
from headrace.cli.connection import listening
from headrace.cli.output import echo_json, json_option

if TYPE_CHECKING:
    from headrace.host.checks import Finding

_COLOURS = {"ok": "green", "hint": "yellow", "problem": "red"}


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """Look at this machine. Exits with 1 when something keeps models from running here."""
    findings = _findings()
    if as_json:
        echo_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.topic) for finding in findings)
        for finding in findings:
            click.secho(finding.level.ljust(8), fg=_COLOURS[finding.level], nl=False)
            click.echo(f"{finding.topic.ljust(width)}  {finding.message}")
            if finding.remedy:
                click.secho(f"{'':{width + 10}}{finding.remedy}", dim=True)
    return int(any(finding.level == "problem" for finding in findings))


def _findings() -> list[Finding]:
    try:
        from headrace.host import blas, checks, compiler, kernels, machine
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is not installed: pip install 'headrace[server,runner]'"
        ) from None
    home = Path(os.environ.get("HEADRACE_HOME") or "~/.headrace").expanduser()
    wrong = []
    library = None
    try:
        library = blas.find_blas(os.environ.get("HEADRACE_BLAS"), home)
    except blas.BlasError as error:
        wrong.append(checks.Finding("problem", "blas", str(error)))
    findings = checks.doctor(
        machine.describe(),
        checks.installed(),
        library,
        compiler.has_cxx(),
        os.environ,
        kernels.find_kernels(),
    )
    target = resolve_target()
    if listening(target):
        there = checks.Finding("ok", "controller", f"one listens at {target}")
    else:
        there = checks.Finding(
            "hint",
            "controller",
            f"none listens at {target}",
            "`headrace serve` starts one; `headrace run` does without",
        )
    return [*findings, *wrong, there]
