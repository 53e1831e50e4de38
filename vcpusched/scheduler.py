"""One cycle: sample, observe, plan, pin; returns a `Cycle` that says what happened.

Rule: acts only through a `Hypervisor` and never reads a clock of its own or sleeps, so that it
runs unchanged on a simulated host. All that it remembers between cycles is the last sample and the
loads up to it, how often in a row it wanted to act, when it last pinned a vCPU, the domains that
refused a pin and are left alone for a while, and a pin whose answer was lost with the connection.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from vcpusched.house import HouseRules, why_unclear
from vcpusched.hypervisor import (
    ConnectionLostError,
    Hypervisor,
    HypervisorError,
    VanishedError,
)
from vcpusched.load import Measure, Observed, Smoothing, baseline, observe
from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
    Definition,
    DomainUuid,
    Host,
    Sample,
    Unread,
    VcpuId,
)
from vcpusched.planner import Move, Plan, Policy, plan

ASIDE_CYCLES: Final = 10
ASIDE_CYCLES_MAX: Final = 640
"""For how many cycles a domain that refused a pin is left alone; doubled when it does so again."""


@dataclass(frozen=True, slots=True)
class _Aside:
    until: int
    cycles: int


GLANCE_SHARE: Final = 8
"""Until a plan is about to be carried out an eighth of the search will do to see whether there is
one: of 432 hosts a little out of balance it missed none."""


class ActOn(enum.StrEnum):
    """What makes the scheduler carry out a plan: any imbalance, or one that makes vCPUs wait."""

    IMBALANCE = "imbalance"
    CONTENTION = "contention"


@dataclass(frozen=True, slots=True)
class Rules:
    """How the scheduler acts.

    `policy` is the planner's, `house` says who may be moved at all, and `smoothing` is that of the
    loads; what it acts on must be found in `confirm` consecutive cycles; a vCPU is not moved twice
    within `cooldown_s` seconds.
    """

    policy: Policy = field(default_factory=Policy)
    house: HouseRules = field(default_factory=HouseRules)
    smoothing: Smoothing = field(default_factory=Smoothing)
    act_on: ActOn = ActOn.IMBALANCE
    confirm: int = 2
    cooldown_s: float = 0.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A move that was planned and not made, and why.

    `kind` is the same for all failures that mean the same, whatever figures are in `why`;
    `expected` when nothing is wrong (the guest ended meanwhile).
    """

    move: Move
    why: str
    kind: str = ""
    expected: bool = False


