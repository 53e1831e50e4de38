"""`vcpusched simulate`: what a user types, and what comes of it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import PROGRAM, environment, vcpusched

CROWDED = """
cpus = 4
periods = 20

[[guest]]
name = "web"
count = 4
load = 25
pin = "0"
"""


@pytest.fixture
def workload(tmp_path: Path) -> str:
    """Give a file with four guests of 25% on the first of four pCPUs."""
    path = tmp_path / "crowded.toml"
    path.write_text(CROWDED)
    return str(path)


def test_a_table_for_a_person(workload: str) -> None:
    """What vcpusched bought, beside the same without it; nothing on stderr when piped."""
    done = vcpusched("simulate", workload)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert vcpusched("simulate", workload, COLUMNS="80").stdout.splitlines()[-6:] == lines[-6:]
    assert lines[0] == (f"{workload}: 4 vCPUs on 4 pCPUs, mean load 25%, 20 periods of 3s, seed 0")
    rows = {line[:20].strip(): line[20:].split() for line in lines[3:]}
    with_it, without = rows["gap over time"]
    assert without == "█" * 20
    assert with_it.startswith("███▁")
    assert rows["gap, mean"] == ["15", "points", "100", "points"]
    assert rows["pin changes"] == ["3", "in", "1", "plan", "none"]
    assert set(rows) == {
        "gap over time",
        "gap, mean",
        "demand not met",
        "time kept waiting",
        "worst vCPU",
        "pin changes",
    }


def test_a_level_that_the_workload_does_not_report(workload: str) -> None:
    """It is said on stderr, where settings ask for sets of pCPUs."""
    done = vcpusched("simulate", workload, VCPUSCHED_PIN_TO="core")
    assert done.stderr == (
        'vcpusched: pin_to = "core": this host does not report which pCPUs are threads of one core;'
        " each is taken for a core\n"
    )


def test_json_for_a_program(workload: str) -> None:
    """One document with both runs; the same each time, and another with another seed."""
    done = vcpusched("simulate", workload, "--json")
    form = json.loads(done.stdout)
    assert (form["version"], form["cpus"], form["vcpus"], form["periods"]) == (1, 4, 4, 20)
    assert (form["period_s"], form["seed"], form["place"]) == (3.0, 0, "random")
    assert (len(form["with"]["pins"]), form["without"]["pins"]) == (3, [])
    assert form["with"]["unmet"] < form["without"]["unmet"]
    assert vcpusched("simulate", workload, "--json").stdout == done.stdout
    other = vcpusched("simulate", workload, "--json", "--seed", "1", "--periods", "9")
    assert json.loads(other.stdout)["periods"] == 9
    assert json.loads(other.stdout)["without"]["unmet"] != form["without"]["unmet"]


def test_settings_decide(workload: str, tmp_path: Path) -> None:
    """The file, the environment: as for the other verbs. With max_moves = 1, one by one."""
    config = tmp_path / "config.toml"
    config.write_text("max_moves = 1\nperiod = 1\n")
    form = json.loads(vcpusched("simulate", workload, "--json", "--config", str(config)).stdout)
    assert (form["period_s"], [pin["period"] for pin in form["with"]["pins"]]) == (1.0, [2, 4, 6])
    done = vcpusched("simulate", workload, VCPUSCHED_MAX_MOVES="-1")
    assert (done.returncode, done.stdout) == (78, "")


def test_where_vcpus_start(workload: str) -> None:
    """All on one pCPU, the gap stays 100 points without vcpusched; one on each, there is none."""
    path = Path(workload)
    path.write_text(CROWDED.replace('pin = "0"', ""))
    for place, gap in (("one", 1.0), ("round-robin", 0.0)):
        done = vcpusched("simulate", workload, "--place", place, "--json")
        form = json.loads(done.stdout)
        assert (form["place"], form["without"]["gap_mean"]) == (place, gap)


def test_it_needs_neither_libvirt_nor_systemd(workload: str) -> None:
    """With both bindings impossible to import it works the same."""
    code = (
        "import sys; sys.modules['libvirt'] = sys.modules['systemd'] = None;"
        f"from vcpusched.cli.main import main; sys.exit(main(['simulate', {workload!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_guests_made_up() -> None:
    """Sizes, periods and mean as asked for."""
    done = vcpusched(
        *("simulate", "--generate", "--cpus", "2", "--vcpus", "6", "--periods", "5"),
        *("--mean", "50", "--place", "floating", "--json"),
    )
    form = json.loads(done.stdout)
    assert (form["cpus"], form["vcpus"], form["periods"], form["place"]) == (2, 6, 5, "floating")
    assert form["mean_load"] == pytest.approx(0.5, abs=0.005)


def test_guests_from_a_trace(tmp_path: Path) -> None:
    """A row of three values for one vCPU, for three periods."""
    trace = tmp_path / "trace"
    trace.write_text("7,1,100,200,300\n")
    done = vcpusched("simulate", "--trace", str(trace), "--vcpus", "1", "--cpus", "1", "--json")
    form = json.loads(done.stdout)
    assert (form["periods"], form["mean_load"]) == (3, 0.2)
    assert form["with"]["gap_mean"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "one of the arguments WORKLOAD --trace --generate is required"),
        (["x", "--generate"], 2, "not allowed with argument WORKLOAD"),
        (["x", "--cpus", "4"], 2, "--cpus goes with --trace and --generate"),
        (["--generate", "--cpus", "0"], 2, "'0' is not allowed: must be a whole number from 1"),
        (["--generate", "--seed", "x"], 2, "'x' is not allowed: must be a whole number from 0"),
        (["--generate", "--vcpus", "9" * 5000], 2, "is not allowed: must be a whole number"),
        (["--generate", "--place", "here"], 2, "invalid choice: 'here'"),
        (["/nowhere"], 65, "vcpusched: /nowhere: cannot be read: No such file or directory"),
        (["--trace", "/nowhere"], 65, "vcpusched: /nowhere: cannot be read"),
        (["--trace", "/dev/null"], 65, "vcpusched: /dev/null: holds no row"),
        (["--generate", "--vcpus", "2", "--mean", "90"], 65, "a mean load of 90% is out of reach"),
        (["--generate", "--vcpus", "9999", "--periods", "9999"], 65, "their product must be at"),
    ],
)
def test_what_is_refused(arguments: list[str], status: int, said: str) -> None:
    """One line that says what is wrong; 2 for the command line, 65 for what it names."""
    done = vcpusched("simulate", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 or status == 2


def test_a_mistake_in_the_file(tmp_path: Path) -> None:
    """File, guest, key, value and what is allowed, on one line; status 65."""
    path = tmp_path / "wrong.toml"
    path.write_text(CROWDED.replace("25", "250"))
    done = vcpusched("simulate", str(path))
    assert done.returncode == 65
    assert done.stderr.startswith(f"vcpusched: {path}: guest 1 (web): load: 250 is not allowed:")
    assert len(done.stderr.splitlines()) == 1


def test_a_workload_from_a_pipe_of_another_system(workload: str) -> None:
    """What cannot be read twice, and begins with a byte order mark."""
    piped = vcpusched("simulate", "/dev/stdin", stdin="\ufeff" + CROWDED)
    of_file = vcpusched("simulate", workload)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout == of_file.stdout.replace(workload, "/dev/stdin")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    """Progress is shown on the terminal; after a signal the cursor is there."""
    leader, follower = pty.openpty()
    arguments = ["simulate", "--generate", "--cpus", "64", "--vcpus", "400", "--periods", "5000"]
    with subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment({"TERM": "xterm"}),
        stdout=subprocess.PIPE,
        stderr=follower,
        stdin=subprocess.DEVNULL,
    ) as process:
        os.close(follower)
        shown = b""
        end = time.monotonic() + 30
        while b"Simulating" not in shown and time.monotonic() < end:
            shown += os.read(leader, 4096)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
        try:
            while more := os.read(leader, 4096):
                shown += more
        except OSError:
            pass  # how Linux says that nobody has the terminal open any more
    os.close(leader)
    assert process.returncode == -number
    assert output == b""
    assert b"Traceback" not in shown
    hidden, given_back = b"\x1b[?25l", b"\x1b[?25h"
    assert shown.rfind(given_back) > shown.rfind(hidden) > -1
