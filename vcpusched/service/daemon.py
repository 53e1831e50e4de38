"""The process: one loop that serves signals, clock, watchdog and files.

Problem: libvirt calls block, a libvirtd hangs or is away for hours, and Python delivers no signal
    meanwhile; yet a stop must be quick, `status` true, and no pin lost.
Approach: this loop makes no libvirt call; the worker makes them, one job at a time. Sleeping and
    waiting for signals are the same line. All that is decided by is one value (`state`), replaced
    by each outcome of the worker, and one table of what is due (`_deadlines`).

The daemon's life:

    start ──► WAITING ──► CONNECTING ──► IDLE ◄──► AT_WORK (a cycle, a request, a check)
                 ▲             │          │           │
                 ├── refused ──┘          │           │
                 ├──────── lost ──────────┴───────────┤
                 └──────── stuck: another worker ─────┘

Connecting may take for ever, and no fault: the state says so, and the attempt goes on.
Work has a limit. A worker past it is abandoned with its connection; after `MAX_ABANDONED` of them
the process ends, and systemd starts it anew.

A stop ends plans at once. Where pins are to be restored the loop goes on in the same phases, with a
restore in place of cycles, for as long as that gets on (`Ending`).
"""

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

from vcpusched.act.actuator import Failure
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.host import checks
from vcpusched.report.messages import JournalEntry, Priority, Service
from vcpusched.service import control, exits, run_directory, systemd
from vcpusched.service.control import Answer, Inbox, Request, Verb
from vcpusched.service.reporter import Reporter
from vcpusched.service.run_directory import LedgerFile
from vcpusched.service.state import CHECK_S, STOP_CONNECT_TIMEOUT_S, Ending, Phase, State, after
from vcpusched.service.worker import MAX_CYCLE_S, Cycled, Lost, Outcome, Session, Worker
from vcpusched.settings import ConfigError, Settings
from vcpusched.text import printable

CONNECT_TIMEOUT_S: Final = 8.0
"""How long opening a connection may take before the status says that libvirt does not answer."""

STOP_TIMEOUT_S: Final = 0.5
"""How long a stop waits for the pin under way, so that it is reported; the process ends within 1 s,
unless it has pins to restore."""

RESTORE_TIMEOUT_S: Final = 40.0
"""How long a stop goes on without a pin restored: longer than libvirt waits for a busy domain (30
s), shorter than the unit's TimeoutStopSec=60, which it extends for as long as it gets on."""

REQUESTS_S: Final = 1.0
"""How long a request may wait to be seen. Each check costs 0.1 ms of CPU time."""

MAX_ABANDONED: Final = 4

GARBAGE_EVERY: Final = 20_000
"""After so many new objects Python searches for circles of them to free, as it ships after 700. In
a cycle a large host makes 200,000, none in a circle: a sixth of its time went into that."""

RIVALS_S: Final = 600.0

_SERVED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""The worker sends SIGUSR1 when an outcome is in its queue."""

_Act = Callable[[float], None]
"""What can be due; it is given the time, monotonic."""


@dataclass(frozen=True, slots=True)
class Orders:
    """How to run: what the command line says beside the settings.

    `reload` reads the settings anew (raises ConfigError); `open_session` connects to a URI, read
    only where asked to (raises HypervisorError).
    """

    settings: Settings
    reload: Callable[[], Settings]
    open_session: Callable[[str, bool], Session]
    directory: Path
    once: bool = False
    exit_when_idle: bool = False


def serve(orders: Orders, log: systemd.Log) -> int:
    """Run the service until it ends; return the exit status.

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
            threads_ended = daemon.end()
        if not threads_ended:
            # A thread still inside a libvirt call could hold up the interpreter's end; all files
            # are closed or atomic, and the lock goes with the process.
            os._exit(status)
    return status


