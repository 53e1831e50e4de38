"""What the daemon knows and decides by, as one value, and what each outcome makes of it.

Rule: pure. The daemon alone holds the present state; the reporter says what became different.
"""

import enum
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.ledger import Changed
from vcpusched.plan.planner import Cause
from vcpusched.report.messages import JournalEntry, PastPin, Pause, Priority, Service, status_line
from vcpusched.service import exits
from vcpusched.service.control import Answer
from vcpusched.service.worker import Alive, Crashed, Cycled, Lost, Outcome
from vcpusched.settings import Settings
from vcpusched.text import printable

MAX_LAST_PINS: Final = 10

RETRY_S: Final = 1.0
RETRY_DENIED_S: Final = 10.0
"""Each refused attempt costs polkit a decision and the journal a line of polkit's."""

CHECK_S: Final = 3.0
"""How often an idle connection is checked, so that with long periods, too, a libvirtd that went
away is noticed soon (one that hangs after keepalive's 8 s more). All work is such a check."""

STOP_CONNECT_TIMEOUT_S: Final = 10.0
"""How long a stop waits for a libvirt that does not answer, or that was just restarted."""


class Phase(enum.Enum):
    """What the worker is at: waiting to connect, connecting, nothing, or its work."""

    WAITING = enum.auto()
    CONNECTING = enum.auto()
    IDLE = enum.auto()
    AT_WORK = enum.auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """How the process ends: with `exit_status`, None while nothing asks for that, and `why`.

    Before that it `restores` all pins: `began` says that the worker was asked to, `progress_s` when
    that last got on (monotonic), and `extends` that losing libvirt lets its time begin anew.
    """

    exit_status: int | None = None
    why: JournalEntry | None = None
    restores: bool = False
    began: bool = False
    extends: bool = True
    progress_s: float = 0.0

    def given_up(self, why: str) -> "Ending":
        """Return the stop that leaves what is not restored yet."""
        text = f'Pins are left, because {why}; "vcpusched restore" restores them'
        return replace(self, restores=False, why=JournalEntry(Priority.WARNING, text))


@dataclass(frozen=True, slots=True)
class State:
    """The daemon's state; `service` is the part that `status` shows. Times are monotonic.

    The process ends after one decision (`once`), or when no guest runs (`exit_when_idle`).
    `number` is that of the last cycle, `busy_since_s` when the worker last got on.
    """

    service: Service
    once: bool = False
    exit_when_idle: bool = False
    number: int = 0
    phase: Phase = Phase.WAITING
    busy_since_s: float = 0.0
    away_since_s: float | None = None
    connect_at_s: float = 0.0
    cycle_at_s: float = 0.0
    stop: Ending = Ending()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.service.settings

    @property
    def uri(self) -> str:
        """Where libvirt is, fit to be printed."""
        return printable(self.settings.uri, 200)

    def configured(self, settings: Settings, now_s: float) -> "State":
        """Return the state with other settings."""
        service = replace(self.service, settings=settings)
        cycle_at_s = min(self.cycle_at_s, now_s + settings.period)
        return replace(self, service=service, cycle_at_s=cycle_at_s)

    def paused(self, pause: Pause | None) -> "State":
        """Return the state with this pause, or none."""
        if pause == self.service.paused:
            return self
        return replace(self, service=replace(self.service, paused=pause))

    def busy(self, phase: Phase, now_s: float) -> "State":
        """Return the state once the worker was asked for something."""
        return replace(self, phase=phase, busy_since_s=now_s)

    def restoring(self, now_s: float) -> "State":
        """Return the state once the restore of a stop began, for the first time or again."""
        stop = self.stop if self.stop.began else replace(self.stop, began=True, progress_s=now_s)
        return replace(self.busy(Phase.AT_WORK, now_s), stop=stop)

    def cycling(self, now_s: float) -> "State":
        """Return the state once a cycle began: no drift, and no burst of late cycles."""
        next_s, period_s = self.cycle_at_s + self.settings.period, self.settings.period
        cycle_at_s = next_s if next_s > now_s else now_s + period_s
        return replace(self.busy(Phase.AT_WORK, now_s), cycle_at_s=cycle_at_s)

    def ending(self, exit_status: int, why: JournalEntry | None = None) -> "State":
        """Return the state in which the process ends, as soon as nothing is left to restore."""
        stop = replace(self.stop, exit_status=exit_status, why=why or self.stop.why)
        return replace(self, stop=stop)

    def away(self, why: str, now_s: float) -> "State":
        """Return the state without libvirt; that is no end, and all the rest goes on."""
        service = replace(self.service, connected=False, trouble=why, cycle=None)
        since_s = now_s if self.away_since_s is None else self.away_since_s
        state = replace(self, service=service, away_since_s=since_s)
        return state.ending(exits.UNAVAILABLE) if self.once else state


