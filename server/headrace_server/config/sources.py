"""Where settings come from: one file, the environment, the command line; the later ones win."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace._target import DEFAULT_TARGET, is_local
from headrace.rpc.protection import missing_beside
from headrace_server.config import values
from headrace_server.config.problems import ConfigError, Problem, line_of, nearest
from headrace_server.config.settings import BY_KEY, GENERAL, Key, ServerConfig, Setting
from headrace_server.config.values import HttpsAddress, Kind, quoted, toml

_OF_CLIENTS = frozenset({"token", "tls_ca", "client_cert", "client_key"})
"""Variables of clients, which a shell may well have as well."""
FILE_NAME = "config.toml"
"""Of the file that is read from the home where none is named."""
MODELS = "models"
DEFAULT = "default"
"""The source of what nobody has set."""

_PREFIX = "HEADRACE_"
_GENERAL = {setting.key: setting for setting in GENERAL}
_FILE_VARIABLE = "HEADRACE_CONFIG"
_MAX_FILE_BYTES = 1 << 20
_TLS = ("tls_cert", "tls_key", "tls_client_ca")
_EPILOG = """\
examples:
  headrace serve
  headrace serve --listen unix:/run/headrace.sock --preload smollm2:135m
  headrace serve --listen 0.0.0.0:50151 --tls-cert tls.crt --tls-key tls.key --tokens tokens.json
  headrace serve --config /etc/headrace.toml --check-config

