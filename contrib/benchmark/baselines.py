"""What ours is measured against: simple rules that somebody would reasonably use instead.

Rule: each is a pure function of a `Host` and a `Policy` that gives a `Plan`, as the planner is;
each is written to do its best within its rule, and obeys masks and fixed vCPUs.

Terms: a vCPU counts where it is bound, or where it was last seen; one that is neither counts
    nowhere and is left alone.
Rules: `one_move`: the original scheduler. While the gap is at the threshold or above, pin one vCPU
    of the busiest pCPU to the freest; a lone vCPU stays. Which vCPU the rule leaves open: here it
    is the one that leaves the fuller of the two pCPUs least loaded.
    `descent`: the same with second thoughts, the best that one move a period can do: only moves
    that leave the fuller of the two pCPUs less loaded than the busier was, and where the busiest
    pCPU has none, the next.
    `repack`: largest first, each to the freest pCPU that it may use, whenever the gap is at the
    threshold or above; of equally free ones it prefers where the vCPU is.
    `sticky_repack`: the same, but a vCPU stays where it still fits under the mean load and half
    the threshold.
"""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from vcpusched.model import PPM, CpuSet, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Move, Plan, Policy, Stop

Rule = Callable[[Host, Policy], Plan]
"""What every competitor is, ours among them."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A host with the place of every vCPU that counts somewhere, and the loads that come of it.

    `shut` are the pCPUs that nothing is moved to, since what is there is not fully known yet.
    """

    vcpus: tuple[Vcpu, ...]
    place: Mapping[VcpuId, int]
    loads: Mapping[int, int]
    shut: CpuSet

    @classmethod
    def of(cls, host: Host) -> Self:
        loads = {cpu.id: cpu.host_load_ppm for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
        vcpus, place = [], {}
        for vcpu in sorted(host.vcpus, key=lambda vcpu: vcpu.id):
            cpu = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
            if cpu is not None and cpu in loads:
                vcpus.append(vcpu)
                place[vcpu.id] = cpu
                loads[cpu] += vcpu.load_ppm
        return cls(tuple(vcpus), place, loads, host.unsettled)

    def gap_ppm(self) -> int:
        return _gap_ppm(self.loads)

    def on(self, cpu: int) -> list[Vcpu]:
        return [vcpu for vcpu in self.vcpus if self.place[vcpu.id] == cpu]


@dataclass(frozen=True, slots=True, order=True)
class _Option:
    """A possible move: `fuller_ppm` is the load of the fuller of its two pCPUs afterwards."""

    fuller_ppm: int
    load_ppm: int
    target: int
    vcpu: VcpuId


def one_move(host: Host, policy: Policy) -> Plan:
    """Move one vCPU from the busiest to the freest pCPU, whatever comes of it."""
    start = _Placed.of(host)
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return _plan(start, {}, policy)
    options = _options(start, _busiest_first(start)[0])
    return _plan(start, {options[0].vcpu: options[0].target} if options else {}, policy)


def descent(host: Host, policy: Policy) -> Plan:
    """Move one vCPU off the busiest pCPU that a move helps."""
    start = _Placed.of(host)
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return _plan(start, {}, policy)
    for busiest in _busiest_first(start):
        options = _options(start, busiest)
        if options and options[0].fuller_ppm < start.loads[busiest]:
            return _plan(start, {options[0].vcpu: options[0].target}, policy)
    return _plan(start, {}, policy)


def repack(host: Host, policy: Policy) -> Plan:
    """Place everything anew, largest first."""
    return _repack(host, policy, stays_below_ppm=0)


def sticky_repack(host: Host, policy: Policy) -> Plan:
    """Place everything anew, largest first, but keep in place what fits there."""
    total_ppm = sum(cpu.host_load_ppm for cpu in host.cpus)
    total_ppm += sum(vcpu.load_ppm for vcpu in host.vcpus)
    mean_ppm = total_ppm // max(1, len(host.cpus))
    return _repack(host, policy, stays_below_ppm=mean_ppm + policy.balance_threshold_ppm // 2)


def _options(start: _Placed, busiest: int) -> list[_Option]:
    """Give the moves off a pCPU, each to the freest pCPU that the vCPU may use, best first."""
    members = start.on(busiest)
    if len(members) < 2:  # noqa: PLR2004  a lone vCPU stays
        return []
    open_cpus = [cpu for cpu in start.loads if cpu not in start.shut]
    freest_first = sorted(open_cpus, key=lambda cpu: (start.loads[cpu], cpu))
    options = []
    for vcpu in members:
        target = next((cpu for cpu in freest_first if cpu in vcpu.allowed and cpu != busiest), None)
        if target is not None and not vcpu.fixed:
            left_ppm = start.loads[busiest] - vcpu.load_ppm
            fuller_ppm = max(left_ppm, start.loads[target] + vcpu.load_ppm)
            options.append(_Option(fuller_ppm, vcpu.load_ppm, target, vcpu.id))
    return sorted(options)


def _busiest_first(start: _Placed) -> list[int]:
    return sorted(start.loads, key=lambda cpu: (-start.loads[cpu], cpu))


def _repack(host: Host, policy: Policy, *, stays_below_ppm: int) -> Plan:
    start = _Placed.of(host)
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return _plan(start, {}, policy)
    room = host.online - start.shut
    movable = [vcpu for vcpu in start.vcpus if not vcpu.fixed and vcpu.allowed & room]
    loads = dict(start.loads)
    for vcpu in movable:
        loads[start.place[vcpu.id]] -= vcpu.load_ppm
    heap = [(load, cpu) for cpu, load in loads.items() if cpu in room]
    heapq.heapify(heap)
    targets = {}
    for vcpu in sorted(movable, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        home = start.place[vcpu.id]
        target = _freest(heap, loads, vcpu.allowed)
        fits = loads[home] + vcpu.load_ppm < stays_below_ppm or loads[home] == loads[target]
        if fits and home in vcpu.allowed:
            target = home
        loads[target] += vcpu.load_ppm
        if target in room:
            heapq.heappush(heap, (loads[target], target))
        if target != home or not vcpu.is_bound:
            targets[vcpu.id] = target
    return _plan(start, targets, policy)


def _freest(heap: list[tuple[int, int]], loads: Mapping[int, int], allowed: CpuSet) -> int:
    """Find the freest allowed pCPU; an entry of the heap with an old load is dropped."""
    passed = []
    while True:
        load, cpu = heap[0]
        if load == loads[cpu]:
            if cpu in allowed:
                break
            passed.append(heap[0])
        heapq.heappop(heap)
    for entry in passed:
        heapq.heappush(heap, entry)
    return cpu


def _plan(start: _Placed, targets: Mapping[VcpuId, int], policy: Policy) -> Plan:
    """Put the moves into a plan, in the order of the vCPUs' names."""
    loads, moves = dict(start.loads), []
    for vcpu in start.vcpus:
        if vcpu.id not in targets:
            continue
        source, target = start.place[vcpu.id], targets[vcpu.id]
        loads[source] -= vcpu.load_ppm
        loads[target] += vcpu.load_ppm
        moves.append(
            Move(
                vcpu=vcpu.id,
                domain=vcpu.domain,
                from_cpus=vcpu.cpus,
                to_cpus=CpuSet.of([target]),
                load_ppm=vcpu.load_ppm,
                reason=f"pCPU {source} was at {start.loads[source] * 100 / PPM:.0f} %",
            )
        )
    gap_before_ppm, gap_after_ppm = start.gap_ppm(), _gap_ppm(loads)
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
