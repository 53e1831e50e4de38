"""Sets of pCPUs that are treated as one: cores, the pCPUs that share a cache, NUMA nodes.

Rule: pure. What the planner does with single pCPUs it does with these sets unchanged; only the host
that it is shown differs, and what its moves mean.

Problem: a vCPU pinned to one pCPU waits whenever another one bound there runs, though the pCPU
    beside it idles. Pinned to a set, the kernel moves it there within the millisecond, and most
    changes of load need no pin at all.
Approach: show the planner a host whose pCPUs are the sets. A load counts there as the share that it
    takes of the largest set, so threshold and gain keep their meaning: points of each pCPU.
Terms: a unit is such a set. Its capacity is that of its pCPUs, where a core's second thread is
    worth a quarter, and so is each further one. A vCPU is narrow when it is bound to fewer pCPUs
    than its unit has. Those on one core contend when they want more than it can give.
Algorithm: units of less capacity than the largest count as if something ran on them already: as
    much of the missing capacity as would be used at the mean. So equal loads mean equal use. Of
    single pCPUs the capacity is their part of that of their core, but loads are not divided by it.
Properties: a vCPU is moved only to units that its definition lets it use in full. Where all units
    have the same capacity the loads are those of the host divided by it, to a millionth.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import NO_CPUS, PPM, Cpu, CpuSet, Granularity, Host, HostCpu, Vcpu, sets
from vcpusched.plan.board import pour

FURTHER_THREAD_PPM: Final = 250_000
"""What each further thread of a core adds while the first is busy, in ppm: about a quarter.

