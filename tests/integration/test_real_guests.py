"""The live benchmark on real guests: tiny blocks, real tables, and everything put back."""

import json
import subprocess
import sys
from pathlib import Path

from lab import Lab
from live_blocks import Timing, furnish, measure
from live_scenarios import scenarios
from program import environment

from vcpusched.model import CpuSet

TOP = Path(__file__).resolve().parents[2]
TWO = CpuSet.parse("0-1")


def test_the_start_is_restored(lab: Lab) -> None:
    """A block with the daemon leaves guests elsewhere; in the end all are where they began."""
    scenario = scenarios(TWO)["bad"]
    furnish(lab, scenario, TWO)
    found = list(measure(lab, scenario, Timing(pairs=1, rest_s=6, measure_s=1)))
    assert [block.daemon for block in found] == [False, True]
    without, having = found
    assert set(without.guests) == set(lab.guests)
    assert {got.cpus[0] for name, got in without.guests.items() if name != "wiki"} == {"0"}
    assert (without.pins, having.pins_failing) == (0, 0)
    assert having.pins > 0
    assert {cpus for got in having.guests.values() for cpus in got.cpus} == {"0", "1"}
    assert all(got.work_per_s > 0 for block in found for got in block.guests.values())
    for shape in scenario.guests:
        assert lab.guests[shape.name].affinity(0) == set(shape.start)


def test_the_command(tmp_path: Path) -> None:
    """It shows a table with every guest, writes its figures, and leaves no daemon behind."""
    program = [sys.executable, str(TOP / "contrib/benchmark/live.py")]
    options = ["--scenario", "pool", "--pairs", "2", "--rest", "4", "--measure", "2"]
    path = [str(TOP / part) for part in (".", "contrib/lab", "contrib/benchmark", "tests/system")]
    done = subprocess.run(
        [*program, *options, "--cpus", "2", "--out", str(tmp_path)],
        env=environment({"PYTHONPATH": ":".join(path)}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("shop", "mail", "database", "wiki", "worst off", "Verdict: holds."):
        assert word in done.stdout
    figures = json.loads((tmp_path / "live.json").read_text())["live"]["scenarios"]["pool"]
    assert [block["daemon"] for block in figures["blocks"]] == [False, True, True, False]
    assert figures["verdict"]["answer"] == "holds"
    assert (tmp_path / "live.md").read_text().count("###") == 2
