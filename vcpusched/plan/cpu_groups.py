"""What a vCPU is pinned to: single pCPUs, or sets of them that count as one.

Rule: pure. The rest of the planner knows bins only, and does with sets what it does with pCPUs.

Problem: a vCPU pinned to one pCPU waits whenever another one pinned there runs, though the pCPU
    beside it idles. Pinned to a set, the kernel moves it there within a millisecond.
Approach: each set is a bin whose load is the mean over its pCPUs: vCPUs count as the share that
    they take of the largest set, so thresholds keep their meaning.
Terms: the capacity of a set is that of its cores; a core's second thread is worth a quarter. A bin
    of less capacity than the largest counts as if something ran on it already: as much of what it
    lacks as would be used at the mean, so that equal loads mean equal use.
Properties: a vCPU is pinned to a set where it may use half of it or more: to that part.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

from vcpusched.model import PPM, PPM_PER_POINT, Cpu, CpuSet, Granularity, Host, resolved, sets
from vcpusched.text import cpus_text

FURTHER_THREAD_PPM: Final = 250_000
"""What each further thread of a core adds while the first is busy: 10 to 30 % on x86."""

RUNNABLE_PPM: Final = PPM_PER_POINT
"""The load from which on a vCPU is taken to run now and then."""

SAME, CORE, CACHE, NODE, ACROSS = range(5)
"""How far apart two bins are: on one core, on one cache, on one node, or not even that."""


@dataclass(frozen=True)
class Bins:
    """The bins of a host by position, in rising order of their lowest pCPU.

    `members` are the pCPUs of each and `of_cpu` the bin of each pCPU; `judged` are the bins that
    give and take, all but those with unsettled pCPUs; `sites` say where a bin is, None where all
    are equally near, and `distances` how far NUMA nodes are apart; `base` is the load without
    vCPUs, with what a bin `lacks`; `gives` what it can do, `thread` what one vCPU can get there,
    None where that is the same everywhere. All of these in ppm of `whole`, which is that many ppm
    of a pCPU. Among `isolated` pCPUs the kernel moves nothing. `cores` are the bins on the core of
    each, as bits, none where it has several. `waiting` says how many vCPUs with load a set has
    more than pCPUs, where that can be said.
    """

    members: tuple[CpuSet, ...]
    of_cpu: Mapping[int, int]
    judged: tuple[int, ...]
    sites: tuple[Cpu, ...] | None
    distances: Mapping[tuple[int, int], int]
    base: tuple[int, ...]
    lacks: tuple[int, ...]
    gives: tuple[int, ...]
    thread: tuple[int, ...] | None
    whole: int
    isolated: CpuSet
    cores: tuple[int, ...]
    waiting: Mapping[int, int]

    @property
    def are_sets(self) -> bool:
        """Whether a bin has more than one pCPU."""
        return len(self.members) < len(self.of_cpu)

    @cached_property
    def touched(self) -> Callable[[int], frozenset[int]]:
        """Return the bins of which an affinity, as bits, has any pCPU."""
        of_cpu = self.of_cpu
        # Thousands of vCPUs have few different affinities, of hundreds of pCPUs each.
        return cache(lambda bits: frozenset(of_cpu[cpu] for cpu in CpuSet(bits) if cpu in of_cpu))

    def bin_of(self, cpus: CpuSet) -> int | None:
        """Return the bin that a vCPU with this affinity is bound to; None if it floats."""
        if len(cpus) > 1 and not self.are_sets:
            return None
        touched = self.touched(cpus.bits)
        return next(iter(touched)) if len(touched) == 1 else None

    def within(self, cpus: CpuSet, *, most: bool) -> int:
        """Return a bit for each bin of which these pCPUs hold half or more (`most`), or any."""
        return sum(
            1 << bin_
            for bin_ in self.touched(cpus.bits)
            if not most or len(self.members[bin_] & cpus) * 2 >= len(self.members[bin_])
        )

    def shown(self, levels: Sequence[int], bin_: int) -> int:
        """Return the load of a bin as people are shown it: as a share of what it can do."""
        return (levels[bin_] - self.lacks[bin_]) * PPM // self.gives[bin_]

    @cached_property
    def names(self) -> list[str]:
        """What people call each bin."""
        if self.are_sets:
            return [cpus_text(members) for members in self.members]
        return [f"pCPU {cpu}" for cpu in self.of_cpu]

    @cached_property
    def siblings(self) -> list[tuple[int, ...]]:
        """The other threads of each bin's core, none where not all are judged; else empty."""
        found: list[tuple[int, ...]] = [()] * len(self.cores)
        judged = {*self.judged}
        for core in {core for core in self.cores if core & (core - 1)}:
            threads = {*CpuSet(core)}
            is_core = threads <= judged and all(self.cores[one] == core for one in threads)
            for bin_ in threads if is_core else ():
                found[bin_] = tuple(sorted(threads - {bin_}))
        return found if any(found) else []

    @cached_property
    def rings(self) -> list[tuple[Sequence[int], int]]:
        """The judged bins of each cache, each node, and all; with how far apart they are."""
        rings: list[tuple[Sequence[int], int]] = []
        sites = self.sites or ()
        for far in (CACHE, NODE) if sites else ():
            found: defaultdict[tuple[int | None, ...], list[int]] = defaultdict(list)
            for bin_ in self.judged:
                site = sites[bin_]
                found[(site.node, site.cache) if far == CACHE else (site.node,)].append(bin_)
            rings += [(bins, far) for bins in found.values() if 1 < len(bins) < len(self.judged)]
        return [*rings, (self.judged, ACROSS)]

    def distance(self, one: int, other: int) -> int:
        """Return how far apart two bins are."""
        if one == other:
            return SAME
        if self.sites is None:
            return CACHE
        a, b = self.sites[one], self.sites[other]
        if a.core is not None and a.core == b.core:
            return CORE
        if a.node != b.node:
            return ACROSS
        return CACHE if a.cache == b.cache else NODE

    def gap(self, levels: Sequence[int]) -> int:
        """Return the load of the busiest less that of the least loaded judged bin."""
        judged = [levels[bin_] for bin_ in self.judged]
        return max(judged, default=0) - min(judged, default=0)

    def second(self, levels: Sequence[int], bin_: int) -> int:
        """Return the load of the second busiest thread of a bin's core, 0 where there is none."""
        others = self.siblings[bin_]
        if len(others) == 1:
            return min(levels[bin_], levels[others[0]])
        return sorted((levels[bin_], *(levels[other] for other in others)))[-2] if others else 0

    @cached_property
    def firsts(self) -> list[int]:
        """The first thread of each core of several."""
        return [bin_ for bin_, others in enumerate(self.siblings) if others and bin_ < min(others)]


