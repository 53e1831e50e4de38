"""Divides what pCPUs can give among claims, by weighted max-min fairness.

Rule: pure integers; knows claims, pCPUs and cores, neither guests nor plans.

Problem: nobody can be given more without taking it from somebody who, for its weight, has no more.
    Some claims are bound to one pCPU, others may take from several, and what the threads of a core
    give is limited for each thread and for all of them together.
Approach: progressive filling. A level rises from 0, and at each level a claim takes level times
    weight until it has what it wants. Where what is left is used up, the level stops for those
    who depend on it, and goes on rising for the others. Only where it stops is worked out.
Terms: a claim is (demand in ppm of a pCPU, weight above 0). A pool holds the claims that may use
    the same set of pCPUs. What a thread or a core has left at a level, after the claims that are
    bound to it, is its room. Claims are short where their level is not enough for their demand.
Algorithm: 1. A core that no pool reaches is filled by itself: first each thread, then the core.
    2. Pools whose sets touch, through a pCPU or a core, are filled together. Their bottleneck is
    the set of pools with the lowest level at which they want all the room of all pCPUs they can
    use: begin with all pools; at their level a flow of claims into rooms shows by its least cut
    which pools want too much; go on with those, until none do (Newton's method on the ratio of a
    cut, as Dinkelbach described it for fractions in 1967; that such bottlenecks, taken one after
    the other, give the fairest flow, is Megiddo's theorem of 1974).
    3. Stop the bottleneck's pools and all pCPUs that they can use at that level; go on with the
    rest. Claims bound to a pCPU that is full by itself at a lower level stop there.
Properties: exact but for rounding: a claim gets at most its demand and at most `ROUNDING_PPM` less
    than its share. The order of claims does not matter. More than `POOLS_MAX` pools that touch
    are taken as one that may use what any of them may, since flows take time.
"""

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.plan.curves import NO_CLAIMS, Curve, highest_level
from vcpusched.plan.flow import Network

ROUNDING_PPM: Final = 4
"""By how much, in ppm of a pCPU, a result may differ from the exact share."""

POOLS_MAX: Final = 32
"""The most different sets of pCPUs, touching each other, that are told apart."""


@dataclass(frozen=True, slots=True)
class Core:
    """What each thread (by the number of its pCPU) can give, and all of them together, in ppm."""

    threads: Mapping[int, int]
    most_ppm: int


@dataclass(frozen=True, slots=True)
class Levels:
    """Where filling stopped; a pCPU or a set of pCPUs is absent where every claim is met."""

    cpus: Mapping[int, int]
    pools: Mapping[int, int]


def fill(cores: Sequence[Core], bound: Mapping[int, Curve], pools: Mapping[int, Curve]) -> Levels:
    """Fill up the claims bound to each pCPU, and those of each set of pCPUs (as bits).

    A set must name a pCPU of the cores at least; others in it are passed over.
    """
    cpu_levels: dict[int, int] = {}
    pool_levels: dict[int, int] = {}
    groups = _groups(cores, pools)
    group_of = {cpu: number for number, (union, _) in enumerate(groups) for cpu in _numbers(union)}
    here: list[list[Core]] = [[] for _ in groups]
    for core in cores:
        # A group has all of a core or nothing.
        number = group_of.get(next(iter(core.threads)))
        if number is not None:
            here[number].append(core)
            continue
        curves = {cpu: bound.get(cpu, NO_CLAIMS) for cpu in core.threads}
        cpu_levels |= _fill_core(core.threads, core.most_ppm, curves)
    for (union, masks), reached in zip(groups, here, strict=True):
        curves = {cpu: bound.get(cpu, NO_CLAIMS) for core in reached for cpu in core.threads}
        if len(masks) > POOLS_MAX:
            together = {union: Curve.joined(pools[mask] for mask in masks)}
            found = _Group(reached, curves, together).run()
            if union in found.pools:
                pool_levels |= dict.fromkeys(masks, found.pools[union])
        else:
            found = _Group(reached, curves, {mask: pools[mask] for mask in masks}).run()
            pool_levels |= found.pools
        cpu_levels |= found.cpus
    return Levels(cpu_levels, pool_levels)


