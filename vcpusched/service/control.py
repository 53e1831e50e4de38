"""How the service is controlled: requests, answers and pauses, as files in the run directory.

Rule: files and values; what is asked for is done elsewhere. No socket: only users that may write
into the run directory may ask.

A request is a file `request-ID.json`. The service removes it when it begins with it, and leaves
`answer-ID.json`, which the verb removes. A verb that sees the service end meanwhile does the work
itself: all that can be asked for may be done twice.

A pause is a file, made by a verb or by hand; it outlives the service, and ends with the machine.
An empty file means until it is removed; one with a time such as 2026-11-24T21:00:00Z, until then.
What cannot be understood pauses until it is removed: a typo must not have vCPUs moved. That of a
trial is over `LEASE_S` after it was last touched.
"""

import contextlib
import enum
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vcpusched.report.messages import JournalEntry, Pause, Priority
from vcpusched.service import exits, run_directory
from vcpusched.text import printable

ANSWER_TIMEOUT_S: Final = 120.0
"""How long an answer is waited for, and how old a request may be."""

POLL_S: Final = 0.05
REQUEST_SIZE_MAX: Final = 1 << 20

PAUSE: Final = "pause"
PAUSE_SIZE_MAX: Final = 4096
LEASE: Final = "trial "
LEASE_S: Final = 30.0

DURATION_MAX_S: Final = 366 * 86_400
YEAR_MAX: Final = 9000
"""Some clocks of the world cannot show the last days of the year 9999."""

