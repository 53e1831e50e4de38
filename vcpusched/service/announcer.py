"""What the service says of itself: journal entries, the status line, the state file.

Rule: everything that goes out passes here, so that each is said once and in one way. It decides
nothing.
"""

import contextlib
import time
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Cycle
from vcpusched.model import PPM_PER_POINT, Granularity
from vcpusched.plan.planner import Cause, Move
from vcpusched.report import messages, state_file
from vcpusched.report.lasting import Lasting
from vcpusched.report.messages import CATALOGUE, Entry, PastPin, Pause, Priority, Service
from vcpusched.report.recent import Recent
from vcpusched.service import run_directory, systemd
from vcpusched.settings import Settings

if TYPE_CHECKING:
    from vcpusched.report.metrics import Metrics

LAST_PINS_MAX: Final = 10
TOLD_MAX: Final = 1000
_OURSELVES: Final = "vcpusched"
"""The subject of what is no guest's fault."""

UNREAD_PATIENCE_S: Final = 5.0
"""A guest that is just starting cannot be read for a moment; that is no news."""

UNTOLD_PATIENCE: Final = 20
"""For so many cycles libvirt may take its time to tell what the machine is like."""


class Announcer:
    """Keeps what is known of the service, and tells it where it changes."""

    def __init__(
        self, log: systemd.Log, directory: Path, service: Service, settings: Settings
    ) -> None:
        self.service = service
        self._log = log
        self._directory = directory
        self._metrics_file = ""
        self._metrics: Metrics | None = None
        self._recent = Recent()
        self._told: set[Hashable] = set()
        self._unread_since_s: dict[str, float] = {}
        self._untold_cycles = 0
        self.use(settings)

    def know(self, **changes: Any) -> None:  # noqa: ANN401  fields of Service
        """Take over what has changed of what is known of the service; it is told elsewhere."""
        self.service = replace(self.service, **changes)

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
        """Take over the settings, at first and when they have changed."""
        self._level = Priority[settings.log_level.upper()]
        self._told.clear()
        self._lasting = Lasting()
        self._status = ""
        self.know(
            uri=settings.uri,
            period_s=settings.period,
            threshold_ppm=round(settings.balance_threshold * PPM_PER_POINT),
            dry_run=settings.dry_run,
            granularity=Granularity(settings.pin_to),
        )
        if settings.metrics_file != self._metrics_file:
            self.end_metrics()
        self._metrics_file = settings.metrics_file
        self._metrics_per_vcpu = settings.metrics_per_vcpu
        if not self._metrics_file:
            self._metrics = None
        elif self._metrics is None:
            self._metrics = self._count()

    def _count(self) -> "Metrics | None":
        try:
            from vcpusched.report.metrics import Metrics  # noqa: PLC0415  it costs 1.3 MiB
        except ImportError as error:
            text = f"Could not write metrics to {self._metrics_file}: {error}"
            self.once("metrics file", Entry(Priority.WARNING, text))
            return None
        return Metrics()

    def happened(self, event: Event) -> None:
        """Tell at once of an affinity that was changed, or could not be."""
        if isinstance(event, Failure):
            self._failed(event)
            return
        self.write(messages.changed_entry(event))
        cause = event.move.cause
        if cause in CATALOGUE and self._metrics is not None:
            self._metrics.changed(cause)
        if cause in {Cause.BALANCE, Cause.WORSE_OFF}:
            self._pinned(event.move)

    def _failed(self, failure: Failure) -> None:
        entry = messages.failure_entry(failure)
        if failure.move.cause is Cause.RESTORED:
            self.write(entry)
        else:
            whose = _OURSELVES if failure.of_ours else failure.move.vcpu.uuid
            self.once(("pin", whose, failure.kind), entry)

    def _pinned(self, move: Move) -> None:
        mended = {move.vcpu.uuid, _OURSELVES}
        self._told = {cause for cause in self._told if _subject_of(cause) not in mended}
        past = PastPin(time.time(), move)
        self._recent.add(past.at_s)
        last_pins = (*self.service.last_pins, past)[-LAST_PINS_MAX:]
        self.know(pins=self.service.pins + 1, last_pins=last_pins)

    def paused(self, pause: Pause | None) -> None:
        """Tell when a pause begins, changes or ends."""
        if pause == self.service.paused:
            return
        self.know(paused=pause)
        if pause is None:
            self.write(Entry(Priority.INFO, "Resumed: the host is balanced again"))
        else:
            self.write(Entry(Priority.INFO, f"{pause.text}: nothing is pinned"))
            if pause.problem:
                self.write(Entry(Priority.WARNING, pause.problem))
        self.publish()

    def plan_done(self, cycle: Cycle) -> None:
        """Tell of an executed plan."""
        entry = messages.plan_entry(cycle, self.service.granularity)
        if entry is not None:
            self.write(entry)
        for lasting in self._lasting.entries(cycle, self.service.granularity):
            self.write(lasting)

    def cycled(
        self, cycle: Cycle, took_s: float | None = None, planned_s: float | None = None
    ) -> None:
        """Tell what a cycle did and what went wrong in it; it took so long, so long to plan."""
        if self._metrics is not None:
            self._metrics.cycled(cycle, took_s, planned_s)
        for proof in cycle.proofs:
            self.write(messages.outcome_entry(proof))
        self.plan_done(cycle)
        now_s = time.monotonic()
        self._unread_since_s = {
            unread.name: self._unread_since_s.get(unread.name, now_s) for unread in cycle.unread
        }
        for unread in cycle.unread:
            if now_s - self._unread_since_s[unread.name] >= UNREAD_PATIENCE_S:
                self.once(("unread", unread.name), messages.unread_entry(unread.name, unread.why))
        for why, names in cycle.by_libvirt.items():
            self.once(("by libvirt", why), messages.by_libvirt_entry(names, why))
        for unclear in cycle.unclear:
            cause = ("wish", unclear.uuid, unclear.why)
            self.once(cause, messages.unclear_entry(unclear))
        failing = tuple(
            f"vCPU {failure.move.vcpu.vcpu} of {failure.move.domain}: {failure.why}"
            for failure in cycle.failures
            if not failure.expected
        )
        is_open = not cycle.executed and cycle.plan is not None and bool(cycle.plan.moves)
        if not failing and (is_open or cycle.refused):
            failing = self.service.pins_failing  # until the next attempt nothing new is known
        self.know(connected=True, trouble=None, cycle=cycle, pins_failing=failing)
        untold = self.service.untold
        self._untold_cycles = self._untold_cycles + 1 if untold else 0
        if self._untold_cycles > UNTOLD_PATIENCE:
            self.once(("untold", untold), messages.untold_entry(untold))
        self.publish()

    def publish(self) -> None:
        """Bring the status line, the state file and the metrics file up to date."""
        hour, day = self._recent.counts(time.time())
        self.know(pins_last_hour=hour, pins_last_day=day)
        state = state_file.state_as_json(self.service, time.time())
        if state["status"] != self._status:
            self._status = state["status"]
            systemd.notify(f"STATUS={self._status}")
        try:
            run_directory.write_state(self._directory, state)
        except OSError as error:
            text = f"Could not write the state file, so `status` is out of date: {error}"
            self.once("state file", Entry(Priority.WARNING, text))
        self._publish_metrics()

    def _publish_metrics(self) -> None:
        """Bring the metrics file up to date, where one is asked for."""
        if self._metrics is None:
            return
        file, per_vcpu = Path(self._metrics_file), self._metrics_per_vcpu
        try:
            self._metrics.write(file, self.service, time.time(), per_vcpu=per_vcpu)
        except OSError as error:
            text = f"Could not write metrics to {file}: {error}"
            self.once("metrics file", Entry(Priority.WARNING, text))

    def end_metrics(self) -> None:
        """Take the metrics file away: what nobody brings up to date is not the present."""
        if self._metrics_file:
            with contextlib.suppress(OSError):
                Path(self._metrics_file).unlink(missing_ok=True)


def _subject_of(cause: Hashable) -> object:
    return cause[1] if isinstance(cause, tuple) else None