@dataclass(frozen=True, slots=True)
class Unclear:
    """A domain that asks for something that nobody understands, and so is held."""

    uuid: DomainUuid
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle saw and did.

    `plan` is what should be done; it was carried out only when `executed`. Until an imbalance has
    been found in `confirm` consecutive cycles (`confirmed` of them so far) nothing is done.
    `host` is None in the first cycle, when there are no loads yet. `calm` when nothing is done
    since no vCPU has to wait, whatever the plan.
    """

    number: int
    domains: int
    host: Host | None = None
    plan: Plan | None = None
    confirmed: int = 0
    confirm: int = 1
    dry_run: bool = False
    calm: bool = False
    executed: bool = False
    pinned: tuple[Move, ...] = ()
    failures: tuple[Failure, ...] = ()
    unread: tuple[Unread, ...] = ()
    unclear: tuple[Unclear, ...] = ()
    lost: str | None = None

    @property
    def decided(self) -> bool:
        """Whether this cycle came to a decision: to act, or that there is nothing to do."""
        if self.plan is None or self.host is None:
            return False
        return self.executed or self.calm or not (self.plan.moves or self.host.unsettled)


class Scheduler:
    """Runs cycles on one hypervisor after another (a new one after each reconnect).

    `number` is that of the last cycle run before, by another scheduler; `decide` makes the plans.
    """

    def __init__(self, number: int = 0, decide: Callable[[Host, Policy], Plan] = plan) -> None:
        self._number = number
        self._decide = decide
        self._before: Sample | None = None
        self._observed: Observed | None = None
        self._pinned: set[VcpuId] = set()
        self._cools_from_ns: dict[VcpuId, int] = {}
        self._wanted = 0
        self._wanted_binding = 0
        self._aside: dict[DomainUuid, _Aside] = {}
        self._in_doubt: tuple[int, Move] | None = None

    def cycle(
        self,
        hypervisor: Hypervisor,
        rules: Rules,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_pin: Callable[[int, Move], None] = lambda _number, _move: None,
    ) -> Cycle:
        """Run one cycle.

        `cancelled` is asked before each pin; once it says yes, no further pin is made. `on_pin` is
        told the cycle's number and each move at once when it is made, since a cycle that blocks in
        its second pin has made the first. Raises ConnectionLostError when sampling finds the
        connection lost, and HypervisorError when the host cannot be read; a connection lost later
        is told in the `Cycle`.
        """
        crowded = NO_CPUS
        asks = rules.act_on is ActOn.CONTENTION
        if asks or rules.smoothing.measure is Measure.DEMAND:
            crowded = self._observed.crowded if self._observed is not None else ALL_CPUS
        sample = hypervisor.sample(crowded)
        self._clear_doubt(sample, on_pin)
        self._number += 1
        before, self._before = self._before, baseline(self._before, sample)
        seen = Cycle(
            number=self._number,
            domains=len(sample.domains) + len(sample.unread),
            confirm=rules.confirm,
            dry_run=rules.dry_run,
            unread=tuple(sample.unread[uuid] for uuid in sorted(sample.unread)),
            unclear=tuple(
                Unclear(domain.uuid, domain.name, why)
                for domain in sample.domains
                if (why := why_unclear(domain.definition))
            ),
        )
        self._observed = observe(before, sample, self._observed, rules.smoothing, rules.house)
        if before is None:
            return seen
        host = self._with_fixed(self._observed.host, sample, rules.cooldown_s)
        found = self._plan(host, rules)
        calm = asks and bool(found.moves) and not self._observed.contended
        confirmed = 0 if calm else self._confirm(found)
        seen = replace(seen, host=host, plan=found, confirmed=confirmed, calm=calm)
        if calm:
            self._wanted = self._wanted_binding = 0
            return seen
        if not found.moves or confirmed < rules.confirm:
            return seen
        self._wanted = self._wanted_binding = 0
        if rules.dry_run:
            return replace(seen, executed=True)
        return self._execute(hypervisor, seen, found, cancelled, on_pin)

    def _confirm(self, found: Plan) -> int:
        """Count the consecutive cycles that wanted to act.

        A plan that binds floaters must itself have come up as often, since it goes by where the
        kernel happened to have them.
        """
        if not found.moves:
            self._wanted = self._wanted_binding = 0
        else:
            self._wanted += 1
            self._wanted_binding = self._wanted_binding + 1 if found.binds_floaters else 0
        return self._confirmations(found)

    def _plan(self, host: Host, rules: Rules) -> Plan:
        """Plan, and search in full when the plan may be carried out."""
        glance = replace(rules.policy, steps_max=rules.policy.steps_max // GLANCE_SHARE)
        found = self._decide(host, glance)
        if not found.moves or self._confirmations(found) + 1 < rules.confirm:
            return found
        return self._decide(host, rules.policy)

    def _confirmations(self, found: Plan) -> int:
        return self._wanted_binding if found.binds_floaters else self._wanted

    def _with_fixed(self, host: Host, sample: Sample, cooldown_s: float) -> Host:
        """Fix the vCPUs of domains that refused a pin lately, and those moved not long ago.

        Plans do without them.
        """
        running = {domain.uuid for domain in sample.domains} | set(sample.unread)
        self._aside = {uuid: aside for uuid, aside in self._aside.items() if uuid in running}
        now_ns = {domain.uuid: domain.at_ns for domain in sample.domains}
        for vcpu in self._pinned & {vcpu.id for vcpu in host.vcpus}:
            # Counted from the first look after the pin, so never less than was asked for.
            if vcpu.uuid in now_ns:
                self._cools_from_ns[vcpu] = now_ns[vcpu.uuid]
                self._pinned.discard(vcpu)
        self._pinned = {vcpu for vcpu in self._pinned if vcpu.uuid in running}
        self._cools_from_ns = {
            vcpu: from_ns
            for vcpu, from_ns in self._cools_from_ns.items()
            if vcpu.uuid in running and now_ns.get(vcpu.uuid, from_ns) - from_ns < cooldown_s * 1e9
        }
        return replace(
            host,
            vcpus=tuple(
                replace(vcpu, fixed=True, why=why)
                if not vcpu.fixed and (why := self._why_it_stays(vcpu.id, cooldown_s))
                else vcpu
                for vcpu in host.vcpus
            ),
        )

    def _why_it_stays(self, vcpu: VcpuId, cooldown_s: float) -> str:
        aside = self._aside.get(vcpu.uuid)
        if aside is not None and self._number < aside.until:
            return "its guest refused a pin lately"
        if vcpu in self._cools_from_ns or vcpu in self._pinned:
            return f"moved less than {cooldown_s:g} s ago"
        return ""

    def _put_aside(self, uuid: DomainUuid) -> None:
        known = self._aside.get(uuid)
        cycles = ASIDE_CYCLES if known is None else min(known.cycles * 2, ASIDE_CYCLES_MAX)
        self._aside[uuid] = _Aside(until=self._number + cycles, cycles=cycles)

    def _clear_doubt(self, sample: Sample, on_pin: Callable[[int, Move], None]) -> None:
        """Tell of a pin whose answer was lost, if it was made after all."""
        if self._in_doubt is None:
            return
        number, move = self._in_doubt
        self._in_doubt = None
        for domain in sample.domains:
            for reading in domain.vcpus:
                identity = (domain.uuid, reading.vcpu, reading.affinity)
                if identity == (move.vcpu.uuid, move.vcpu.vcpu, move.to_cpus):
                    on_pin(number, move)

    def _check_definition(
        self, hypervisor: Hypervisor, move: Move, definitions: dict[DomainUuid, Definition]
    ) -> None:
        """Read a domain's definition before its first move: it may have been edited since."""
        uuid = move.vcpu.uuid
        if uuid not in definitions:
            definitions[uuid] = hypervisor.definition(uuid)
        house = self._observed.house if self._observed is not None else None
        if house is not None:
            why = house.objection(move.domain, definitions[uuid], move.vcpu.vcpu, move.to_cpus)
            if why:
                raise VanishedError(why)

    def _execute(
        self,
        hypervisor: Hypervisor,
        seen: Cycle,
        found: Plan,
        cancelled: Callable[[], bool],
        on_pin: Callable[[int, Move], None],
    ) -> Cycle:
        pinned: list[Move] = []
        failures: list[Failure] = []
        definitions: dict[DomainUuid, Definition] = {}
        lost = None
        for before, move in zip((None, *found.moves), found.moves, strict=False):
            if cancelled():
                break
            try:
                self._check_definition(hypervisor, move, definitions)
                if cancelled():
                    break  # that took calls, too
                hypervisor.pin(move.vcpu, move.to_cpus)
            except ConnectionLostError as error:
                # Whether libvirtd still made this pin shows in the next sample.
                lost, self._in_doubt = str(error), (seen.number, move)
                self._pinned.add(move.vcpu)
                break
            except HypervisorError as error:
                expected = isinstance(error, VanishedError)
                if not expected:
                    self._put_aside(move.vcpu.uuid)
                kind = "vanished" if expected else type(error).__name__
                failures.append(Failure(move, str(error), kind, expected=expected))
                if before is not None and move.exchanged_with == before.vcpu:
                    # Half an exchange would leave the host worse than it was.
                    pinned += _give_back(hypervisor, before, on_pin, seen.number)
                # The next cycles plan without this domain; what is left of this plan may have
                # needed it.
                break
            else:
                self._aside.pop(move.vcpu.uuid, None)
                pinned.append(move)
                self._pinned.add(move.vcpu)
                on_pin(seen.number, move)
        return replace(
            seen, executed=True, pinned=tuple(pinned), failures=tuple(failures), lost=lost
        )


def _give_back(
    hypervisor: Hypervisor, move: Move, on_pin: Callable[[int, Move], None], number: int
) -> list[Move]:
    """Undo the first half of an exchange whose second half failed."""
    back = replace(
        move,
        from_cpus=move.to_cpus,
        to_cpus=move.from_cpus,
        reason="back again, since the vCPU that it was exchanged with could not be moved",
    )
    try:
        hypervisor.pin(back.vcpu, back.to_cpus)
    except HypervisorError:
        return []  # the next plan goes on from there
    on_pin(number, back)
    return [back]
