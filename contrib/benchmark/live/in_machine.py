"""Runs the live part inside the emulated machine of tests/system: eight pCPUs, KVM guests.

Rule: boots it, starts `run live` there, passes its words on, fetches its results; measures nothing.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent import ENVIRONMENT
from image import image
from machine import Machine, MachineError
from progress import say

RELEASE: Final = "bookworm"
POLL_S: Final = 10.0
LIMIT_S: Final = 3 * 3600.0
LOG: Final = "/root/live.log"
RESULTS: Final = "/root/live"


def in_machine(arguments: Sequence[str], out: Path) -> int:
    """Measure in a machine that is booted for it, with these arguments of `run live`.

    Returns the exit status there; results are in `out`. Raises MachineError and ImageError.
    """
    kept = image(RELEASE, say)
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        say(f"Booting a machine of eight pCPUs with Debian {RELEASE}")
        with Machine(kept, Path(directory)) as machine:
            say(f"It is up after {machine.boot_s:.0f} s")
            status = _measure(machine, arguments)
            for name in ("live.json", "live.md"):
                found = machine.run("cat", f"{RESULTS}/{name}")
                if found.status == 0:
                    (out / name).write_text(found.out)
    return status


def _measure(machine: Machine, arguments: Sequence[str]) -> int:
    """Run it as a unit, so that its words can be passed on while it runs."""
    machine.say(
        *("systemd-run", "--unit=live", "--property=RemainAfterExit=yes"),
        *(f"--property=Standard{stream}=append:{LOG}" for stream in ("Output", "Error")),
        *(f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()),
        *("/src/contrib/benchmark/run", "live", "--system", *arguments, "--out", RESULTS),
    )
    passed, deadline_s = 0, time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        shown = machine.say("systemctl", "show", "live", "--property=SubState,ExecMainStatus")
        said = machine.say("tail", f"--bytes=+{passed + 1}", LOG)
        passed += len(said.encode())
        sys.stderr.write(said)
        state = dict(line.split("=", 1) for line in shown.splitlines())
        if state["SubState"] != "running":
            return int(state["ExecMainStatus"])
    raise MachineError(f"the measurement has not ended in {LIMIT_S:g} s")