def by_core(cpus: Iterable[Cpu]) -> dict[int, list[Cpu]]:
    """Return the pCPUs of each core; one whose core is not known is one by itself."""
    cores: defaultdict[int, list[Cpu]] = defaultdict(list)
    for cpu in cpus:
        cores[~cpu.id if cpu.core is None else cpu.core].append(cpu)
    return cores


def capacity_ppm(cpus: Iterable[Cpu]) -> int:
    """Return what pCPUs can do together: of each core one thread in full, others a quarter."""
    total = 0
    for core in by_core(cpus).values():
        first, *others = sorted((cpu.capacity_ppm for cpu in core), reverse=True)
        total += first + sum(thread * FURTHER_THREAD_PPM // PPM for thread in others)
    return total


def bins_of(host: Host, granularity: Granularity) -> Bins:
    """Return the bins of a host."""
    by_id = {cpu.id: cpu.cpu for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
    granularity = resolved(by_id.values(), granularity)
    groups = [[cpu] for cpu in by_id.values()]
    if granularity is not Granularity.CPU:
        groups = [[by_id[cpu] for cpu in group] for group in sets(by_id.values(), granularity)]
    of_cpu = {cpu.id: bin_ for bin_, group in enumerate(groups) for cpu in group}
    base = [0] * len(groups)
    for cpu in host.cpus:
        base[of_cpu[cpu.id]] += cpu.host_load_ppm
    lacks, gives, thread, whole = [0] * len(groups), [PPM] * len(groups), None, PPM
    cores = by_core(by_id.values())
    if granularity is not Granularity.CPU or any(cpu.capacity_ppm != PPM for cpu in by_id.values()):
        strongest = [max(cpu.capacity_ppm for cpu in group) for group in groups]
        capacity = [max(1, capacity_ppm(group)) for group in groups]
        whole, gives = max(capacity, default=PPM), capacity
        if granularity is Granularity.CPU:
            # A thread has its part of the core when all threads are busy.
            shares = {
                cpu.id: max(1, capacity_ppm(core) // len(core))
                for core in cores.values()
                for cpu in core
            }
            capacity = [shares[cpu] for cpu in of_cpu]
        lacks = [lack * PPM // whole for lack in _lacks(host, capacity, sum(base), of_cpu)]
        base = [load * PPM // whole + lack for load, lack in zip(base, lacks, strict=True)]
        gives = [max(1, give * PPM // whole) for give in gives]
        if len(set(strongest)) > 1:
            thread = tuple(one * PPM // whole for one in strongest)
    # Not asked of cores, whose threads share one.
    asks = len(groups) < len(by_id) and granularity is not Granularity.CORE
    on_core = {core: sum({1 << of_cpu[cpu.id] for cpu in cpus}) for core, cpus in cores.items()}
    sites = tuple(group[0] for group in groups)
    is_flat = len({(site.node, site.cache) for site in sites}) <= 1
    is_flat = is_flat and not any(bins & (bins - 1) for bins in on_core.values())
    return Bins(
        members=tuple(CpuSet.of(cpu.id for cpu in group) for group in groups),
        of_cpu=of_cpu,
        judged=tuple(sorted({*of_cpu.values()} - {of_cpu.get(cpu) for cpu in host.unsettled})),
        sites=None if is_flat else sites,
        distances=host.node_distances,
        base=tuple(base),
        lacks=tuple(lacks),
        gives=tuple(gives),
        thread=thread,
        whole=whole,
        isolated=CpuSet.of(cpu.id for cpu in by_id.values() if cpu.isolated),
        cores=tuple(
            on_core[min(touched)] if len(touched := by_core(group)) == 1 else 0 for group in groups
        ),
        waiting=_waiting(host, groups, of_cpu) if asks else {},
    )


def _lacks(host: Host, capacity: Sequence[int], own: int, managed: Mapping[int, int]) -> list[int]:
    """Return what each bin would do more at the mean use if it were as strong as the largest."""
    online = CpuSet.of(managed)
    used = own + sum(vcpu.load_ppm for vcpu in host.vcpus if vcpu.cpus & online)
    total, largest = max(1, sum(capacity)), max(capacity, default=0)
    return [(largest - one) * used // total for one in capacity]


def _waiting(
    host: Host, groups: Sequence[Sequence[Cpu]], of_cpu: Mapping[int, int]
) -> dict[int, int]:
    """Return how many vCPUs with load each set has more than pCPUs: what gains by leaving."""
    more = {bin_: -len(group) for bin_, group in enumerate(groups)}
    runnable = Counter([vcpu.cpus.bits for vcpu in host.vcpus if vcpu.load_ppm >= RUNNABLE_PPM])
    for bits, count in runnable.items():
        for bin_ in {of_cpu[cpu] for cpu in CpuSet(bits) if cpu in of_cpu}:
            more[bin_] += count
    for cpu in host.cpus:
        # What the host itself keeps busy is no pCPU for a vCPU.
        more[of_cpu[cpu.id]] += cpu.host_load_ppm > PPM // 2
    return more


def pour(
    levels: Sequence[int] | Mapping[int, int], bins: Iterable[int], load: int
) -> list[tuple[int, int]]:
    """Share a load over the least loaded of some bins so that their levels become equal."""
    order = sorted(bins, key=lambda bin_: (levels[bin_], bin_))
    total, filled = load, 0
    for bin_ in order:
        if filled and total <= levels[bin_] * filled:
            break
        total += levels[bin_]
        filled += 1
    level, rest = divmod(total, max(1, filled))
    return [(bin_, level + (at < rest) - levels[bin_]) for at, bin_ in enumerate(order[:filled])]