def after(state: State, outcome: Outcome, now_s: float, at_s: float) -> State:
    """Return the state after an outcome, now (monotonic) and at `at_s` (since the epoch)."""
    match outcome:
        case Changed() | Failure():
            return _moved(state, outcome, now_s, at_s)
        case Lost(stands=False):
            return _lost(state, outcome, now_s)
        case Lost(why, denied):
            state = replace(state, service=replace(state.service, connected=True, trouble=why))
            if state.once:
                state = state.ending(exits.NOT_PERMITTED if denied else exits.FAILURE)
        case Cycled(cycle):
            state = _cycled(state, cycle)
        case Alive() if state.phase is Phase.CONNECTING:
            state = replace(state, cycle_at_s=now_s)
        case Answer() if state.stop.began:
            # That is all there was to do before the end.
            state = replace(state, stop=replace(state.stop, restores=False))
        case Crashed(text):
            error = JournalEntry(Priority.ERROR, f"Internal error; exiting\n{text}")
            state = replace(state, stop=Ending(exits.FAILURE, error))
    return replace(state, phase=Phase.IDLE)


def _moved(state: State, event: Event, now_s: float, at_s: float) -> State:
    service, stop = state.service, state.stop
    if isinstance(event, Changed) and event.move.cause in {Cause.BALANCE, Cause.WORSE_OFF}:
        last_pins = (*service.last_pins, PastPin(at_s, event.move))[-MAX_LAST_PINS:]
        service = replace(service, pins=service.pins + 1, last_pins=last_pins)
    if event.move.cause is Cause.RESTORED:
        stop = replace(stop, progress_s=now_s, extends=True)
    return replace(state, service=service, stop=stop, busy_since_s=now_s)


def _cycled(state: State, cycle: Cycle) -> State:
    failing = tuple(
        f"vCPU {failure.move.vcpu.vcpu} of {failure.move.domain}: {failure.why}"
        for failure in cycle.failures
        if not failure.expected
    )
    is_open = not cycle.executed and cycle.plan is not None and bool(cycle.plan.moves)
    if not failing and (is_open or cycle.refused or cycle.lost is not None):
        failing = state.service.pins_failing  # until the next attempt nothing new is known
    service = replace(
        state.service, connected=True, trouble=None, cycle=cycle, pins_failing=failing
    )
    state = replace(state, service=service, number=cycle.number, away_since_s=None)
    is_idle = cycle.lost is None and cycle.domains == 0
    # The one decision that is asked for; a pause leaves it at the plan.
    is_planned = service.paused is not None and cycle.confirmed >= cycle.confirm
    if state.exit_when_idle and is_idle:
        text = "No running guests; exiting (exit_when_idle)"
        return state.ending(exits.OK, JournalEntry(Priority.INFO, text))
    if state.once and cycle.lost is None and (cycle.decided or is_planned or is_idle):
        status = exits.FAILURE if failing else exits.OK
        return state.ending(status, JournalEntry(Priority.INFO, status_line(service)))
    return state


def _lost(state: State, lost: Lost, now_s: float) -> State:
    stop = state.stop
    if stop.extends and state.phase is not Phase.CONNECTING:
        # Once between two pins: with a libvirtd that dies each time it would go on for ever.
        stop = replace(stop, progress_s=now_s, extends=False)
    delay_s = RETRY_DENIED_S if lost.denied else min(RETRY_S, state.settings.period)
    # A connection that has proven itself is opened again at once; one that falls to the first
    # question is not, or it would be opened a thousand times a second.
    connect_at_s = now_s if state.service.connected else now_s + delay_s
    state = replace(state, phase=Phase.WAITING, connect_at_s=connect_at_s, stop=stop)
    if state.once:
        status = exits.NOT_PERMITTED if lost.denied else exits.UNAVAILABLE
        text = f"Could not connect to libvirt at {state.uri}: {lost.why}; exiting"
        return state.ending(status, JournalEntry(Priority.ERROR, text))
    return state.away(lost.why, now_s)