Each option is also a key of the file and a variable of the environment:
--keep-alive, keep_alive and HEADRACE_KEEP_ALIVE. SIGHUP has the file read again.
"""


@dataclass(frozen=True)
class Effective:
    """A configuration, and where each part of it comes from."""

    config: ServerConfig
    origins: Mapping[Key, str]
    """The source of each setting: a file and line, a variable, an option; or DEFAULT."""
    file: Path | None
    """The file that was read."""
    warnings: tuple[str, ...] = ()
    """What is likely a mistake and harms nothing."""


class Sources:
    """The command line and the environment of a process, and the file that they lead to."""

    def __init__(
        self, argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ
    ) -> None:
        """Read the command line. Exits with status 2 and a usage message when it is wrong."""
        given = vars(_parser().parse_args(argv))
        self.check: bool = given.pop("check_config")
        """Whether the configuration is only to be shown."""
        self._file: str | None = given.pop("config")
        self._hidden = {"parent": given.pop("parent"), "ready_fd": given.pop("ready_fd")}
        self._options = {key: _joined(value) for key, value in given.items()}
        self._env = dict(env)

    def read(self) -> Effective:
        """Read the file and put all together.

        Raises ConfigError with every mistake of file and environment.
        """
        reading = _Reading()
        reading.environment(self._env)
        for key, value in self._options.items():
            reading.put(BY_KEY[key], value, BY_KEY[key].option)
        home = reading.values.get("home") or reading.path("home", str(BY_KEY["home"].default))
        file = self._find(reading, home)
        if file is not None:
            reading.file(file)
        if reading.problems:
            raise ConfigError(reading.problems)
        config = ServerConfig(
            **{"home": home, **reading.values, **self._hidden},
            models=MappingProxyType(reading.models),
        )
        _check_tls(config, reading)
        _check_https(config, reading)
        if not config.insecure:
            if config.tls_cert is None:
                _check_local("listen", config.listen, "127.0.0.1 or a Unix socket", reading)
            if config.metrics_listen is not None:
                _check_local("metrics_listen", config.metrics_listen, "127.0.0.1", reading)
        origins = {("", setting.key): DEFAULT for setting in GENERAL} | reading.origins
        return Effective(config, origins, file, tuple(reading.warnings))

    def _find(self, reading: _Reading, home: Path | None) -> Path | None:
        """The file that is named, or that of the home if there is one."""
        named = self._file or self._env.get(_FILE_VARIABLE)
        if named:
            return reading.path("--config" if self._file else _FILE_VARIABLE, named)
        file = home and home / FILE_NAME
        return file if file and file.exists() else None


_REMEDY = {"listen": "give --tls-cert and --tls-key, ", "metrics_listen": ""}


def _check_tls(config: ServerConfig, reading: _Reading) -> None:
    """Raises ConfigError for files without those that belong to them, and for what cannot be."""
    given = next((key for key in _TLS if getattr(config, key) is not None), None)
    if given is None:
        return
    lacks = missing_beside(config.tls_cert, config.tls_key, config.tls_client_ca)
    if lacks is not None:
        what = f"goes with {lacks}; give --{lacks.replace('_', '-')} too"
        raise ConfigError([Problem(reading.origins["", given], 0, what)])
    if config.takeover and not config.listen.startswith("unix:"):
        what = "does not go with TLS: the two could not talk; listen on unix:/path behind a proxy"
        raise ConfigError([Problem(reading.origins["", "takeover"], 0, what)])


def _check_https(config: ServerConfig, reading: _Reading) -> None:
    """Raises ConfigError for an address that promises a TLS that there would not be."""
    if isinstance(config.listen, HttpsAddress) and config.tls_cert is None:
        here = config.listen if is_local(config.listen) else DEFAULT_TARGET
        what = (
            f"https://{config.listen} speaks of TLS, and there would be none; give --tls-cert and "
            f"--tls-key, or --listen {here}"
        )
        raise ConfigError([Problem(reading.origins["", "listen"], 0, what)])


def _check_local(key: str, address: str, instead: str, reading: _Reading) -> None:
    """Raises ConfigError for an address that others can reach. `key` is what has named it."""
    if not is_local(address):
        what = (
            f"{address} reaches beyond this machine without TLS; listen on {instead}, "
            f"{_REMEDY[key]}or allow it with --insecure or insecure = true"
        )
        raise ConfigError([Problem(reading.origins["", key], 0, what)])


class _Reading:
    """What has been read so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.origins: dict[Key, str] = {}
        self.problems: list[Problem] = []
        self.warnings: list[str] = []

    def put(self, setting: Setting, value: Any, origin: str) -> None:
        self.values[setting.key] = value
        self.origins["", setting.key] = origin

    def path(self, origin: str, text: str) -> Path | None:
        """None where it is none, which is a problem of its origin."""
        try:
            return values.path(text)
        except ValueError as error:
            self.problems.append(Problem(origin, 0, f"{quoted(text)} {error}"))
            return None

    def environment(self, env: Mapping[str, str]) -> None:
        """Take the variables; an empty one is as good as none."""
        for setting in GENERAL:
            for variable in filter(env.get, (setting.variable, setting.other_variable)):
                try:
                    self.put(setting, setting.kind.parse(env[variable]), variable)
                except ValueError as error:
                    what = f"{quoted(env[variable])} {error}"
                    self.problems.append(Problem(variable, 0, what))
                break
        known = {setting.key for setting in GENERAL} | {"config", "host"} | _OF_CLIENTS
        for name in sorted(env):
            key = name.removeprefix(_PREFIX).lower()
            # Others may have variables of this prefix too; one that looks like ours is a slip.
            if name.startswith(_PREFIX) and key not in known:
                near = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.75)
                self.warnings += [
                    f"{name} is not read; did you mean {_PREFIX}{word.upper()}?" for word in near
                ]

    def file(self, path: Path) -> None:
        """Take what the file says and nobody else has said."""
        try:
            with path.open("rb") as stream:
                data = stream.read(_MAX_FILE_BYTES + 1)
            if len(data) > _MAX_FILE_BYTES:
                raise ValueError(f"the file is larger than {_MAX_FILE_BYTES} bytes")
            text = data.decode()
            table = tomllib.loads(text)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            self.problems.append(Problem(str(path), 0, what))
            return
        except ValueError as error:  # Also of decoding, and of TOML, which says where.
            self.problems.append(Problem(str(path), 0, f"is not TOML: {error}"))
            return
        _File(self, path, text).settings(table)


