"""Where messages go: to journald with their fields, or to stderr; and what systemd is notified of.

And where they are read again: journald is the only store there is.

Rule: the only import of `systemd`, and only where it is used, since a process that systemd did not
start needs no binding of it. The only question to systemd, too.

A service that is restarted gets the same SIGTERM as one that is stopped. The difference is in the
job that systemd has for the unit meanwhile: one of type "restart" until the old process has ended,
when it becomes a "start" (job.c: JOB_RESTART runs unit_stop first).
"""

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from vcpusched.report.messages import JournalEntry, Priority

if TYPE_CHECKING:
    from vcpusched.report.history import JournalRecord

IDENTIFIER: Final = "vcpusched"
OWN_CGROUP: Final = Path("/proc/self/cgroup")
TIMEOUT_S: Final = 3.0
"""How long systemd may take to say something of the unit."""


Log = Callable[[JournalEntry], None]
"""Puts one entry out."""


def journal_log(entry: JournalEntry) -> None:
    """Send an entry to journald with its fields."""
    from systemd import journal

    # A journald that is gone, or starts just now, is no reason to stop balancing.
    with contextlib.suppress(OSError):
        journal.send(
            entry.message,
            PRIORITY=str(int(entry.priority)),
            SYSLOG_IDENTIFIER=IDENTIFIER,
            **entry.fields,
        )


def line_log(stream: TextIO, entry: JournalEntry) -> None:
    """Write an entry as a line of text: time of day, severity where it matters, message."""
    severity = f"{entry.priority.name.lower()}: " if entry.priority < Priority.INFO else ""
    now = time.strftime("%H:%M:%S")
    # The pipe has no reader any more, or the disk is full: no reason to stop balancing.
    with contextlib.suppress(OSError):
        print(f"{now} {severity}{entry.message}", file=stream, flush=True)


def choose_log() -> Log:
    """Take journald when our stderr leads there anyway (systemd.exec(5), $JOURNAL_STREAM)."""
    with contextlib.suppress(OSError, ValueError):
        stderr = os.fstat(sys.stderr.fileno())
        if os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}":
            return journal_log
    return partial(line_log, sys.stderr)


def notify(*assignments: str) -> None:
    """Notify systemd, as sd_notify(3) describes; does nothing where systemd did not start us."""
    if "NOTIFY_SOCKET" not in os.environ:
        return
    from systemd import daemon

    with contextlib.suppress(OSError):  # a socket that is gone is systemd's matter
        daemon.notify("\n".join(assignments))


def reloading() -> None:
    """Notify systemd that a reload begins, with the time that Type=notify-reload asks for."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")


def watchdog_interval_s() -> float:
    """Return how often systemd wants a ping: half its limit. Infinite where it watches nothing."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
    return int(limit_us) / 2e6 if is_ours and limit_us.isdigit() and int(limit_us) else math.inf


class UnreadableError(Exception):
    """The system's journal may not be read, or there is none; the text says so."""


def past(
    message_ids: Iterable[str], since_s: float, directory: Path | None = None
) -> "Iterator[JournalRecord]":
    """Return the entries with these message IDs since then, in their order.

    From the journal of this host, or from the files in `directory`; `since_s` is seconds since the
    epoch. Raises UnreadableError, and OSError for a journal that is damaged.
    """
    from systemd import journal

    from vcpusched.report.history import JournalRecord

    found = False
    with journal.Reader(
        path=None if directory is None else str(directory),
        converters={"__REALTIME_TIMESTAMP": int, "MESSAGE_ID": bytes.decode, "_PID": bytes.decode},
    ) as reader:
        for message_id in message_ids:
            reader.add_match(MESSAGE_ID=message_id)
        reader.seek_realtime(since_s)
        for entry in reader:
            at_s = entry["__REALTIME_TIMESTAMP"] / 1e6
            if at_s >= since_s:  # the search ends near it, which may be before
                found = True
                yield JournalRecord(at_s, {key: _text(value) for key, value in entry.items()})
    # Files that may not be read are left out without a word.
    if not found and directory is None and not _is_system_readable():
        raise UnreadableError(
            "no journal can be read: there is none, or it takes root or the group systemd-journal"
        )


def _is_system_readable() -> bool:
    from systemd import journal

    with journal.Reader(flags=journal.SYSTEM) as reader:
        return bool(reader.get_usage())


def _text(value: Any) -> str:  # noqa: ANN401  whatever the library takes it for
    if isinstance(value, list):
        value = value[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_restart(jobs: str, cgroups: str) -> bool:
    """Return whether the unit of a process is being restarted.

    By what `systemctl list-jobs` prints, and the process's /proc/PID/cgroup: systemd names the
    control group of a unit like the unit.
    """
    units = {line.rpartition("/")[2] for line in cgroups.splitlines()}
    rows = [line.split() for line in jobs.splitlines()]
    return any(
        len(row) >= 3 and row[1] in units and row[2] in {"restart", "try-restart"}  # noqa: PLR2004  JOB UNIT TYPE
        for row in rows
    )


def is_restarting() -> bool:
    """Ask systemd whether our unit is being restarted; no when that cannot be known."""
    try:
        asked = ("systemctl", "list-jobs", "--no-legend", "--no-pager", "--full")
        done = subprocess.run(  # noqa: S603  our own words
            asked, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        return is_restart(done.stdout, OWN_CGROUP.read_text(encoding="utf-8"))
    except (OSError, subprocess.SubprocessError):
        return False
