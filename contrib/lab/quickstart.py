"""The demonstration behind contrib/quickstart: guests on one pCPU, and vcpusched at work.

Everything is shown by vcpusched's own verbs on real guests; nothing is made up here.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab import Guest, Lab, LabError
from lab_processes import end_on_signals

RUN_S: Final = 30
PERIOD_S: Final = 2
MEASURE_S: Final = 4

GUESTS: Final = {
    "shop": [0.35],
    "database": [0.35, 0.35],
    "mail": [0.15],
    "wiki": [0.15],
    "backup": [0.10],
}
"""The small ones together want about as much as each large one. Large ones that share a pCPU seem
as if each wanted all of it, so a first plan puts two of the three on the other pCPU and leaves the
small ones with the third: that is balanced, too, when they turn out to want less."""


def main(program: str) -> int:
    """Run the demonstration; gives the exit status."""
    end_on_signals()
    try:
        with Lab() as lab:
            return _demonstrate(lab, program)
    except LabError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has seen enough; all is removed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _demonstrate(lab: Lab, program: str) -> int:
    _heading(f"Starting {len(GUESTS)} small emulated guests, all on pCPU 0")
    for name, shares in GUESTS.items():
        lab.add_guest(name, shares, pin=0)
        wants = " and ".join(f"{share:.0%}" for share in shares)
        vcpus = "1 vCPU that wants" if len(shares) == 1 else f"{len(shares)} vCPUs that want"
        print(f"  {name}: {vcpus} {wants} of a pCPU")
    time.sleep(2)
    guests = list(lab.guests.values())
    environment = environment_of(lab)

    before = _work_per_s(guests)
    _heading("Before: what vcpusched sees, and what it would do (vcpusched plan)")
    _run(lab.command([program, "plan"]), environment)

    _heading(f"The service at work for {RUN_S} seconds (vcpusched run {PERIOD_S})")
    with service(lab.command([program, "run", str(PERIOD_S)]), environment) as running:
        time.sleep(RUN_S)
        if running.poll() is not None:
            print("quickstart: vcpusched ended by itself", file=sys.stderr)
            return 1
        _heading("After (vcpusched status)")
        _run(lab.command([program, "status"]), environment)
        after = _work_per_s(guests)
    _heading("What the guests got")
    print(f"  CPU time of all guests per second: {before:.2f} s before, {after:.2f} s after")
    print("  Removing the guests and everything else that was started.")
    return 0


def environment_of(lab: Lab) -> dict[str, str]:
    """Return the environment in which vcpusched finds this libvirt, a run directory and two pCPUs.

    On more of them guests so small could not be balanced: each would be alone on its pCPU.
    """
    return lab.environment | {
        "RUNTIME_DIRECTORY": str(lab.directory / "temporary" / "vcpusched"),
        "VCPUSCHED_URI": lab.uri,
        "VCPUSCHED_CPUS": "0-1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, cwd="/", check=True)


@contextlib.contextmanager
def service(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service for a while."""
    process = subprocess.Popen(command, env=environment, cwd="/")
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _work_per_s(guests: list[Guest]) -> float:
    """Measure the CPU time that all guests together get in a second."""
    start_s, began_s = sum(guest.cpu_time_s() for guest in guests), time.monotonic()
    time.sleep(MEASURE_S)
    return (sum(guest.cpu_time_s() for guest in guests) - start_s) / (time.monotonic() - began_s)


def _heading(text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}\n", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).exists():  # noqa: PLR2004  the one argument
        sys.exit("usage: quickstart.py VCPUSCHED")
    sys.exit(main(sys.argv[1]))
