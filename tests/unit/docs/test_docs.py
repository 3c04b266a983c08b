"""Holds README and docs to what the code really has: commands, options, errors, links, examples."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import headrace_runner.config
import headrace_server.config
import tests.bench.__main__
from headrace._exceptions import BY_REASON
from headrace.cli.app import cli
from headrace.telemetry import names
from headrace.telemetry.names import CounterSpec, HistogramSpec, LevelSpec
from headrace.v1.errors_pb2 import ErrorReason

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_RUNNER, _BENCH = "headrace_runner", "tests.bench"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Page:
    """One page, taken apart."""

    blocks: list[tuple[str, str]]
    """Language and text of each fenced block."""
    prose: str
    """The rest."""

    @property
    def spans(self) -> list[str]:
        """What stands in backquotes."""
        return _SPAN.findall(self.prose)

    def commands(self) -> Iterator[str]:
        """Command lines: those of a console block that are typed, and those in the text."""
        for language, text in self.blocks:
            if language == "console":
                for line in text.replace("\\\n", " ").splitlines():
                    if line.startswith("$ "):
                        yield line.removeprefix("$ ")
        yield from self.spans


def read(page: Path) -> Page:
    text = page.read_text(encoding="utf-8")
    return Page(_FENCE.findall(text), _FENCE.sub("", text))


def flags_of(parse: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that an argparse parser shows."""
    with pytest.raises(SystemExit):
        parse(["--help"])
    return set(_FLAG.findall(capsys.readouterr().out))


@pytest.fixture
def options(capsys: pytest.CaptureFixture[str]) -> dict[str, set[str]]:
    """The options of each command, by name."""
    context = click.Context(cli)
    found: dict[str, set[str]] = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts = command.commands.values() if isinstance(command, click.Group) else [command]
        params = [param for part in parts for param in part.params]
        found[name] = {flag for param in params for flag in param.opts if flag[:2] == "--"}
    found["serve"] = flags_of(headrace_server.config.parse, capsys) - {"--help"}
    found[_RUNNER] = flags_of(headrace_runner.config.parse, capsys) - {"--help"}
    found[_BENCH] = flags_of(tests.bench.__main__.parse, capsys) - {"--help"}
    return found


def invocations(line: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of ours in a shell line, each with the words after it."""
    for part in re.split(r"[|;&]|\$\(", line):
        words = part.split()
        while words and "=" in words[0]:
            words = words[1:]  # the environment
        match words:
            case ["headrace", command, *rest] if re.fullmatch(r"[a-z]+", command):
                yield command, rest
            case ["python", "-m", ("headrace_runner" | "tests.bench") as module, *rest]:
                yield module, rest


def test_there_are_pages() -> None:
    assert len(PAGES) > 8
    assert sum(len(list(read(page).commands())) for page in PAGES) > 50


@pages
def test_every_command_line_is_one_that_exists(page: Path, options: dict[str, set[str]]) -> None:
    for line in read(page).commands():
        for command, words in invocations(line):
            assert command in options, f"{line}: there is no such command"
            for flag in _FLAG.findall(" ".join(words)):
                assert flag in {*options[command], "--help"}, f"{line}: {command} has no {flag}"


@pages
def test_every_option_named_in_the_text_exists(page: Path, options: dict[str, set[str]]) -> None:
    known = {"--help"}.union(*options.values())
    for span in read(page).spans:
        if span.startswith("--"):
            flag = _FLAG.match(span)
            assert flag is not None, span
            assert flag[0] in known, f"{span}: no command has this option"


def test_every_command_and_option_has_its_place(options: dict[str, set[str]]) -> None:
    sections = re.split(
        r"^## ", (ROOT / "docs/cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    text = {section.partition("\n")[0]: section for section in sections}
    for command, flags in options.items():
        if command in (_RUNNER, _BENCH):
            continue
        for flag in flags:
            assert flag in _FLAG.findall(text[command]), f"docs/cli.md: {command} {flag}"

    operations = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    runner = operations.partition("## A runner alone")[2]
    for flag in options[_RUNNER]:
        assert f"| `{flag}" in runner, f"docs/operations.md: no row for {flag} of a runner"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    table = headrace_server.config.reference()
    assert table in text, f"docs/configuration.md has another table than:\n{table}"


def test_the_example_of_a_configuration_is_taken_and_sets_what_it_says(tmp_path: Path) -> None:
    (example,) = [
        text for kind, text in read(ROOT / "docs/configuration.md").blocks if kind == "toml"
    ]
    file = tmp_path / "config.toml"
    file.write_text(example, encoding="utf-8")
    config = headrace_server.config.Sources(["--config", str(file)], {}).read().config
    assert config.options("smollm2:135m").pinned
    assert config.options("team/coder:30b").prefix_cache == 2 << 30
    assert config.options("other:latest").context == 4096


def test_every_error_reason_is_in_the_table_with_its_code() -> None:
    contract = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([A-Z_]+) \| (.+?) \|", contract, re.MULTILINE))
    reasons = {value.name.removeprefix("ERROR_REASON_") for value in ErrorReason.DESCRIPTOR.values}
    reasons.remove("UNSPECIFIED")
    assert rows.keys() == reasons
    for reason in reasons - {"LOAD_FAILED", "RUNNER_CRASHED"}:  # theirs depend on the cause
        assert rows[reason] == BY_REASON[reason].code.name, reason


def test_every_metric_is_in_the_tables_as_it_is() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\w+) \| (\S+) \|[^|]*\| (.+) \|$", page, re.MULTILINE)
    kinds = {CounterSpec: "counter", LevelSpec: "level", HistogramSpec: "histogram"}
    assert rows == [
        (spec.name, kinds[type(spec)], spec.unit, spec.description)
        for prefix in (("rpc.", "gen_ai."), ("headrace.",), ("headrace.engine.",))
        for spec in vars(names).values()
        if isinstance(spec, CounterSpec | LevelSpec | HistogramSpec)
        and spec is not names.RPC_CLIENT_DURATION
        and spec.name.startswith(prefix)
        and (prefix == ("headrace.engine.",)) == spec.name.startswith("headrace.engine.")
    ]


@pages
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(read(page).prose):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.is_file(), f"{link}: no such file"
        if anchor:
            prose = read(target).prose
            slugs = {
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                for heading in _HEADING.findall(prose)
            }
            assert anchor in slugs, f"{link}: no such heading"


@pages
def test_python_examples_compile_and_import_what_exists(page: Path) -> None:
    for language, code in read(page).blocks:
        if language != "python":
            continue
        tree = ast.parse(code, filename=str(page))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module[:8] == "headrace":
                for name in node.names:
                    assert imported(node.module, name.name), f"{node.module} has no {name.name}"


def imported(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pages
def test_every_variable_of_ours_is_read_somewhere(page: Path) -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for package in ("client/python/headrace", "server", "runner", "tests/bench")
        for path in (ROOT / package).rglob("*.py")
        if "v1" not in path.parts
    )
    settings = {setting.variable for setting in headrace_server.config.SETTINGS}
    for name in set(re.findall(r"\bHEADRACE_[A-Z_]+\b", page.read_text(encoding="utf-8"))):
        assert f'"{name}"' in code or name in settings, f"nothing reads {name}"
