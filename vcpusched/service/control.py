"""What one vcpusched asks of another on the same host: a file in the run directory, and its answer.

Rule: files and values; what is asked for is done elsewhere. No socket: who may write into the run
directory may ask, and nobody else.

A request is a file `request-ID.json`. The service takes it away when it begins with it, and leaves
`answer-ID.json`, which the one who asked takes away. Who asked and sees the service end meanwhile
asks nobody any more: all that can be asked for may be done twice.
"""

import contextlib
import enum
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vcpusched.service import run_directory

ANSWER_PATIENCE_S: Final = 120.0
"""How long an answer is waited for, and how old a request may be."""

POLL_S: Final = 0.05
SIZE_MAX: Final = 1 << 20
ANSWER_SIZE_MAX: Final = 64 << 20
"""An answer has a line for each domain."""

_NAME: Final = re.compile(r"[0-9a-f]{1,64}")
"""What a request may call itself: the answer's name is made of it."""


class AnswerError(Exception):
    """What lies where the answer should be is none."""


class Verb(enum.StrEnum):
    """What can be asked for."""

    RESTORE = "restore"
    RELEASE = "release"


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

    Raises OSError when the run directory cannot be written, AnswerError and TimeoutError.
    """
    name = uuid.uuid4().hex
    question, answer = directory / f"request-{name}.json", directory / f"answer-{name}.json"
    if not run_directory.is_locked(directory):
        return None
    run_directory.replace_file(question, json.dumps({"version": 1, **asdict(request)}))
    deadline_s = time.monotonic() + ANSWER_PATIENCE_S
    try:
        while time.monotonic() < deadline_s:
            is_alive = run_directory.is_locked(
                directory
            )  # before the look: it answers, then it ends
            if os.path.lexists(answer):
                return _answered(answer)
            if not is_alive:
                return None
            time.sleep(POLL_S)
    finally:
        question.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
    raise TimeoutError


def _answered(path: Path) -> Answer:
    """Read an answer. Raises AnswerError for what is none."""
    try:
        told = json.loads(run_directory.read_file(path, ANSWER_SIZE_MAX))
        status, lines, problems = told["status"], told["lines"], told["problems"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        raise AnswerError from None
    if not isinstance(status, int) or not (_are_lines(lines) and _are_lines(problems)):
        raise AnswerError
    return Answer(status & 0xFF, tuple(lines), tuple(problems))


def _are_lines(told: object) -> bool:
    return isinstance(told, list) and all(isinstance(line, str) for line in told)


def take(directory: Path) -> Iterator[tuple[str, Request]]:
    """Take the requests that wait, with their ids; what is none, or too old, is removed.

    Raises OSError when the run directory cannot be read or written. What cannot be removed, such as
    a directory of that name, is passed over: it keeps nobody else from being heard.
    """
    for path in directory.glob("answer-*.json"):
        # Whoever asked was killed, or waits no more.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            if time.time() - path.lstat().st_mtime > ANSWER_PATIENCE_S:
                path.unlink()
    for path in sorted(directory.glob("request-*.json")):
        name = path.stem.removeprefix("request-")
        try:
            age_s = time.time() - path.lstat().st_mtime
            request = _parsed(path)
            path.unlink()
        except (FileNotFoundError, IsADirectoryError):
            continue  # whoever asked took it back, or nobody asked
        if request is not None and age_s <= ANSWER_PATIENCE_S and _NAME.fullmatch(name):
            yield name, request


def answer(directory: Path, name: str, told: Answer) -> None:
    """Answer a request. Raises OSError."""
    run_directory.replace_file(directory / f"answer-{name}.json", json.dumps(asdict(told)))


def _parsed(path: Path) -> Request | None:
    try:
        told = json.loads(run_directory.read_file(path, SIZE_MAX))
        verb, domains = Verb(told["verb"]), told["domains"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    if not _are_lines(domains):
        return None
    return Request(verb, tuple(domains))
