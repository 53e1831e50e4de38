"""Finds where items should be: one neighbourhood, and exact search on small groups of bins.

Rule: pure and deterministic; limited in steps, never in seconds.

Problem: find the assignment of the lowest objective (`objective`) that some order leads to.
Approach: descend from where items are (`descent`), for a few positions of the tolerance band; mend
    the best answer by searching groups of bins to the end (`exact`). A small host is one group.
Algorithm: 1. Descend within caches first, then nodes, then everywhere, until nothing pays.
    2. Groups of 4 to 8 bins, one of them outside the band, are emptied of what was moved and
    searched to the end. 3. Where all loads are within a band, the same again with groups of moved
    items, for fewer pins. 4. Undo what does not pay.
Properties: a result that no order leads to is none: it is refused here.
"""

import random
from collections.abc import Sequence
from typing import Final

from vcpusched.plan.descent import descend, undo
from vcpusched.plan.exact import UNBOUNDED, Moves, Task
from vcpusched.plan.exact import search as search_to_the_end
from vcpusched.plan.moves import in_order
from vcpusched.plan.objective import Assignment, best_band
from vcpusched.plan.problem import ACROSS, CACHE, NODE, SCALE, Problem

SMALL_BINS, SMALL_ITEMS, SMALL_STEPS = 4, 16, 4
"""Hosts up to here are searched as a whole, for so many times the steps."""

LARGE_BINS, LARGE_ITEMS = 64, 512
"""Hosts above this are only descended on: there is no time for more."""

UNREACHED_PPM: Final = 5_000
"""What a pin gains at least where balance is out of reach, however small `min_gain` is."""

BANDS: Final = 8
"""How many positions of the band are tried."""

GROUP_BINS, GROUP_STEPS, SET_UP = (4, 5, 6, 7, 8), 200, 10
OUTSIDE_SHARE: Final = 0.75
"""How often a group begins with a bin that is outside the band, rather than with a move."""


def is_large(problem: Problem) -> bool:
    """Tell whether there is time for a descent only."""
    return len(problem.judged) > LARGE_BINS or sum(map(len, problem.own)) > LARGE_ITEMS


