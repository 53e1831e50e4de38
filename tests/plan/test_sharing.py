"""Sharing by weighted max-min fairness, checked against what makes a division fair."""

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest

from vcpusched.model import PPM, CpuSet
from vcpusched.plan.curves import SHIFT, Claim, Curve
from vcpusched.plan.sharing import POOLS_MAX, ROUNDING_PPM, Core, fill

Placed = tuple[int, Claim]
"""The pCPUs that a claim may use, as bits, and the claim."""

LEVEL_OFF = 1.0001
"""By how much levels may differ that are equal but for rounding."""


def drawn(seed: int) -> tuple[list[Core], list[Placed]]:
    """Give up to 5 cores of 1 to 3 threads, and up to 9 claims, from a seed."""
    chance = random.Random(seed)
    cores, cpu = [], 0
    threads_max = chance.choice([1, 2, 2, 3])
    for _ in range(chance.randint(1, 5)):
        threads = {}
        for _ in range(chance.randint(1, threads_max)):
            threads[cpu] = chance.choice([PPM, PPM, PPM // 2, 0, 123_457])
            cpu += 1
        cores.append(Core(threads, min(sum(threads.values()), max(threads.values()) * 5 // 4)))
    masks = [chance.randrange(1, 1 << cpu) for _ in range(4)]
    bound, most = chance.choice([0, 0.5, 0.8]), chance.choice([PPM, PPM // 3])
    placed = []
    for _ in range(chance.randint(1, 9)):
        mask = 1 << chance.randrange(cpu) if chance.random() < bound else chance.choice(masks)
        demand = chance.choice([most, chance.randint(0, most)])
        placed.append((mask, (demand, chance.choice([1, 1, 2, 5]) << 16)))
    return cores, placed


def filled(cores: Sequence[Core], placed: Sequence[Placed]) -> list[int]:
    """Give what each claim gets."""
    bound: dict[int, list[Claim]] = {}
    pools: dict[int, list[Claim]] = {}
    for mask, claim in placed:
        if mask & (mask - 1):
            pools.setdefault(mask, []).append(claim)
        else:
            bound.setdefault(mask.bit_length() - 1, []).append(claim)
    levels = fill(
        cores,
        {cpu: Curve(claims) for cpu, claims in bound.items()},
        {mask: Curve(claims) for mask, claims in pools.items()},
    )
    got = []
    for mask, (demand_ppm, weight) in placed:
        several = mask & (mask - 1)
        level = levels.pools.get(mask) if several else levels.cpus.get(mask.bit_length() - 1)
        taken_ppm = demand_ppm if level is None else weight * level >> SHIFT
        got.append(min(demand_ppm, taken_ppm))
    return got


def limits(cores: Sequence[Core], placed: Sequence[Placed]) -> Mapping[tuple[int, ...], int]:
    """Give, for every set of claims, all that they can be given together, in ppm."""
    found = {}
    for size in range(1, len(placed) + 1):
        for some in itertools.combinations(range(len(placed)), size):
            reach = CpuSet(0)
            for number in some:
                reach |= CpuSet(placed[number][0])
            found[some] = sum(
                min(core.most_ppm, sum(most for cpu, most in core.threads.items() if cpu in reach))
                for core in cores
            )
    return found


def check(cores: Sequence[Core], placed: Sequence[Placed]) -> None:
    """Hold that the division is possible and fair.

    It is possible when no set of claims gets more than there is for it (Hall's condition). It is
    fair when each claim that is not met is in a set that uses up all there is for it, in which
    nobody has more for its weight: so to give it more means to take from such a one.
    """
    got = filled(cores, placed)
    together = limits(cores, placed)
    for some, most_ppm in together.items():
        assert sum(got[number] for number in some) <= most_ppm + 1
    for number, (_, (demand, weight)) in enumerate(placed):
        assert 0 <= got[number] <= demand
        if got[number] == demand:
            continue
        level = max((got[number] + ROUNDING_PPM) / weight, got[number] / weight * LEVEL_OFF)
        assert any(
            sum(got[other] for other in some) >= most_ppm - ROUNDING_PPM * len(some)
            and all(got[other] / placed[other][1][1] <= level for other in some)
            for some, most_ppm in together.items()
            if number in some
        ), (number, got)


@pytest.mark.parametrize("first", range(0, 1_000, 250))
def test_a_thousand_divisions_are_fair(first: int) -> None:
    """Bound and floating claims, siblings, weights, pCPUs that give nothing: all are fair."""
    for seed in range(first, first + 250):
        check(*drawn(seed))


def test_too_many_sets_are_taken_as_one() -> None:
    """35 hogs, each on two neighbours of 36 pCPUs, of which every other one gives nothing.

    Each has to share one pCPU with one other (the last has one for itself). As 35 sets are more
    than are told apart, all are taken to use all: each gets a 35th part of 18 pCPUs.
    """
    count = POOLS_MAX + 4
    cores = [Core({cpu: PPM * (cpu % 2)}, PPM * (cpu % 2)) for cpu in range(count)]
    placed = [(0b11 << cpu, (PPM, 1 << 16)) for cpu in range(count - 1)]
    assert filled(cores, placed) == [18 * PPM // 35] * 35
