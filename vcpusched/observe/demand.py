"""What a vCPU would run if nobody were in its way, what the host itself runs, and their means.

Rule: pure arithmetic on values, in parts per million of one pCPU over one interval.

Problem: usage saturates. Five guests that each want a whole pCPU and share one look like one guest
    on a pCPU of its own: 100 % both, balanced. And a pCPU that serves the host's own processes has
    less room than its vCPUs show. Of a vCPU that shares a saturated pCPU nobody can say what it
    wants: one of 60 % that could not finish looks like one that would have run all the time. Of
    five equal guests on four pCPUs the two that share one then look larger than the others, and
    moving one of them only changes whose turn it is to look so: without end.
Approach: where a pCPU is all but saturated, the share of the time that a thread waited counts as
    wanted, too. What a pCPU was busy with beyond its vCPUs is the host's. A mean that forgets; and
    a memory of what a vCPU ran while nobody was in its way. On a crowded pCPU that memory is better
    than the estimate, until something contradicts it.
Terms: a pCPU is crowded when it was busy for most of the interval. Demand is usage plus the wait
    that would have been run time. Host load is what anything but the vCPUs that we know runs. A
    vCPU is undisturbed while it hardly waits. A crowd is explained when what is known of the vCPUs
    on a pCPU, and of the host itself, is enough to saturate it.
Properties: demand lies between usage and one pCPU; equal to usage without wait, and to one pCPU
    for a vCPU that never slept on a saturated pCPU. Host load is never negative, and the same
    whatever the order of vCPUs. Without memory the estimate holds; what counts lies between usage
    and the estimate.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Topology
from vcpusched.sample import Busy, Waited

CROWDED_PPM: Final = 800_000
"""A pCPU that was busy for less had room for what waited: below this wait is worth nothing."""

SATURATED_FROM_PPM: Final = 970_000
"""Busy from here on wait begins to count, in full at 100 %. Below it, bursts that collided were
still served within the interval: in simulated bursts with a known demand of 0.9 pCPUs the formula
gave 1.2, usage 0.88."""

WAITS_PPM: Final = 50_000
"""A vCPU that waited for so much of the time really waits: below it is the usual jostling of
threads that share a pCPU."""

UNDISTURBED_WAIT_PPM: Final = 20_000
"""A vCPU that waited for no more of the time was served with all that it wanted: alone on its pCPU
it waits for a few parts in a thousand, for the kernel's own threads."""

INTERVAL_MIN_NS: Final = 200_000_000
"""Two readings closer than this say nothing. The kernel counts in ns, but brings the run time of a
thread that goes on running up to date at its ticks, up to 10 ms apart: an error of 5% of a pCPU
would be usual. The busy times of pCPUs are counted in such ticks."""

EXPLAINED_FROM_PPM: Final = 960_000
"""Loads that add up to so much saturate a pCPU: a little less than where wait begins to count
(`SATURATED_FROM_PPM`), since memories are means."""

GROWN_PERCENT: Final = 110
GROWN_PPM: Final = 2 * PPM_PER_POINT
"""A vCPU that runs so much more than it did undisturbed, in percent and beyond that, has grown."""

RESTLESS_PPM: Final = 990_000
"""An estimate from here on is that of a vCPU that never slept."""

RESTLESS_SHARE_PPM: Final = PPM // 2
"""A vCPU that never slept for so much of the time is restless; one of 78 % that shares a pCPU
with its like is so in a fifth of the intervals."""

LARGE_PPM: Final = 780_000
"""From here on a vCPU that wants what it always wanted may not come to sleep on a crowded pCPU; a
smaller one that never sleeps wants more than it did. (Of simulated vCPUs with bursts of 20 ms, two
on a pCPU, those of 70 % never slept in 10 % of the intervals, those of 90 % in most.)"""

HOST_STEP_PPM: Final = 50_000
"""The host's own load is reported anew when it differs by as much from what was reported: noise of
a few points must not move guests, and the readings that it is made of are no better."""


