"""What a vCPU is pinned to: single pCPUs, or sets of them that count as one.

Rule: pure. The rest of the planner knows bins only, and does with sets what it does with pCPUs.

Problem: a vCPU pinned to one pCPU waits whenever another one pinned there runs, though the pCPU
    beside it idles. Pinned to a set, the kernel moves it there within a millisecond.
Approach: each set is a bin whose load is the mean over its pCPUs: vCPUs count as the share that
    they take of the largest set, so thresholds keep their meaning.
Terms: the capacity of a set is that of its cores; a core's second thread is worth a quarter. A bin
    of less capacity than the largest counts as if something ran on it already: as much of what it
    lacks as would be used at the mean, so that equal loads mean equal use.
Properties: a vCPU is pinned to a set only where it may use all of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    Granularity,
    Host,
    HostCpu,
    Vcpu,
    resolved,
    sets,
)
from vcpusched.text import cpus_text

FURTHER_THREAD_PPM: Final = 250_000
"""What each further thread of a core adds while the first is busy: 10 to 30 % on x86."""

RUNNABLE_PPM: Final = PPM_PER_POINT
"""The load from which on a vCPU is taken to run now and then."""


@dataclass(frozen=True)
class Bins:
    """The bins of a host by position, in rising order of their lowest pCPU.

    `members` are the pCPUs of each and `of_cpu` the bin of each pCPU; `sites` tell where a bin is,
    None where all bins are equally near; `base` is the load without vCPUs, with what a bin lacks;
    `gives` what it can do, `thread` what one vCPU can get there, None where that is the same
    everywhere. All of these in ppm of `whole`, which is that many ppm of a pCPU. Among `isolated`
    pCPUs the kernel moves nothing. `cores` are the bins on the core of each, as bits, none where it
    has several.
    """

    members: tuple[CpuSet, ...]
    of_cpu: Mapping[int, int]
    sites: tuple[Cpu, ...] | None
    base: tuple[int, ...]
    lacks: tuple[int, ...]
    gives: tuple[int, ...]
    thread: tuple[int, ...] | None
    whole: int
    granularity: Granularity
    isolated: CpuSet
    cores: tuple[int, ...]

    @property
    def are_sets(self) -> bool:
        """Whether a bin has more than one pCPU."""
        return len(self.members) < len(self.of_cpu)

    @property
    def is_plain(self) -> bool:
        """Whether each bin is one pCPU that can do all that the best can."""
        return self.whole == PPM and not any(self.lacks) and not self.are_sets

    def home(self, vcpu: Vcpu) -> int | None:
        """Return the bin that a vCPU is bound to; None if it floats or is on no managed pCPU."""
        if not (vcpu.is_bound or self.are_sets):
            return None
        touched = self.within(vcpu.cpus, whole=False)
        return touched.bit_length() - 1 if touched.bit_count() == 1 else None

    def target(self, vcpu: Vcpu, bin_: int) -> CpuSet:
        """Return what a vCPU is pinned to on a bin."""
        members = self.members[bin_]
        return members & vcpu.allowed if len(members) > 1 else members

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
    def managed(self) -> int:
        """All pCPUs, as bits."""
        return sum(1 << cpu for cpu in self.of_cpu)

    @cached_property
    def _is_contiguous(self) -> bool:
        return all(cpu == bin_ for cpu, bin_ in self.of_cpu.items())

    def within(self, cpus: CpuSet, *, whole: bool) -> int:
        """Return a bit for each bin of which these pCPUs hold all (`whole`), or any."""
        bits, found = cpus.bits, 0
        if not self.are_sets:
            managed = bits & self.managed
            if self._is_contiguous:
                return managed
            return sum(1 << self.of_cpu[cpu] for cpu in CpuSet(managed))
        for index, members in enumerate(self.members):
            if members.bits & ~bits == 0 if whole else members.bits & bits:
                found |= 1 << index
        return found


def capacity_ppm(cpus: Iterable[Cpu]) -> int:
    """Return what pCPUs can do together: of each core one thread in full, others a quarter."""
    cores: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for cpu in cpus:
        cores[(0, cpu.id) if cpu.core is None else (1, cpu.core)].append(cpu.capacity_ppm)
    total = 0
    for threads in cores.values():
        first, *others = sorted(threads, reverse=True)
        total += first + sum(thread * FURTHER_THREAD_PPM // PPM for thread in others)
    return total


def bins_of(host: Host, granularity: Granularity) -> Bins:
    """Return the bins of a host."""
    cpus = sorted(host.cpus, key=lambda cpu: cpu.id)
    granularity = resolved([cpu.cpu for cpu in cpus], granularity)
    groups = [[cpu] for cpu in cpus]
    if granularity is not Granularity.CPU:
        by_id = {cpu.id: cpu for cpu in cpus}
        these = sets((cpu.cpu for cpu in cpus), granularity)
        groups = [[by_id[cpu] for cpu in group] for group in these]
    of_cpu = {cpu.id: bin_ for bin_, group in enumerate(groups) for cpu in group}
    sites = tuple(group[0].cpu for group in groups)
    base = [sum(cpu.host_load_ppm for cpu in group) for group in groups]
    lacks, gives, thread, whole = [0] * len(groups), [PPM] * len(groups), None, PPM
    if granularity is not Granularity.CPU or any(site.capacity_ppm != PPM for site in sites):
        strongest = [max(cpu.cpu.capacity_ppm for cpu in group) for group in groups]
        if granularity is Granularity.CPU:
            capacity = _by_thread(cpus)
            whole, gives = max(strongest), strongest
        else:
            capacity = [max(1, capacity_ppm(cpu.cpu for cpu in group)) for group in groups]
            whole, gives = max(capacity, default=PPM), capacity
        lacks = _lacks(host, capacity, sum(base), CpuSet.of(of_cpu))
        lacks = [lack * PPM // whole for lack in lacks]
        base = [load * PPM // whole + lack for load, lack in zip(base, lacks, strict=True)]
        gives = [max(1, give * PPM // whole) for give in gives]
        if len(set(strongest)) > 1:
            thread = tuple(one * PPM // whole for one in strongest)
    on_core = [
        {(0, cpu.id) if cpu.cpu.core is None else (1, cpu.cpu.core) for cpu in group}
        for group in groups
    ]
    beside: defaultdict[tuple[int, int], int] = defaultdict(int)
    for bin_, keys in enumerate(on_core):
        for key in keys:
            beside[key] |= 1 << bin_
    is_flat = len({(site.node, site.cache) for site in sites}) <= 1
    is_flat = is_flat and not any(bins & (bins - 1) for bins in beside.values())
    return Bins(
        members=tuple(CpuSet.of(cpu.id for cpu in group) for group in groups),
        of_cpu=of_cpu,
        sites=None if is_flat else sites,
        base=tuple(base),
        lacks=tuple(lacks),
        gives=tuple(gives),
        thread=thread,
        whole=whole,
        granularity=granularity,
        isolated=CpuSet.of(cpu.id for cpu in cpus if cpu.cpu.isolated),
        cores=tuple(beside[min(keys)] if len(keys) == 1 else 0 for keys in on_core),
    )


def _by_thread(cpus: Sequence[HostCpu]) -> list[int]:
    """Return what each pCPU has of its core's capacity when all threads of the core are busy."""
    found: dict[int, int] = {}
    by_id = {cpu.id: cpu.cpu for cpu in cpus}
    for core in sets(by_id.values(), Granularity.CORE):
        together = capacity_ppm([by_id[cpu] for cpu in core])
        found |= dict.fromkeys(core, max(1, together // len(core)))
    return [found[cpu.id] for cpu in cpus]


def _lacks(host: Host, capacity: Sequence[int], own: int, managed: CpuSet) -> list[int]:
    """Return what each bin would do more at the mean use if it were as strong as the largest."""
    used = own + sum(vcpu.load_ppm for vcpu in host.vcpus if vcpu.cpus.bits & managed.bits)
    total, largest = max(1, sum(capacity)), max(capacity, default=0)
    return [(largest - one) * used // total for one in capacity]


def waiting(host: Host, bins: Bins) -> dict[int, int]:
    """Return how many vCPUs with load each set has more than pCPUs; nobody else gains by leaving.

    The threads of one core share it, so for a core that cannot be said.
    """
    if not bins.are_sets or bins.granularity is Granularity.CORE:
        return {}
    more = {bin_: -len(members) for bin_, members in enumerate(bins.members)}
    for vcpu in host.vcpus:
        if vcpu.load_ppm >= RUNNABLE_PPM:
            for bin_ in {bins.of_cpu[cpu] for cpu in vcpu.cpus if cpu in bins.of_cpu}:
                more[bin_] += 1
    for cpu in host.cpus:
        # What the host itself keeps busy is no pCPU for a vCPU.
        more[bins.of_cpu[cpu.id]] += cpu.host_load_ppm > PPM // 2
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
