"""Finding and ending the processes of a lab, also when its owner is killed.

Run as a program with a lab's directory as its argument, it waits until its standard input ends,
that is until the owner has closed the lab or has died, and removes what is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

PROC = Path("/proc")
PROGRAMS = ("qemu", "libvirtd", "virtqemud", "virtlogd")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
END_LIMIT_S = 20.0
QUIET_S = 0.05


def arguments(pid: int) -> list[str]:
    """Return the command line of a process, empty if it has ended."""
    try:
        text = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return text.rstrip(b"\0").decode(errors="replace").split("\0") if text else []


def processes() -> list[int]:
    """Return the process ids of the machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, of all its threads, past ones too."""
    # What clock_getcpuclockid(3) returns: the scheduler's own account, to the nanosecond.
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    text = (PROC / str(pid) / "status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def lab_processes(directory: Path) -> list[int]:
    """Return the ids of the QEMU and libvirt processes that belong to the lab in `directory`."""
    return [pid for pid in processes() if _belongs(pid, directory)]


def end_lab(directory: Path) -> bool:
    """Kill the processes of a lab and remove its directory; return whether all ended.

    Nothing is asked politely: a frozen daemon would not answer, and no state outlives the lab.
    """
    deadline_s = time.monotonic() + END_LIMIT_S
    while left := lab_processes(directory):
        # The daemon goes first, or it could start another guest while they are being killed.
        for pid in sorted(left, key=lambda pid: "qemu" in _name(arguments(pid))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline_s:
            break
        time.sleep(QUIET_S)
    shutil.rmtree(directory, ignore_errors=True)
    return not left


def end_on_signals() -> None:
    """Have SIGTERM, SIGINT and SIGHUP raise SystemExit, so that an owner removes what it made."""
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    # Once is enough: another signal must not cut the cleaning up short.
    for served in SIGNALS:
        # (A function, as Python complains of one that is ignored while it is pending.)
        signal.signal(served, lambda _number, _frame: None)
    raise SystemExit(128 + number)


def _name(command: list[str]) -> str:
    """Return the name of the program that a command line runs."""
    return Path(command[0]).name if command else ""


def _belongs(pid: int, directory: Path) -> bool:
    """Return whether a process is a daemon or a guest of the lab in `directory`."""
    command = arguments(pid)
    if not _name(command).startswith(PROGRAMS):
        return False
    inside = f"{directory}{os.sep}"
    if any(inside in argument for argument in command):
        return True
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"XDG_RUNTIME_DIR={inside}".encode() in environment


def main() -> None:
    """Wait until the lab's owner is gone, then end the lab."""
    sys.stdin.buffer.read()
    end_lab(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
