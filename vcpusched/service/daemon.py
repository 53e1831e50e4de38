"""The process: one loop that serves signals, clock, watchdog and files.

Rule: no libvirt call is made here, since those block and Python delivers no signal meanwhile; the
worker makes them. Sleeping and waiting for signals are the same line.

The states: connecting (the worker tries to open libvirt; that may take for ever and is nobody's
fault), waiting to connect again, idle between cycles, and at work (in a cycle, a request or a look
at the connection). Work has a limit; the worker past it is abandoned with its connection, and after
`ABANDONED_MAX` of them the process ends for systemd to start it anew.
"""

import enum
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vcpusched import __version__
from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.plan.planner import Cause
from vcpusched.report import messages
from vcpusched.report.messages import Entry, Priority, Service
from vcpusched.service import control, exits, rivals, run_directory, systemd
from vcpusched.service.announcer import Announcer
from vcpusched.service.control import Answer, Inbox, Request, Verb
from vcpusched.service.run_directory import LedgerFile
from vcpusched.service.worker import (
    CYCLE_MAX_S,
    Alive,
    Crashed,
    Cycled,
    Lost,
    Outcome,
    Session,
    Worker,
)
from vcpusched.settings import ConfigError, Settings
from vcpusched.text import printable

RETRY_S: Final = 1.0
RETRY_DENIED_S: Final = 10.0
"""Each refused attempt costs polkit a decision and the journal a line of polkit's."""

CHECK_S: Final = 1.0
"""How often an idle connection is looked at. With keepalive's 8 s a libvirtd that hangs is noticed
within 9 s."""

CONNECT_PATIENCE_S: Final = 8.0
"""How long opening a connection may take before the status says that libvirt does not answer."""

STOP_PATIENCE_S: Final = 0.5
"""How long a stop waits for the pin under way, so that it is told; the process ends within 1 s,
unless it has pins to give back."""

RESTORE_PATIENCE_S: Final = 40.0
"""How long a stop goes on without a pin given back: longer than libvirt waits for a busy domain (30
s), shorter than the unit's TimeoutStopSec=60, which it extends for as long as it gets on."""

STOP_CONNECT_PATIENCE_S: Final = 10.0
"""How long a stop waits for a libvirt that does not answer."""

STOP_RECONNECT_S: Final = 5.0
"""What of that is left at least to a stop that loses libvirt while it gives back."""

REQUESTS_S: Final = 0.5

ABANDONED_MAX: Final = 4

GARBAGE_EVERY: Final = 20_000
"""After so many new objects Python looks for circles of them to free, as it ships after 700. In a
cycle a large host makes 200,000, none in a circle: a sixth of its time went into that."""

RIVALS_S: Final = 600.0

_SERVED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""SIGUSR1 is the worker's knock: what it has to say is in its queue."""


class _State(enum.Enum):
    WAITING = enum.auto()
    CONNECTING = enum.auto()
    IDLE = enum.auto()
    AT_WORK = enum.auto()


@dataclass(frozen=True, slots=True)
class Orders:
    """How to run: what the command line says beside the settings.

    `reload` reads the settings anew (raises ConfigError); `open_session` connects to a URI, read
    only where told (raises HypervisorError). A stop that gives pins back goes on for
    `restore_patience_s` seconds without getting on.
    """

    settings: Settings
    reload: Callable[[], Settings]
    open_session: Callable[[str, bool], Session]
    directory: Path
    once: bool = False
    exit_when_idle: bool = False
    restore_patience_s: float = RESTORE_PATIENCE_S


def serve(orders: Orders, log: systemd.Log) -> int:
    """Run the service until it is told to end; gives the exit status.

    Raises `run_directory.RunDirectoryError` and `run_directory.AlreadyRunningError`.
    """
    gc.set_threshold(GARBAGE_EVERY)
    with run_directory.locked(orders.directory):
        # Blocked before any thread exists, so that every thread inherits it and the signals wait
        # for `sigtimedwait`.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SERVED)
        daemon = _Daemon(orders, log)
        try:
            status = daemon.run()
        finally:
            threads_ended = daemon.stop()
        if not threads_ended:
            # A thread still inside a libvirt call could hold up the interpreter's end; all files
            # are closed or atomic, and the lock goes with the process.
            os._exit(status)
    return status


