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

import itertools
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SHIFT: Final = 44
"""Levels are whole multiples of 2 ** -44 ppm for each unit of weight."""

ROUNDING_PPM: Final = 4
"""By how much, in ppm of a pCPU, a result may differ from the exact share."""

POOLS_MAX: Final = 32
"""The most different sets of pCPUs, touching each other, that are told apart."""

Claim = tuple[int, int]
"""What somebody wants, in ppm of a pCPU and not negative, and its weight, above 0."""


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


def taken_ppm(claim: Claim, level: int | None) -> int:
    """Give what a claim takes at a level, in ppm; None: whatever it wants."""
    demand_ppm, weight = claim
    return demand_ppm if level is None else min(demand_ppm, weight * level >> SHIFT)


def fill(
    cores: Sequence[Core],
    bound: Mapping[int, Sequence[Claim]],
    pools: Mapping[int, Sequence[Claim]],
) -> Levels:
    """Fill up the claims bound to each pCPU, and those of each set of pCPUs (as bits).

    A set must name a pCPU of the cores at least; others in it are passed over.
    """
    cpu_levels: dict[int, int] = {}
    pool_levels: dict[int, int] = {}
    groups = _groups(cores, pools)
    reached = 0
    for union, _ in groups:
        reached |= union
    for core in cores:
        if not any(reached >> cpu & 1 for cpu in core.threads):
            claims = {cpu: bound.get(cpu, ()) for cpu in core.threads}
            wanted = {cpu: sum(demand for demand, _ in claims[cpu]) for cpu in claims}
            if sum(wanted.values()) > core.most_ppm or any(
                wanted[cpu] > most for cpu, most in core.threads.items()
            ):
                curves = {cpu: _Curve(claims[cpu]) for cpu in claims}
                cpu_levels |= _fill_core(core.threads, core.most_ppm, curves)
    for union, masks in groups:
        here = [core for core in cores if any(union >> cpu & 1 for cpu in core.threads)]
        curves = {cpu: _Curve(bound.get(cpu, ())) for core in here for cpu in core.threads}
        if len(masks) > POOLS_MAX:
            together = {union: [claim for mask in masks for claim in pools[mask]]}
            group = _Group(here, curves, {mask: _Curve(together[mask]) for mask in together})
            found = group.run()
            if union in found.pools:
                pool_levels |= dict.fromkeys(masks, found.pools[union])
        else:
            found = _Group(here, curves, {mask: _Curve(pools[mask]) for mask in masks}).run()
            pool_levels |= found.pools
        cpu_levels |= found.cpus
    return Levels(cpu_levels, pool_levels)


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