def _numbers(mask: int) -> list[int]:
    return [number for number, bit in enumerate(bin(mask)[:1:-1]) if bit == "1"]


def _groups(cores: Sequence[Core], pools: Iterable[int]) -> list[tuple[int, list[int]]]:
    """Give the pools that touch each other, with all pCPUs of the cores that they reach."""
    groups: list[tuple[int, list[int]]] = []
    if not pools:
        return groups
    siblings = [sum(1 << cpu for cpu in core.threads) for core in cores]
    crowds = [bits for bits in siblings if bits & (bits - 1)]
    known = sum(siblings)  # no pCPU is in two cores
    for mask in sorted(pools):
        union, masks = mask & known, [mask]
        for bits in crowds:
            union |= bits if bits & mask else 0
        apart = []
        for group in groups:
            if group[0] & union:
                union |= group[0]
                masks = group[1] + masks
            else:
                apart.append(group)
        groups = [*apart, (union, masks)]
    return groups


def _fill_core(
    threads: Mapping[int, int], most_ppm: int, curves: Mapping[int, Curve]
) -> dict[int, int]:
    """Give the levels of a core's threads when nobody but the claims bound to them takes any."""
    levels = {cpu: curves[cpu].level(most) for cpu, most in threads.items()}
    over_ppm = sum(min(curves[cpu].wanted_ppm, most) for cpu, most in threads.items()) - most_ppm
    if over_ppm > 0:
        all_of_it = highest_level(
            max(curves[cpu].top for cpu in threads),
            lambda level: (
                most_ppm - sum(min(curves[cpu].at(level), most) for cpu, most in threads.items())
            ),
        )
        levels = {
            cpu: all_of_it if level is None else min(level, all_of_it)
            for cpu, level in levels.items()
        }
    return {cpu: level for cpu, level in levels.items() if level is not None}


