"""Makes moves, whatever their cause: one loop, one set of checks, one event for each.

Rule: no move is made elsewhere. Nothing is decided here; what speaks against a move is asked of the
caller. What undoes a pin is written down by what stands before the hypervisor
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

    `kind` is the same for all failures that mean the same, whatever figures are in `why`. `blamed`
    are the guest, or the pCPUs, that are left alone for it.
    """

    move: Move
    why: str
    kind: type[HypervisorError] = HypervisorError
    blamed: tuple[DomainUuid | int, ...] = ()

    @property
    def expected(self) -> bool:
        """Whether nothing is wrong: the guest ended meanwhile, or another pinned it."""
        return self.kind in {VanishedError, OvertakenError}


Event = Changed | Failure


def ignore(_event: Event) -> None:
    """Take no notice of an event."""


def never() -> bool:
    """Return that nothing was cancelled."""
    return False


class Account(Protocol):
    """A hypervisor before which is written down what undoes a pin, or nothing is.

    Every method may raise a `HypervisorError`.
    """

    def sample(self) -> Sample:
        """Read the host; nothing is changed."""

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""

    def settle(self, on_event: Callable[[Event], None], *, rests: bool) -> None:
        """Write down what the last sample showed, and report it; before anything is done.

        While it `rests` no guest is touched.
        """

    def intend(self, moves: Sequence[Move]) -> None:
        """Write down what undoes these moves of one guest."""

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> CpuSet | None:
        """Pin as intended, and return the offline pCPUs that stay missing, if any."""


@dataclass(slots=True)
class Actuator:
    """Makes moves in one cycle, or outside of one (`number` 0).

    Once `cancelled` says yes, no further move is made, but that which takes back half an exchange.
    `objection` says what speaks against a move by a definition that was read just now.
    `on_event` gets each move at once when it is made or fails, since the next one may block, and
    `events` keeps them. Where the connection is lost `lost` says why, and `in_doubt` is what was
    asked of it then.
    """

    account: Account
    number: int = 0
    cancelled: Callable[[], bool] = never
    on_event: Callable[[Event], None] = ignore
    objection: Callable[[Move, Definition], str] | None = None
    events: list[Event] = field(default_factory=list, init=False)
    lost: str | None = field(default=None, init=False)
    in_doubt: Changed | None = field(default=None, init=False)
    _definitions: dict[DomainUuid, Definition] = field(default_factory=dict, init=False)

    @property
    def made(self) -> tuple[Move, ...]:
        """The moves that were made."""
        return tuple(event.move for event in self.events if isinstance(event, Changed))

    def act(self, moves: Sequence[Move]) -> None:
        """Make moves in their order.

        The moves of a plan may need each other, so it ends at the first that fails; half an
        exchange is taken back. Any other move stands alone.
        """
        intended = set[DomainUuid]()
        for position, move in enumerate(moves):
            uuid, before = move.vcpu.uuid, moves[position - 1] if position else None
            half = before if before is not None and move.exchanged_with == before.vcpu else None
            try:
                if not self.cancelled():
                    self._check(move)
                if uuid not in intended and not self.cancelled():
                    self.account.intend([one for one in moves[position:] if one.vcpu.uuid == uuid])
                    intended.add(uuid)
                if self.cancelled():  # to read a definition and write a mark takes calls, too
                    self._take_back(half)
                    break
                self._pin(move)
            except ConnectionLostError as error:
                self._lose(error, move)
                break
            except HypervisorError as error:
                self._report(self._failure(move, error))
                if move.cause is Cause.BALANCE:
                    self._take_back(half)
                    break

    def _check(self, move: Move) -> None:
        """Raise VanishedError where something speaks against a move by now."""
        if self.objection is None:
            return
        uuid = move.vcpu.uuid
        if uuid not in self._definitions:
            self._definitions[uuid] = self.account.definition(uuid)
        if why := self.objection(move, self._definitions[uuid]):
            raise VanishedError(why)

    def _take_back(self, move: Move | None) -> None:
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
            self.account.intend([back])
            self._pin(back)
        except ConnectionLostError as error:
            self._lose(error, back)
        except HypervisorError:
            pass  # the next plan goes on from there

    def _pin(self, move: Move) -> None:
        missing = self.account.pin(move.vcpu, move.to_cpus) or NO_CPUS
        self._report(Changed(move, self.number, missing=missing))

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def _lose(self, error: ConnectionLostError, move: Move) -> None:
        # Whether libvirtd still made this pin shows in the next sample.
        self.lost, self.in_doubt = str(error), Changed(move, self.number)

    def _failure(self, move: Move, error: HypervisorError) -> Failure:
        """Return what failed, and what is to blame: by the definition, for a refused pCPU."""
        failure = Failure(move, str(error), type(error))
        if failure.expected or failure.kind is NotRecordedError:
            return failure
        blamed: tuple[DomainUuid | int, ...] = (move.vcpu.uuid,)
        # Repairs go where they must, so there the guest is left alone.
        if isinstance(error, CpuRefusedError) and move.cause is Cause.BALANCE:
            cpuset = ALL_CPUS
            with contextlib.suppress(HypervisorError):
                cpuset = self.account.definition(move.vcpu.uuid).cpuset
            if move.to_cpus.is_within(cpuset):
                blamed = tuple(move.to_cpus)  # maybe nobody can go there
            elif not move.to_cpus & cpuset:
                blamed = ()  # plans will avoid it
        return replace(failure, blamed=blamed)
