"""Finds where items should be: one neighbourhood, and exact search on small groups of bins.

Rule: pure and deterministic; limited in steps, never in seconds.

Problem: find the assignment of the lowest objective (`objective`) that some order leads to.
Algorithm: 1. For a few positions of the tolerance band, descend from where items are (`descent`):
    within caches first, then nodes, then everywhere, until nothing pays. 2. From the best answer,
    search all bins to the end (`exact`): where few items face many bins that proves the answer. 3.
    Where the steps did not suffice, search groups of 4 to 8 bins, for as long as that brings
    something; for fewer pins, until all steps are taken. 4. Undo what does not pay.
"""

import random
from collections.abc import Sequence
from typing import Final

from vcpusched.plan.cpu_groups import ACROSS, CACHE, NODE
from vcpusched.plan.descent import descend, undo
from vcpusched.plan.exact import improve
from vcpusched.plan.moves import in_order
from vcpusched.plan.objective import Assignment, best_band
from vcpusched.plan.problem import SCALE, Problem

LARGE_BINS, LARGE_ITEMS, LARGE_CROWDS = 64, 512, 8_000
"""Hosts above this are only descended on: there is no time for more. A crowd is the vCPUs that are
too many where they are, times all bins: with 512 on a quarter of 64 pCPUs a search took 14 seconds.
At random on all of 64 they are under half of what is allowed."""

UNREACHED_PPM: Final = 5_000
"""What a pin gains at least where balance is out of reach, however small `min_gain` is."""

BANDS: Final = 8
"""How many positions of the band are tried."""

WHOLE_PART, IDLE_PART = 4, 8
"""What part of the steps goes to all bins at once (less beyond 16 bins: each step looks at all; on
64 it was 62% of the time and proved nothing), and after what part in vain groups end."""

GROUP_BINS, GROUP_STEPS, SET_UP = (4, 5, 6, 7, 8), 200, 10
OUTSIDE_SHARE: Final = 0.75
"""How often a group begins with a bin outside the band, rather than with a move."""


def is_large(problem: Problem) -> bool:
    """Return whether there is time for a descent only."""
    bins, own, base = problem.bins.judged, problem.own, problem.base
    high = problem.but(floating=sum(load for _, load in problem.pools)).limits[1] + problem.span
    too_many = sum(len(own[b]) * (base[b] - high) // base[b] for b in bins if base[b] > high)
    is_crowded = too_many * len(bins) > LARGE_CROWDS
    return is_crowded or len(bins) > LARGE_BINS or sum(map(len, own)) > LARGE_ITEMS


def search_balance(problem: Problem, steps: int, pins_max: int) -> Assignment:
    """Return the fewest pins found with which all loads are within one band, wherever that is.

    Where none are found, what comes near; not searched for where that takes more than `pins_max`.
    """
    state = _descended(problem)
    if state.overload and len(problem.moved(state.place)) > pins_max:
        return state
    free = Assignment(problem, problem.limits[0], state.place)
    free.high = problem.limits[1] + problem.span - 1  # the band may begin wherever it is tried
    _mend(free, steps, balanced=True)
    if not (centred := _centred(free)).overload or centred.total < state.total:
        state = centred
    undo(state)
    return state


def search_paying(problem: Problem, steps: int) -> Assignment:
    """Return the moves found that bring most load into a band, each of which pays."""
    state = _descended(problem)
    _mend(state, steps, balanced=False)
    undo(state)
    return state


def _descended(problem: Problem) -> Assignment:
    """Return the best that descents to several bands come to; no move without an order."""
    first, last = problem.limits
    begins = {first + (last - first + 1) * (2 * cut + 1) // (2 * BANDS) for cut in range(BANDS)}
    every = []
    for begin in sorted(begins):
        state = Assignment(problem, begin)
        for bins, _ in problem.bins.rings:
            descend(state, bins)
        if in_order(problem, state.place) is None:
            state = Assignment(problem, begin)
        every.append(state)
    return min(every, key=lambda state: state.total)


def search_large(problem: Problem, value: int) -> Sequence[int]:
    """Return the best places that a descent finds; there is no time for more.

    Cheap moves are made where they bring every load within the band, and that is worth it.
    """
    state = Assignment(problem, max(0, problem.limits[1] - problem.span * 3 // 8), hurry=True)
    for bins, far in problem.bins.rings:
        if far == ACROSS or (far == CACHE and problem.min_gain > UNREACHED_PPM):
            descend(state, bins)
    cheap = problem.min_gain <= UNREACHED_PPM
    # Each bin outside the band takes a pin, and within caches no more of them pay.
    loads = [state.level[bin_] for bin_ in problem.bins.judged if state.outside(bin_)]
    over = sum(load > state.high for load in loads)
    least = max(over, len(loads) - over) * problem.prices[NODE if problem.bins.sites else CACHE]
    if cheap or least <= state.overload * SCALE + value:
        state.reprice(problem.but(min_gain=0))
        descend(state, problem.bins.judged, all_or_nothing=True)
        if not state.overload:
            undo(state)
            place = list(state.place)
            if cheap or is_worth(state, problem, value):
                return place
        state.reprice(problem)
    undo(state)
    return state.place


def is_worth(state: Assignment, problem: Problem, value: int) -> bool:
    """Return whether balance costs no more than it is worth, beside what pays by itself.

    What does not pay is undone.
    """
    state.reprice(problem)
    whole = state.total
    undo(state)
    return whole - value <= state.total


def _centred(state: Assignment) -> Assignment:
    """Return the same in the band that suits these loads best."""
    loads = [
        state.level[bin_] for bin_ in state.problem.bins.judged if bin_ not in state.problem.filled
    ]
    return Assignment(state.problem, best_band(loads, state.problem.span)[1], state.place)


def _mend(state: Assignment, steps: int, *, balanced: bool) -> None:
    """Search all bins to the end, or else small groups of them, over and over."""
    problem, draw = state.problem, random.Random(0).random  # noqa: S311  repeatable

    def pick(among: Sequence[int]) -> int:
        return among[int(draw() * len(among))]

    def cost() -> tuple[bool, int]:
        at = _centred(state) if balanced else state
        return at.overload > 0, at.total

    bins = problem.bins.judged
    if len(bins) > GROUP_BINS[-1] and not problem.moved(state.place):
        return  # a large host at rest: to prove that each time would cost more than it can bring
    if improve(state, bins, steps // max(WHOLE_PART, len(bins) // 4), balanced=balanced)[1]:
        return
    moved = problem.moved(state.place)
    taken, least, ends = 0, cost(), steps // IDLE_PART
    while moved and taken < (ends if least[0] else steps):
        group = [bin_ for bin_ in bins if state.outside(bin_)]
        if group and not balanced and draw() < OUTSIDE_SHARE:
            group = [pick(group)]
        else:
            item = pick(moved)
            group = list(dict.fromkeys((problem.current[item], state.place[item])))
        size = min(len(bins), pick(GROUP_BINS))
        while len(group) < size:
            bin_ = pick(bins)
            if bin_ not in group:
                group.append(bin_)
        before = list(state.place)
        taken += SET_UP + improve(state, group, GROUP_STEPS, balanced=balanced)[0]
        if state.place != before and (now := cost()) < least:
            least, ends = now, min(steps, taken + steps // IDLE_PART)