class _Daemon:
    def __init__(self, orders: Orders, log: systemd.Log) -> None:
        self._orders = orders
        service = Service(os.getpid(), time.time(), orders.settings)
        self._state = State(service, orders.once, orders.exit_when_idle)
        self._reporter = Reporter(log, orders.directory, orders.settings)
        self._inbox = Inbox(orders.directory, self._reporter.once)
        self._ping_every_s = systemd.watchdog_interval_s()
        self._ping_at_s = self._rivals_at_s = 0.0
        self._abandoned: list[Worker] = []
        self._worker = self._new_worker(0)

    def run(self) -> int:
        """Serve until there is an exit status."""
        systemd.notify("READY=1")
        self._reporter.begin(self._state)
        while True:
            now_s = time.monotonic()
            for outcome in self._outcomes():
                self._on_outcome(outcome, now_s)
            exit_status = self._state.stop.exit_status
            if exit_status is not None and not self._goes_on(now_s):
                return exit_status
            self._become(self._state.paused(control.read_pause(self._orders.directory)))
            if self._state.service.paused is not None:
                self._worker.end_plans()
            self._serve_requests(now_s)
            act, due_s = min(self._deadlines().items(), key=lambda item: item[1])
            if due_s <= now_s:
                act(now_s)
                continue
            sleep_s = min(due_s - time.monotonic(), REQUESTS_S)
            received = signal.sigtimedwait(_SERVED, max(0.0, sleep_s))
            # After a stop and SIGCONT it may give what was no signal (Modules/signalmodule.c).
            number = received.si_signo if received is not None else None
            if number == signal.SIGHUP:
                self._reload(time.monotonic())
            elif number in {signal.SIGTERM, signal.SIGINT}:
                self._begin_stop(time.monotonic())

    def end(self) -> bool:
        """Have no further pin made, and report those under way; False when a thread is stuck."""
        for worker in (self._worker, *self._abandoned):
            worker.cancel()
        systemd.notify("STOPPING=1", "STATUS=Stopping")
        ended = self._worker.join(STOP_TIMEOUT_S)
        for outcome in self._outcomes():
            if isinstance(outcome, Cycled):
                self._reporter.planned(outcome.cycle, self._state.settings.policy())
            elif isinstance(outcome, Changed | Failure):
                self._on_outcome(outcome, time.monotonic())
        self._reporter.end_metrics()
        return ended and all(worker.join() for worker in self._abandoned)

    # What happened.

    def _outcomes(self) -> Iterator[Outcome]:
        for worker in (*self._abandoned, self._worker):
            yield from worker.take()

    def _on_outcome(self, outcome: Outcome, now_s: float) -> None:
        before = self._state
        self._become(after(before, outcome, now_s, time.time()), outcome)
        match outcome:
            case Cycled(cycle) if cycle.lost is not None:
                self._on_outcome(Lost(cycle.lost), now_s)
            case Answer() if not before.stop.began:
                self._inbox.answer(outcome)
            case Lost(why, stands=False):
                self._inbox.fail(exits.UNAVAILABLE, f"libvirt: {printable(why, 300)}")

    def _become(self, state: State, outcome: Outcome | None = None) -> None:
        before, self._state = self._state, state
        self._reporter.report(before, outcome, state)

    def _serve_requests(self, now_s: float) -> None:
        """Begin with a request, if there is one; it waits for work under way, not for libvirt."""
        state, trouble = self._state, self._state.service.trouble
        is_away = state.phase in {Phase.WAITING, Phase.CONNECTING} and trouble is not None
        if state.stop.restores or not (state.phase is Phase.IDLE or is_away):
            return
        request = self._inbox.take()
        if request is None:
            return
        if is_away:
            self._inbox.fail(exits.UNAVAILABLE, f"libvirt: {printable(trouble or '', 300)}")
        elif state.settings.dry_run and request.verb is not Verb.RELEASE:
            why = "the service runs with dry_run and changes no pin: stop it, then restore"
            self._inbox.fail(exits.FAILURE, why)
        else:
            self._state = state.busy(Phase.AT_WORK, now_s)
            self._worker.carry_out(request, beside_service=True)

    def _reload(self, now_s: float) -> None:
        systemd.reloading()
        before = self._state.settings
        try:
            settings = self._orders.reload()
        except ConfigError as error:
            for line in error.lines:
                text = f"Not reloaded, the old settings stay: {line}"
                self._reporter.write(JournalEntry(Priority.ERROR, text))
        else:
            self._reporter.reloaded(settings)
            self._state = self._state.configured(settings, now_s)
            if (settings.uri, settings.dry_run) != (before.uri, before.dry_run):
                # The connection is to another libvirt, or read only.
                self._replace_worker("the service was reloaded meanwhile: try again", now_s)
                service = replace(self._state.service, connected=False, trouble=None, cycle=None)
                self._state = replace(self._state, service=service)
        systemd.notify("READY=1")
        self._reporter.show(self._state.service)

    # The stop: pins are restored, unless the service is about to be started again.

    def _begin_stop(self, now_s: float) -> None:
        """End the work; a second signal ends the restoring, too."""
        self._worker.end_plans()
        settings, stop = self._state.settings, self._state.stop
        why = None
        if stop.restores:
            stop = stop.given_up("a second signal ended the restore")
        elif settings.on_stop == "leave" or not self._worker.has_pins():
            pass
        elif settings.dry_run:
            why = JournalEntry(Priority.INFO, "Dry run: pins of an earlier run are left")
        elif systemd.is_restarting():
            why = JournalEntry(Priority.INFO, "The service is being restarted: pins are left")
        else:
            systemd.notify("STOPPING=1", "STATUS=Restoring original affinities")
            stop = Ending(restores=True, progress_s=now_s)
        self._become(replace(self._state, stop=stop).ending(exits.OK, why))

    def _goes_on(self, now_s: float) -> bool:
        """Return whether there are pins to restore yet, and that gets on."""
        state = self._state
        if not state.stop.restores:
            return False
        is_at_work = state.phase is Phase.AT_WORK
        timeout_s = RESTORE_TIMEOUT_S if is_at_work else STOP_CONNECT_TIMEOUT_S
        if now_s - state.stop.progress_s > timeout_s:
            self._become(replace(state, stop=state.stop.given_up("libvirt does not answer")))
            return False
        # More time from systemd, as long as it gets on.
        systemd.notify(f"EXTEND_TIMEOUT_USEC={round((timeout_s + 10) * 1e6)}")
        return True

    # What is due.

    def _deadlines(self) -> dict[_Act, float]:
        """Return what is to be done in this phase, and when."""
        state = self._state
        due: dict[_Act, float] = {self._ping: self._ping_at_s}
        due[self._find_rivals] = self._rivals_at_s
        match state.phase:
            case Phase.WAITING:
                due[self._connect] = state.connect_at_s
            case Phase.CONNECTING if state.service.trouble is None:
                due[self._miss] = state.busy_since_s + CONNECT_TIMEOUT_S
            case Phase.IDLE if state.stop.restores:
                due[self._restore] = -math.inf
            case Phase.IDLE:
                due[self._cycle] = state.cycle_at_s
                due[self._check] = state.busy_since_s + CHECK_S
            case Phase.AT_WORK:
                due[self._abandon] = state.busy_since_s + MAX_CYCLE_S
        return due

    def _ping(self, now_s: float) -> None:
        self._ping_at_s = now_s + self._ping_every_s
        systemd.notify("WATCHDOG=1")

    def _find_rivals(self, now_s: float) -> None:
        self._rivals_at_s = now_s + RIVALS_S
        for warning in checks.rivals():
            self._reporter.once(warning, JournalEntry(Priority.WARNING, warning))

    def _connect(self, now_s: float) -> None:
        self._state = self._state.busy(Phase.CONNECTING, now_s)
        self._worker.connect()

    def _cycle(self, now_s: float) -> None:
        self._state = self._state.cycling(now_s)
        paused = self._state.service.paused is not None
        self._worker.cycle(replace(self._state.settings.rules(), paused=paused))

    def _check(self, now_s: float) -> None:
        self._state = self._state.busy(Phase.AT_WORK, now_s)
        self._worker.check()

    def _restore(self, now_s: float) -> None:
        self._state = self._state.restoring(now_s)
        self._worker.carry_out(Request(Verb.RESTORE), beside_service=False)

    def _miss(self, now_s: float) -> None:
        # An attempt under way is never given up: it succeeds at the moment libvirtd answers.
        self._become(self._state.away("it does not answer", now_s))

    def _abandon(self, now_s: float) -> None:
        self._replace_worker("libvirt does not answer", now_s)
        why = f"a cycle took longer than {MAX_CYCLE_S:.0f} s"
        self._become(self._state.away(why, now_s))

    def _replace_worker(self, why: str, now_s: float) -> None:
        """Let another worker open another connection; of the old one only pins count."""
        self._inbox.fail(exits.UNAVAILABLE, why)
        self._worker.abandon()
        self._abandoned = [worker for worker in self._abandoned if not worker.join()]
        self._abandoned.append(self._worker)
        state = replace(self._state, phase=Phase.WAITING, connect_at_s=now_s)
        if len(self._abandoned) >= MAX_ABANDONED:
            text = f"{MAX_ABANDONED} calls to libvirt are stuck; giving up"
            state = state.ending(exits.FAILURE, JournalEntry(Priority.ERROR, text))
        self._become(state)
        self._worker = self._new_worker(state.number + 1)

    def _new_worker(self, number: int) -> Worker:
        main_thread, settings = threading.get_ident(), self._state.settings
        book = Book(LedgerFile(self._orders.directory), settings.uri)
        if book.problem:
            self._reporter.write(JournalEntry(Priority.WARNING, book.problem))
        if elsewhere := book.elsewhere():
            self._reporter.once(elsewhere, JournalEntry(Priority.WARNING, elsewhere))
        return Worker(
            book=book,
            open_session=lambda: self._orders.open_session(settings.uri, settings.dry_run),
            wake=lambda: signal.pthread_kill(main_thread, signal.SIGUSR1),
            number=number,
        )
