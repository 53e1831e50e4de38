"""What a vCPU would run if nobody were in its way, and what the host itself runs.

Rule: pure arithmetic on values, in parts per million of one pCPU over one interval.

Problem: usage saturates. Five guests that each want a whole pCPU and share one look like one guest
    on a pCPU of its own: 100 % both, balanced. And a pCPU that serves the host's own processes has
    less room than its vCPUs tell.
Approach: where a pCPU is all but saturated, the share of the time that a thread waited counts as
    wanted, too. What a pCPU was busy with beyond its vCPUs is the host's.
Terms: a pCPU is crowded when it was busy for most of the interval. Demand is usage plus the wait
    that would have been run time. Host load is what anything but the vCPUs that we know runs.
Properties: demand lies between usage and one pCPU; equal to usage without wait, and to one pCPU
    for a vCPU that never slept on a saturated pCPU. Host load is never negative, and the same
    whatever the order of vCPUs.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from vcpusched.model import PPM, Busy, CpuSet, Waited

CROWDED_PPM: Final = 800_000
"""Busy from here on a pCPU's vCPUs are asked how long they waited; it takes two readings to tell,
and below this their wait is worth nothing."""

SATURATED_FROM_PPM: Final = 970_000
"""Busy from here on wait begins to count, in full at 100 %. Below it, bursts that collided were
still served within the interval: in simulated bursts with a known demand of 0.9 pCPUs the formula
told 1.2, usage 0.88."""

WAITS_PPM: Final = 50_000
"""A vCPU that waited for so much of the time really waits: below it is the usual jostling of
threads that share a pCPU."""

UNDISTURBED_WAIT_PPM: Final = 20_000
"""A vCPU that waited for no more of the time was served with all that it wanted: alone on its pCPU
it waits for a few parts in a thousand, for the kernel's own threads."""

INTERVAL_MIN_NS: Final = 200_000_000
"""Two readings closer than this say nothing: CPU time is counted in steps of 10 ms, so an error of
5 % of a pCPU would be usual."""


def busy_ppm(before: Busy | None, after: Busy | None) -> Mapping[int, int]:
    """Give how busy each pCPU was between two readings, 0 to 1,000,000; nothing where unknown."""
    if before is None or after is None or after.at_ns - before.at_ns < INTERVAL_MIN_NS:
        return {}
    interval_ns = after.at_ns - before.at_ns
    return {
        cpu: min(PPM, (run_ns - before.by_cpu_ns[cpu]) * PPM // interval_ns)
        for cpu, run_ns in after.by_cpu_ns.items()
        # A counter that went backwards is that of a pCPU that was away meanwhile.
        if run_ns >= before.by_cpu_ns.get(cpu, run_ns + 1)
    }


def crowded(busy: Mapping[int, int]) -> CpuSet:
    """Give the pCPUs whose vCPUs may have had to wait."""
    return CpuSet.of(cpu for cpu, share_ppm in busy.items() if share_ppm >= CROWDED_PPM)


def wait_ppm(before: Waited | None, after: Waited | None) -> int:
    """Give for which share of the time a vCPU was kept from running by others; 0 where unknown.

    Time for which the kernel held it back because of its quota is no such wait.
    """
    if before is None or after is None:
        return 0
    interval_ns = after.at_ns - before.at_ns
    waited_ns = after.wait_ns - before.wait_ns - (after.throttled_ns - before.throttled_ns)
    return max(0, waited_ns) * PPM // interval_ns if interval_ns >= INTERVAL_MIN_NS else 0


def is_undisturbed(before: Waited | None, after: Waited | None, busy: int) -> bool:
    """Tell whether a vCPU got what it wanted, from its wait and how busy its freest pCPU was.

    Where it was not asked, its pCPU was free for a fifth of the time.
    """
    if before is None or after is None:
        return busy < CROWDED_PPM
    return busy < CROWDED_PPM or wait_ppm(before, after) < UNDISTURBED_WAIT_PPM


def demand_ppm(usage_ppm: int, before: Waited | None, after: Waited | None, busy: int) -> int:
    """Give what a vCPU wants, from its usage, its wait, and how busy its freest pCPU was.

    Run time plus wait * (run / (run + sleep))^3. To the first power this is the usual estimate of a
    closed loop: had it not waited, it would have run and slept on in the proportion in which it
    did. A guest whose work comes at moments of its own has caught up whenever it sleeps, so its
    wait was worth nothing. Between the two, the third power erred least in simulated bursts of 20
    to 400 ms: at 1.3 pCPUs wanted by 0.44 to -0.21, the first power by 0.68 to -0.16 with half as
    much again of noise, usage by -0.3. They agree on who never slept: such a vCPU wants a whole
    pCPU. Time for which the kernel held it back because of its quota is no such wait, and nobody
    can want more than its quota.
    """
    if before is None or after is None:
        return usage_ppm
    waited_ppm = wait_ppm(before, after)
    most_ppm = PPM if after.quota_ppm is None else max(usage_ppm, min(PPM, after.quota_ppm))
    if not waited_ppm or busy <= SATURATED_FROM_PPM:
        return usage_ppm
    waited_ppm = min(PPM - usage_ppm, waited_ppm)
    awake_ppm = usage_ppm * PPM // max(1, PPM - waited_ppm)
    missed_ppm = waited_ppm * awake_ppm**3 // PPM**3
    counted_ppm = missed_ppm * (busy - SATURATED_FROM_PPM) // (PPM - SATURATED_FROM_PPM)
    return min(most_ppm, usage_ppm + counted_ppm)


def host_loads_ppm(
    busy: Mapping[int, int], usages: Iterable[tuple[CpuSet, int]]
) -> Mapping[int, int]:
    """Give what each pCPU ran beyond its vCPUs, from the affinity and the usage of each of these.

    Where a floating vCPU ran is not known. It is taken to have run in proportion to what its pCPUs
    ran beyond the vCPUs bound to them.
    """
    left_ppm = dict(busy)
    floating: dict[CpuSet, int] = {}
    for cpus, usage in usages:
        if len(cpus) == 1:
            cpu = next(iter(cpus))
            if cpu in left_ppm:
                left_ppm[cpu] = max(0, left_ppm[cpu] - usage)
        else:
            floating[cpus] = floating.get(cpus, 0) + usage
    beyond_ppm = dict(left_ppm)
    for cpus, usage in floating.items():
        total_ppm = sum(beyond_ppm.get(cpu, 0) for cpu in cpus)
        for cpu in cpus:
            if beyond_ppm.get(cpu):
                left_ppm[cpu] = max(0, left_ppm[cpu] - usage * beyond_ppm[cpu] // total_ppm)
    return left_ppm
