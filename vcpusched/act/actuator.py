"""Makes moves, whatever their cause: one loop, one set of checks, one event for each.

Rule: no move is made elsewhere. Nothing is decided here; what speaks against a move is asked of
whoever wants it. What undoes a pin is written down by what stands before the hypervisor
(`reconciler`), once for all moves of one guest, before the first of them.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vcpusched.act.ledger import Changed
from vcpusched.host.hypervisor import (
    ConnectionLostError,
    CpuRefusedError,
    HypervisorError,
    NotRecordedError,
    OvertakenError,
    VanishedError,
)
from vcpusched.model import ALL_CPUS, NO_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, Sample


@dataclass(frozen=True, slots=True)
class Failure:
    """A move that was wanted and not made, and why.

    `kind` is the same for all failures that mean the same, whatever figures are in `why`;
    `expected` when nothing is wrong (the guest ended meanwhile), `of_ours` if no guest is to blame.
    `blamed` are the guest, or the pCPUs, that are left alone for it.
    """

    move: Move
    why: str
    kind: str = ""
    expected: bool = False
    of_ours: bool = False
    blamed: tuple[DomainUuid | int, ...] = ()

    @property
    def is_gone(self) -> bool:
        """Whether there is nothing left to be moved."""
        return self.kind == "vanished"


Event = Changed | Failure


def ignore(_event: Event) -> None:
    """Take no notice of an event."""


def never() -> bool:
    """Return that nothing was cancelled."""
    return False


class Account(Protocol):
    """A hypervisor before which is written down what undoes a pin, or nothing is."""

    def sample(self) -> Sample:
        """Read the host; nothing is changed."""

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""

    def settle(self, on_event: Callable[[Event], None], *, rests: bool) -> None:
        """Write down what the last sample showed, and tell it; before anything is done.

        While it `rests` no guest is touched. Raises ConnectionLostError.
        """

    def intend(self, moves: Sequence[Move]) -> None:
        """Write down what undoes these moves of one guest. Raises a `HypervisorError`."""

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> CpuSet | None:
        """Pin, and return the offline pCPUs that stay missing, if any. Raises as intended."""


@dataclass(slots=True)
class Done:
    """What came of moves; `lost` says why the connection is, and `in_doubt` what it was asked."""

    made: list[Move] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lost: str | None = None
    in_doubt: Move | None = None


Objection = Callable[[Move, Definition], str]
"""Says what speaks against a move by a definition that was read just now; nothing if none."""


class _CancelledError(Exception):
    """No further move is to be made."""


class Actuator:
    """Makes moves in one cycle, or outside of one (`number` 0).

    Once `cancelled` says yes, no further move is made, but that which takes back half an exchange.
    `on_event` is told of each move at once when it is made or fails.
    """

    def __init__(
        self,
        account: Account,
        number: int = 0,
        cancelled: Callable[[], bool] = never,
        on_event: Callable[[Event], None] = ignore,
    ) -> None:
        self._account = account
        self._number = number
        self._cancelled = cancelled
        self._on_event = on_event
        self._definitions: dict[DomainUuid, Definition] = {}

    def act(self, moves: Sequence[Move], objection: Objection | None = None) -> Done:
        """Make moves in their order.

        The moves of a plan may need each other, so it ends at the first that fails; half an
        exchange is taken back. Any other move stands alone.
        """
        done, intended = Done(), set[DomainUuid]()
        for position, move in enumerate(moves):
            before = moves[position - 1] if position else None
            half = before if before is not None and move.exchanged_with == before.vcpu else None
            try:
                self._check(move, objection)
                if move.vcpu.uuid not in intended:
                    its = [one for one in moves[position:] if one.vcpu.uuid == move.vcpu.uuid]
                    self._account.intend(its)
                    intended.add(move.vcpu.uuid)
                missing = self._account.pin(move.vcpu, move.to_cpus)
            except ConnectionLostError as error:
                # Whether libvirtd still made this pin shows in the next sample.
                done.lost, done.in_doubt = str(error), move
                break
            except _CancelledError:
                self._take_back(half, done)
                break
            except HypervisorError as error:
                done.failures.append(self._failure(move, error))
                self._on_event(done.failures[-1])
                if move.cause is Cause.BALANCE:
                    self._take_back(half, done)
                    break
            else:
                self._note(move, done, missing or NO_CPUS)
        return done

    def _check(self, move: Move, objection: Objection | None) -> None:
        """Raise VanishedError where something speaks against a move by now."""
        if self._cancelled():
            raise _CancelledError
        if objection is None:
            return
        uuid = move.vcpu.uuid
        if uuid not in self._definitions:
            self._definitions[uuid] = self._account.definition(uuid)
        if why := objection(move, self._definitions[uuid]):
            raise VanishedError(why)
        if self._cancelled():  # reading took calls, too
            raise _CancelledError

    def _take_back(self, move: Move | None, done: Done) -> None:
        """Undo the first half of an exchange, if there is one, whose second half was not made."""
        if move is None:
            return
        back = replace(
            move,
            from_cpus=move.to_cpus,
            to_cpus=move.from_cpus,
            reason="back again, since the vCPU that it was exchanged with could not be moved",
        )
        try:
            self._account.intend([back])
            self._account.pin(back.vcpu, back.to_cpus)
        except ConnectionLostError as error:
            done.lost, done.in_doubt = str(error), back
        except HypervisorError:
            pass  # the next plan goes on from there
        else:
            self._note(back, done)

    def _note(self, move: Move, done: Done, missing: CpuSet = NO_CPUS) -> None:
        done.made.append(move)
        self._on_event(Changed(move, self._number, missing=missing))

    def _failure(self, move: Move, error: HypervisorError) -> Failure:
        """Say what failed, and who is to blame: by the definition, for a pCPU that was refused."""
        expected = isinstance(error, VanishedError | OvertakenError)
        of_ours = isinstance(error, NotRecordedError)
        blamed: tuple[DomainUuid | int, ...] = () if expected or of_ours else (move.vcpu.uuid,)
        # Repairs go where they must, so there the guest is left alone.
        if isinstance(error, CpuRefusedError) and move.cause is Cause.BALANCE:
            cpuset = ALL_CPUS
            with contextlib.suppress(HypervisorError):
                cpuset = self._account.definition(move.vcpu.uuid).cpuset
            if move.to_cpus.is_within(cpuset):
                blamed = tuple(move.to_cpus)  # maybe nobody can go there
            elif not move.to_cpus & cpuset:
                blamed = ()  # plans will avoid it
        kind = "vanished" if isinstance(error, VanishedError) else type(error).__name__
        return Failure(move, str(error), kind, expected=expected, of_ours=of_ours, blamed=blamed)
