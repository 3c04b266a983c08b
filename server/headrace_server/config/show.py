"""Shows settings: the effective ones as TOML, and all of them as the table of the documentation."""

from __future__ import annotations

from headrace_server.config.settings import BY_KEY, GENERAL, SETTINGS, Setting
from headrace_server.config.sources import Effective
from headrace_server.config.values import FLAG, quoted


def as_toml(effective: Effective) -> str:
    """A file that says what holds, each line with its source. It may be used as it is."""
    config, origins = effective.config, effective.origins
    lines = [f"# {effective.file or 'no file'}"]
    rows = [
        (_line(setting, getattr(config, setting.key)), origins["", setting.key])
        for setting in GENERAL
    ]
    lines += _aligned(rows)
    for name, table in config.models.items():
        lines += ["", f"[models.{quoted(name)}]"]
        lines += _aligned(
            [(_line(BY_KEY[key], value), origins[name, key]) for key, value in table.items()]
        )
    return "\n".join(lines) + "\n"


def _line(setting: Setting, value: object) -> str:
    # TOML has no word for what is not set.
    shown = "" if value is None else setting.kind.show(value)
    return f"{setting.key} = {shown}" if shown else f"# {setting.key}: {setting.unset}"


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(line) for line, _ in rows), default=0)
    return [f"{line.ljust(width)}  # {origin}" for line, origin in rows]


def reference() -> str:
    """The table of all settings, in Markdown."""
    lines = ["| key | option | default | model | reload | |", "|---|---|---|---|---|---|"]
    for setting in SETTINGS:
        option = f"`{setting.option}`"
        if setting.kind is FLAG:
            option += f", `{setting.option.replace('--', '--no-', 1)}`"
        else:
            option = f"`{setting.option} {setting.kind.metavar}`"
        if setting.only_per_model:
            option = ""
        default = setting.unset or f"`{setting.kind.show(setting.default)}`"
        if setting.other_variable:
            default = f"`{setting.other_variable}`, else {default}"
        marks = [
            "yes" if setting.per_model else "",
            "yes" if setting.live else "",
        ]
        cells = [f"`{setting.key}`", option, default, *marks, setting.help]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines) + "\n"
