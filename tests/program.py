"""Runs the program as a user would, without the settings of the user who runs the tests."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vcpusched.service import run_directory

PROGRAM = (sys.executable, "-m", "vcpusched.cli.main")


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give our environment without what changes the output, with the variables given."""
    ours = ("VCPUSCHED", "COLUMNS", "WATCHDOG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return {**kept, **(variables or {})}


def vcpusched(
    *arguments: str, stdin: str | None = None, prefix: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end; `prefix` is put before it."""
    return subprocess.run(
        [*prefix, *PROGRAM, *arguments],
        env=environment(variables),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def without_the_lock(directory: Path, finds: Callable[[], bool]) -> bool:
    """Return what a user finds who may not open the lock of a service."""
    if os.geteuid() != 0:
        (directory / run_directory.LOCK).chmod(0)
        return finds()
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setgroups([])
            os.setgid(65_534)
            os.setuid(65_534)
            try:
                (directory / run_directory.LOCK).read_bytes()
            except PermissionError:
                status = 1 if finds() else 0
        finally:
            os._exit(status)
    found = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert found in {0, 1}
    return found == 1
