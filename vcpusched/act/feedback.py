"""Judges whether what was done helped, and whether there is anything new to be done.

Rule: judges what was measured, remembers nothing, and knows no clock but that of the samples.

Problem: loads and what plans expect are estimates. A pin that helps nobody is worse than none.
Approach: note who waited before a plan and what is expected of it; measure again. Until that is
    judged no other plan is carried out, or on a host that has not enough for all each would only
    pick others that wait.
Terms: touched by a plan are the vCPUs that it moved, and those bound to where they came from. A
    vCPU waits when it was kept from running for 5 % of the time or more, by others on its pCPU. On
    a pCPU of which more is wanted than it has, by a factor f, a vCPU will wait for 1 - 1/f of what
    it wants: that is what is expected of a plan that makes f smaller.
Properties: what was not measured is not judged. Of a plan that touched nobody who waited
    nothing but a smaller gap is expected.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import Final

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Host, Vcpu, VcpuId
from vcpusched.observe.demand import WAITS_PPM
from vcpusched.plan.planner import MIN_WAIT_PPM, Move, Plan, Policy

VERDICT_NS: Final = 20_000_000_000
"""So long after a plan the wait may take to fall."""

MORE_PERCENT: Final = 110
"""If so much of what was planned is wanted of pCPUs, demand has changed."""


class Verdict(enum.StrEnum):
    """What came of a plan.

    `HELPED`: the wait fell by half of what was expected, or more. `NO_HELP`: it did not, with
    unchanged demand. `UNCLEAR`: demand grew, guests or pCPUs came or went, or affinities were
    changed again. `NO_WAIT`: of the vCPUs that were touched none waited before.
    """

    HELPED = "helped"
    NO_HELP = "no_help"
    UNCLEAR = "unclear"
    NO_WAIT = "no_wait"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of a host in one cycle, and the plan that was made of it by a policy.

    `waits` says for which share of the time each vCPU was kept waiting, in ppm, where that was
    measured. `busy` says for which share each pCPU was busy.
    """

    at_ns: int
    host: Host
    policy: Policy
    plan: Plan
    waits: Mapping[VcpuId, int]
    busy: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Expectation:
    """The `moves` that were made in a cycle, what was found before, and what is expected of them.

    `waits` gives, per vCPU that waited, for which share of the time it did and for which it is
    expected to, and the pCPU on which it will be.
    """

    number: int
    finding: Finding
    moves: Sequence[Move]
    waits: Mapping[VcpuId, tuple[int, int, int]]

    def kept(self, host: Host) -> set[VcpuId]:
        """Return the vCPUs that have the affinity with which the plan left them."""
        left = {vcpu.id: vcpu.cpus for vcpu in self.finding.host.vcpus}
        left |= {move.vcpu: move.to_cpus for move in self.moves}
        return {vcpu.id for vcpu in host.vcpus if vcpu.cpus == left.get(vcpu.id)}


@dataclass(frozen=True, slots=True)
class Effect:
    """What came of the plan of cycle `number`; waits are means of the vCPUs that waited before.

    `longest` is the vCPU of the host that waits longest by then, if any really waits, and for which
    share of the time.
    """

    number: int
    verdict: Verdict
    gap_before_ppm: int
    gap_expected_ppm: int
    gap_ppm: int
    waiting: int
    wait_before_ppm: int
    wait_expected_ppm: int
    wait_ppm: int
    longest: tuple[Vcpu, int] | None = None


def expect(number: int, finding: Finding, pinned: Sequence[Move]) -> Expectation:
    """Return what is expected of a plan, as far as it was carried out."""
    host, plan, waits = finding.host, finding.plan, finding.waits
    moved = {move.vcpu: move for move in pinned}
    left = CpuSet.of(cpu for move in pinned for cpu in move.from_cpus)
    loads = dict(plan.loads_after_ppm)
    factors = {cpu.id: max(PPM, loads.get(cpu.id, 0)) for cpu in host.cpus}
    expected: dict[VcpuId, tuple[int, int, int]] = {}
    for vcpu in host.vcpus:
        move = moved.get(vcpu.id)
        cpus = move.to_cpus if move is not None else vcpu.cpus
        is_touched = move is not None or (vcpu.is_bound and vcpu.cpus.is_within(left))
        if waits.get(vcpu.id, 0) < WAITS_PPM or not is_touched:
            continue
        # Of several pCPUs the kernel takes the best.
        cpu = min((cpu for cpu in cpus if cpu in factors), key=factors.__getitem__, default=None)
        if cpu is not None:
            wait_ppm = vcpu.load_ppm - vcpu.load_ppm * PPM // factors[cpu]
            expected[vcpu.id] = waits[vcpu.id], min(waits[vcpu.id], wait_ppm), cpu
    return Expectation(number, finding, pinned, expected)


