"""What the service says of itself: journal entries, the status line, the state file.

Rule: everything that goes out passes here, so that each is said once and in one way. It decides
nothing.
"""

import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Final

from vcpusched import journal, report, rundir
from vcpusched.config import Settings
from vcpusched.model import PPM_PER_POINT, CpuSet
from vcpusched.report import Entry, PastPin, Priority, Service
from vcpusched.scheduler import Cycle
from vcpusched.worker import Pinned

LAST_PINS_MAX: Final = 10
TOLD_MAX: Final = 1000
UNREAD_PATIENCE_S: Final = 5.0
"""A guest that is just starting cannot be read for a moment; that is no news."""


class Announcer:
    """Keeps what is known of the service, and tells it where it changes."""

    def __init__(self, log: journal.Log, directory: Path, service: Service, level: str) -> None:
        self.service = service
        self._log = log
        self._directory = directory
        self._level = Priority[level.upper()]
        self._told: set[Hashable] = set()
        self._unread_since_s: dict[str, float] = {}
        self._last_dry_run: Counter[tuple[CpuSet, CpuSet]] = Counter()
        self._status = ""

    def write(self, entry: Entry) -> None:
        """Put out one entry, if the log level asks for it."""
        if entry.priority <= self._level:
            self._log.write(entry)

    def once(self, cause: Hashable, entry: Entry) -> None:
        """Put out an entry whose cause may come up again in every cycle, with other figures."""
        if cause not in self._told:
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(cause)
            self.write(entry)

    def use(self, settings: Settings) -> None:
        """Take over changed settings."""
        self._level = Priority[settings.log_level.upper()]
        self._told.clear()
        self._last_dry_run = Counter()
        self._status = ""
        self.service = with_settings(self.service, settings)

    def pinned(self, outcome: Pinned) -> None:
        """Tell of a pin at once when it is made."""
        self.write(report.pin_entry(outcome.number, outcome.move))
        self._told = {cause for cause in self._told if _subject_of(cause) != outcome.move.vcpu.uuid}
        past = PastPin(time.time(), outcome.move)
        self.service = replace(
            self.service,
            pins=self.service.pins + 1,
            last_pins=(*self.service.last_pins, past)[-LAST_PINS_MAX:],
        )

    def plan_done(self, cycle: Cycle) -> None:
        """Tell of an executed plan."""
        entry = report.plan_entry(cycle)
        if entry is not None:
            self.write(entry)
        if cycle.plan is None or not (cycle.executed and cycle.dry_run):
            return
        # A dry run finds the same again and again, with now one and now another of equal guests;
        # it is told when what it would do to the pCPUs changes.
        would = Counter((move.from_cpus, move.to_cpus) for move in cycle.plan.moves)
        if would != self._last_dry_run:
            for dry in report.dry_run_entries(cycle.plan):
                self.write(dry)
        self._last_dry_run = would

    def cycled(self, cycle: Cycle) -> None:
        """Tell what a cycle did and what went wrong in it."""
        self.plan_done(cycle)
        now_s = time.monotonic()
        self._unread_since_s = {
            unread.name: self._unread_since_s.get(unread.name, now_s) for unread in cycle.unread
        }
        for unread in cycle.unread:
            if now_s - self._unread_since_s[unread.name] >= UNREAD_PATIENCE_S:
                self.once(("unread", unread.name), report.unread_entry(unread.name, unread.why))
        for unclear in cycle.unclear:
            cause = ("wish", unclear.uuid, unclear.why)
            self.once(cause, report.unclear_entry(unclear))
        for failure in cycle.failures:
            cause = ("pin", failure.move.vcpu.uuid, failure.kind)
            self.once(cause, report.failure_entry(failure))
        failing = tuple(
            f"vCPU {failure.move.vcpu.vcpu} of {failure.move.domain}: {failure.why}"
            for failure in cycle.failures
            if not failure.expected
        )
        if not cycle.executed and cycle.plan is not None and cycle.plan.moves:
            failing = self.service.pins_failing  # until the next attempt nothing new is known
        self.service = replace(
            self.service, connected=True, trouble=None, cycle=cycle, pins_failing=failing
        )
        self.publish()

    def publish(self) -> None:
        """Bring the status line and the state file up to date."""
        status = report.status_line(self.service)
        if status != self._status:
            journal.notify(f"STATUS={status}")
            self._status = status
        try:
            rundir.write_state(self._directory, report.state_as_json(self.service, time.time()))
        except OSError as error:
            text = f"Could not write the state file, so `status` is out of date: {error}"
            self.once("state file", Entry(Priority.WARNING, text))


def _subject_of(cause: Hashable) -> object:
    return cause[1] if isinstance(cause, tuple) else None


def with_settings(service: Service, settings: Settings) -> Service:
    """Give what is known of the service, with what its settings say."""
    return replace(
        service,
        uri=settings.uri,
        period_s=settings.period,
        threshold_ppm=round(settings.balance_threshold * PPM_PER_POINT),
        dry_run=settings.dry_run,
    )