def search_balance(problem: Problem, steps: int, pins_max: int) -> Assignment:
    """Return the fewest pins found with which all loads are within one band, wherever that is.

    Where none are found, what comes near; not searched for where that takes more than `pins_max`.
    """
    if _is_small(problem):
        free = _any_band(problem, *problem.limits, problem.home)
        _, proven = improve(free, problem.judged, SMALL_STEPS * steps, balanced=True)
        free = _centred(free)
        if proven or not free.overload:
            return free
    state = _descents(problem)[0]
    if state.place == list(problem.home) or (state.overload and _pins(state) > pins_max):
        return state
    if state.overload:
        steps -= _Groups(state, balanced=False).run(steps // 2)
    free = _any_band(problem, *problem.limits, state.place)
    _Groups(free, balanced=True).run(steps)
    if not (centred := _centred(free)).overload or centred.total < state.total:
        state = centred
    undo(state)
    return state


def search_paying(problem: Problem, steps: int) -> Assignment:
    """Return the moves found that bring most load into a band, each of which pays."""
    state = _descents(problem)[0]
    _Groups(state, balanced=False).run(steps)
    undo(state)
    return state


def _is_small(problem: Problem) -> bool:
    return len(problem.judged) <= SMALL_BINS and sum(map(len, problem.own)) <= SMALL_ITEMS


def _descents(problem: Problem) -> list[Assignment]:
    """Return what descents to several bands come to, the best first; at home without an order."""
    first, last = problem.limits
    begins = {first + (last - first + 1) * (2 * cut + 1) // (2 * BANDS) for cut in range(BANDS)}
    every = []
    for begin in sorted(begins):
        state = Assignment(problem, begin)
        _descend_rings(state)
        if in_order(problem, state.place) is None:
            state = Assignment(problem, begin)
        every.append(state)
    return sorted(every, key=lambda state: state.total)


def search_large(problem: Problem, value: int) -> Sequence[int]:
    """Return the best places that a descent finds; there is no time for more.

    Cheap moves are made where they bring every load within the band, and that is worth it.
    """
    state = Assignment(problem, max(0, problem.limits[1] - problem.span * 3 // 8), hurry=True)
    for bins, far in problem.rings:
        if far == ACROSS or (far == CACHE and problem.min_gain > UNREACHED_PPM):
            descend(state, bins)
    cheap = problem.min_gain <= UNREACHED_PPM
    # Each bin outside the band takes a pin, and within caches no more of them pay.
    loads = [state.level[bin_] for bin_ in problem.judged if state.outside(bin_)]
    over = sum(load > state.high for load in loads)
    least = max(over, len(loads) - over) * problem.prices[NODE if problem.sites else CACHE]
    if cheap or least <= state.overload * SCALE + value:
        state.reprice(problem.but(min_gain=0))
        descend(state, problem.judged, all_or_nothing=True)
        if not state.overload:
            undo(state)
            place = list(state.place)
            if cheap or is_worth(state, problem, value):
                return place
        state.reprice(problem)
    undo(state)
    return state.place


def is_worth(state: Assignment, problem: Problem, value: int) -> bool:
    """Tell whether balance costs no more than it is worth, beside what pays by itself.

    What does not pay is undone.
    """
    state.reprice(problem)
    whole = state.total
    undo(state)
    return whole - value <= state.total


def _pins(state: Assignment) -> int:
    return len(state.problem.moved(state.place))


def _any_band(problem: Problem, first: int, last: int, place: Sequence[int]) -> Assignment:
    """Return an assignment by whose bounds the band may begin anywhere between these."""
    state = Assignment(problem, first)
    state.high = last + problem.span - 1
    for item in problem.moved(place):
        state.move(item, place[item])
    return state


def _descend_rings(state: Assignment) -> None:
    for bins, _ in state.problem.rings:
        descend(state, bins)


def _centred(state: Assignment) -> Assignment:
    """Return the same in the band that suits these loads best."""
    loads = [state.level[bin_] for bin_ in state.problem.judged if bin_ not in state.problem.filled]
    return Assignment(state.problem, best_band(loads, state.problem.span)[1], state.place)


def improve(
    state: Assignment, group: Sequence[int], steps_max: int, *, balanced: bool
) -> tuple[int, bool]:
    """Search a group of bins for what costs less; return the steps it took, and if that was all.

    `balanced`: the ends of all bins must be less than the threshold apart.
    """
    task, items, cost = _task_of(state, group, balanced=balanced)
    if cost <= (state.problem.prices[1] if balanced else 0):
        return 0, True  # of one pin there is nothing to save
    before = state.total

    def accept(path: Moves) -> bool:
        return _put(state, items, {items[item]: group[bin_] for item, bin_ in path}, before)

    steps, proven = search_to_the_end(task, cost, steps_max, accept)
    return len(items) // 2 + steps, proven


def _put(state: Assignment, items: Sequence[int], to: dict[int, int], total: int) -> bool:
    """Put items where a search found them, unless they meet or no order leads there."""
    problem, before = state.problem, {item: state.place[item] for item in items}
    for item in items:
        state.move(item, to.get(item, problem.home[item]))
    meets = problem.spread and not all(state.fits(item, bin_) for item, bin_ in to.items())
    if meets or (state.siblings and state.total > total) or in_order(problem, state.place) is None:
        for item, bin_ in before.items():
            state.move(item, bin_)
        return False
    return True


def _task_of(
    state: Assignment, group: Sequence[int], *, balanced: bool
) -> tuple[Task, list[int], int]:
    """Return the task of a group of bins, its items, and what these cost now."""
    problem, inside = state.problem, {bin_: at for at, bin_ in enumerate(group)}
    items = sorted(
        item for bin_ in group for _, item in state.own[bin_] if problem.home[item] in inside
    )
    level = [state.level[bin_] for bin_ in group]
    low, high = [state.low[bin_] for bin_ in group], [state.high] * len(group)
    bottoms = [at for at, bin_ in enumerate(group) if bin_ not in problem.filled]
    cost, span, top, bottom = 0, UNBOUNDED, -1, UNBOUNDED
    if balanced:
        span = problem.span
        others = [bin_ for bin_ in problem.judged if bin_ not in inside]
        top = max((state.level[bin_] for bin_ in others), default=top)
        unfilled = [bin_ for bin_ in others if bin_ not in problem.filled]
        bottom = min((state.level[bin_] for bin_ in unfilled), default=bottom)
        ends = [level[at] for at in bottoms]
        low = [max(one, top - span + 1) for one in low]
        high = [min(one, bottom + span - 1) for one in high]
        cost = SCALE * max(0, max(*level, top) - min([*ends, bottom]) - span + 1)
    cost += SCALE * sum(
        max(load - most, least - load, 0)
        for load, least, most in zip(level, low, high, strict=True)
    )
    prices = []
    for item in items:
        bin_, home = state.place[item], problem.home[item]
        prices.append([problem.price(item, other) for other in group])
        if bin_ != home:
            level[inside[bin_]] -= problem.size[item]
            level[inside[home]] += problem.size[item]
            cost += prices[-1][inside[bin_]]
    task = Task(
        size=[problem.size[item] for item in items],
        home=[inside[problem.home[item]] for item in items],
        feasible=[
            sum(
                1 << at
                for at, bin_ in enumerate(group)
                if problem.allowed[item] >> bin_ & 1 and bin_ != problem.home[item]
            )
            for item in items
        ],
        level=level,
        low=low,
        high=high,
        price=prices,
        least=problem.prices[1],
        span=span,
        top=top,
        bottom=bottom,
        bottoms=bottoms,
    )
    return task, items, cost


class _Groups:
    """Improves an assignment by searching small groups of bins to the end, over and over."""

    def __init__(self, state: Assignment, *, balanced: bool) -> None:
        self._state, self._balanced = state, balanced
        self._draw = random.Random(0).random  # noqa: S311  repeatable
        problem = state.problem
        self._near: list[list[int]] = [[] for _ in problem.base]
        self._moved = problem.moved(state.place)
        self._proven: list[set[int]] = []  # groups in which nothing costs less, as things are
        for item in self._moved:
            self._near[problem.home[item]].append(state.place[item])
            self._near[state.place[item]].append(problem.home[item])

    def run(self, steps: int) -> int:
        """Search groups for so many steps; return the steps taken."""
        taken, state = 0, self._state
        while taken < steps and self._moved:
            outside = []
            if not self._balanced:
                outside = [bin_ for bin_ in state.problem.judged if state.outside(bin_)]
                if not outside:
                    break
            if outside and self._draw() < OUTSIDE_SHARE:
                first = [self._pick(outside)]
            else:
                item = self._pick(self._moved)
                first = list(dict.fromkeys((state.problem.home[item], state.place[item])))
            group, before = self._group(first), state.total
            taken += SET_UP
            if any(one.issuperset(group) for one in self._proven):
                continue
            spent, proven = improve(state, group, GROUP_STEPS, balanced=self._balanced)
            taken += spent
            if state.total != before:
                self._proven.clear()
            elif proven:
                self._proven.append(set(group))
        return taken

    def _pick(self, among: Sequence[int]) -> int:
        return among[int(self._draw() * len(among))]

    def _group(self, first: list[int]) -> list[int]:
        """Return bins between which items were moved, and some by chance."""
        judged, group = self._state.problem.judged, first
        size = min(len(judged), self._pick(GROUP_BINS))
        while len(group) < size:
            near = self._near[self._pick(group)]
            bin_ = self._pick(near if near and self._draw() < 2 / 3 else judged)
            if bin_ not in group:
                group.append(bin_)
        return group
