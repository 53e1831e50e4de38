"""Sets of pCPUs that are treated as one: cores, the pCPUs that share a cache, NUMA nodes.

Rule: pure. What the planner does with single pCPUs it does with these sets unchanged; only the host
that it is shown differs, and what its moves mean.

Problem: a vCPU pinned to one pCPU waits whenever another one bound there runs, though the pCPU
    beside it idles. Pinned to a set, the kernel moves it there within the millisecond, and most
    changes of load need no pin at all.
Approach: show the planner a host whose pCPUs are the sets. A load counts there as the share that it
    takes of the largest set, so threshold and gain keep their meaning: points of each pCPU.
Terms: a unit is such a set. Its capacity is that of its pCPUs, where a core's second thread is
    worth a quarter. A vCPU is narrow when it is bound to fewer pCPUs than its unit has.
Algorithm: units of less capacity than the largest count as if something ran on them already: as
    much of the missing capacity as would be used at the mean. So equal loads mean equal use.
Properties: a vCPU is moved only to units that its definition lets it use in full. Where all units
    have the same capacity the loads are those of the host divided by it, to a millionth.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import PPM, Cpu, CpuSet, Host, HostCpu, Vcpu

SECOND_THREAD_PPM: Final = 250_000
"""What a core's second thread adds while the first is busy, in parts of a pCPU: about a quarter."""


class Granularity(enum.StrEnum):
    """What a vCPU is pinned to."""

    CPU = "cpu"
    CORE = "core"
    CACHE = "cache"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Units:
    """The host as sets of pCPUs: `host` is what the planner is shown.

    `of_cpu` gives the lowest pCPU of the unit that a pCPU belongs to, by which the unit is named
    in `host`, and `members` its pCPUs.
    """

    host: Host
    of_cpu: dict[int, int]
    members: dict[int, CpuSet]

    def target(self, vcpu: Vcpu, unit: CpuSet) -> CpuSet:
        """Give the pCPUs that a vCPU is pinned to when it is moved to a unit of `host`."""
        return self.members[next(iter(unit))] & vcpu.allowed


def sets(cpus: Iterable[Cpu], granularity: Granularity) -> tuple[CpuSet, ...]:
    """Give the units of a host, in rising order of their lowest pCPU.

    Where the machine does not tell caches, nodes stand in for them; pCPUs of which neither is known
    are one unit. A pCPU without a core is one by itself.
    """
    found: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for cpu in cpus:
        node = -1 if cpu.node is None else cpu.node
        if granularity is Granularity.CPU or (granularity is Granularity.CORE and cpu.core is None):
            key: tuple[int, ...] = (0, cpu.id)
        elif granularity is Granularity.CORE and cpu.core is not None:
            key = (1, cpu.core)
        elif granularity is Granularity.CACHE and cpu.cache is not None:
            key = (2, cpu.cache)
        else:
            key = (3, node)
        found[key] |= 1 << cpu.id
    return tuple(CpuSet(bits) for bits in sorted(found.values(), key=lambda bits: bits & -bits))