class _File:
    """One file on its way into a reading."""

    def __init__(self, reading: _Reading, path: Path, text: str) -> None:
        self._reading = reading
        self._path = path
        self._text = text

    def settings(self, table: Mapping[str, Any]) -> None:
        reading = self._reading
        for key, found in table.items():
            if key == MODELS:
                self._models(found)
                continue
            setting = self._setting(key, (key,), _GENERAL)
            if setting is None:
                continue
            for value in self._value(setting.kind, found, (key,)):
                if key not in reading.values:
                    reading.put(setting, value, self._origin((key,)))

    def _models(self, tables: object) -> None:
        if not isinstance(tables, dict):
            self._blame((MODELS,), f'{toml(tables)} is no table; write [models."name:tag"]')
            return
        seen: dict[str, str] = {}
        for written, table in tables.items():
            path = (MODELS, written)
            try:
                name = str(values.model_name(written))
            except ValueError as error:
                self._blame(path, f"{quoted(written)} {error}")
                continue
            if not isinstance(table, dict):
                self._blame(path, f"{toml(table)} is no table of settings")
                continue
            for other in values.names_of(name):
                if other in seen:
                    self._blame(path, f"the same model as [models.{quoted(seen[other])}]")
            seen[name] = written
            self._model(name, path, table)

    def _model(self, name: str, path: tuple[str, str], table: Mapping[str, Any]) -> None:
        known = {key: setting for key, setting in BY_KEY.items() if setting.per_model}
        own = self._reading.models.setdefault(name, {})
        for key, found in table.items():
            setting = self._setting(key, (*path, key), known)
            if setting is not None:
                for value in self._value(setting.kind, found, (*path, key)):
                    own[key] = value
                    self._reading.origins[name, key] = self._origin((*path, key))

    def _setting(
        self, key: str, path: Sequence[str], known: Mapping[str, Setting]
    ) -> Setting | None:
        if key in known:
            return known[key]
        if key in BY_KEY and BY_KEY[key].only_per_model:
            what = 'is a setting of one model; move it to its table, [models."name:tag"]'
        elif key in BY_KEY:
            what = "is a setting of the controller, not of one model; move it to the top"
        else:
            what = f"there is no such setting{nearest(key, known)}"
        self._blame(path, what)
        return None

    def _value(self, kind: Kind, found: object, path: Sequence[str]) -> Iterator[Any]:
        try:
            yield kind.read(found)
        except ValueError as error:
            self._blame(path, f"{toml(found)} {error}")

    def _blame(self, path: Sequence[str], what: str) -> None:
        table = f"[{MODELS}.{quoted(path[1])}] " if len(path) > 1 else ""
        key = "" if len(path) == 2 else f"{path[-1]}: "
        problem = Problem(str(self._path), line_of(self._text, path), f"{table}{key}{what}")
        self._reading.problems.append(problem)

    def _origin(self, path: Sequence[str]) -> str:
        return f"{self._path}:{line_of(self._text, path)}"


def parse(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> ServerConfig:
    """The configuration of a process. Exits with status 2, and says why, when it is wrong."""
    return read(Sources(argv, env)).config


def read(sources: Sources) -> Effective:
    """The same with its origins."""
    try:
        return sources.read()
    except ConfigError as error:
        lines = "".join(f"headrace serve: error: {problem}\n" for problem in error.problems)
        sys.stderr.write(lines)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace serve",
        description="Serve MLX models over gRPC.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("configuration").add_argument
    add(
        "--config",
        metavar="FILE",
        help=f"TOML file (default: {_FILE_VARIABLE}, else {FILE_NAME} in the home)",
    )
    add(
        "--check-config",
        action="store_true",
        help="print what holds and where it comes from, or what is wrong, and exit",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in GENERAL:
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(setting.group)
        groups[setting.group].add_argument(setting.option, **_option(setting))
    # What follows is for programs that start a controller of their own.
    parser.add_argument("--parent", choices=("stdin",), help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _option(setting: Setting) -> dict[str, Any]:
    kind = setting.kind
    shown = setting.unset or kind.show(setting.default).strip('"')
    told: dict[str, Any] = {
        # Nothing where it is not given, so that what is given can be told from what is not.
        "default": argparse.SUPPRESS,
        "help": f"{setting.help} (default: {shown})".replace("%", "%%"),
    }
    if kind is values.FLAG:
        return {**told, "action": argparse.BooleanOptionalAction}
    if kind is values.MODELS:
        told["action"] = "append"
    return {**told, "type": _typed(kind), "metavar": kind.metavar}


def _typed(kind: Kind) -> Callable[[str], Any]:
    def typed(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} {error}") from None

    return typed


def _joined(value: Any) -> Any:
    """An option that is given several times is one list."""
    return tuple(word for part in value for word in part) if isinstance(value, list) else value
