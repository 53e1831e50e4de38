"""Where nothing is left for claims, and the most that flows: held against plain ways to find it."""

import itertools
import random

import pytest

from vcpusched.model import PPM
from vcpusched.plan.curves import SHIFT, Curve, highest_level
from vcpusched.plan.flow import Network


def some_claims(chance: random.Random, most: int) -> list[tuple[int, int]]:
    """Give up to so many claims, some alike, some that want nothing."""
    return [
        (chance.choice([0, PPM, chance.randrange(PPM)]), chance.choice([1, 512, 1024, 3]) << 16)
        for _ in range(chance.randint(0, most))
    ]


Single = tuple[int, Curve]
Cores = list[tuple[int, list[tuple[int, Curve, bool]]]]


def plain_ppm(pools: list[Curve], singles: list[Single], cores: Cores, level: int) -> int:
    """Give what is left at a level, by what that means."""
    total = -sum(curve.at(level) for curve in pools)
    total += sum(max(0, most - curve.at(level)) for most, curve in singles)
    for together, threads in cores:
        bound = [min(curve.at(level), most) for most, curve, _ in threads]
        rooms = sum(
            most - taken for (most, _, counts), taken in zip(threads, bound, strict=True) if counts
        )
        total += max(0, min(together - sum(bound), rooms))
    return total


@pytest.mark.parametrize("seed", range(400))
def test_the_end_of_what_is_left(seed: int) -> None:
    """The highest level at which it is not below 0, found by halving with everything in view."""
    chance = random.Random(seed)
    pools = [Curve(some_claims(chance, 20)) for _ in range(chance.randint(0, 3))]
    singles = [
        (chance.randrange(PPM), Curve(some_claims(chance, 4))) for _ in range(chance.randint(0, 6))
    ]
    cores = [
        (
            chance.randrange(2 * PPM),
            [
                (chance.randrange(PPM), Curve(some_claims(chance, 3)), chance.random() < 0.8)
                for _ in range(chance.randint(2, 3))
            ],
        )
        for _ in range(chance.randint(0, 4))
    ]
    top = max([curve.top for curve in pools], default=1 << SHIFT)

    def left_ppm(level: int) -> int:
        return plain_ppm(pools, singles, cores, level)

    low, high = 0, top + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left_ppm(middle) >= 0 else (low, middle)
    assert highest_level(top, left_ppm) == low


def test_what_claims_take() -> None:
    """Claims of 100 and 300 with weights 1 and 2 are met at levels 100 and 150."""
    curve = Curve([(100, 1 << SHIFT), (300, 2 << SHIFT)])
    assert [curve.at(level) for level in (0, 99, 100, 149, 150, 999)] == [
        0,
        297,
        300,
        398,
        400,
        400,
    ]
    assert curve.short_ppm(99) == [(0, 99), (1, 198)]
    assert curve.short_ppm(120) == [(1, 240)]
    assert Curve.joined([curve, curve]).at(99) == 594


@pytest.mark.parametrize("seed", range(200))
def test_the_most_that_flows(seed: int) -> None:
    """As much as the least of all cuts lets through, and that with the fewest nodes is told."""
    chance = random.Random(seed)
    names = ["from", *"abcdef", "to"]
    pipes = {
        pair: chance.choice([0, 1, 1, 2])
        for pair in itertools.permutations(names, 2)
        if chance.random() < 0.4
    }
    network = Network("from", "to")
    for name in names[1:-1]:
        network.link("from", name, 0)
    for (source, target), most in pipes.items():
        network.link(source, target, most)
    cuts = {}
    for size in range(7):
        for inner in itertools.combinations(names[1:-1], size):
            side = frozenset({"from", *inner})
            cuts[side] = sum(
                most
                for (source, target), most in pipes.items()
                if source in side and target not in side
            )
    least = min(cuts.values())
    assert network.cut() == min((side for side in cuts if cuts[side] == least), key=len)
    assert network.flow == least