class _Daemon:
    def __init__(self, orders: Orders, log: systemd.Log) -> None:
        self._orders = orders
        self._settings = orders.settings
        self._main_thread = threading.get_ident()
        self._abandoned: list[Worker] = []
        self._state = _State.WAITING
        self._exit_status: int | None = None
        self._number = 0
        now_s = time.monotonic()
        self._next_connect_s = now_s
        self._next_cycle_s = now_s
        self._next_check_s = now_s
        self._next_rivals_s = now_s
        self._ping_every_s = systemd.watchdog_interval_s()
        self._next_ping_s = math.inf if self._ping_every_s is None else now_s
        self._disconnected_since_s: float | None = None
        self._is_restoring = False
        self._gives_all_back = False
        self._progress_s = now_s
        self._may_reconnect = False
        service = Service(
            pid=os.getpid(), started_at_s=time.time(), uri="", period_s=0, threshold_ppm=0
        )
        self._say = Announcer(log, orders.directory, service, orders.settings)
        self._inbox = Inbox(
            orders.directory,
            lambda cause, text: self._say.once(cause, Entry(Priority.WARNING, text)),
        )
        self._worker = self._new_worker(0)

    def run(self) -> int:
        """Serve until there is an exit status."""
        systemd.notify("READY=1")
        dry = ", and changes nothing (dry run)" if self._settings.dry_run else ""
        every = f"every {self._settings.period:g} s{dry}"
        self._tell(Priority.INFO, f"vcpusched {__version__} looks at {self._uri()} {every}")
        self._say.publish()
        while True:
            now_s = time.monotonic()
            self._take_outcomes(now_s)
            if self._exit_status is not None and not self._goes_on(now_s):
                return self._exit_status
            self._say.paused(control.read_pause(self._orders.directory))
            if not self._is_restoring:
                self._serve_requests()
            for due_s, act in self._deadlines():
                if due_s <= now_s:
                    act(now_s)
                    break
            else:
                due_s = min(due_s for due_s, _act in self._deadlines())
                patience_s = min(due_s - time.monotonic(), REQUESTS_S)
                received = signal.sigtimedwait(_SERVED, max(0.0, patience_s))
                # After a stop and SIGCONT it may give what was no signal (Modules/signalmodule.c).
                number = received.si_signo if received is not None else None
                if number == signal.SIGHUP:
                    self._reload()
                elif number in {signal.SIGTERM, signal.SIGINT}:
                    self._begin_stop()

    def stop(self) -> bool:
        """Have no further pin made, and tell those under way; False when a thread is stuck."""
        for worker in (self._worker, *self._abandoned):
            worker.cancel()
        systemd.notify("STOPPING=1", "STATUS=Stopping")
        ended = self._worker.join(STOP_PATIENCE_S)
        for worker in (*self._abandoned, self._worker):
            for outcome in worker.take():
                self._on_change(outcome)
                if isinstance(outcome, Cycled):
                    self._say.plan_done(outcome.cycle)
        self._say.end_metrics()
        return ended and all(worker.has_ended for worker in self._abandoned)

    # The end: pins are given back, unless the service is about to be started again.

    def _begin_stop(self) -> None:
        """End the work; a second signal ends the giving back, too."""
        self._worker.end_plans()
        self._exit_status = exits.OK
        if self._is_restoring:
            self._give_up("told to stop at once")
            return
        if self._settings.on_stop == "leave" or not self._worker.has_pins():
            return
        if self._settings.dry_run:
            self._tell(Priority.INFO, "Dry run: pins of an earlier run are left")
        elif systemd.is_restarting():
            self._tell(Priority.INFO, "The service is being restarted: pins are left")
        else:
            systemd.notify("STOPPING=1", "STATUS=Giving original affinities back")
            self._is_restoring = self._may_reconnect = True
            self._progress_s = time.monotonic()

    def _goes_on(self, now_s: float) -> bool:
        """Tell whether there are pins to give back yet, and that gets on."""
        if not self._is_restoring:
            return False
        is_at_work = self._state is _State.AT_WORK
        patience_s = self._orders.restore_patience_s if is_at_work else STOP_CONNECT_PATIENCE_S
        if now_s - self._progress_s > patience_s:
            self._give_up("libvirt does not answer")
            return False
        # More time from systemd, as long as it gets on.
        systemd.notify(f"EXTEND_TIMEOUT_USEC={round((patience_s + 10) * 1e6)}")
        return True

    def _give_up(self, why: str) -> None:
        self._is_restoring = False
        text = f'Pins are left, since {why}; "vcpusched restore" gives them back'
        self._tell(Priority.WARNING, text)

    # What is due.

    def _deadlines(self) -> Iterator[tuple[float, Callable[[float], None]]]:
        """Give when what is to be done in this state; of what is due the first goes first."""
        yield self._next_ping_s, self._ping
        yield self._next_rivals_s, self._look_for_rivals
        busy_since_s = self._worker.busy_since_s
        if self._state is _State.IDLE and self._is_restoring:
            yield -math.inf, self._give_back
        elif self._state is _State.IDLE:
            yield self._next_cycle_s, self._begin_cycle
            yield self._next_check_s, self._begin_check
        elif self._state is _State.WAITING:
            yield self._next_connect_s, self._begin_connect
        elif busy_since_s is not None and self._state is _State.AT_WORK:
            yield busy_since_s + CYCLE_MAX_S, self._abandon
        elif busy_since_s is not None and self._say.service.trouble is None:
            yield busy_since_s + CONNECT_PATIENCE_S, self._miss

    def _ping(self, now_s: float) -> None:
        self._next_ping_s = now_s + (self._ping_every_s or math.inf)
        systemd.notify("WATCHDOG=1")

    def _look_for_rivals(self, now_s: float) -> None:
        self._next_rivals_s = now_s + RIVALS_S
        for warning in rivals.find():
            self._say.once(warning, Entry(Priority.WARNING, warning))

    def _give_back(self, now_s: float) -> None:
        self._state = _State.AT_WORK
        if not self._gives_all_back:
            self._gives_all_back, self._progress_s = True, now_s
        self._worker.carry_out(Request(Verb.RESTORE), beside_service=False)

    def _begin_cycle(self, now_s: float) -> None:
        self._state = _State.AT_WORK
        # No drift, and no burst of late cycles after a stall.
        self._next_cycle_s += self._settings.period
        if self._next_cycle_s <= now_s:
            self._next_cycle_s = now_s + self._settings.period
        rules = self._settings.rules()
        self._worker.cycle(replace(rules, paused=self._say.service.paused is not None))

    def _begin_check(self, now_s: float) -> None:
        self._state = _State.AT_WORK
        self._next_check_s = now_s + CHECK_S
        self._worker.check()

    def _begin_connect(self, _now_s: float) -> None:
        self._state = _State.CONNECTING
        self._worker.connect()

    def _miss(self, _now_s: float) -> None:
        # An attempt under way is never given up: it succeeds at the moment libvirtd answers.
        self._lose("it does not answer")

    def _abandon(self, now_s: float) -> None:
        self._replace_worker("libvirt does not answer", now_s)
        self._lose(f"a cycle took longer than {CYCLE_MAX_S:.0f} s")

    def _replace_worker(self, why: str, now_s: float) -> None:
        """Let another worker open another connection; of the old one only pins count."""
        self._inbox.fail(exits.UNAVAILABLE, why)
        self._worker.abandon()
        self._abandoned = [worker for worker in self._abandoned if not worker.has_ended]
        self._abandoned.append(self._worker)
        if len(self._abandoned) >= ABANDONED_MAX:
            self._tell(Priority.ERROR, f"{ABANDONED_MAX} calls to libvirt are stuck; giving up")
            self._exit_status = exits.FAILURE
        self._worker = self._new_worker(self._number + 1)
        self._state = _State.WAITING
        self._next_connect_s = now_s

    # What happened.

    def _take_outcomes(self, now_s: float) -> None:
        for worker in self._abandoned:
            for outcome in worker.take():
                self._on_change(outcome)
        for outcome in self._worker.take():
            self._on_change(outcome)
            self._on_end(outcome, now_s)

    def _serve_requests(self) -> None:
        """Begin with a request, if there is one; it waits for work at hand, not for libvirt."""
        trouble = self._say.service.trouble
        is_away = self._state in {_State.WAITING, _State.CONNECTING} and trouble is not None
        if self._state is not _State.IDLE and not is_away:
            return
        asked = self._inbox.take()
        if asked is None:
            return
        if self._state is not _State.IDLE:
            self._inbox.fail(exits.UNAVAILABLE, f"libvirt: {printable(trouble or '', 300)}")
        elif self._settings.dry_run and asked.verb is Verb.RESTORE:
            why = "the service runs with dry_run and changes no pin: stop it, then restore"
            self._inbox.fail(exits.FAILURE, why)
        else:
            self._state = _State.AT_WORK
            self._worker.carry_out(asked, beside_service=True)

    def _on_change(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Changed | Failure):
            return
        if outcome.move.cause is Cause.RESTORED:
            self._progress_s, self._may_reconnect = time.monotonic(), True
        self._say.happened(outcome)

    def _on_end(self, outcome: Outcome, now_s: float) -> None:
        match outcome:
            case Answer():
                self._state = _State.IDLE
                self._on_answered(outcome)
            case Alive():
                if self._state is _State.CONNECTING:
                    self._next_cycle_s, self._next_check_s = now_s, now_s + CHECK_S
                self._state = _State.IDLE
            case Cycled():
                self._on_cycle(outcome, now_s)
            case Lost(why, denied, stands=True):
                self._state = _State.IDLE
                text = f"Could not read the host: {printable(why, 300)}"
                self._say.once("unreadable", Entry(Priority.WARNING, text))
                self._say.know(connected=True, trouble=why)
                self._say.publish()
                if self._orders.once:
                    self._exit_status = exits.NOT_PERMITTED if denied else exits.FAILURE
            case Lost(why, denied):
                self._on_lost(why, now_s, denied=denied)
            case Crashed(text):
                self._tell(Priority.ERROR, f"A mistake in vcpusched; ending.\n{text}")
                self._is_restoring = False
                self._exit_status = exits.FAILURE

    def _on_answered(self, answer: Answer) -> None:
        if not self._gives_all_back:
            self._inbox.answer(answer)
            return
        self._is_restoring = False  # that is all there was to do before the end
        for problem in answer.problems:
            self._tell(Priority.WARNING, f"Not given back: {problem}")

    def _on_lost(self, why: str, now_s: float, *, denied: bool = False) -> None:
        if self._may_reconnect and self._state is not _State.CONNECTING:
            # One that was just restarted is soon found again; this is not for ever and ever.
            least_s = now_s - STOP_CONNECT_PATIENCE_S + STOP_RECONNECT_S
            self._progress_s, self._may_reconnect = max(self._progress_s, least_s), False
        self._state = _State.WAITING
        self._inbox.fail(exits.UNAVAILABLE, f"libvirt: {printable(why, 300)}")
        delay_s = RETRY_DENIED_S if denied else min(RETRY_S, self._settings.period)
        # A connection that has proven itself is opened again at once; one that falls to the first
        # question is not, or it would be opened a thousand times a second.
        self._next_connect_s = now_s if self._say.service.connected else now_s + delay_s
        if self._orders.once:
            self._tell(Priority.ERROR, f"No libvirt at {self._uri()}: {why}")
            self._exit_status = exits.NOT_PERMITTED if denied else exits.UNAVAILABLE
            return
        self._lose(why)

    def _lose(self, why: str) -> None:
        """Say once that libvirt is away; that is a state, and all the rest goes on."""
        if self._disconnected_since_s is None:
            self._disconnected_since_s = time.monotonic()
            lost = "Lost libvirt" if self._say.service.connected else "Waiting for libvirt"
            text = f"{printable(why, 300)}; trying again until it answers"
            self._tell(Priority.WARNING, f"{lost} at {self._uri()}: {text}")
        if self._orders.once:
            self._exit_status = exits.UNAVAILABLE
        self._say.know(connected=False, trouble=why, cycle=None)
        self._say.publish()

    def _on_cycle(self, cycled: Cycled, now_s: float) -> None:
        cycle = cycled.cycle
        self._state = _State.IDLE
        self._number = cycle.number
        if self._disconnected_since_s is not None:
            after_s = now_s - self._disconnected_since_s
            text = f"Connected to libvirt at {self._uri()} after {after_s:.0f} s"
            self._tell(Priority.INFO, text)
        self._disconnected_since_s = None
        self._say.cycled(cycle, cycled.took_s, cycled.planned_s)
        if cycle.lost is not None:
            self._on_lost(cycle.lost, now_s)
            return
        if self._orders.exit_when_idle and cycle.domains == 0:
            self._tell(Priority.INFO, "No active domains; ending as told")
            self._exit_status = exits.OK
        elif self._orders.once and (self._is_decided(cycle) or cycle.domains == 0):
            self._tell(Priority.INFO, messages.status_line(self._say.service))
            failed = bool(self._say.service.pins_failing)
            self._exit_status = exits.FAILURE if failed else exits.OK

    def _is_decided(self, cycle: Cycle) -> bool:
        """Tell whether that was the one decision asked for; a pause leaves it at the plan."""
        is_paused = self._say.service.paused is not None
        return cycle.decided or (is_paused and cycle.confirmed >= cycle.confirm)

    def _reload(self) -> None:
        systemd.reloading()
        try:
            settings = self._orders.reload()
        except ConfigError as error:
            for line in error.lines:
                self._tell(Priority.ERROR, f"Not reloaded, the old settings stay: {line}")
        else:
            changed = [
                f"{key} = {value}"
                for key, value in settings.model_dump().items()
                if value != getattr(self._settings, key)
            ]
            before, self._settings, now_s = self._settings, settings, time.monotonic()
            self._next_cycle_s = min(self._next_cycle_s, now_s + settings.period)
            self._say.use(settings)
            self._tell(Priority.INFO, f"Reloaded: {', '.join(changed) or 'no change'}")
            if (settings.uri, settings.dry_run) != (before.uri, before.dry_run):
                # The connection is to another libvirt, or read only.
                self._replace_worker("the service was reloaded meanwhile: try again", now_s)
                self._say.know(connected=False, trouble=None, cycle=None)
        systemd.notify("READY=1")
        self._say.publish()

    def _tell(self, priority: Priority, text: str) -> None:
        self._say.write(Entry(priority, text))

    def _uri(self) -> str:
        return printable(self._settings.uri, 200)

    def _new_worker(self, number: int) -> Worker:
        main_thread, settings = self._main_thread, self._settings
        book = Book(LedgerFile(self._orders.directory), settings.uri)
        if book.problem:
            self._tell(Priority.WARNING, book.problem)
        if elsewhere := book.elsewhere():
            self._say.once(elsewhere, Entry(Priority.WARNING, elsewhere))
        return Worker(
            book=book,
            open_session=lambda: self._orders.open_session(settings.uri, settings.dry_run),
            wake=lambda: signal.pthread_kill(main_thread, signal.SIGUSR1),
            number=number,
        )
