"""A time in which nothing is pinned: a file in the run directory, which anybody may drop there.

Rule: the file only. It outlives the service, and ends with the machine.

An empty file means until it is removed; one with a time such as 2026-11-24T21:00:00Z, until then.
What cannot be understood pauses until it is removed: a typo must not have vCPUs moved.
"""

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vcpusched.service import run_directory
from vcpusched.text import printable

NAME: Final = "pause"
SIZE_MAX: Final = 4096

DURATION_MAX_S: Final = 366 * 86_400
YEAR_MAX: Final = 9000
"""Some clocks of the world cannot tell the last days of the year 9999."""

NUMBER_LENGTH_MAX: Final = 9
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause; `until_s` is seconds since the epoch, None without an end."""

    until_s: float | None = None
    problem: str = ""

    @property
    def text(self) -> str:
        """Say until when, as a person reads the clock."""
        if self.until_s is None:
            return 'Paused until "vcpusched resume"'
        moment = datetime.fromtimestamp(self.until_s).astimezone()
        form = "%H:%M:%S" if moment.date() == datetime.now().astimezone().date() else "%F %H:%M:%S"
        return f"Paused until {moment:{form}}"


def read(directory: Path) -> Pause | None:
    """Give the pause that there is now; one that is over is removed."""
    path = directory / NAME
    try:
        text = run_directory.read_file(path, SIZE_MAX).strip()
        until_s = _parsed(text) if text else None
    except FileNotFoundError:
        return None
    except OSError as error:
        return Pause(problem=f"{path}: cannot be read: {error.strerror}")
    except ValueError as error:
        return Pause(problem=f"{path}: {error}")
    if until_s is not None and until_s <= time.time():
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return Pause(until_s)


def begin(directory: Path, seconds: float | None) -> Pause:
    """Pause, for so many seconds or until `end`. Raises OSError."""
    pause = Pause(None if seconds is None else float(round(time.time() + seconds)))
    text = "" if pause.until_s is None else f"{datetime.fromtimestamp(pause.until_s, UTC):%FT%TZ}\n"
    directory.mkdir(mode=0o755, exist_ok=True)
    run_directory.replace_file(directory / NAME, text)
    return pause


def end(directory: Path) -> bool:
    """Resume; tell whether there was a pause. Raises OSError."""
    try:
        (directory / NAME).unlink()
    except FileNotFoundError:
        return False
    return True


def parse_duration(text: str) -> float:
    """Give the seconds in a time such as 30m. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) < NUMBER_LENGTH_MAX:
        seconds = int(number) * _UNITS_S.get(unit, 0)
        if 0 < seconds <= DURATION_MAX_S:
            return float(seconds)
    raise ValueError(
        f"{printable(text)!r} is not allowed: must be a time such as 90s, 30m, 2h or 1d, up to 366d"
    )


def _parsed(text: str) -> float:
    """Give the seconds since the epoch. Raises ValueError."""
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None and moment.year < YEAR_MAX:
            return moment.timestamp()
    raise ValueError(f"{printable(text)} is no time with its zone, such as 2026-11-24T21:00:00Z")