class _Group:
    """Pools that touch each other, with the cores that they reach, being filled."""

    def __init__(
        self, cores: Sequence[Core], curves: Mapping[int, Curve], pools: Mapping[int, Curve]
    ) -> None:
        self._threads = [dict(core.threads) for core in cores]
        self._most = [core.most_ppm for core in cores]
        self._curves = curves
        self._pools = dict(pools)
        self._masks = sorted(pools)
        self._users: Counter[int] = Counter()
        if len(pools) > 1:
            for number, mask in enumerate(self._masks):
                for cpu in _numbers(mask):
                    self._users[cpu] += 1 << number
        self._top = max(curve.top for curve in (*curves.values(), *pools.values()))
        self._cpu_levels: dict[int, int] = {}
        self._pool_levels: dict[int, int] = {}

    def run(self) -> Levels:
        while self._pools:
            level, tight = self._bottleneck()
            if level == self._top:
                break  # the claims of all that are left are met, but where bound ones are too many
            self._stop(tight, level)
        for threads, most_ppm in zip(self._threads, self._most, strict=True):
            if threads:
                self._cpu_levels |= _fill_core(threads, most_ppm, self._curves)
        return Levels(self._cpu_levels, self._pool_levels)

    def _bottleneck(self) -> tuple[int, list[int]]:
        level, tight = self._top, sorted(self._pools)
        while True:
            level = highest_level(level, self._left(tight))
            too_much = self._cut(level) if len(self._pools) > 1 else []
            if not too_much:
                return level, tight
            tight = too_much

    def _rooms(self, index: int, level: int) -> tuple[dict[int, int], int]:
        """Give what the open threads of a core, and the core, have left at a level, in ppm."""
        rooms, core_ppm = {}, self._most[index]
        for cpu, most_ppm in self._threads[index].items():
            bound_ppm = min(self._curves[cpu].at(level), most_ppm)
            rooms[cpu] = most_ppm - bound_ppm
            core_ppm -= bound_ppm
        return rooms, max(0, core_ppm)

    def _left(self, tight: Sequence[int]) -> Callable[[int], int]:
        """Give what all pCPUs that pools can use have left at a level once these took theirs."""
        pools = [self._pools[mask] for mask in tight]
        reach = functools.reduce(operator.or_, tight)
        cores, idle_ppm = [], 0
        for core_ppm, threads in zip(self._most, self._threads, strict=True):
            counted_ppm = sum(most for cpu, most in threads.items() if reach >> cpu & 1)
            bound = [
                (most, self._curves[cpu], bool(reach >> cpu & 1))
                for cpu, most in threads.items()
                if self._curves[cpu].top
            ]
            if bound and counted_ppm:
                cores.append((core_ppm, counted_ppm, bound))
            else:
                idle_ppm += min(core_ppm, counted_ppm)

        def left_ppm(level: int) -> int:
            left = idle_ppm - sum([pool.at(level) for pool in pools])
            for core_ppm, counted_ppm, bound in cores:
                taken_ppm = taken_of_counted_ppm = 0
                for most, curve, counts in bound:
                    bound_ppm = min(curve.at(level), most)
                    taken_ppm += bound_ppm
                    taken_of_counted_ppm += bound_ppm if counts else 0
                left += max(0, min(core_ppm - taken_ppm, counted_ppm - taken_of_counted_ppm))
            return left

        return left_ppm

    def _cut(self, level: int) -> list[int]:
        """Give pools that want more at this level than all pCPUs they can use have left."""
        wants = {
            number: self._pools[mask].at(level)
            for number, mask in enumerate(self._masks)
            if mask in self._pools
        }
        network = Network("claims", "rooms")
        for number, want_ppm in wants.items():
            network.link("claims", number, want_ppm)
        for kind, rooms in self._kinds(level).items():
            network.link(kind, "rooms", rooms.pop(0))
            for users, room_ppm in rooms.items():
                network.link((kind, users), kind, room_ppm)
                for number in _numbers(users):
                    network.link(number, (kind, users), wants[number])
        reached = network.cut()
        if network.flow == sum(wants.values()):
            return []
        return [self._masks[number] for number in wants if number in reached]

    def _kinds(self, level: int) -> dict[tuple[int, ...], dict[int, int]]:
        """Put cores together whose pCPUs the same pools can use; there are few different ones.

        For each kind: what its pCPUs have left, by the pools that can use them (as bits), and
        under 0 what its cores have left.
        """
        kinds: dict[tuple[int, ...], dict[int, int]] = {}
        numbers = (number for number, mask in enumerate(self._masks) if mask in self._pools)
        pools = sum(1 << number for number in numbers)
        for index in range(len(self._threads)):
            rooms, core_ppm = self._rooms(index, level)
            by_users: Counter[int] = Counter()
            for cpu, room_ppm in rooms.items():
                by_users[self._users[cpu] & pools] += room_ppm
            del by_users[0]
            kind = tuple(sorted(by_users))
            if len(kind) > 2:  # noqa: PLR2004  what such cores give together has no simple form
                kind = (*kind, -1 - index)
            total = kinds.setdefault(kind, Counter())
            total[0] += min(core_ppm, by_users.total())
            for users, room_ppm in by_users.items():
                total[users] += min(room_ppm, core_ppm)
        return kinds

    def _stop(self, tight: Iterable[int], level: int) -> None:
        """Stop pools at a level, and all pCPUs that they can use."""
        reach = 0
        for mask in tight:
            reach |= mask
            self._pool_levels[mask] = level
            del self._pools[mask]
        for index, threads in enumerate(self._threads):
            ending = [cpu for cpu in threads if reach >> cpu & 1]
            if not ending:
                continue
            rooms, core_ppm = self._rooms(index, level)
            if core_ppm <= sum(rooms[cpu] for cpu in ending):
                ending = list(threads)  # with the core, its other threads have nothing left either
            levels = _fill_core(threads, self._most[index], self._curves)
            for cpu in ending:
                self._cpu_levels[cpu] = min(level, levels.get(cpu, level))
                self._most[index] = max(0, self._most[index] - threads.pop(cpu))
