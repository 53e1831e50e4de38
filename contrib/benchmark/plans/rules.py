"""Simple rules that could be used instead of the planner.

Rule: each is a pure function of a `Host` and a `Policy` that returns a `Plan`, as the planner is,
and respects masks and fixed vCPUs. A vCPU counts where it is bound, or where it was last seen.

Rules: `one_move`: the original scheduler. While the gap is at the threshold or above, pin one vCPU
    of the busiest pCPU to the least loaded; a lone vCPU stays. The rule leaves open which vCPU:
    here it is the one that leaves the fuller of the two pCPUs least loaded.
    `repack`: largest first, each to the least loaded pCPU that it may use, whenever the gap is at
    the threshold or above; of equally loaded ones it prefers where the vCPU is.
    `sticky_repack`: the same, but a vCPU stays where it still fits under the mean load and half
    the threshold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from vcpusched.model import CpuSet, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Move, Plan, Policy, Stop

Rule = Callable[[Host, Policy], Plan]
"""What every competitor is, ours among them."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The pCPU of every vCPU that counts somewhere, and the loads that follow.

    Nothing is moved to pCPUs outside `settled`, because what is there is not fully known yet.
    """

    vcpus: tuple[Vcpu, ...]
    cpu_of: Mapping[VcpuId, int]
    loads: Mapping[int, int]
    settled: CpuSet

    @classmethod
    def of(cls, host: Host) -> Self:
        loads = {cpu.id: cpu.host_load_ppm for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
        vcpus, cpu_of = [], {}
        for vcpu in sorted(host.vcpus, key=lambda vcpu: vcpu.id):
            cpu = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
            if cpu is not None and cpu in loads:
                vcpus.append(vcpu)
                cpu_of[vcpu.id] = cpu
                loads[cpu] += vcpu.load_ppm
        return cls(tuple(vcpus), cpu_of, loads, host.online - host.unsettled)


def one_move(host: Host, policy: Policy) -> Plan:
    """Move one vCPU from the busiest to the least loaded pCPU, whatever comes of it."""
    start = _Start.of(host)
    options = []
    if _gap_ppm(start.loads) >= policy.balance_threshold_ppm:
        busiest = min(start.loads, key=lambda cpu: (-start.loads[cpu], cpu))
        members = [vcpu for vcpu in start.vcpus if start.cpu_of[vcpu.id] == busiest]
        for vcpu in members if len(members) > 1 else []:
            cpus = vcpu.allowed & start.settled - CpuSet.of([busiest])
            if cpus and not vcpu.fixed:
                target = min(cpus, key=lambda cpu: (start.loads[cpu], cpu))
                left_ppm = start.loads[busiest] - vcpu.load_ppm
                fuller_ppm = max(left_ppm, start.loads[target] + vcpu.load_ppm)
                options.append((fuller_ppm, vcpu.load_ppm, target, vcpu.id))
    return _plan(start, {vcpu: target for *_, target, vcpu in sorted(options)[:1]}, policy)


def repack(host: Host, policy: Policy) -> Plan:
    """Assign everything anew, largest first."""
    return _repack(host, policy, stays_below_ppm=0)


def sticky_repack(host: Host, policy: Policy) -> Plan:
    """Assign everything anew, largest first, but keep what fits where it is."""
    total_ppm = sum(cpu.host_load_ppm for cpu in host.cpus)
    total_ppm += sum(vcpu.load_ppm for vcpu in host.vcpus)
    mean_ppm = total_ppm // max(1, len(host.cpus))
    return _repack(host, policy, stays_below_ppm=mean_ppm + policy.balance_threshold_ppm // 2)


ONE_MOVE: Final = "one-move rule"
FULL_REPACK: Final = "re-pack"
RULES: Final[Mapping[str, Rule]] = {
    ONE_MOVE: one_move,
    FULL_REPACK: repack,
    "sticky re-pack": sticky_repack,
}
"""The rules by the names that tables give them."""

PERIODS_MAX: Final = {ONE_MOVE: 200}
"""For how many periods a rule may go on, where that is more than one."""


def _repack(host: Host, policy: Policy, *, stays_below_ppm: int) -> Plan:
    start = _Start.of(host)
    if _gap_ppm(start.loads) < policy.balance_threshold_ppm:
        return _plan(start, {}, policy)
    movable = [vcpu for vcpu in start.vcpus if not vcpu.fixed and vcpu.allowed & start.settled]
    loads, targets = dict(start.loads), {}
    for vcpu in movable:
        loads[start.cpu_of[vcpu.id]] -= vcpu.load_ppm
    for vcpu in sorted(movable, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        now = start.cpu_of[vcpu.id]
        target = min(vcpu.allowed & start.settled, key=lambda cpu: (loads[cpu], cpu))
        fits = loads[now] + vcpu.load_ppm < stays_below_ppm or loads[now] == loads[target]
        if fits and now in vcpu.allowed:
            target = now
        loads[target] += vcpu.load_ppm
        if target != now or not vcpu.is_bound:
            targets[vcpu.id] = target
    return _plan(start, targets, policy)


def _plan(start: _Start, targets: Mapping[VcpuId, int], policy: Policy) -> Plan:
    loads, moves = dict(start.loads), []
    for vcpu in start.vcpus:
        if vcpu.id not in targets:
            continue
        source, target = start.cpu_of[vcpu.id], targets[vcpu.id]
        loads[source] -= vcpu.load_ppm
        loads[target] += vcpu.load_ppm
        moves.append(
            Move(
                vcpu=vcpu.id,
                domain=vcpu.domain,
                from_cpus=vcpu.cpus,
                to_cpus=CpuSet.of([target]),
                load_ppm=vcpu.load_ppm,
                reason="",
            )
        )
    gap_before_ppm, gap_after_ppm = _gap_ppm(start.loads), _gap_ppm(loads)
    threshold_ppm = policy.balance_threshold_ppm
    return Plan(
        balanced=gap_before_ppm < threshold_ppm,
        stop=Stop.BALANCED if gap_after_ppm < threshold_ppm else Stop.NO_GAIN,
        gap_before_ppm=gap_before_ppm,
        gap_after_ppm=gap_after_ppm,
        loads_before_ppm=tuple(sorted(start.loads.items())),
        loads_after_ppm=tuple(sorted(loads.items())),
        moves=tuple(moves),
        binds_floaters=any(len(move.from_cpus) > 1 for move in moves),
    )


def _gap_ppm(loads: Mapping[int, int]) -> int:
    return max(loads.values(), default=0) - min(loads.values(), default=0)
