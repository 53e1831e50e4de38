"""The one thread that talks to libvirt, so that nothing else has to wait for it.

Rule: every libvirt call of the daemon is made here. A worker that got stuck is abandoned together
with its connection: it makes no further pin, and of what it still says only pins count.
"""

import gc
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Cycle, Rules, Scheduler
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import (
    ConnectionLostError,
    Hypervisor,
    HypervisorError,
    PermissionDeniedError,
)
from vcpusched.model import Host
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.service.control import Answer, Request
from vcpusched.service.restore import carry_out

MAX_CYCLE_S: Final = 45.0
"""A cycle longer than this is stuck: libvirt itself gives up waiting for a busy domain after 30 s,
and keepalive ends a dead call after 8 s."""


class Session(Hypervisor, Protocol):
    """A hypervisor reached over a connection that can die."""

    def is_alive(self) -> bool:
        """Return whether the connection still stands; must not block."""

    def close(self) -> None:
        """Let go of the connection."""


@dataclass(frozen=True, slots=True)
class Cycled:
    """A cycle ended that took so long, of that so long to plan, in seconds; 0 where nothing was."""

    cycle: Cycle
    took_s: float = 0.0
    planned_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Alive:
    """The connection stands: it was opened, or checked."""


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no connection, or it `stands` and the host could not be read.

    `why` says why, `denied` whether we may not.
    """

    why: str
    denied: bool = False
    stands: bool = False


@dataclass(frozen=True, slots=True)
class Crashed:
    """A mistake of ours, with its traceback: the daemon must not outlive it."""

    text: str


Outcome = Event | Alive | Answer | Cycled | Lost | Crashed
"""An `Event` comes in between; any other ends what the worker was asked to do."""


class Worker:
    """A thread that does one thing after another, at most one at a time.

    Outcomes carry text, no exceptions: the frames of those hold libvirt's objects, and the last one
    to let go of such an object calls libvirt.

    `open_session` opens a connection; `book` is the ledger, which this worker alone writes until it
    is abandoned; `wake` is called from the thread whenever there is an outcome to take.
    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        book: Book,
        wake: Callable[[], None],
        number: int = 0,
    ) -> None:
        self._open_session = open_session
        self._book = book
        self._wake = wake
        self._session: Session | None = None
        self._reconciler: Reconciler | None = None
        self._scheduler = Scheduler(number, self._plan)
        self._planned_s = 0.0
        self._jobs: queue.SimpleQueue[Callable[[], Outcome] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._plans_end = threading.Event()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="libvirt-worker", daemon=True)
        self._thread.start()

    def connect(self) -> None:
        """Begin to open a connection; ends in Alive or Lost, however long that takes."""
        self._jobs.put(self._do_connect)

    def cycle(self, rules: Rules) -> None:
        """Begin a cycle; ends in Cycled or Lost, after an `Event` for each move."""
        self._plans_end.clear()
        self._jobs.put(lambda: self._do_cycle(rules))

    def check(self) -> None:
        """Begin to check whether the connection stands; ends in Alive or Lost."""
        self._jobs.put(self._do_check)

    def carry_out(self, request: Request, *, beside_service: bool) -> None:
        """Begin to do what is asked for; ends in an Answer or Lost, after an `Event` a move."""
        self._jobs.put(lambda: self._do_request(request, beside_service=beside_service))

    def end_plans(self) -> None:
        """Have no further pin made by the plan under way."""
        self._plans_end.set()

    def has_pins(self) -> bool:
        """Return whether the ledger knows of any pin of ours at this libvirt."""
        return any(entry.is_at(self._book.uri) for _, entry, _ in self._book.ledger.pins())

    def cancel(self) -> None:
        """Have no further pin made, and the thread end as soon as what it does has ended."""
        self._plans_end.set()
        self._cancelled.set()
        self._jobs.put(None)

    def abandon(self) -> None:
        """Cancel, and let it write the ledger no more: another worker goes on with that."""
        self.cancel()
        self._book.close()

    def take(self) -> list[Outcome]:
        """Take the outcomes since the last call, without waiting: once abandoned, events."""
        taken: list[Outcome] = []
        while not self._outcomes.empty():  # nobody else takes any
            outcome = self._outcomes.get()
            if isinstance(outcome, Changed | Failure) or not self._book.is_closed:
                taken.append(outcome)
        return taken

    def join(self, timeout_s: float = 0.0) -> bool:
        """Wait for the thread to end; return whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome = job()
            except ConnectionLostError as error:
                self._let_go()
                outcome = Lost(str(error))
            except HypervisorError as error:
                denied = isinstance(error, PermissionDeniedError)
                outcome = Lost(str(error), denied, stands=self._session is not None)
            except BaseException:  # noqa: BLE001  the main loop ends the process for it
                outcome = Crashed(traceback.format_exc())
            self._put(outcome)
        self._let_go()

    def _put(self, outcome: Outcome) -> None:
        self._outcomes.put(outcome)
        self._wake()

    def _let_go(self) -> None:
        if self._reconciler is not None:
            self._book.catch_up()  # what was intended and not tried is no pin of ours
        if self._session is not None:
            self._session.close()
            self._session = self._reconciler = None

    def _do_connect(self) -> Outcome:
        self._let_go()
        # The frames of what failed hold the last connection in circles, and so its descriptors.
        gc.collect()
        self._session = self._open_session()
        self._reconciler = Reconciler(self._session, self._book)
        return Alive()

    def _do_check(self) -> Outcome:
        if self._session is not None and self._session.is_alive():
            return Alive()
        raise ConnectionLostError("it stopped answering or went away")

    def _connected(self) -> Reconciler:
        if self._reconciler is None:
            raise ConnectionLostError("not connected")
        return self._reconciler

    def _do_request(self, request: Request, *, beside_service: bool) -> Outcome:
        return carry_out(
            self._connected(),
            request,
            beside_service=beside_service,
            cancelled=self._cancelled.is_set,
            on_event=self._put,
        )

    def _do_cycle(self, rules: Rules) -> Outcome:
        reconciler = self._connected()
        began_s, self._planned_s = time.monotonic(), 0.0
        cycle = self._scheduler.cycle(
            reconciler, rules, cancelled=self._plans_end.is_set, on_event=self._put
        )
        return Cycled(cycle, time.monotonic() - began_s, self._planned_s)

    def _plan(self, host: Host, policy: Policy) -> Plan:
        """Plan, and note how long that takes: the scheduler knows no clock."""
        began_s = time.monotonic()
        try:
            return plan(host, policy)
        finally:
            self._planned_s += time.monotonic() - began_s
