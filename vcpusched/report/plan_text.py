"""Words what a plan does, what comes of it, and why a host rests, for the journal and terminals.

Rule: pure. Where vCPUs are pinned to sets of pCPUs, load and gap are between sets; the gap inside a
set is worded apart, since only vCPUs that are bound inside make it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from vcpusched.model import NO_CPUS, PPM_PER_POINT, CpuSet, Granularity, Host, sets
from vcpusched.plan.cpu_groups import bins_of, pour
from vcpusched.plan.explain import trimmed
from vcpusched.plan.moves import Move, Plan, Policy, Stop
from vcpusched.plan.views import problem_of
from vcpusched.text import counted, cpus_text, number, points, vcpu_text

NO_CPU: Final = "No pCPU to balance: check the setting cpus"

_STOPPED: Final = {
    Stop.MOVE_LIMIT: "what would help takes more pins than max_moves allows",
    Stop.IN_VAIN: "the last plan did not help, so the next waits for minutes or for a change",
}


def sets_of(host: Host, pin_to: Granularity) -> tuple[CpuSet, ...]:
    """Return the sets of pCPUs that count as one; none where each pCPU counts by itself."""
    found = sets((cpu.cpu for cpu in host.cpus), pin_to)
    return found if len(found) < len(host.cpus) else ()


def lets_in(from_cpus: CpuSet, to_cpus: CpuSet) -> bool:
    """Return whether a vCPU stays in its set, of which it may use all afterwards."""
    return from_cpus != to_cpus and from_cpus.is_within(to_cpus)


def only_lets_in(plan: Plan) -> bool:
    """Return whether a plan has moves, none of which leads to another set."""
    return bool(plan.moves) and all(lets_in(move.from_cpus, move.to_cpus) for move in plan.moves)


def plan_text(plan: Plan, host: Host, policy: Policy, made: Sequence[Move] | None = None) -> str:
    """Word what a plan does, or why it does nothing.

    `made` are the moves that were made, where they are not all yet to make; then the threshold is
    left out.
    """
    if not host.cpus:
        return NO_CPU
    gap = _gap(plan, host, policy.pin_to)
    if made is None:
        gap += f" (threshold {policy.balance_threshold_ppm / PPM_PER_POINT:g})"
    if not plan.moves:
        if plan.balanced:
            return f"Balanced: {gap}"
        return f"{unbalanced(plan)}: {gap}; {settled(host, plan, policy)}"
    what = _counted_moves(plan, plan.moves if made is None else made)
    if made is not None and len(made) < len(plan.moves) and not only_lets_in(plan):
        return f"{what}; all of them were planned for {gap}"
    end = _end(plan, host, policy)
    return f"{what}, {gap}" + (f"; {end}" if end else "")


def unbalanced(plan: Plan) -> str:
    """Return what a host is that stays unbalanced; `settled` says why."""
    is_more = plan.moves or plan.refused or plan.stop is not Stop.NO_GAIN
    return "Unbalanced" if is_more else "Unbalanced, nothing worth a pin"


def settled(host: Host, plan: Plan, policy: Policy) -> str:
    """Return why a host that is unbalanced has no move between its bins, as a clause."""
    if plan.refused:
        return trimmed(plan)
    if plan.stop in _STOPPED:
        return _STOPPED[plan.stop]
    problem = problem_of(host, bins_of(host, policy.pin_to), policy, measured=False)
    bins, loads_ppm = problem.bins, dict(plan.loads_before_ppm)
    known = [cpu for cpu in loads_ppm if cpu not in host.unsettled] or list(loads_ppm)
    busiest = bins.of_cpu[max(known, key=lambda cpu: (loads_ppm[cpu], -cpu))]
    name, others = bins.names[busiest], ~(1 << busiest)
    movable = [
        item
        for item, vcpu in enumerate(host.vcpus)
        if bins.bin_of(vcpu.cpus) == busiest and problem.allowed[item] & others
    ]
    if not movable:
        return f"no vCPU that is pinned to {name}, the busiest, may be moved elsewhere"
    if bins.waiting.get(busiest, 1) <= 0:
        have = "have" if len(bins.members[busiest]) > 1 else "has"
        return f"{name}, the busiest, {have} a pCPU for each vCPU that runs there"
    if not problem.without_lone().allowed[movable[0]]:
        alone = host.vcpus[movable[0]]
        return f"{vcpu_text(alone.id.vcpu, alone.domain)} is alone on {name}, the busiest"
    return "no pin is worth it: each would gain less than min_gain asks for"


def _counted_moves(plan: Plan, made: Sequence[Move]) -> str:
    part = f"{len(made)} of " if len(made) < len(plan.moves) else ""
    count, let = len(plan.moves), sum(lets_in(move.from_cpus, move.to_cpus) for move in made)
    if only_lets_in(plan):
        whose = "its" if count == 1 else "their"
        return f"{part}{counted(count, 'vCPU')} let into {whose} whole set"
    whose = "s a vCPU into its" if let == 1 else " vCPUs into their"
    more = f", {let} of which only let{whose} whole set" if let else ""
    return f"{part}{counted(count, 'pin')}{more}"


def _gap(plan: Plan, host: Host, pin_to: Granularity) -> str:
    gap = "gap between sets" if sets_of(host, pin_to) else "gap"
    before, after = number(plan.gap_before_ppm), number(plan.gap_after_ppm)
    if not plan.moves:
        return f"{gap} {points(plan.gap_before_ppm)}"
    if before == after:
        return f"{gap} stays ~{points(plan.gap_after_ppm)}"
    return f"{gap} {before} -> ~{points(plan.gap_after_ppm)}"


def _end(plan: Plan, host: Host, policy: Policy) -> str:
    """Return why a plan does no more, as a clause; nothing where none is wanted."""
    if plan.refused:
        return trimmed(plan)
    if only_lets_in(plan):
        return "" if plan.balanced else settled(host, plan, policy)
    return {
        Stop.BALANCED: "then balanced",
        Stop.NO_GAIN: "no further move is worth a pin",
        Stop.MOVE_LIMIT: "max_moves allows no more in one plan",
    }[plan.stop]


def gap_inside(
    host: Host, groups: Sequence[CpuSet], plan: Plan | None = None
) -> tuple[int, CpuSet]:
    """Return the largest gap inside a set, in ppm, and the set; with a plan that after it.

    It is estimated: what may use several pCPUs of a set finds the least loaded of these.
    """
    of_cpu = {cpu: group for group in groups for cpu in group}
    loads = {cpu.id: cpu.host_load_ppm for cpu in host.cpus}
    moved = {move.vcpu: move.to_cpus for move in plan.moves} if plan is not None else {}
    floating: defaultdict[CpuSet, int] = defaultdict(int)
    for vcpu in host.vcpus:
        touched = [cpu for cpu in moved.get(vcpu.id, vcpu.cpus) if cpu in of_cpu]
        if len(touched) == 1:
            loads[touched[0]] += vcpu.load_ppm
        elif len({of_cpu[cpu] for cpu in touched}) == 1:
            floating[CpuSet.of(touched)] += vcpu.load_ppm
    for cpus in sorted(floating, key=lambda cpus: (len(cpus), cpus.bits)):
        for cpu, load_ppm in pour(loads, cpus, floating[cpus]):
            loads[cpu] += load_ppm
    largest = 0, NO_CPUS
    for group in groups:
        if not group & host.unsettled:
            levels = [loads[cpu] for cpu in group]
            largest = max(largest, (max(levels) - min(levels), group), key=lambda one: one[0])
    return largest


def inside_text(
    host: Host, groups: Sequence[CpuSet], threshold_ppm: int, plan: Plan | None = None
) -> str:
    """Word the largest gap inside a set, now and after a plan; nothing while all are small."""
    (now_ppm, group), (then_ppm, _) = gap_inside(host, groups), gap_inside(host, groups, plan)
    if max(now_ppm, then_ppm) < threshold_ppm:
        return ""
    change = f"~{points(now_ppm)}"
    if plan is not None:
        change = f"~{number(now_ppm)} -> ~{points(then_ppm)}"
    return f"Largest gap inside a set: {change} ({cpus_text(group)})"
