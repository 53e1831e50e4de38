"""What the service says: journal entries, the status line, the state file, the metrics file.

Rule: everything that goes out passes here, so that each is said once and in one way. It decides
nothing: it is given the state before and after, and what happened in between, and remembers only
what was reported.
"""

import contextlib
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vcpusched import __version__
from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.ledger import Changed
from vcpusched.host.hypervisor import NotRecordedError
from vcpusched.observe.placement_rules import why_unclear
from vcpusched.plan.planner import Cause, Policy
from vcpusched.report import messages, state_file
from vcpusched.report.lasting import Lasting
from vcpusched.report.messages import CATALOGUE, JournalEntry, Pause, Priority, Service
from vcpusched.report.plan_text import NO_CPU
from vcpusched.report.state_file import Recent
from vcpusched.service import run_directory, systemd
from vcpusched.service.control import Answer
from vcpusched.service.state import State
from vcpusched.service.worker import Cycled, Lost, Outcome
from vcpusched.settings import Settings
from vcpusched.text import printable, shown

if TYPE_CHECKING:
    from vcpusched.report.metrics import Metrics

MAX_REPORTED: Final = 1000
_OURSELVES: Final = "vcpusched"
"""The subject of what is no guest's fault."""

MIN_UNREAD_S: Final = 5.0
"""A guest that is just starting cannot be read for a moment; that is no news."""


