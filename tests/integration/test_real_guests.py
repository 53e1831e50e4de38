"""The live benchmark on real guests: tiny blocks, real tables, and everything put back."""

import json
import subprocess
import sys
from pathlib import Path

from program import environment

TOP = Path(__file__).resolve().parents[2]


def test_the_command(tmp_path: Path) -> None:
    """Each table has its rows, and every block begins with all guests where they start.

    The figures, and whether the claim holds (the exit status), are the machine's matter.
    """
    program = [sys.executable, "-m", "live.command", "bad", "cost"]
    tiny = ["--quick", "--pairs", "2", "--rest", "1", "--measure", "1", "--cpus", "2"]
    tests = ("tests", "tests/host", "tests/integration", "tests/system")
    path = [str(TOP / part) for part in (".", "contrib/lab", "contrib/benchmark", *tests)]
    done = subprocess.run(
        [*program, *tiny, "--out", str(tmp_path)],
        env=environment({"PYTHONPATH": ":".join(path)}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line[:2] == "| "]
    assert rows[:5] == ["guests", *["10 x 2"] * 2, "guests", "500 x 2 on 64"]
    assert rows[5:] == [
        "guest",
        *("shop", "mail", "database", "wiki", "worst off", "all"),
        *("scenario", "Bound badly at the start"),
    ]
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("cost", "live")}
    costs = found["cost"]["cost"]["live"]
    assert [cost["side"] for cost in costs] == [
        *(order := ["C program", "now"]),
        *order[::-1],
    ]
    assert all(cost["own_ms"] > 0 for cost in costs)
    measured = found["live"]["live"]["scenarios"]["bad"]
    assert [block["daemon"] for block in measured["blocks"]] == [False, True, True, False]
    # Guests are started floating; where nobody else moved them they are where they were put.
    for block in measured["blocks"][::3]:
        for guest in measured["scenario"]["guests"]:
            assert set(block["guests"][guest["name"]]["cpus"]) == {guest["start"]}