def busy_ppm(before: Busy | None, after: Busy | None) -> Mapping[int, int]:
    """Return how busy each pCPU was between two readings, 0 to 1,000,000; nothing where unknown."""
    if before is None or after is None or after.at_ns - before.at_ns < INTERVAL_MIN_NS:
        return {}
    interval_ns = after.at_ns - before.at_ns
    return {
        cpu: min(PPM, (run_ns - before.by_cpu_ns[cpu]) * PPM // interval_ns)
        for cpu, run_ns in after.by_cpu_ns.items()
        # A counter that went backwards is that of a pCPU that was away meanwhile.
        if run_ns >= before.by_cpu_ns.get(cpu, run_ns + 1)
    }


class Affinities:
    """What is known of the pCPUs of an affinity together; few affinities are different."""

    def __init__(self, topology: Topology, busy: Mapping[int, int]) -> None:
        self._can_ppm: dict[int, int] = {}
        self._busy = busy
        self._known: dict[int, tuple[int, int]] = {}
        if all(cpu.capacity_ppm == PPM for cpu in topology.cpus):
            return
        on_core: Counter[int | None] = Counter()
        for cpu in topology.cpus:
            on_core[cpu.core] += busy.get(cpu.id, 0)
        for cpu in topology.cpus:
            alone = cpu.core is None
            beside_ppm = 0 if alone else on_core[cpu.core] - busy.get(cpu.id, 0)
            # Of n busy threads of a core each does (3 + n) / 4n of what it does alone (`units`).
            can_ppm = cpu.capacity_ppm * (4 * PPM + beside_ppm) // (4 * (PPM + beside_ppm))
            self._can_ppm[cpu.id] = max(1, can_ppm)

    def of(self, affinity: CpuSet) -> tuple[int, int]:
        """Return what time on its pCPUs is worth on average, and how busy the least busy was.

        The first in ppm of the strongest pCPU when its siblings idle, above 0.
        """
        known = self._known.get(affinity.bits)
        if known is None:
            can_ppm = [self._can_ppm[cpu] for cpu in affinity if cpu in self._can_ppm]
            worth_ppm = sum(can_ppm) // len(can_ppm) if can_ppm else PPM
            # The kernel lets nobody wait who may use a pCPU that idles.
            least_ppm = min((self._busy.get(cpu, 0) for cpu in affinity), default=0)
            known = self._known[affinity.bits] = worth_ppm, least_ppm
        return known


def wait_ppm(before: Waited | None, after: Waited | None, interval_ns: int) -> int | None:
    """Return for which share of the time a vCPU was kept from running by others.

    None where that is not known. Time for which the kernel held it back because of its quota is no
    such wait.
    """
    if before is None or after is None or interval_ns < INTERVAL_MIN_NS:
        return None
    # Where a quota was taken away nothing counts any more what it held back.
    throttled_ns = max(0, after.throttled_ns - before.throttled_ns)
    waited_ns = after.wait_ns - before.wait_ns - throttled_ns
    return max(0, waited_ns) * PPM // interval_ns


def is_undisturbed(waited_ppm: int | None, busy: int) -> bool:
    """Return whether a vCPU got what it wanted, from its wait and its least busy pCPU.

    Where its wait is not known, its pCPU was free for a fifth of the time.
    """
    return busy < CROWDED_PPM or (waited_ppm is not None and waited_ppm < UNDISTURBED_WAIT_PPM)


def demand_ppm(usage_ppm: int, waited_ppm: int | None, quota_ppm: int, busy: int) -> int:
    """Return what a vCPU wants, from its usage, its wait, its quota and its least busy pCPU.

    Run time plus wait * (run / (run + sleep))^3. To the first power this is the usual estimate of a
    closed loop: had it not waited, it would have run and slept on in the proportion in which it
    did. A guest whose work comes at moments of its own has caught up whenever it sleeps, so its
    wait was worth nothing. Between the two, the third power erred least in simulated bursts of 20
    to 400 ms: at 1.3 pCPUs wanted by 0.44 to -0.21, the first power by 0.68 to -0.16 with half as
    much again of noise, usage by -0.3. They agree on who never slept: such a vCPU wants a whole
    pCPU. Time for which the kernel held it back because of its quota is no such wait, and nobody
    can want more than its quota.
    """
    if not waited_ppm or busy <= SATURATED_FROM_PPM:
        return usage_ppm
    waited_ppm = min(PPM - usage_ppm, waited_ppm)
    awake_ppm = usage_ppm * PPM // max(1, PPM - waited_ppm)
    missed_ppm = waited_ppm * awake_ppm**3 // PPM**3
    counted_ppm = missed_ppm * (busy - SATURATED_FROM_PPM) // (PPM - SATURATED_FROM_PPM)
    return min(max(usage_ppm, quota_ppm), usage_ppm + counted_ppm)


def host_loads_ppm(
    busy: Mapping[int, int], usages: Iterable[tuple[CpuSet, int]]
) -> Mapping[int, int]:
    """Return what each pCPU ran beyond its vCPUs, from the affinity and the usage of each of these.

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


class Track(NamedTuple):
    """What is remembered of one vCPU: its load, and the weight behind it.

    `weight_ppm` goes to a million as usages come in; `load_ppm` is None before the first of them.
    A vCPU that began while we ran is not judged before `judged_from_ns`. `undisturbed_ppm`, with
    a weight of its own, is the mean of what it ran while undisturbed, last at `undisturbed_at_ns`.
    `restless_ppm` says for how much of the time it never slept.
    """

    judged_from_ns: int = 0
    load_ppm: int | None = None
    weight_ppm: int = 0
    undisturbed_ppm: int | None = None
    undisturbed_weight_ppm: int = 0
    undisturbed_at_ns: int = 0
    restless_ppm: int = 0

    def remembered_ppm(self, usage_ppm: int) -> int | None:
        """Return what it ran undisturbed, if it may still want that now that it runs so much."""
        known_ppm = self.undisturbed_ppm
        if known_ppm is None or usage_ppm > known_ppm * GROWN_PERCENT // 100 + GROWN_PPM:
            return None
        return known_ppm

    def known_ppm(self, usage_ppm: int) -> int:
        """Return what is known of its load, now that it runs so much: what explains a crowd."""
        known_ppm = self.remembered_ppm(usage_ppm)
        return max(usage_ppm, known_ppm if known_ppm is not None else self.load_ppm or 0)

    def wanted_ppm(self, usage_ppm: int, estimate_ppm: int) -> int:
        """Return what it wants where the crowd is explained, from its usage to the estimate."""
        known_ppm = self.remembered_ppm(usage_ppm)
        is_restless = self.restless_ppm >= RESTLESS_SHARE_PPM
        if known_ppm is None or (is_restless and known_ppm < LARGE_PPM):
            return estimate_ppm
        return max(usage_ppm, min(estimate_ppm, known_ppm))

    def undisturbed(self, usage_ppm: int, from_ns: int, to_ns: int, half_life_s: float) -> "Track":
        """Remember what it ran in this time, in which it was undisturbed."""
        # What it ran before it was disturbed for long counts as little as its age says.
        since_ns = from_ns if self.undisturbed_ppm is None else self.undisturbed_at_ns
        keep_ppm = kept_ppm(to_ns - since_ns, half_life_s)
        mean_ppm, weight_ppm = mixed(
            self.undisturbed_ppm, self.undisturbed_weight_ppm, usage_ppm, keep_ppm
        )
        return Track(  # thousands a cycle: `_replace` takes six times as long
            self.judged_from_ns,
            self.load_ppm,
            self.weight_ppm,
            mean_ppm,
            weight_ppm,
            to_ns,
            self.restless_ppm,
        )

    def smoothed(
        self, wanted_ppm: int, interval_ns: int, half_life_s: float, estimate_ppm: int = 0
    ) -> "Track":
        """Mix what it wanted into its load, and the estimate of that into how restless it is."""
        keep_ppm = kept_ppm(interval_ns, half_life_s)
        load_ppm, weight_ppm = mixed(self.load_ppm, self.weight_ppm, wanted_ppm, keep_ppm)
        restless, restless_ppm = PPM if estimate_ppm >= RESTLESS_PPM else 0, self.restless_ppm
        if restless != restless_ppm:  # as of nearly none
            restless_ppm, _weight_ppm = mixed(restless_ppm, PPM, restless, keep_ppm)
        return Track(
            self.judged_from_ns,
            load_ppm,
            weight_ppm,
            self.undisturbed_ppm,
            self.undisturbed_weight_ppm,
            self.undisturbed_at_ns,
            restless_ppm,
        )


@dataclass(frozen=True, slots=True)
class HostTrack:
    """What is remembered of the host's own load on one pCPU; `reported_ppm` is the value in use.

    It begins as nothing and not as the first value: that of the seconds in which we start.
    """

    load_ppm: int = 0
    reported_ppm: int = 0

    def followed(self, load_ppm: int, interval_ns: int, half_life_s: float) -> "HostTrack":
        """Mix a load in; it is reported anew if it differs by a step from what was reported."""
        keep_ppm = kept_ppm(interval_ns, half_life_s)
        mean_ppm, _weight_ppm = mixed(self.load_ppm, PPM, load_ppm, keep_ppm)
        differs = abs(mean_ppm - self.reported_ppm) >= HOST_STEP_PPM
        return HostTrack(mean_ppm, mean_ppm if differs else self.reported_ppm)


def explained(
    cpus: Iterable[int],
    host_tracks: Mapping[int, HostTrack],
    known: Iterable[tuple[CpuSet, int]],
) -> CpuSet:
    """Return those of the pCPUs that what is `known` of their vCPUs, by affinity, saturates.

    What is known of a floating vCPU counts on each of its pCPUs in equal parts.
    """
    load_ppm = {cpu: host_tracks[cpu].reported_ppm if cpu in host_tracks else 0 for cpu in cpus}
    # By affinity: thousands of floating vCPUs have the same one.
    its: dict[int, list[int]] = {}
    each_ppm: defaultdict[int, int] = defaultdict(int)
    for affinity, known_ppm in known:
        bits = affinity.bits
        if bits not in its:
            its[bits] = [cpu for cpu in affinity if cpu in load_ppm]
        each_ppm[bits] += known_ppm // max(1, len(its[bits]))
    for bits, ppm in each_ppm.items():
        for cpu in its[bits]:
            load_ppm[cpu] += ppm
    return CpuSet.of(cpu for cpu, ppm in load_ppm.items() if ppm >= EXPLAINED_FROM_PPM)


@functools.lru_cache(maxsize=1024)  # the vCPUs of a guest were read at the same time
def kept_ppm(interval_ns: int, half_life_s: float) -> int:
    """Return how much of a weight is left after some time: half after each half-life."""
    return round(PPM * 2 ** (-interval_ns / (half_life_s * 1e9))) if half_life_s > 0 else 0


def mixed(mean_ppm: int | None, weight_ppm: int, value_ppm: int, keep_ppm: int) -> tuple[int, int]:
    """Mix a value into a mean, given with the weight behind it, of which so much is kept.

    The weights add up to one from the first value on.
    """
    before_ppm = value_ppm if mean_ppm is None else mean_ppm
    weight_ppm = weight_ppm * keep_ppm // PPM + PPM - keep_ppm
    # Rounded to the nearest, or a long half-life would pull every mean down.
    change_ppm = ((value_ppm - before_ppm) * (PPM - keep_ppm) * 2 + weight_ppm) // (
        2 * max(1, weight_ppm)
    )
    return before_ppm + change_ppm, weight_ppm