class Reporter:
    """Reports what is different from one state to the next."""

    def __init__(self, log: systemd.Log, directory: Path, settings: Settings) -> None:
        self._log = log
        self._directory = directory
        self._settings = settings
        self._recent = Recent()
        self._reported: set[Hashable] = set()
        self._unread_since_s: dict[str, float] = {}
        self._lasting = Lasting()
        self._status = ""
        self._metrics: Metrics | None = None

    def begin(self, state: State) -> None:
        """Report that the service begins, and how; guests and pCPUs are not known yet."""
        settings = state.settings
        how = f"every {settings.period:g}s, threshold {settings.balance_threshold:g}"
        how += f", pin_to {settings.pin_to}"
        how += " (dry run: changes nothing)" if settings.dry_run else ""
        self._say(Priority.INFO, f"vcpusched {__version__} started: {state.uri}, {how}")
        self.show(state.service)

    def reloaded(self, settings: Settings) -> None:
        """Go by other settings: all is news again."""
        changed = [
            f"{key} {shown(before)} -> {shown(value)}"
            for key, value in settings.model_dump().items()
            if value != (before := getattr(self._settings, key))
        ]
        if settings.metrics_file != self._settings.metrics_file:
            self.end_metrics()
        self._settings = settings
        self._reported.clear()
        self._lasting = Lasting()
        self._status = ""
        self._say(Priority.INFO, f"Reloaded: {', '.join(changed) or 'no setting changed'}")

    def write(self, entry: JournalEntry) -> None:
        """Put out one entry, if the log level asks for it."""
        if entry.priority <= Priority[self._settings.log_level.upper()]:
            self._log(entry)

    def once(self, cause: Hashable, entry: JournalEntry) -> None:
        """Put out an entry whose cause may come up again in every cycle, with other figures."""
        if cause not in self._reported:
            if len(self._reported) >= MAX_REPORTED:
                self._reported.clear()
            self._reported.add(cause)
            self.write(entry)

    def report(self, before: State, outcome: Outcome | None, after: State) -> None:
        """Report an outcome, and what is different after it."""
        if isinstance(outcome, Changed | Failure):
            self._moved(outcome, after.service)
            return  # the state file has it at the end of the cycle
        self._connection(before, after)
        self._pause(before.service.paused, after.service.paused)
        if isinstance(outcome, Cycled):
            self._cycled(outcome, after.service)
        elif isinstance(outcome, Lost) and outcome.stands:
            text = f"Could not read the host: {printable(outcome.why, 300)}"
            self.once("unreadable", JournalEntry(Priority.WARNING, text))
        elif isinstance(outcome, Answer) and before.stop.began:
            for problem in outcome.problems:
                self.once(problem, JournalEntry(Priority.WARNING, problem))
        if after.stop.why is not None and after.stop.why is not before.stop.why:
            self.write(after.stop.why)
        if after.service is not before.service:
            self.show(after.service)

    def planned(self, cycle: Cycle, policy: Policy) -> None:
        """Report an executed plan, and what lasts."""
        entry = messages.plan_entry(cycle, policy)
        if entry is not None:
            self.write(entry)
        for lasting in self._lasting.entries(cycle, policy):
            self.write(lasting)

    def show(self, service: Service) -> None:
        """Bring the status line, the state file and the metrics file up to date."""
        now_s = time.time()
        hour, day = self._recent.counts(now_s)
        service = replace(service, pins_last_hour=hour, pins_last_day=day)
        state = state_file.state_as_json(service, now_s)
        if state["status"] != self._status:
            self._status = state["status"]
            systemd.notify(f"STATUS={self._status}")
        try:
            run_directory.write_state(self._directory, state)
        except OSError as error:
            text = f"Could not write the state file, so `status` is out of date: {error.strerror}"
            self.once("state file", JournalEntry(Priority.WARNING, text))
        self._show_metrics(service)

    def end_metrics(self) -> None:
        """Remove the metrics file: what is not brought up to date any more is not the present."""
        if self._settings.metrics_file:
            with contextlib.suppress(OSError):
                Path(self._settings.metrics_file).unlink(missing_ok=True)

    def _say(self, priority: Priority, text: str) -> None:
        self.write(JournalEntry(priority, text))

    def _moved(self, event: Event, service: Service) -> None:
        cause, uuid = event.move.cause, event.move.vcpu.uuid
        if isinstance(event, Changed):
            self.write(messages.changed_entry(event))
            if cause in CATALOGUE and self._metrics is not None:
                self._metrics.changed(cause)
            if cause in {Cause.BALANCE, Cause.WORSE_OFF}:
                self._recent.add(service.last_pins[-1].at_s)
                solved = {uuid, _OURSELVES}
                self._reported = {one for one in self._reported if _subject_of(one) not in solved}
        elif cause is Cause.RESTORED:
            entry = messages.failure_entry(event)
            self.once(entry.message, entry)  # the answer has it again
        else:
            whose = _OURSELVES if event.kind is NotRecordedError else uuid
            self.once(("pin", whose, event.kind), messages.failure_entry(event))

    def _connection(self, before: State, after: State) -> None:
        uri, since_s = after.uri, before.away_since_s
        if since_s is None and after.away_since_s is not None:
            lost = "Lost libvirt" if before.service.connected else "Waiting for libvirt"
            why = printable(after.service.trouble or "", 300)
            text = f"{lost} at {uri}: {why}; trying again until it answers"
            self._say(Priority.WARNING, text)
        elif since_s is not None and after.away_since_s is None:
            away_s = time.monotonic() - since_s
            self._say(Priority.INFO, f"Connected to libvirt at {uri} after {away_s:.0f}s")

    def _pause(self, before: Pause | None, pause: Pause | None) -> None:
        if pause == before:
            return
        if pause is None:
            self._say(Priority.INFO, "Balancing resumed")
            return
        self._say(Priority.INFO, f"{pause.text}: nothing is pinned")
        if pause.problem:
            self._say(Priority.WARNING, pause.problem)

    def _cycled(self, cycled: Cycled, service: Service) -> None:
        cycle = cycled.cycle
        if self._metrics is not None:
            self._metrics.cycled(cycle, cycled.took_s, cycled.planned_s)
        for effect in cycle.effects:
            self.write(messages.outcome_entry(effect))
        if cycle.host is not None and not cycle.host.cpus:
            self.once(NO_CPU, JournalEntry(Priority.WARNING, NO_CPU))
        self.planned(cycle, service.settings.policy())
        now_s = time.monotonic()
        all_unread = cycle.sample.unread.values()
        self._unread_since_s = {
            unread.name: self._unread_since_s.get(unread.name, now_s) for unread in all_unread
        }
        for unread in all_unread:
            if now_s - self._unread_since_s[unread.name] >= MIN_UNREAD_S:
                self.once(("unread", unread.name), messages.unread_entry(unread.name, unread.why))
        for why, names in cycle.sample.by_libvirt.items():
            self.once(("by libvirt", why), messages.by_libvirt_entry(names, why))
        for domain in cycle.sample.domains:
            if why := why_unclear(domain.definition):
                entry = messages.unclear_entry(domain.name, domain.uuid, why)
                self.once(("wish", domain.uuid, why), entry)
        if unreported := service.unreported:
            self.once(("unreported", unreported), JournalEntry(Priority.WARNING, unreported))

    def _show_metrics(self, service: Service) -> None:
        path, per_vcpu = self._settings.metrics_file, self._settings.metrics_per_vcpu
        if not path:
            return
        try:
            if self._metrics is None:
                # Only where it is wanted: its library costs 1.3 MiB.
                from vcpusched.report.metrics import Metrics  # noqa: PLC0415

                self._metrics = Metrics()
            self._metrics.write(Path(path), service, time.time(), per_vcpu=per_vcpu)
        except (ImportError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            text = f"Could not write metrics to {path}: {why}"
            self.once("metrics file", JournalEntry(Priority.WARNING, text))


def _subject_of(cause: Hashable) -> object:
    return cause[1] if isinstance(cause, tuple) else None
