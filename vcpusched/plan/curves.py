"""What claims take as a level rises, and where there is nothing left for them.

Rule: pure integers; knows claims and what threads can give, and nothing of who shares with whom.

Terms: a level times its weight is what a claim takes, until that is all it wants: so what several
    take together is a curve of straight lines, rounded down to whole ppm.
Approach: what is left falls as the level rises. Where that reaches 0 is found by looking at ever
    narrower spans of levels, in which more and more curves are single lines (`Left`).
"""

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final, Self

SHIFT: Final = 44
"""Levels are whole multiples of 2 ** -44 ppm for each unit of weight."""

NARROW_EVERY: Final = 3
"""After so many looks at a span of levels it pays to see what has become simple in it."""

Claim = tuple[int, int]
"""What somebody wants, in ppm of a pCPU and not negative, and its weight, above 0."""


class Curve:
    """How much claims take together as the level rises: straight between those they are met at.

    It is a value: made once, it may be asked by many. `wanted_ppm` is all that the claims want,
    `top` the level at which they have it.
    """

    __slots__ = ("_met", "_taken", "_weight", "claims", "top", "wanted_ppm")

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.claims = tuple(claims)
        # Rounded up: at that level the claim is met.
        steps = sorted(
            [(-(-(demand << SHIFT) // weight), demand, weight) for demand, weight in self.claims]
        )
        self._met = [level for level, _, _ in steps]
        self._taken = [0, *itertools.accumulate([demand for _, demand, _ in steps])]
        weights = [weight for _, _, weight in steps]
        whole = sum(weights)
        self._weight = [whole, *[whole - weight for weight in itertools.accumulate(weights)]]
        self.wanted_ppm = self._taken[-1]
        self.top = self._met[-1] if steps else 0

    @classmethod
    def joined(cls, curves: Iterable[Self]) -> Self:
        """Give the curve of all their claims."""
        return cls(claim for curve in curves for claim in curve.claims)

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

    def line(self, low: int, high: int) -> tuple[int, int] | None:
        """Give what the claims take from one level to another as (ppm, weight); None: no line.

        At a level in between they take ppm + (weight * level >> SHIFT).
        """
        met = bisect_right(self._met, low)
        if met < len(self._met) and self._met[met] <= high:
            return None
        return self._taken[met], self._weight[met]

    def short_ppm(self, level: int) -> list[tuple[int, int]]:
        """Give the positions of the claims that are not met at a level, and what they take."""
        return [
            (position, taken)
            for position, (demand, weight) in enumerate(self.claims)
            if (taken := weight * level >> SHIFT) < demand
        ]


NO_CLAIMS: Final = Curve(())


Thread = tuple[int, Curve, bool]
"""What a thread of a core can give, what is bound to it, and whether what it has left counts."""


class Left:
    """What pCPUs have left at a level once pools have taken theirs, in ppm; it may be below 0.

    A sum of what each pCPU, or core of several threads, adds, which falls as the level rises.
    Between two levels (`narrow`) most of them are straight lines or nothing, and lines can be added
    up without a look at claims.
    """

    def __init__(self, pools: Iterable[Curve], known_ppm: int = 0) -> None:
        self._known_ppm = known_ppm
        self._falling: list[int] = []
        self._pools = list(pools)
        self._cpus: list[tuple[int, Curve]] = []
        self._cores: list[tuple[int, Sequence[Thread]]] = []
        self._ending: list[tuple[int, Sequence[int]]] = []
        # As lines, these fall by their weights: those of `_falling` for as long as anybody asks,
        # those of `_ending` until nothing is left of their ppm.

    def add_cpu(self, most_ppm: int, curve: Curve) -> None:
        """Add a pCPU, with the claims that are bound to it."""
        if curve.top:
            self._cpus.append((most_ppm, curve))
        else:
            self._known_ppm += most_ppm

    def add_core(self, most_ppm: int, threads: Sequence[Thread]) -> None:
        """Add a core, whose threads have at most this left together."""
        if any(curve.top for _, curve, _ in threads):
            self._cores.append((most_ppm, threads))
        else:
            self._known_ppm += min(most_ppm, sum(most for most, _, counts in threads if counts))

    def ppm(self, level: int) -> int:
        """Give it at a level."""
        left = self._known_ppm - sum([weight * level >> SHIFT for weight in self._falling])
        left -= sum([curve.at(level) for curve in self._pools])
        for most, weights in self._ending:
            room = most - sum([weight * level >> SHIFT for weight in weights])
            left += max(0, room)
        for most, curve in self._cpus:
            if (room := most - curve.at(level)) > 0:
                left += room
        for most, threads in self._cores:
            left += _core_left_ppm(most, threads, level)
        return left

    def end(self, top: int) -> int:
        """Give the highest level up to `top` at which it is not below 0; at level 0 it never is.

        It falls as the level rises, mostly straight: every other look is where it would reach 0 if
        it did, the others halve what is left.
        """
        over = self.ppm(top)
        if over >= 0:
            return top
        low, high, low_ppm = 0, top, max(0, self.ppm(0))
        look = 0
        while high - low > 1:
            look += 1
            if look % NARROW_EVERY == 0:
                self.narrow(low, high)
                if self._is_simple():
                    return _highest_of_lines(self._known_ppm, self._falling, low, high)
            middle = (low + high) // 2
            if look % 2:
                straight = low + (high - low) * low_ppm // (low_ppm - over)
                middle = min(max(straight, low + 1), high - 1)
            ppm = self.ppm(middle)
            if ppm >= 0:
                low, low_ppm = middle, ppm
            else:
                high, over = middle, ppm
        return low

    def _is_simple(self) -> bool:
        return not (self._pools or self._cpus or self._cores or self._ending)

    def narrow(self, low: int, high: int) -> None:
        """Prepare for levels from `low` to `high`, and for no others."""
        ending, self._ending = self._ending, []
        for line in ending:
            self._add_line(*line, low, high)
        pools, self._pools = self._pools, []
        for curve in pools:
            taken = curve.line(low, high)
            if taken is None:
                self._pools.append(curve)
            else:
                self._known_ppm -= taken[0]
                self._falling.append(taken[1])
        cpus, self._cpus = self._cpus, []
        for most, curve in cpus:
            taken = curve.line(low, high)
            if taken is None:
                self._cpus.append((most, curve))
            else:
                self._add_line(most - taken[0], [taken[1]], low, high)
        cores, self._cores = self._cores, []
        for most, threads in cores:
            lines = _core_as_lines(most, threads, low, high)
            if lines is None:
                self._cores.append((most, threads))
            else:
                self._add_line(*lines, low, high)

    def _add_line(self, most_ppm: int, weights: Sequence[int], low: int, high: int) -> None:
        if most_ppm >= sum([weight * high >> SHIFT for weight in weights]):
            self._known_ppm += most_ppm
            self._falling += [weight for weight in weights if weight]
        elif most_ppm > sum([weight * low >> SHIFT for weight in weights]):
            self._ending.append((most_ppm, weights))


def _highest_of_lines(most_ppm: int, weights: Sequence[int], low: int, high: int) -> int:
    """Give the highest level, from `low` to below `high`, at which lines take no more than this.

    At `low` they do not, at `high` they do. Rounding takes less than 1 ppm from each.
    """
    whole = sum(weights) or 1
    low = max(low, (((most_ppm + 1) << SHIFT) - 1) // whole)
    high = min(high, -(-((most_ppm + len(weights)) << SHIFT) // whole))
    while high - low > 1:
        middle = (low + high) // 2
        if sum([weight * middle >> SHIFT for weight in weights]) <= most_ppm:
            low = middle
        else:
            high = middle
    return low


def _core_left_ppm(most_ppm: int, threads: Sequence[Thread], level: int) -> int:
    """Give what those threads of a core that count have left at a level, and the core for them."""
    left = 0
    for most, curve, counts in threads:
        bound_ppm = min(curve.at(level), most)
        most_ppm -= bound_ppm
        left += most - bound_ppm if counts else 0
    return max(0, min(most_ppm, left))


def _core_as_lines(
    most_ppm: int, threads: Sequence[Thread], low: int, high: int
) -> tuple[int, list[int]] | None:
    """Give what a core has left from one level to another as ppm and the weights by which it falls.

    None when that is no such sum. Where all threads count it is, between the levels at which one
    is used up: whether it is the core or its threads that limit what is left stays the same then,
    since what is bound to the threads is taken from both.
    """
    taken, rooms, weights = 0, 0, []
    for most, curve, counts in threads:
        line = curve.line(low, high)
        if line is None or not counts:
            return None
        ppm, weight = line
        if ppm + (weight * low >> SHIFT) >= most:
            most_ppm -= most
        elif ppm + (weight * high >> SHIFT) <= most:
            rooms += most
            taken += ppm
            weights.append(weight)
        else:
            return None
    return min(most_ppm, rooms) - taken, weights
