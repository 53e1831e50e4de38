"""What claims take as a level rises, and where there is nothing left for them.

Rule: pure integers; knows claims and what threads can give, and nothing of who shares with whom.

Terms: a level times its weight is what a claim takes, until that is all it wants: so what several
    take together is a curve of straight lines, rounded down to whole ppm.
Approach: what is left falls as the level rises. Where that reaches 0 is found by looking at ever
    narrower spans of levels.
"""

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final, Self

SHIFT: Final = 44
"""Levels are whole multiples of 2 ** -44 ppm for each unit of weight."""

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

    def short_ppm(self, level: int) -> list[tuple[int, int]]:
        """Give the positions of the claims that are not met at a level, and what they take."""
        return [
            (position, taken)
            for position, (demand, weight) in enumerate(self.claims)
            if (taken := weight * level >> SHIFT) < demand
        ]


NO_CLAIMS: Final = Curve(())


def highest_level(top: int, left_ppm: Callable[[int], int]) -> int:
    """Give the highest level up to `top` at which what is left is not below 0; at 0 it never is.

    It falls as the level rises, mostly straight: every other look is where it would reach 0 if it
    did, the others halve what is left.
    """
    over = left_ppm(top)
    if over >= 0:
        return top
    low, high, low_ppm = 0, top, left_ppm(0)
    is_straight = False
    while high - low > 1:
        is_straight = not is_straight and low_ppm > 0
        if is_straight:
            straight = low + (high - low) * low_ppm // (low_ppm - over)
            middle = min(max(straight, low + 1), high - 1)
        else:
            middle = (low + high) // 2
        ppm = left_ppm(middle)
        if ppm >= 0:
            low, low_ppm = middle, ppm
        else:
            high, over = middle, ppm
    return low