class _Curve:
    """How much claims take together as the level rises: straight between those they are met at."""

    __slots__ = ("_met", "_taken", "_weight", "top")

    def __init__(self, claims: Iterable[Claim]) -> None:
        # Rounded up: at that level the claim is met.
        steps = sorted(
            (-(-(demand << SHIFT) // weight), demand, weight) for demand, weight in claims
        )
        self._met = [level for level, _, _ in steps]
        self._taken = [0, *itertools.accumulate(demand for _, demand, _ in steps)]
        whole = sum(weight for _, _, weight in steps)
        self._weight = [whole, *(whole - w for w in itertools.accumulate(w for *_, w in steps))]
        self.top = self._met[-1] if steps else 0

    def at(self, level: int) -> int:
        """Give what the claims take at a level, in ppm."""
        met = bisect_right(self._met, level)
        return self._taken[met] + (self._weight[met] * level >> SHIFT)

    def level(self, most_ppm: int) -> int | None:
        """Give the highest level at which they take no more than this; None: they never do."""
        if self._taken[-1] <= most_ppm:
            return None
        for met, level in enumerate(self._met):
            if self._taken[met] + (self._weight[met] * level >> SHIFT) > most_ppm:
                left_ppm = most_ppm - self._taken[met]
                return (((left_ppm + 1) << SHIFT) - 1) // self._weight[met]
        return None


def _fill_core(
    threads: Mapping[int, int], most_ppm: int, curves: Mapping[int, _Curve]
) -> dict[int, int]:
    """Give the levels of a core's threads when nobody but the claims bound to them takes any."""
    levels = {cpu: curves[cpu].level(most) for cpu, most in threads.items()}

    def spare_ppm(level: int) -> int:
        return most_ppm - sum(min(curves[cpu].at(level), most) for cpu, most in threads.items())

    top = max(curves[cpu].top for cpu in threads)
    all_of_it = _highest(spare_ppm, top)
    if all_of_it < top:
        levels = {
            cpu: all_of_it if level is None else min(level, all_of_it)
            for cpu, level in levels.items()
        }
    return {cpu: level for cpu, level in levels.items() if level is not None}


def _highest(spare_ppm: Callable[[int], int], top: int) -> int:
    """Give the highest level up to `top` at which there is enough; at 0 there always is.

    What is to spare falls as the level rises, mostly straight: every other look is where it would
    reach 0 if it did, the others halve what is left.
    """
    over = spare_ppm(top)
    if over >= 0:
        return top
    low, high, low_spare = 0, top, max(0, spare_ppm(0))
    straight = True
    while high - low > 1:
        middle = low + (high - low) * low_spare // (low_spare - over) if straight else 0
        middle = min(max(middle, low + 1), high - 1) if straight else (low + high) // 2
        straight = not straight
        spare = spare_ppm(middle)
        if spare >= 0:
            low, low_spare = middle, spare
        else:
            high, over = middle, spare
    return low


class _Group:
    """Pools that touch each other, with the cores that they reach, being filled."""

    def __init__(
        self, cores: Sequence[Core], curves: Mapping[int, _Curve], pools: Mapping[int, _Curve]
    ) -> None:
        self._threads = [dict(core.threads) for core in cores]
        self._most = [core.most_ppm for core in cores]
        self._curves = curves
        self._pools = dict(pools)
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
            reach = 0
            for mask in tight:
                reach |= mask
            curves = [self._pools[mask] for mask in tight]

            def spare_ppm(level: int, reach: int = reach, curves: Sequence[_Curve] = curves) -> int:
                return self._room_ppm(reach, level) - sum(curve.at(level) for curve in curves)

            level = _highest(spare_ppm, level)
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

    def _room_ppm(self, reach: int, level: int) -> int:
        """Give what all pCPUs in reach have left at a level, in ppm."""
        total = 0
        for index, threads in enumerate(self._threads):
            if len(threads) == 1:  # most are: then there is nothing to share with a sibling
                ((cpu, most_ppm),) = threads.items()
                if reach >> cpu & 1:
                    most_ppm = min(most_ppm, self._most[index])
                    curve = self._curves[cpu]
                    total += max(0, most_ppm - curve.at(level)) if curve.top else most_ppm
                continue
            rooms, core_ppm = self._rooms(index, level)
            total += min(core_ppm, sum(rooms[cpu] for cpu in rooms if reach >> cpu & 1))
        return total

    def _cut(self, level: int) -> list[int]:
        """Give pools that want more at this level than all pCPUs they can use have left."""
        masks = sorted(self._pools)
        wants = [self._pools[mask].at(level) for mask in masks]
        network = _Network()
        for number, want_ppm in enumerate(wants):
            network.link("claims", number, want_ppm)
        for kind, rooms in self._kinds(masks, level).items():
            network.link(kind, "rooms", rooms.pop(0))
            for users, room_ppm in rooms.items():
                network.link((kind, users), kind, room_ppm)
                for number, want_ppm in enumerate(wants):
                    if users >> number & 1:
                        network.link(number, (kind, users), want_ppm)
        reached = network.cut("claims", "rooms")
        if network.flow == sum(wants):
            return []
        return [mask for number, mask in enumerate(masks) if number in reached]

    def _kinds(self, masks: Sequence[int], level: int) -> dict[tuple[int, ...], dict[int, int]]:
        """Put cores together whose pCPUs the same pools can use; there are few different ones.

        For each kind: what its pCPUs have left, by the pools that can use them (as bits), and
        under 0 what its cores have left.
        """
        kinds: dict[tuple[int, ...], dict[int, int]] = {}
        for index in range(len(self._threads)):
            rooms, core_ppm = self._rooms(index, level)
            by_users: Counter[int] = Counter()
            for cpu, room_ppm in rooms.items():
                by_users[_users(masks, cpu)] += room_ppm
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
            alone = _fill_core(threads, self._most[index], self._curves)
            for cpu in ending:
                self._cpu_levels[cpu] = min(level, alone.get(cpu, level))
                self._most[index] = max(0, self._most[index] - threads.pop(cpu))


def _users(masks: Sequence[int], cpu: int) -> int:
    """Give which of these sets a pCPU is in, as bits."""
    return sum(1 << number for number, mask in enumerate(masks) if mask >> cpu & 1)


class _Network:
    """Pipes from node to node, and the most that flows through them (Edmonds and Karp, 1972)."""

    def __init__(self) -> None:
        self._left: dict[object, dict[object, int]] = {}
        self.flow = 0

    def link(self, source: object, target: object, most: int) -> None:
        self._left.setdefault(source, {})[target] = most
        self._left.setdefault(target, {}).setdefault(source, 0)

    def cut(self, source: object, target: object) -> set[object]:
        """Let as much flow as can; give the nodes on the source's side of the least cut."""
        while True:
            came: dict[object, object] = {source: source}
            waiting = deque([source])
            while waiting and target not in came:
                node = waiting.popleft()
                for other, left in self._left.get(node, {}).items():
                    if left and other not in came:
                        came[other] = node
                        waiting.append(other)
            if target not in came:
                return set(came)
            path = [target]
            while path[-1] != source:
                path.append(came[path[-1]])
            pipes = list(zip(path[1:], path, strict=False))
            more = min(self._left[a][b] for a, b in pipes)
            for a, b in pipes:
                self._left[a][b] -= more
                self._left[b][a] += more
            self.flow += more