_DURATION: Final = re.compile(r"([0-9]{1,8})([smhd])")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Verb(enum.StrEnum):
    """What can be asked for."""

    RESTORE = "restore"
    RELEASE = "release"
    UNPIN = "unpin"
    """Restore, and hold nobody: for a pause, in which nothing is pinned again."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, of some domains (names or UUIDs) or of all."""

    verb: Verb
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: the exit status, lines for standard output, and problems for the other."""

    status: int
    lines: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def ask(directory: Path, request: Request) -> Answer | None:
    """Have the running service do something; None when none runs (any more).

    Raises OSError when the run directory cannot be written, and Refusal without a good answer.
    """
    name = uuid.uuid4().hex
    question, answer = directory / f"request-{name}.json", directory / f"answer-{name}.json"
    if not run_directory.lives(directory):
        return None
    run_directory.replace_file(question, json.dumps({"version": 1, **asdict(request)}))
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    try:
        while time.monotonic() < deadline_s:
            is_alive = run_directory.lives(directory)  # first: it answers, then it ends
            if os.path.lexists(answer):
                return _answered(answer)
            if not is_alive:
                return None
            time.sleep(POLL_S)
    finally:
        question.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    line = f"the running service did not answer within {ANSWER_TIMEOUT_S:.0f}s"
    raise exits.Refusal(exits.FAILURE, line)


def _answered(path: Path) -> Answer:
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        found = json.loads(run_directory.read_file(path))
        status, lines, problems = found["status"], found["lines"], found["problems"]
        if isinstance(status, int) and _are_lines(lines) and _are_lines(problems):
            return Answer(status & 0xFF, tuple(lines), tuple(problems))
    raise exits.Refusal(exits.FAILURE, "the answer of the running service cannot be read")


def _are_lines(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(line, str) for line in found)


def take(directory: Path) -> Iterator[tuple[str, Request]]:
    """Take the requests that wait, with their ids; other files, and old ones, are removed.

    Raises OSError when the run directory cannot be read or written. What cannot be removed, such as
    a directory of that name, is passed over, so that the requests after it are served.
    """
    # Asked several times a period; pathlib takes seven times as long.
    names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))  # noqa: PTH208
    for path in (directory / name for name in names if name.startswith("answer-")):
        # The verb that asked was killed, or does not wait any more.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if time.time() - path.lstat().st_mtime > ANSWER_TIMEOUT_S:
                path.unlink()
    for path in (directory / name for name in names if name.startswith("request-")):
        name = path.stem.removeprefix("request-")
        try:
            age_s = time.time() - path.lstat().st_mtime
            request = _parsed(path)
            path.unlink()
        except (FileNotFoundError, IsADirectoryError):
            continue  # the verb took it back, or it is no request
        if request is not None and age_s <= ANSWER_TIMEOUT_S:
            yield name, request


def _parsed(path: Path) -> Request | None:
    try:
        found = json.loads(run_directory.read_file(path, REQUEST_SIZE_MAX))
        verb, domains = Verb(found["verb"]), found["domains"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return Request(verb, tuple(domains)) if _are_lines(domains) else None


class Inbox:
    """The requests in the run directory, one at a time.

    `warn` is called with a cause and an entry when files there cannot be used.
    """

    def __init__(self, directory: Path, warn: Callable[[str, JournalEntry], None]) -> None:
        self._directory = directory
        self._warn = warn
        self._name: str | None = None

    def take(self) -> Request | None:
        """Take the next request, if there is one; it must be answered before the next."""
        try:
            self._name, request = next(take(self._directory), (None, None))
        except OSError as error:
            text = f"Could not read requests in the run directory: {error.strerror}"
            self._warn("requests", JournalEntry(Priority.WARNING, text))
            return None
        return request

    def answer(self, answer: Answer) -> None:
        """Answer the request that was taken, if one was."""
        name, self._name = self._name, None
        if name is None:
            return
        try:
            path = self._directory / f"answer-{name}.json"
            run_directory.replace_file(path, json.dumps(asdict(answer)))
        except OSError as error:
            text = f"Could not answer a request in the run directory: {error.strerror}"
            self._warn("answer", JournalEntry(Priority.WARNING, text))

    def fail(self, status: int, why: str) -> None:
        """Answer the request that was taken, if one was, with why it is not done."""
        self.answer(Answer(status, problems=(why,)))


def read_pause(directory: Path) -> Pause | None:
    """Return the pause that there is now; one that is over is removed."""
    path = directory / PAUSE
    try:
        text = run_directory.read_file(path, PAUSE_SIZE_MAX).strip()
        if is_trial := text.startswith(LEASE):
            until_s: float | None = path.lstat().st_mtime + LEASE_S
        else:
            until_s = _moment_s(text) if text else None
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
    return Pause(is_trial=True) if is_trial else Pause(until_s)


@dataclass(frozen=True, slots=True)
class Lease:
    """The pause of a trial, known from any other by its text."""

    directory: Path
    text: str = field(default_factory=lambda: f"{LEASE}{uuid.uuid4().hex}\n")

    def begin(self) -> None:
        """Pause, for `LEASE_S`. Raises OSError."""
        run_directory.replace_file(self.directory / PAUSE, self.text)

    def renew(self) -> bool:
        """Pause for `LEASE_S` more; return whether the pause was still there."""
        with contextlib.suppress(OSError, ValueError):
            if run_directory.read_file(self.directory / PAUSE, PAUSE_SIZE_MAX) == self.text:
                os.utime(self.directory / PAUSE)
                return True
        return False

    def end(self) -> None:
        """Resume, if this pause is still there."""
        if self.renew():
            end_pause(self.directory)


def begin_pause(directory: Path, seconds: float | None) -> Pause:
    """Pause, for so many seconds or until `end_pause`. Raises OSError."""
    pause = Pause(None if seconds is None else float(round(time.time() + seconds)))
    text = "" if pause.until_s is None else f"{datetime.fromtimestamp(pause.until_s, UTC):%FT%TZ}\n"
    directory.mkdir(mode=0o755, exist_ok=True)
    run_directory.replace_file(directory / PAUSE, text)
    return pause


def end_pause(directory: Path) -> bool:
    """Resume; return whether there was a pause. Raises OSError."""
    was_paused = read_pause(directory) is not None
    (directory / PAUSE).unlink(missing_ok=True)
    return was_paused


def seconds_of(option: str, text: str) -> float:
    """Return the seconds in the time that an option gives, such as 30m. Raises Refusal."""
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found is not None else 0
    if 0 < seconds <= DURATION_MAX_S:
        return float(seconds)
    wanted = "must be a time such as 90s, 30m, 2h or 1d, up to 366d"
    raise exits.Refusal(exits.USAGE, f"{option}: {printable(text)!r} is not allowed: {wanted}")


def _moment_s(text: str) -> float:
    """Return the seconds since the epoch. Raises ValueError."""
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None and moment.year < YEAR_MAX:
            return moment.timestamp()
    raise ValueError(f"{printable(text)} is no time with its zone, such as 2026-11-24T21:00:00Z")
