"""The dashboard: it shows what there is, all of it, in expressions that Prometheus can read."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_metrics import COUNTED, SERVICE

DASHBOARD = Path(__file__).parents[2] / "contrib" / "grafana" / "vcpusched.json"

FILLED_IN = {"$instance": ".+", "$domain": ".+", "$__rate_interval": "1m", "$__range": "1h"}
"""What Grafana puts in the place of its variables."""


def panels() -> list[dict[str, Any]]:
    """Give all panels."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> Iterator[str]:
    """Give all expressions, as Grafana would send them."""
    annotations = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    for asked in (*annotations, *(each for panel in panels() for each in panel.get("targets", []))):
        text = str(asked["expr"])
        for variable, value in FILLED_IN.items():
            text = text.replace(variable, value)
        yield text


def test_it_shows_all_that_is_measured_and_nothing_else() -> None:
    """Each name in an expression is one that is written, and the other way round."""
    families = COUNTED.families(SERVICE, 0.0, per_vcpu=True)
    written = {sample.name for family in families for sample in family.samples}
    shown = {name for text in expressions() for name in re.findall(r"vcpusched_[a-z_]+", text)}
    assert shown == written


@pytest.mark.full
def test_prometheus_can_read_it(tmp_path: Path) -> None:
    """Each expression parses, by Prometheus' own tool."""
    rules = [
        {"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # is YAML, too
    done = subprocess.run(
        ["promtool", "check", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_it_can_be_imported_anywhere() -> None:
    """No data source of ours is in it; panels have ids and places of their own, and a title."""
    text = DASHBOARD.read_text()
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"${datasource}", "vcpusched"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["title"] for panel in panels())
    places = [
        (x, y)
        for panel in panels()
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24