def judge(expectation: Expectation, finding: Finding) -> Effect | None:
    """Return the verdict by what a later cycle found; None while it is too early."""
    # What became of one whose affinity was changed since is not the plan's doing.
    kept = expectation.kept(finding.host)
    asked = [vcpu for vcpu in expectation.waits if vcpu in kept]
    before_ppm = sum(expectation.waits[vcpu][0] for vcpu in asked)
    expected_ppm = sum(expectation.waits[vcpu][1] for vcpu in asked)
    waits = {vcpu: finding.waits[vcpu] for vcpu in asked if vcpu in finding.waits}
    wait_ppm = sum(waits.values())
    if not expectation.waits:
        verdict = Verdict.NO_WAIT
    elif len(waits) == len(asked) > 0 and wait_ppm * 2 <= before_ppm + expected_ppm:
        verdict = Verdict.HELPED
    elif not asked or _wants_more(expectation, asked, finding.plan):
        verdict = Verdict.UNCLEAR
    elif finding.at_ns - expectation.finding.at_ns < VERDICT_NS:
        return None
    else:
        is_known = len(waits) == len(asked) and _present(finding) == _present(expectation.finding)
        verdict = Verdict.NO_HELP if is_known else Verdict.UNCLEAR
    count = max(1, len(asked))
    return Effect(
        number=expectation.number,
        verdict=verdict,
        gap_before_ppm=expectation.finding.plan.gap_before_ppm,
        gap_expected_ppm=expectation.finding.plan.gap_after_ppm,
        gap_ppm=finding.plan.gap_before_ppm,
        waiting=len(asked),
        wait_before_ppm=before_ppm // count,
        wait_expected_ppm=expected_ppm // count,
        wait_ppm=wait_ppm // count,
        longest=_longest(finding),
    )


def _longest(finding: Finding) -> tuple[Vcpu, int] | None:
    waits = [(vcpu, finding.waits.get(vcpu.id, 0)) for vcpu in finding.host.vcpus]
    found = max(waits, key=itemgetter(1), default=None)
    return found if found is not None and found[1] >= WAITS_PPM else None


def _present(finding: Finding) -> tuple[object, ...]:
    """Return which pCPUs and which vCPUs there are."""
    host = finding.host
    return [cpu.cpu for cpu in host.cpus], [vcpu.id for vcpu in host.vcpus]


def _wants_more(expectation: Expectation, asked: list[VcpuId], found: Plan) -> bool:
    """Return whether more than planned is wanted on the pCPUs of those expected to wait less."""
    loads, planned = dict(found.loads_before_ppm), dict(expectation.finding.plan.loads_after_ppm)
    cpus = {expectation.waits[vcpu][2] for vcpu in asked}
    planned_ppm = sum(planned.get(cpu, 0) for cpu in cpus)
    return sum(loads.get(cpu, 0) for cpu in cpus) * 100 > planned_ppm * MORE_PERCENT


REST_NS: Final = 300_000_000_000
REST_PPM: Final = 2 * PPM_PER_POINT
"""For how long at most a plan with nothing to do holds, and how far loads may change meanwhile."""


EARLY_PERIODS: Final = 32
"""From so many periods on a load is taken for what it is."""


@dataclass(frozen=True, slots=True)
class Rest:
    """A host for which a plan had nothing to do, that plan, and when."""

    host: Host
    policy: Policy
    at_ns: int
    plan: Plan

    def still_holds(self, host: Host, policy: Policy, now_ns: int) -> bool:
        """Return whether nothing has changed that could make another plan of it."""
        loads_ppm = (
            [*(cpu.host_load_ppm for cpu in one.cpus), *(vcpu.load_ppm for vcpu in one.vcpus)]
            for one in (host, self.host)
        )
        return (
            now_ns - self.at_ns < REST_NS
            and policy == self.policy
            and _bounds(host, policy) == _bounds(self.host, policy)
            and all(abs(one - other) <= REST_PPM for one, other in zip(*loads_ppm, strict=True))
        )


def early(policy: Policy, periods: int) -> Policy:
    """Return the policy while loads are known from a few periods only, which hold much chance.

    Where balance is out of reach a pin must then gain more: `min_gain` and 2 in so many parts of
    it. On 41 such hosts, with 5% of noise, 3 pins were made for chance alone in 25 periods, and
    none so. It changes when the periods have doubled: each change has another plan worked out.
    """
    if not 0 < periods < EARLY_PERIODS:
        return policy
    parts = 1 << periods.bit_length() - 1
    return replace(policy, min_gain_ppm=policy.min_gain_ppm * (parts + 2) // parts)


def _bounds(host: Host, policy: Policy) -> tuple[object, ...]:
    """Return all that plans depend on, but for the loads and where floaters ran."""
    fields = attrgetter("id", "cpus", "allowed", "fixed", "shares", "quota_ppm", "spread")
    waiting = [vcpu.wait_ppm >= MIN_WAIT_PPM[policy.floating] for vcpu in host.vcpus]
    return host.unsettled, [cpu.cpu for cpu in host.cpus], [*map(fields, host.vcpus)], waiting
