"""One cycle: sample, observe, plan, pin; returns a `Cycle` that says what happened.

Rule: acts only through a `Hypervisor` and never reads a clock of its own or sleeps, so that it
runs unchanged on a simulated host. All that it remembers between cycles is the last sample and the
loads up to it, how often in a row it wanted to act and who waited then, what its last plan
promised, when one had nothing to do, whom to leave alone for a while (`feedback`), and a pin whose
answer was lost with the connection.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vcpusched.act.feedback import (
    Look,
    Patience,
    Promise,
    Proof,
    Rest,
    Verdict,
    promised,
    proven,
    worse_bound,
)
from vcpusched.host.hypervisor import (
    ConnectionLostError,
    CpuRefusedError,
    Hypervisor,
    HypervisorError,
    NotRecordedError,
    VanishedError,
)
from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
    CpuSet,
    Definition,
    DomainUuid,
    Host,
    Sample,
    Unread,
    VcpuId,
)
from vcpusched.observe.demand import WAITS_PPM
from vcpusched.observe.observe import Observed, Smoothing, baseline, observe
from vcpusched.observe.placement_rules import HouseRules, why_unclear
from vcpusched.plan.planner import Move, Plan, Policy, plan


@dataclass(frozen=True, slots=True)
class Rules:
    """How the scheduler acts.

    `policy` is the planner's, `house` says who may be moved at all, and `smoothing` is that of the
    loads; an imbalance must be found in `confirm` consecutive cycles; a vCPU is not moved twice
    within `cooldown_s` seconds. While it is `paused` nothing is moved, whatever it would do.
    """

    policy: Policy = field(default_factory=Policy)
    house: HouseRules = field(default_factory=HouseRules)
    smoothing: Smoothing = field(default_factory=Smoothing)
    confirm: int = 2
    cooldown_s: float = 0.0
    dry_run: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A move that was planned and not made, and why.

    `kind` is the same for all failures that mean the same, whatever figures are in `why`;
    `expected` when nothing is wrong (the guest ended meanwhile), `of_ours` if no guest is to blame.
    """

    move: Move
    why: str
    kind: str = ""
    expected: bool = False
    of_ours: bool = False


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
    `host` is None in the first cycle, when there are no loads yet. `freed` are vCPUs that were
    given their original affinity back since they waited without need; then no plan is carried out.
    `proofs` tell what came of earlier plans. `at_ns` is the monotonic clock at the sample, and
    `waits` for which share of the time since the last one vCPUs were kept waiting, in ppm.
    `left_alone` are the pCPUs that are online and not managed, by the reason. `by_libvirt` names
    the domains that libvirt was asked about instead of the kernel, by the reason. `refused`
    tells whether a guest or pCPU is in quarantine because it refused a pin.
    """

    number: int
    domains: int
    host: Host | None = None
    plan: Plan | None = None
    confirmed: int = 0
    confirm: int = 1
    dry_run: bool = False
    executed: bool = False
    pinned: tuple[Move, ...] = ()
    freed: tuple[Move, ...] = ()
    proofs: tuple[Proof, ...] = ()
    failures: tuple[Failure, ...] = ()
    unread: tuple[Unread, ...] = ()
    unclear: tuple[Unclear, ...] = ()
    lost: str | None = None
    at_ns: int = 0
    waits: Mapping[VcpuId, int] = field(default_factory=dict)
    left_alone: Mapping[str, CpuSet] = field(default_factory=dict)
    by_libvirt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refused: bool = False

    @property
    def decided(self) -> bool:
        """Whether this cycle came to a decision: to act, or that there is nothing to do."""
        if self.plan is None or self.host is None:
            return False
        return self.executed or not (self.plan.moves or self.host.unsettled)


class Scheduler:
    """Runs cycles on one hypervisor after another (a new one after each reconnect).

    `number` is that of the last cycle run before, by another scheduler; `decide` makes the plans.
    """

    def __init__(self, number: int = 0, decide: Callable[[Host, Policy], Plan] = plan) -> None:
        self._number = number
        self._decide = decide
        self._before: Sample | None = None
        self._observed: Observed | None = None
        self._wanted = 0
        self._wanted_binding = 0
        self._waiting: set[VcpuId] = set()
        self._rest: Rest | None = None
        self._in_doubt: tuple[int, Move] | None = None
        self._promise: Promise | None = None
        self._patience = Patience()

    def cycle(
        self,
        hypervisor: Hypervisor,
        rules: Rules,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_pin: Callable[[int, Move], None] = lambda _number, _move: None,
    ) -> Cycle:
        """Run one cycle.

        `cancelled` is asked before each pin; once it says yes, no further pin is made, but that
        which takes back the first half of an exchange. `on_pin` is told the cycle's number and
        each move at once when it is made, since a cycle that blocks in its second pin has made the
        first. Raises ConnectionLostError when sampling finds the connection lost, and
        HypervisorError when the host cannot be read; a connection lost later is told in the
        `Cycle`.
        """
        sample = hypervisor.sample()
        self._clear_doubt(sample, on_pin)
        self._number += 1
        before, self._before = self._before, baseline(self._before, sample)
        now_ns = max((domain.at_ns for domain in sample.domains), default=0)
        seen = Cycle(
            number=self._number,
            at_ns=now_ns,
            domains=len(sample.domains) + len(sample.unread),
            confirm=rules.confirm,
            dry_run=rules.dry_run,
            unread=tuple(sample.unread[uuid] for uuid in sorted(sample.unread)),
            by_libvirt=sample.by_libvirt,
            unclear=tuple(
                Unclear(domain.uuid, domain.name, why)
                for domain in sample.domains
                if (why := why_unclear(domain.definition))
            ),
        )
        self._observed = observe(before, sample, self._observed, rules.smoothing, rules.house)
        if self._observed.house is not None:
            seen = replace(seen, left_alone=self._observed.house.left_alone)
        if before is None:
            return seen
        host = self._patience.applied(
            self._observed.host, sample, number=self._number, cooldown_s=rules.cooldown_s
        )
        found = self._plan(host, rules, now_ns)
        look = Look(now_ns, host, found, self._observed.waits, self._observed.busy)
        seen = replace(seen, proofs=self._prove(look), waits=self._observed.waits)
        seen = replace(seen, refused=bool(self._patience.quarantined(self._number)))
        if not (rules.dry_run or rules.paused):
            moves = [
                move
                for move in worse_bound(sample, look)
                if move.vcpu.uuid not in self._patience.quarantined(self._number)
            ]
            seen = replace(seen, host=host, plan=found)
            seen = self._free(hypervisor, seen, moves, now_ns, cancelled, on_pin)
            if seen.freed or seen.lost is not None:
                return seen
        seen = replace(seen, host=host, plan=found, confirmed=self._confirm(found))
        if not found.moves or seen.confirmed < rules.confirm or rules.paused:
            return seen
        self._wanted = self._wanted_binding = 0
        if rules.dry_run:
            return replace(seen, executed=True)
        done = self._execute(hypervisor, seen, found.moves, cancelled, on_pin)
        if done.pinned:
            done = replace(done, proofs=seen.proofs + self._prove(look, is_last=True))
            self._promise = promised(seen.number, look, done.pinned)
        return done

    def _prove(self, look: Look, *, is_last: bool = False) -> tuple[Proof, ...]:
        if self._promise is None:
            return ()
        proof = proven(self._promise, look, is_last=is_last)
        if proof is None:
            return ()
        for vcpu in self._promise.moved:
            if proof.verdict is Verdict.HELPED:
                self._patience.trust(vcpu)
            elif proof.verdict is Verdict.NO_HELP:
                self._patience.doubt(vcpu, look.at_ns)
        self._promise = None
        return (proof,)

    def _free(  # noqa: PLR0913, PLR0917  what `cycle` was given, and what to do
        self,
        hypervisor: Hypervisor,
        seen: Cycle,
        moves: Sequence[Move],
        now_ns: int,
        cancelled: Callable[[], bool],
        on_pin: Callable[[int, Move], None],
    ) -> Cycle:
        """Give original affinities back, each by itself, whatever limits there are for plans.

        That undoes what was done, so what plans may use does not matter, but the definition does.
        """
        freed: list[Move] = []
        failures: list[Failure] = []
        lost = None
        for move in moves:
            if cancelled():
                break
            try:
                allowed = hypervisor.definition(move.vcpu.uuid).allowed
                if not move.to_cpus.is_within(allowed.get(move.vcpu.vcpu, NO_CPUS)):
                    raise VanishedError("the domain's definition does not allow that any more")
                hypervisor.pin(move.vcpu, move.to_cpus)
            except ConnectionLostError as error:
                lost, self._in_doubt = str(error), (seen.number, move)
                break
            except HypervisorError as error:
                failures.append(self._failed(hypervisor, move, error, seen.number))
            else:
                freed.append(move)
                self._patience.pinned(move.vcpu, move.to_cpus)
                self._patience.doubt(move.vcpu, now_ns)
                on_pin(seen.number, move)
        if freed:
            self._wanted = self._wanted_binding = 0
        return replace(seen, freed=tuple(freed), failures=tuple(failures), lost=lost)

    def _failed(
        self, hypervisor: Hypervisor, move: Move, error: HypervisorError, number: int
    ) -> Failure:
        expected = isinstance(error, VanishedError)
        of_ours = isinstance(error, NotRecordedError)
        blamed: Iterable[DomainUuid | int] = () if expected or of_ours else (move.vcpu.uuid,)
        if isinstance(error, CpuRefusedError):
            cpuset = ALL_CPUS
            with contextlib.suppress(HypervisorError):
                cpuset = hypervisor.definition(move.vcpu.uuid).cpuset
            if move.to_cpus.is_within(cpuset):
                blamed = move.to_cpus  # maybe nobody can go there
            elif not move.to_cpus & cpuset:
                blamed = ()  # plans will avoid it
        for who in blamed:
            self._patience.refused(who, number)
        kind = "vanished" if expected else type(error).__name__
        return Failure(move, str(error), kind, expected=expected, of_ours=of_ours)

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

    def _plan(self, host: Host, rules: Rules, now_ns: int) -> Plan:
        """Plan, unless nothing has changed since a plan had nothing to do."""
        if self._wanted_binding:
            # A floater is bound for its wait only if it waited in each period that confirms that.
            vcpus = (
                vcpu if vcpu.id in self._waiting or not vcpu.wait_ppm else replace(vcpu, wait_ppm=0)
                for vcpu in host.vcpus
            )
            host = replace(host, vcpus=tuple(vcpus))
        self._waiting = {vcpu.id for vcpu in host.vcpus if vcpu.wait_ppm >= WAITS_PPM}
        rest, policy = self._rest, rules.policy
        if rest is not None and rest.still_holds(host, policy, now_ns):
            # Only what is told of the host is worked out anew.
            found = plan(host, replace(policy, max_moves=0))
            if found.balanced:
                return found
            return replace(found, stop=rest.plan.stop, refused=rest.plan.refused)
        found = self._decide(host, policy)
        is_at_rest = not (found.moves or found.balanced)
        self._rest = Rest(host, policy, now_ns, found) if is_at_rest else None
        return found

    def _confirmations(self, found: Plan) -> int:
        return self._wanted_binding if found.binds_floaters else self._wanted

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
        moves: tuple[Move, ...],
        cancelled: Callable[[], bool],
        on_pin: Callable[[int, Move], None],
    ) -> Cycle:
        pinned: list[Move] = []
        failures = list(seen.failures)
        definitions: dict[DomainUuid, Definition] = {}
        lost = None
        for before, move in zip((None, *moves), moves, strict=False):
            # Half an exchange would leave the host worse than it was.
            half = before if before is not None and move.exchanged_with == before.vcpu else None
            try:
                is_cancelled = cancelled()
                if not is_cancelled:
                    self._check_definition(hypervisor, move, definitions)
                    is_cancelled = cancelled()  # that took calls, too
                if is_cancelled:
                    pinned += _give_back(hypervisor, half, on_pin, seen.number)
                    break
                hypervisor.pin(move.vcpu, move.to_cpus)
            except ConnectionLostError as error:
                # Whether libvirtd still made this pin shows in the next sample.
                lost, self._in_doubt = str(error), (seen.number, move)
                self._patience.pinned(move.vcpu, move.to_cpus)
                break
            except HypervisorError as error:
                failures.append(self._failed(hypervisor, move, error, seen.number))
                pinned += _give_back(hypervisor, half, on_pin, seen.number)
                # The next cycles plan without this domain; what is left of this plan may have
                # needed it.
                break
            else:
                self._patience.pinned(move.vcpu, move.to_cpus)
                pinned.append(move)
                on_pin(seen.number, move)
        return replace(
            seen, executed=True, pinned=tuple(pinned), failures=tuple(failures), lost=lost
        )


def _give_back(
    hypervisor: Hypervisor, move: Move | None, on_pin: Callable[[int, Move], None], number: int
) -> list[Move]:
    """Undo the first half of an exchange, if there is one, whose second half was not made."""
    if move is None:
        return []
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