def capacity_ppm(cpus: Sequence[Cpu]) -> int:
    """Give what pCPUs can do together: of each core one thread in full, others a quarter."""
    cores: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for cpu in cpus:
        cores[(0, cpu.id) if cpu.core is None else (1, cpu.core)].append(cpu.capacity_ppm)
    total = 0
    for threads in cores.values():
        first, *others = sorted(threads, reverse=True)
        total += first + sum(thread * SECOND_THREAD_PPM // PPM for thread in others)
    return total


def grouped(host: Host, granularity: Granularity) -> Units:
    """Give a host as units."""
    by_id = {cpu.id: cpu for cpu in host.cpus}
    members = {next(iter(unit)): unit for unit in sets((cpu.cpu for cpu in host.cpus), granularity)}
    of_cpu = {cpu: unit for unit, cpus in members.items() for cpu in cpus}
    capacities = {
        unit: max(1, capacity_ppm([by_id[cpu].cpu for cpu in cpus]))
        for unit, cpus in members.items()
    }
    largest = max(capacities.values(), default=PPM)
    own = {unit: sum(by_id[cpu].host_load_ppm for cpu in cpus) for unit, cpus in members.items()}
    apart = granularity in {Granularity.CPU, Granularity.CORE}
    vcpus = tuple(_shown(vcpu, members, of_cpu, largest, apart=apart) for vcpu in host.vcpus)
    used = sum(own.values()) + sum(
        vcpu.load_ppm for vcpu in host.vcpus if any(cpu in of_cpu for cpu in vcpu.cpus)
    )
    total = max(1, sum(capacities.values()))
    cpus = []
    for unit, capacity in capacities.items():
        first = by_id[unit]
        missing = (largest - capacity) * used // total * PPM // largest
        cpus.append(
            HostCpu(
                replace(first.cpu, capacity_ppm=PPM),
                own[unit] * PPM // largest + missing,
                members[unit],
            )
        )
    unsettled = CpuSet.of({of_cpu[cpu] for cpu in host.unsettled if cpu in of_cpu})
    return Units(Host(tuple(cpus), vcpus, unsettled), of_cpu, members)


def _shown(
    vcpu: Vcpu, members: dict[int, CpuSet], of_cpu: dict[int, int], largest: int, *, apart: bool
) -> Vcpu:
    return replace(
        vcpu,
        load_ppm=vcpu.load_ppm * PPM // largest,
        cpus=CpuSet.of({of_cpu[cpu] for cpu in vcpu.cpus if cpu in of_cpu}) or vcpu.cpus,
        allowed=CpuSet.of(unit for unit, cpus in members.items() if cpus.is_within(vcpu.allowed)),
        on=of_cpu.get(vcpu.on) if vcpu.on is not None else None,
        # In a set of several cores the kernel keeps them apart.
        spread=vcpu.spread and apart,
    )


def narrow(host: Host, units: Units, span_ppm: int) -> tuple[Vcpu, ...]:
    """Give the narrow vCPUs that should be let into all of their unit.

    Where the pCPUs of a unit are as far apart as `span_ppm`, the largest narrow vCPU on the busiest
    of them, for as long as it shares that pCPU with others and this brings them closer together.
    """
    chosen: list[Vcpu] = []
    own = {cpu.id: cpu.host_load_ppm for cpu in host.cpus}
    inside: defaultdict[int, list[Vcpu]] = defaultdict(list)
    for vcpu in host.vcpus:
        touched = {of for cpu in vcpu.cpus if (of := units.of_cpu.get(cpu)) is not None}
        if len(touched) == 1:
            inside[touched.pop()].append(vcpu)
    for unit, vcpus in inside.items():
        members = units.members[unit]
        if len(members) > 1 and unit not in units.host.unsettled:
            chosen += _let_out(vcpus, members, {cpu: own[cpu] for cpu in members}, span_ppm)
    return tuple(sorted(chosen, key=lambda vcpu: vcpu.id))


def _let_out(
    vcpus: Sequence[Vcpu], members: CpuSet, own: dict[int, int], span_ppm: int
) -> list[Vcpu]:
    bound: dict[int, list[Vcpu]] = {cpu: [] for cpu in members}
    water = 0
    for vcpu in vcpus:
        if vcpu.is_bound:
            own[next(iter(vcpu.cpus))] += vcpu.load_ppm
            bound[next(iter(vcpu.cpus))].append(vcpu)
        else:
            water += vcpu.load_ppm
    chosen: list[Vcpu] = []
    while True:
        levels = _poured(own, water)
        busiest = max(members, key=lambda cpu: (levels[cpu], -cpu))
        candidates = [
            vcpu
            for vcpu in bound[busiest]
            if vcpu.load_ppm and not vcpu.fixed and members.is_within(vcpu.allowed)
        ]
        gap = levels[busiest] - min(levels.values())
        if gap < span_ppm or not candidates or len(bound[busiest]) == 1:
            return chosen
        largest = max(candidates, key=lambda vcpu: (vcpu.load_ppm, vcpu.id))
        bound[busiest].remove(largest)
        own[busiest] -= largest.load_ppm
        water += largest.load_ppm
        chosen.append(largest)


def _poured(own: dict[int, int], water: int) -> dict[int, int]:
    """Share what floats in a unit over its freest pCPUs."""
    levels, order = dict(own), sorted(own, key=lambda cpu: (own[cpu], cpu))
    total, wet = water, 0
    for cpu in order:
        if wet and total <= own[cpu] * wet:
            break
        total += own[cpu]
        wet += 1
    for cpu in order[:wet]:
        levels[cpu] = total // wet
    return levels
