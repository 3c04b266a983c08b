"""What deploy/otel asks for is what the services give: every metric and every label of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.telemetry import names
from headrace_server.monitoring.naming import label, series
from tests.unit.monitoring.test_naming import SPECS

DEPLOY = Path(__file__).parents[3] / "deploy" / "otel"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "dashboard.json").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((DEPLOY / "alerts.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]

KNOWN = {name for spec in SPECS for name in series(spec)} - set(series(names.RPC_CLIENT_DURATION))
"""Of services: the client's are the client's own."""
LABELS = {
    *(label(value) for key, value in vars(names).items() if key.isupper() and type(value) is str),
    *("le", "instance", "job"),
}
_WORD = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PREFIX = re.compile(r"\b(?:headrace|gen_ai|rpc)_\w+")


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and what it says."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]


def taken_apart(expression: str) -> tuple[set[str], set[str]]:
    """The metrics of an expression, and the labels that it asks for."""
    found = set(_PREFIX.findall(expression))
    selectors = re.findall(r"\{([^}]*)\}", expression)
    labels = {part.partition("=")[0].rstrip("!~ ") for s in selectors for part in s.split(", ")}
    for names_in_brackets in re.findall(r"(?:by|ignoring) \(([^)]*)\)", expression):
        labels |= set(_WORD.findall(names_in_brackets))
    return found - labels, labels - {""}


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_every_metric_and_label_is_one_of_ours(place: str, expression: str) -> None:
    metrics, labels = taken_apart(expression)
    assert metrics <= KNOWN, place
    assert metrics or expression.startswith("up{"), place
    assert labels <= LABELS, place


def test_legends_and_texts_name_labels_that_their_expression_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            aggregated = re.findall(r"by \(([^)]*)\)", target["expr"])
            kept = set(_WORD.findall(" ".join(aggregated))) if aggregated else LABELS
            assert shown <= kept, target["expr"]
    for rule in RULES:
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        aggregated = re.findall(r"by \(([^)]*)\)", rule["expr"])
        kept = set(_WORD.findall(" ".join(aggregated))) if aggregated else LABELS
        assert shown <= kept, rule["alert"]


def test_every_metric_of_ours_is_shown() -> None:
    shown = {metric for _, expression in expressions() for metric in taken_apart(expression)[0]}
    for spec in SPECS:
        if spec is not names.RPC_CLIENT_DURATION:
            assert shown & set(series(spec)), f"no panel and no alert has {spec.name}"


def test_variables_of_the_dashboard_exist() -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, found = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", variable["definition"]
        ).groups()  # type: ignore[union-attr]
        assert metric in KNOWN
        assert found in LABELS
    declared = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\b", json.dumps(DASHBOARD["panels"])))
    assert used == declared


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (place["x"] + dx, place["y"] + dy)
        for place in places
        for dx in range(place["w"])
        for dy in range(place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.toolchain
def test_promtool_takes_the_rules_and_the_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; it comes with Debian's prometheus")
    subprocess.run([promtool, "check", "rules", DEPLOY / "alerts.yaml"], check=True)
    subprocess.run([promtool, "check", "config", DEPLOY / "prometheus.yaml"], check=True)
    # And every query of the dashboard, as rules.
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression)}
        for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    subprocess.run([promtool, "check", "rules", file], check=True)
