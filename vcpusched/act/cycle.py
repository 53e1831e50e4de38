"""One cycle: sample, observe, plan, pin; returns a `Cycle` that says what happened.

Rule: acts only through an `Actuator` and never reads a clock of its own or sleeps, so that it runs
unchanged on a simulated host. All that it remembers between cycles is the last sample and the
loads up to it, how often in a row it wanted to act and who waited then, when a plan had nothing to
do, a pin whose answer was lost with the connection, and what came of moves (`table`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from vcpusched.act.actuator import Account, Actuator, Event, Failure, ignore, never
from vcpusched.act.feedback import Effect, Finding, Rest, early
from vcpusched.act.ledger import Changed
from vcpusched.act.repairs import objection, repairs, worse_bound
from vcpusched.act.table import VcpuTable
from vcpusched.model import CpuSet, Host, VcpuId
from vcpusched.observe.demand import WAITS_PPM
from vcpusched.observe.intervals import baseline
from vcpusched.observe.observe import Observed, observe
from vcpusched.observe.placement_rules import PlacementRules
from vcpusched.plan.planner import Cause, Move, Plan, Policy, Stop, plan
from vcpusched.sample import Sample


@dataclass(frozen=True, slots=True)
class Rules:
    """How the scheduler acts.

    `policy` is the planner's, `placement_rules` say who may be moved, `half_life_s` is that of the
    loads; an imbalance must be found in `confirm` consecutive cycles (where one is enough no plan
    is judged, either); a vCPU is not moved twice within `cooldown_s` seconds. While it is `paused`
    nothing is moved, whatever it would do.
    """

    policy: Policy = field(default_factory=Policy)
    placement_rules: PlacementRules = field(default_factory=PlacementRules)
    half_life_s: float = 0.0
    confirm: int = 2
    cooldown_s: float = 0.0
    dry_run: bool = False
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one cycle saw and did.

    `plan` is what should be done; it was carried out only when `executed`. Until an imbalance has
    been found in `confirm` consecutive cycles (`confirmed` of them so far) nothing is done.
    `host` is None in the first cycle, when there are no loads yet. `pinned` are the moves of the
    plan that were made. In a pause or dry run `withheld` counts pins of ours that are not allowed
    any more and stay. `effects` are what came of earlier plans. `at_ns` is the monotonic clock at
    the `sample`, and `waits` for which share of the time since the last one vCPUs were kept
    waiting, in ppm. `left_alone` are the pCPUs that are online and not managed, by the reason.
    `refused` says whether a guest or pCPU is in quarantine because it refused a pin.
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
    withheld: int = 0
    effects: tuple[Effect, ...] = ()
    failures: tuple[Failure, ...] = ()
    sample: Sample = field(default_factory=Sample)
    lost: str | None = None
    at_ns: int = 0
    waits: Mapping[VcpuId, int] = field(default_factory=dict)
    left_alone: Mapping[str, CpuSet] = field(default_factory=dict)
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
        self._in_doubt: Changed | None = None
        self._table = VcpuTable()

    def cycle(
        self,
        account: Account,
        rules: Rules,
        *,
        cancelled: Callable[[], bool] = never,
        on_event: Callable[[Event], None] = ignore,
    ) -> Cycle:
        """Run one cycle.

        What `cancelled` and `on_event` are for the `Actuator` says. Raises ConnectionLostError when
        sampling finds the connection lost, and HypervisorError when the host cannot be read; a
        connection lost later is in the `Cycle`.
        """
        sample = account.sample()
        account.settle(on_event, rests=rules.dry_run or rules.paused)
        doubted = self._in_doubt
        if doubted is not None and sample.affinity(doubted.move.vcpu) == doubted.move.to_cpus:
            on_event(doubted)  # its answer was lost, and it was made after all
        self._number += 1
        before, self._before = self._before, baseline(self._before, sample)
        observed = observe(before, sample, self._observed, rules.half_life_s, rules.placement_rules)
        self._observed = observed
        seen = Cycle(
            self._number,
            len(sample.domains) + len(sample.unread),
            confirm=rules.confirm,
            dry_run=rules.dry_run,
            sample=sample,
            at_ns=sample.at_ns,
            left_alone=observed.placement.left_alone,
        )

        def note(event: Event) -> None:
            self._table.note(event, seen.number, seen.at_ns)
            on_event(event)

        object_to = partial(objection, placement=observed.placement)
        actuator = Actuator(account, self._number, cancelled, note, object_to)
        wanted = tuple(repairs(sample, observed.placement))
        if rules.dry_run or rules.paused:
            withheld = sum(move.cause is Cause.NOT_ALLOWED for move in wanted)
            seen = replace(seen, withheld=withheld)
        else:
            actuator.act(self._willing(wanted))
        if before is not None and actuator.lost is None:
            seen = self._planned(seen, sample, observed, rules, actuator)
        if actuator.made or seen.executed:
            self._wanted = self._wanted_binding = 0
        self._in_doubt = actuator.in_doubt
        if self._in_doubt is not None:
            self._table.note(self._in_doubt, seen.number, seen.at_ns)
        return replace(
            seen,
            pinned=tuple(move for move in actuator.made if move.cause is Cause.BALANCE),
            failures=tuple(event for event in actuator.events if isinstance(event, Failure)),
            lost=actuator.lost,
        )

    def _planned(
        self, seen: Cycle, sample: Sample, observed: Observed, rules: Rules, actuator: Actuator
    ) -> Cycle:
        """Plan, judge the plan before, and act on both."""
        host = self._table.applied(
            observed.host, sample, number=self._number, cooldown_s=rules.cooldown_s
        )
        found = self._plan(host, early(rules.policy, observed.periods), rules, seen.at_ns)
        finding = Finding(seen.at_ns, host, rules.policy, found, observed.waits, observed.busy)
        seen = replace(
            seen,
            host=host,
            plan=found,
            effects=self._table.judged(finding),
            waits=observed.waits,
            refused=bool(self._table.quarantined(seen.number)),
        )
        # Once anything was repaired the sample is not so any more.
        if not (rules.dry_run or rules.paused or actuator.made):
            actuator.act(self._willing(worse_bound(sample, finding)))
        if actuator.made or actuator.lost is not None:
            return seen
        seen = replace(seen, confirmed=self._confirm(found))
        if not found.moves or seen.confirmed < rules.confirm or rules.paused:
            return seen
        if self._table.is_pending or self._table.is_in_vain:
            return seen  # what the last plan brought is to be known first, and that it helped
        seen = replace(seen, executed=True)
        if not rules.dry_run:
            actuator.act(found.moves)
        # Of a plan that was broken off other loads come than it said.
        if actuator.made == found.moves and rules.confirm > 1:
            self._table.planned(seen.number, finding, actuator.made)
        return seen

    def _willing(self, moves: Iterable[Move]) -> list[Move]:
        """Return the moves of guests that did not refuse one a short time ago."""
        quarantined = self._table.quarantined(self._number)
        return [move for move in moves if move.vcpu.uuid not in quarantined]

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
        return self._wanted_binding if found.binds_floaters else self._wanted

    def _plan(self, host: Host, policy: Policy, rules: Rules, now_ns: int) -> Plan:
        """Plan, unless nothing has changed since a plan had nothing to do, or did not help."""
        if self._wanted_binding:
            # A floater is bound for its wait only if it waited in each period that confirms that.
            vcpus = (
                vcpu if vcpu.id in self._waiting or not vcpu.wait_ppm else replace(vcpu, wait_ppm=0)
                for vcpu in host.vcpus
            )
            host = replace(host, vcpus=tuple(vcpus))
        self._waiting = {vcpu.id for vcpu in host.vcpus if vcpu.wait_ppm >= WAITS_PPM}
        rest = self._rest
        if rest is not None and not rest.still_holds(host, policy, now_ns):
            rest = None
        if rest is not None or self._table.is_in_vain:
            # Only what is reported of the host is worked out anew.
            found = plan(host, replace(policy, max_moves=0))
            if found.balanced:
                return found
            if rest is None:
                return replace(found, stop=Stop.IN_VAIN)
            return replace(found, stop=rest.plan.stop, refused=rest.plan.refused)
        found = self._decide(host, rules.policy)
        if found.stop is Stop.NO_GAIN and found.moves and policy != rules.policy:
            found = self._decide(host, policy)
        is_at_rest = not (found.moves or found.balanced)
        self._rest = Rest(host, policy, now_ns, found) if is_at_rest else None
        return found