On x86 a second one is said to add 10 to 30 %. Cores of four or eight threads (POWER) are made for
it, and are said to add 60 % by the second alone: there this is a cautious figure."""


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


def untold(cpus: Iterable[Cpu], granularity: Granularity) -> str:
    """Say which level of the machine is not told, and what `sets` does instead, in one line.

    Nothing when it is told of all pCPUs, or not asked for.
    """
    known, missing, nodes_missing = 0, NO_CPUS, False
    for cpu in cpus:
        level = {
            Granularity.CPU: cpu.id,
            Granularity.CORE: cpu.core,
            Granularity.CACHE: cpu.cache,
            Granularity.NODE: cpu.node,
            Granularity.AUTO: cpu.id,  # it makes do with what is told
        }[granularity]
        if level is not None:
            known += 1
            continue
        missing |= CpuSet.of([cpu.id])
        nodes_missing = nodes_missing or cpu.node is None
    if not missing:
        return ""
    if granularity is Granularity.CORE:
        what, instead = "are threads of one core", "each is taken for a core"
    elif granularity is Granularity.CACHE and not nodes_missing:
        what, instead = "share a cache", "NUMA nodes stand in for caches"
    else:
        what = "are on one NUMA node"
        if granularity is Granularity.CACHE:
            what = f"share a cache, nor which {what}"
        instead = "all these are taken for one set, within which the kernel alone places vCPUs"
    of = f" of pCPUs {missing}" if known else ""
    return f'pin_to = "{granularity}": this host does not tell{of} which {what}; {instead}'


def capacity_ppm(cpus: Sequence[Cpu]) -> int:
    """Give what pCPUs can do together: of each core one thread in full, others a quarter."""
    cores: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for cpu in cpus:
        cores[(0, cpu.id) if cpu.core is None else (1, cpu.core)].append(cpu.capacity_ppm)
    total = 0
    for threads in cores.values():
        first, *others = sorted(threads, reverse=True)
        total += first + sum(thread * FURTHER_THREAD_PPM // PPM for thread in others)
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
    if granularity is Granularity.CPU:
        capacities = _by_thread(host.cpus)
    largest = max(capacities.values(), default=PPM)
    # What one thread can use is that of a pCPU, whatever its siblings do.
    strongest = {
        unit: max(by_id[cpu].cpu.capacity_ppm for cpu in cpus) for unit, cpus in members.items()
    }
    whole = max(strongest.values(), default=PPM) if granularity is Granularity.CPU else largest
    gives = strongest if granularity is Granularity.CPU else capacities
    own = {unit: sum(by_id[cpu].host_load_ppm for cpu in cpus) for unit, cpus in members.items()}
    # In a set of several cores the kernel keeps them apart.
    cores = [{by_id[cpu].cpu.core for cpu in cpus} for cpus in members.values() if len(cpus) > 1]
    apart = all(len(of) == 1 and None not in of for of in cores)
    masks = {vcpu.allowed for vcpu in host.vcpus}  # a few, however many vCPUs there are
    allowed = {
        mask: CpuSet.of(unit for unit, cpus in members.items() if cpus.is_within(mask))
        for mask in masks
    }
    # Who floats must not look bound where only one of its pCPUs is managed.
    floaters = len(members) == len(of_cpu)
    vcpus = tuple(
        replace(
            vcpu,
            load_ppm=vcpu.load_ppm * PPM // whole,
            cpus=vcpu.cpus if floaters and not vcpu.is_bound else _of(vcpu.cpus, of_cpu),
            allowed=allowed[vcpu.allowed],
            on=of_cpu.get(vcpu.on) if vcpu.on is not None else None,
            spread=vcpu.spread and apart,
        )
        for vcpu in host.vcpus
    )
    used = sum(own.values()) + sum(
        vcpu.load_ppm for vcpu in host.vcpus if any(cpu in of_cpu for cpu in vcpu.cpus)
    )
    total = max(1, sum(capacities.values()))
    cpus = []
    for unit, capacity in capacities.items():
        first = by_id[unit]
        cpus.append(
            HostCpu(
                replace(first.cpu, capacity_ppm=strongest[unit] * PPM // whole),
                own[unit] * PPM // whole,
                members[unit],
                lacks_ppm=(largest - capacity) * used // total * PPM // whole,
                gives_ppm=max(1, gives[unit] * PPM // whole),
            )
        )
    unsettled = CpuSet.of({of_cpu[cpu] for cpu in host.unsettled if cpu in of_cpu})
    return Units(Host(tuple(cpus), vcpus, unsettled), of_cpu, members)


def _by_thread(cpus: Sequence[HostCpu]) -> dict[int, int]:
    """Give what each pCPU has of its core's capacity when all threads of it are busy."""
    found: dict[int, int] = {}
    by_id = {cpu.id: cpu.cpu for cpu in cpus}
    for core in sets(by_id.values(), Granularity.CORE):
        together = capacity_ppm([by_id[cpu] for cpu in core])
        found |= dict.fromkeys(core, max(1, together // len(core)))
    return found


def _of(cpus: CpuSet, of_cpu: dict[int, int]) -> CpuSet:
    return CpuSet.of({of_cpu[cpu] for cpu in cpus if cpu in of_cpu}) or cpus


def narrow(
    host: Host, units: Units, span_ppm: int, min_gain_ppm: int = 0
) -> tuple[tuple[Vcpu, CpuSet], ...]:
    """Give the narrow vCPUs that should be let into all of their unit, with where it was too busy.

    Where the pCPUs of a unit are as far apart as `span_ppm`, the largest narrow vCPU on the busiest
    of them, for as long as it shares that pCPU with others and this brings them closer together.
    After that the same for the cores of a unit, but only while those on one contend: while they
    want as much as `min_gain_ppm` more than it can give, and there is a core with room for that.
    """
    chosen: list[tuple[Vcpu, CpuSet]] = []
    own = {cpu.id: cpu.host_load_ppm for cpu in host.cpus}
    by_id = {cpu.id: cpu.cpu for cpu in host.cpus}
    inside: defaultdict[int, list[Vcpu]] = defaultdict(list)
    for vcpu in host.vcpus:
        touched = {of for cpu in vcpu.cpus if (of := units.of_cpu.get(cpu)) is not None}
        if len(touched) == 1:
            inside[touched.pop()].append(vcpu)
    for unit, vcpus in inside.items():
        members = units.members[unit]
        if len(members) > 1 and unit not in units.host.unsettled:
            out = _let_out(vcpus, members, {cpu: own[cpu] for cpu in members}, span_ppm)
            chosen += [(vcpu, vcpu.cpus) for vcpu in out]
            cores = {
                core: (capacity_ppm([by_id[cpu] for cpu in core]), sum(own[cpu] for cpu in core))
                for core in sets((by_id[cpu] for cpu in members), Granularity.CORE)
            }
            if len(members) > len(cores) > 1:
                gone = {vcpu.id for vcpu in out}
                stay = [vcpu for vcpu in vcpus if vcpu.id not in gone]
                out_ppm = sum(vcpu.load_ppm for vcpu in out)
                chosen += _let_off_cores(stay, members, cores, out_ppm, max(min_gain_ppm, 1))
    return tuple(sorted(chosen, key=lambda found: found[0].id))


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
        gap = levels[busiest] - min(levels.values())
        largest = _largest(bound[busiest], members)
        if gap < span_ppm or largest is None or len(bound[busiest]) == 1:
            return chosen
        bound[busiest].remove(largest)
        own[busiest] -= largest.load_ppm
        water += largest.load_ppm
        chosen.append(largest)


def _let_off_cores(
    vcpus: Sequence[Vcpu],
    members: CpuSet,
    cores: dict[CpuSet, tuple[int, int]],
    water: int,
    min_gain_ppm: int,
) -> list[tuple[Vcpu, CpuSet]]:
    """Give who should leave a core; of each is told what it can give, and what the host takes."""
    numbers = list(cores)
    core_of = {cpu: number for number, core in enumerate(numbers) for cpu in core}
    room = [can_ppm - taken_ppm for can_ppm, taken_ppm in cores.values()]
    on: list[list[Vcpu]] = [[] for _ in numbers]
    for vcpu in vcpus:
        bits = vcpu.cpus.bits & members.bits
        number = core_of[(bits & -bits).bit_length() - 1]
        if bits & ~numbers[number].bits:
            water += vcpu.load_ppm
        else:
            on[number].append(vcpu)
            room[number] -= vcpu.load_ppm
    chosen: list[tuple[Vcpu, CpuSet]] = []
    for number in sorted(range(len(numbers)), key=room.__getitem__):
        while -room[number] >= min_gain_ppm:
            # Who floats already comes first into the room that the others have left.
            others = (ppm for other, ppm in enumerate(room) if other != number and ppm > 0)
            largest = _largest(on[number], members)
            if largest is None or len(on[number]) == 1 or sum(others) - water < min_gain_ppm:
                break
            on[number].remove(largest)
            room[number] += largest.load_ppm
            water += largest.load_ppm
            chosen.append((largest, numbers[number]))
    return chosen


def _largest(vcpus: Iterable[Vcpu], members: CpuSet) -> Vcpu | None:
    """Give the largest vCPU that may be let into all of a unit."""
    may = (vcpu for vcpu in vcpus if not vcpu.fixed and members.is_within(vcpu.allowed))
    loaded = (vcpu for vcpu in may if vcpu.load_ppm)
    return max(loaded, key=lambda vcpu: (vcpu.load_ppm, vcpu.id), default=None)


def _poured(own: dict[int, int], water: int) -> dict[int, int]:
    filled = pour(own, tuple(own), water)
    level_ppm = min(own[cpu] + more_ppm for cpu, more_ppm in filled)
    return own | {cpu: level_ppm for cpu, _ in filled}
