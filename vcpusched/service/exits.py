"""The exit statuses that scripts and systemd rely on; above 64 they are those of sysexits(3).

Rule: numbers, the exception that carries one, and the line that goes with it.
"""

import os
import sys
from typing import Final, TextIO

OK: Final = 0
FAILURE: Final = 1
DEGRADED: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
BAD_INPUT: Final = 65
UNAVAILABLE: Final = 69
NOT_PERMITTED: Final = 77
BAD_CONFIGURATION: Final = 78


def say(line: str) -> None:
    """Say something to the user beside the output; a stderr that takes nothing is no failure."""
    try:
        sys.stderr.write(f"vcpusched: {line}\n")
        sys.stderr.flush()
    except OSError:
        give_up(sys.stderr)


def give_up(file: TextIO) -> None:
    """Let nothing more be written to a file, nor at exit what could not be: that would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Refusal(Exception):  # noqa: N818  it is an answer, not a fault
    """Ends the program with a line on stderr and an exit status."""

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status
        self.lines = lines
