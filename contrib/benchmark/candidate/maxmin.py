"""Divide what cores give among claims, by weighted max-min fairness.

Rule: pure integers; knows claims and cores, neither guests nor plans. A pCPU goes by a number.

Problem: find how far claims are met, where what the threads of a core give is limited for each
    thread and for all of them together, and where a claim may be spread over several pCPUs.
Terms: as a level rises from 0, a claim takes level times weight until it has what it wants; then
    it is met. Levels are multiples of 2 ** -SHIFT ppm for each unit of weight. A pool holds the
    claims that may use the same several pCPUs.
Algorithm: 1. `_pour` spreads what each pool wants over its pCPUs, to equal use: first over cores,
    as the kernel prefers idle ones, then over the threads of each.
    2. `_fill` raises the level on each thread until that is used up, then on all threads of the
    core, where a thread that has stopped takes no more. A pool takes part with the part of its
    claims that was poured there.
    3. `rise` finds a level by Newton's method: what is taken is a concave curve of straight lines,
    so each step ends below the answer or on it, and a few are enough.
Properties: exact but for rounding where every claim is bound to one pCPU. Order does not matter.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from vcpusched.model import HostCpu

SHIFT: Final = 44
"""Levels are whole multiples of 2 ** -44 ppm for each unit of weight."""

ROUNDS: Final = 3
"""How often overlapping pools are poured in turn."""

ROUNDING_PPM: Final = 100
"""What a pool may seem to lack, since shares are rounded down on each of its pCPUs."""

FURTHER_THREADS: Final = 4
"""Each further thread of a core gives one in so many of a whole one."""

Claim = tuple[int, int, int]
"""The level at which a vCPU is met, what it wants, in ppm of a pCPU, and its weight, above 0."""


def claim(demand_ppm: int, weight: int) -> Claim:
    """Return the claim on a demand."""
    return (demand_ppm << SHIFT) // weight, demand_ppm, weight


class Curve(NamedTuple):
    """What claims take together as the level rises.

    `met` are the levels at which one after the other is met. After each number of them, `taken_ppm`
    is what those take, and `weights` the weight of the others.
    """

    met: list[int]
    taken_ppm: list[int]
    weights: list[int]

    def at(self, level: int) -> int:
        """Return what the claims take at a level, in ppm."""
        count = bisect_right(self.met, level)
        return self.taken_ppm[count] + (self.weights[count] * level >> SHIFT)

    def level(self, most_ppm: int) -> int:
        """Return the level at which the claims take so much."""
        return rise([([(self, 1, 1)], most_ppm, None)], most_ppm)


def curve(claims: Iterable[Claim]) -> Curve:
    """Return the curve of some claims."""
    ordered = sorted(claims)
    weights = [*accumulate([weight for _, _, weight in ordered], initial=0)]
    return Curve(
        [met for met, _, _ in ordered],
        [*accumulate([demand_ppm for _, demand_ppm, _ in ordered], initial=0)],
        [weights[-1] - gone for gone in weights],
    )


Part = tuple[Curve, int, int]
"""Claims of which so much of so much wants to run on one thread."""

Thread = tuple[Sequence[Part], int, int | None]
"""Who wants a thread, what it gives, in ppm, and the level at which it stops, if any."""


def rise(threads: Iterable[Thread], most_ppm: int) -> int:
    """Return the level at which threads give `most_ppm` in all, or at which all claims are met."""
    level = 0
    while True:
        taken_ppm = weight = 0
        for parts, gives_ppm, stops in threads:
            if stops is not None and stops <= level:
                taken_ppm += gives_ppm
                continue
            for those, share, of in parts:
                count = bisect_right(those.met, level)
                taken_ppm += those.taken_ppm[count] * share // of
                weight += those.weights[count] * share // of
        higher = ((most_ppm - taken_ppm) << SHIFT) // weight if weight else level
        if higher <= level:
            return level
        level = higher


class Core(NamedTuple):
    """The managed threads of a core: which, what each gives, and all together, in ppm."""

    cpus: tuple[int, ...]
    gives_ppm: tuple[int, ...]
    most_ppm: int

    def unmet_ppm(self, wants_ppm: Sequence[int]) -> int:
        """Return how much of what is wanted of each pCPU the core cannot give."""
        if len(self.cpus) == 1:  # most are, and there are many
            return max(0, wants_ppm[self.cpus[0]] - self.most_ppm)
        wants = [wants_ppm[cpu] for cpu in self.cpus]
        return sum(wants) - min(self.most_ppm, sum(map(min, wants, self.gives_ppm)))


def _cores(cpus: Sequence[HostCpu]) -> list[Core]:
    """Return the cores of a host, whose pCPUs go by position.

    The host's own load is served like any other: it leaves half of a pCPU or core at least.
    """
    threads: defaultdict[tuple[bool, int], list[int]] = defaultdict(list)
    for number, cpu in enumerate(cpus):
        core = cpu.cpu.core
        threads[core is None, number if core is None else core].append(number)
    found = []
    for numbers in threads.values():
        can = [cpus[number].cpu.capacity_ppm for number in numbers]
        own = [cpus[number].host_load_ppm for number in numbers]
        gives = [
            max(1, all_ppm - own_ppm, all_ppm // 2)
            for all_ppm, own_ppm in zip(can, own, strict=True)
        ]
        whole_ppm = max(can) + (sum(can) - max(can)) // FURTHER_THREADS
        most_ppm = min(sum(gives), max(1, whole_ppm - sum(own), whole_ppm // 2))
        found.append(Core(tuple(numbers), tuple(gives), most_ppm))
    return found


Share = tuple[int, int, int]
"""Of what a pool wants, what falls to a pCPU, in ppm: the pool, the pCPU, and how much."""

Pool = Sequence[tuple[Core, Sequence[tuple[int, int]]]]
"""The cores of a pool, with those of their pCPUs that it may use and what each gives."""


def _pour(loads_ppm: Sequence[int], pools: Mapping[int, tuple[int, Pool]]) -> list[Share]:
    """Return where what each pool wants falls; `loads_ppm` is what is bound to each pCPU."""
    loads, poured = list(loads_ppm), dict[int, list[Share]]()
    for _ in range(ROUNDS if len(pools) > 1 else 1):
        for pool, (wants_ppm, those) in pools.items():
            for _, cpu, share_ppm in poured.get(pool, ()):
                loads[cpu] -= share_ppm
            shares = poured[pool] = []
            # Of a core that it may use in part, a pool knows that part only.
            rooms = [
                (
                    sum([loads[cpu] for cpu, _ in threads]),
                    core.most_ppm
                    if len(threads) == len(core.cpus)
                    else sum([gives_ppm for _, gives_ppm in threads]),
                )
                for core, threads in those
            ]
            for (_, threads), falls_ppm in zip(those, _spread(rooms, wants_ppm), strict=True):
                each = [(loads[cpu], gives_ppm) for cpu, gives_ppm in threads]
                into = _spread(each, falls_ppm) if falls_ppm else ()
                for (cpu, _), share_ppm in zip(threads, into, strict=False):
                    shares.append((pool, cpu, share_ppm))
                    loads[cpu] += share_ppm
    return [share for shares in poured.values() for share in shares if share[2]]


def _fill(
    crowded: Iterable[Core],
    wants_ppm: Sequence[int],
    curves: Mapping[int, Curve],
    shares: Iterable[Share],
) -> dict[int, int]:
    """Return the level of each pCPU and pool that cannot meet all claims.

    `curves` are those of the claims bound to each pCPU of the crowded cores, and of each pool;
    `shares` is what of these falls to each pCPU, and `wants_ppm` what is wanted there in all.
    """
    parts = {cpu: [(curves[cpu], 1, 1)] for core in crowded for cpu in core.cpus}
    falling = [share for share in shares if share[1] in parts]
    for pool, cpu, share_ppm in falling:
        parts[cpu].append((curves[pool], share_ppm, curves[pool].taken_ppm[-1]))
    levels: dict[int, int] = {}
    for core in crowded:
        levels.update(_divide(core, wants_ppm, [parts[cpu] for cpu in core.cpus]))
    missing = Counter[int]()
    for pool, cpu, share_ppm in falling:
        if cpu in levels:
            got_ppm = curves[pool].at(levels[cpu]) * share_ppm // curves[pool].taken_ppm[-1]
            missing[pool] += share_ppm - got_ppm
    for pool, missing_ppm in missing.items():
        if missing_ppm > ROUNDING_PPM:
            levels[pool] = curves[pool].level(curves[pool].taken_ppm[-1] - missing_ppm)
    return levels


def _divide(
    core: Core, wants_ppm: Sequence[int], parts: Sequence[Sequence[Part]]
) -> dict[int, int]:
    threads: list[Thread] = [
        (those, gives, rise([(those, gives, None)], gives) if wants_ppm[cpu] > gives else None)
        for cpu, gives, those in zip(core.cpus, core.gives_ppm, parts, strict=True)
    ]
    stops = {cpu: stop for cpu, (_, _, stop) in zip(core.cpus, threads, strict=True)}
    wants = [wants_ppm[cpu] for cpu in core.cpus]
    if sum(map(min, wants, core.gives_ppm)) > core.most_ppm:
        level = rise(threads, core.most_ppm)
        return {cpu: level if stop is None else min(level, stop) for cpu, stop in stops.items()}
    return {cpu: stop for cpu, stop in stops.items() if stop is not None}


def _spread(rooms: Sequence[tuple[int, int]], amount_ppm: int) -> list[int]:
    """Return what falls to each room, of what load and what it gives, so that use is equal."""
    if len(rooms) == 1:
        return [amount_ppm]
    total_ppm = amount_ppm
    gives_ppm = 0
    for load_ppm, can_ppm in sorted(rooms, key=lambda room: (room[0] << SHIFT) // room[1]):
        if gives_ppm and load_ppm * gives_ppm >= total_ppm * can_ppm:
            break
        total_ppm += load_ppm
        gives_ppm += can_ppm
    return [max(0, total_ppm * can_ppm // gives_ppm - load_ppm) for load_ppm, can_ppm in rooms]


@dataclass(frozen=True, slots=True)
class Division:
    """What vCPUs get: the level of each place that cannot meet all of them, and who is there.

    `short` holds, for each site, these levels with the highest at which a vCPU there would be met.
    `on_cores` are the cores that what a pool wants falls to.
    """

    levels: dict[int, int] = field(default_factory=dict)
    members: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    short: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    unmet_ppm: Counter[int] = field(default_factory=Counter)
    on_cores: dict[int, set[int]] = field(default_factory=dict)


class Places:
    """The places of a host, by number: pCPUs by position, then sets of several, then none.

    The site of a pCPU is its core, which goes by its first one; a set of several is a site itself.
    """

    def __init__(self, cpus: Iterable[HostCpu]) -> None:
        ordered = sorted(cpus, key=lambda cpu: cpu.id)
        self._cores = {core.cpus[0]: core for core in _cores(ordered)}
        core_of = {cpu: site for site, core in self._cores.items() for cpu in core.cpus}
        self.site = [core_of[cpu] for cpu in range(len(ordered))]
        self._cpus = [1 << cpu.id for cpu in ordered]
        self.bits = list(self._cpus)
        self._numbers = {bits: number for number, bits in enumerate(self.bits)}
        self._pools: dict[int, Pool] = {}

    def number(self, bits: int) -> int:
        """Return the number of the place of some pCPUs, of which only the managed ones count."""
        number = self._numbers.get(bits)
        if number is None:
            cpus = [cpu for cpu, bit in enumerate(self._cpus) if bit & bits]
            managed = sum(self._cpus[cpu] for cpu in cpus)
            number = self._add(cpus, bits) if managed == bits else self.number(managed)
            self._numbers[bits] = number
        return number

    def _add(self, cpus: Sequence[int], bits: int) -> int:
        threads: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for cpu in cpus:
            core = self._cores[self.site[cpu]]
            threads[core.cpus[0]].append((cpu, core.gives_ppm[core.cpus.index(cpu)]))
        number = len(self.site)
        self._pools[number] = [(self._cores[site], those) for site, those in threads.items()]
        self.site.append(number)
        self.bits.append(bits)
        return number

    def near(self, places: Iterable[int]) -> list[int]:
        """Return the sites that share anything with these places, narrow pools first."""
        sites, more = set[int](), {self.site[place] for place in places}
        while more:
            sites |= more
            within = {core.cpus[0] for site in more for core, _ in self._pools.get(site, ())}
            more = within | {
                pool
                for pool in self._pools.keys() - sites
                if any(core.cpus[0] in sites for core, _ in self._pools[pool])
            }
            more -= sites
        return sorted(sites, key=lambda site: (self.bits[site].bit_count(), self.bits[site]))

    def divide(
        self,
        at: Sequence[int],
        wants_ppm: Mapping[int, int],
        near: Iterable[int],
        claim_of: Callable[[int], Claim],
    ) -> Division:
        """Return what vCPUs get on some sites, with the place of each vCPU of the host."""
        division = Division()
        pools = {
            site: (wants_ppm[site], self._pools[site])
            for site in near
            if self._pools.get(site) and wants_ppm[site]
        }
        wants = [wants_ppm[cpu] for cpu in range(len(self._cpus))]
        shares = _pour(wants, pools) if pools else []
        for pool, cpu, share_ppm in shares:
            division.on_cores.setdefault(pool, set()).add(self.site[cpu])
            wants[cpu] += share_ppm
        for site in near:
            if site in self._cores and (unmet_ppm := self._cores[site].unmet_ppm(wants)):
                division.unmet_ppm[site] = unmet_ppm
        crowded = [self._cores[site] for site in division.unmet_ppm]
        places = {*pools, *[cpu for core in crowded for cpu in core.cpus]}
        for index, place in enumerate(at):
            if place in places:
                division.members[place].append(index)
        curves = {place: curve(map(claim_of, division.members[place])) for place in places}
        division.levels.update(_fill(crowded, wants, curves, shares))
        for place, level in division.levels.items():
            met = curves[place].met
            if met and met[-1] > level:
                division.short.setdefault(self.site[place], []).append((level, met[-1]))
        return division
