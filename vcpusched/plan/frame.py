"""What can be asked of each pCPU of a host: the bands for its load, and the helpless left out.

Rule: plain integers and lists, by position; pure, and deterministic for equal input.

A host is balanced when all loads lie in one band as wide as the threshold. A pCPU is helpless when
nothing can bring it into any such band: its fixed load is too much, or a vCPU that fits nowhere is
on it, or too little may come to it. The excess is the load outside the band.
"""

import heapq
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from vcpusched.plan.search import UNBOUNDED, Task

SHOWN_BY: Final = 64
"""So many of the largest vCPUs are looked at before all loads that may come are added up."""

BANDS: Final = 8
"""In how many slices the range is cut in which a band can begin."""

SEARCHED_CPUS_MAX: Final = 64
SEARCHED_VCPUS_MAX: Final = 512
"""A host above this is large: a search of the whole gets nowhere, and time is short."""


def any_will_do(_place: Sequence[int]) -> bool:
    """Accept every answer."""
    return True


Own = Sequence[Sequence[tuple[int, int]]]
"""The movable vCPUs of each pCPU as (load, vCPU), rising."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A host to balance, by position; loads in ppm of a pCPU.

    `may` has a bit for each pCPU that a vCPU may be moved to (not its home); `start` are the loads
    with every vCPU at home; only `judged` pCPUs give and take. `water_ppm` of floaters flow into
    the `wet` pCPUs by themselves, so these lack nothing. `steps_max` limits the search; `again` for
    a look at the answer of an earlier one, when only small hosts are searched. Answers that are not
    to the liking of `accept` are passed over; of a large host it is not asked.
    """

    loads: Sequence[int]
    home: Sequence[int]
    may: Sequence[int]
    start: Sequence[int]
    judged: Sequence[int]
    span: int
    min_gain: int
    steps_max: int
    wet: frozenset[int] = frozenset()
    water_ppm: int = 0
    again: bool = False
    accept: Callable[[Sequence[int]], bool] = any_will_do


def excess(load: int, low: int, high: int) -> int:
    """Give how far a load is out of its bounds, in the unit of the load."""
    if load > high:
        return load - high
    return low - load if load < low else 0


def total_excess(levels: Sequence[int], low: Sequence[int], high: Sequence[int]) -> int:
    """Give the load outside the bounds."""
    return sum(
        load - most if load > most else least - load
        for load, least, most in zip(levels, low, high, strict=True)
        if load > most or load < least
    )


def own_by_cpu(problem: Problem) -> Own:
    """Give the movable vCPUs of each pCPU as (load, vCPU), rising."""
    loads, home = problem.loads, problem.home
    own: list[list[tuple[int, int]]] = [[] for _ in problem.start]
    # To sort all of them at once, by load alone, is quicker than to sort each of many lists.
    movable = itertools.compress(range(len(loads)), problem.may)
    for vcpu in sorted(movable, key=loads.__getitem__):
        own[home[vcpu]].append((loads[vcpu], vcpu))
    return own


def moved(home: Sequence[int], place: Sequence[int]) -> list[int]:
    """Give the vCPUs that are not at home."""
    return list(itertools.compress(itertools.count(), map(operator.ne, place, home)))


@dataclass(frozen=True)
class _Range:
    """Where bands can begin; the helpless with the load they have at least; who lacks nothing."""

    first: int
    last: int
    floor: dict[int, int] = field(default_factory=dict)
    no_low: frozenset[int] = frozenset()


class Frame:
    """The bands of one problem; computed once, it does not change."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.own = own_by_cpu(problem)
        self.movable = sum(map(len, self.own))
        self.is_large = len(problem.judged) > SEARCHED_CPUS_MAX or self.movable > SEARCHED_VCPUS_MAX
        self._peak = max((problem.start[cpu] for cpu in problem.judged), default=0)
        self._range = _range(problem, self.own)
        self.last = self._range.last
        """Where the last band can begin: at the mean of those that are not helpless."""
        self._tops = [cpu for cpu in problem.judged if cpu not in self._range.floor]
        self._bottoms = [cpu for cpu in problem.judged if cpu not in self._range.no_low]
        self._known_bounds: dict[tuple[int, int], tuple[list[int], list[int]]] = {}

    def bounds(self, begin: int) -> tuple[list[int], list[int]]:
        """Give what each pCPU should have at least and at most in the band that begins there."""
        return self._bounds(begin, begin + self.problem.span - 1)

    def _bounds(self, low: int, high: int) -> tuple[list[int], list[int]]:
        known = self._known_bounds.get((low, high))
        if known is None:
            count = len(self.problem.start)
            least, most = [-1] * count, [UNBOUNDED] * count
            high_or_peak = min(high, self._peak)
            for cpu in self.problem.judged:
                least[cpu], most[cpu] = low, high_or_peak
            for cpu, floor in self._range.floor.items():
                most[cpu] = floor
            for cpu in self._range.no_low:
                least[cpu] = -1
            known = self._known_bounds[low, high] = (least, most)
        return known

    def task(self, first: int, last: int, span: int | None = None) -> Task:
        """Give the search for a band that begins between `first` and `last`."""
        span = self.problem.span if span is None else span
        low, high = self._bounds(first, last + span - 1)
        return Task(
            loads=self.problem.loads,
            home=self.problem.home,
            may=self.problem.may,
            start=self.problem.start,
            low=low,
            high=high,
            span=span,
            tops=self._tops,
            bottoms=self._bottoms,
        )

    @cached_property
    def whole(self) -> Task:
        """The search over all bands."""
        return self.task(self._range.first, self.last)

    @cached_property
    def slices(self) -> list[tuple[int, int]]:
        """The range in which bands can begin, cut into pieces (first, last)."""
        first, last = self._range.first, self.last
        cuts = [first + (last - first + 1) * cut // BANDS for cut in range(BANDS + 1)]
        return [(low, after - 1) for low, after in itertools.pairwise(cuts) if low < after]

    @cached_property
    def middles(self) -> list[int]:
        """Where the band in the middle of each slice begins; of a large host, one will do."""
        if self.is_large:
            return [max(0, self.last - self.problem.span * 3 // 8)]
        return [(first + last) // 2 for first, last in self.slices]

    def levels(self, place: Sequence[int]) -> list[int]:
        """Give the loads with the vCPUs at these places."""
        problem = self.problem
        levels = list(problem.start)
        for vcpu in moved(problem.home, place):
            levels[problem.home[vcpu]] -= problem.loads[vcpu]
            levels[place[vcpu]] += problem.loads[vcpu]
        return levels

    def _ends(self, levels: Sequence[int]) -> tuple[int, int]:
        return (
            max(map(levels.__getitem__, self._tops), default=0),
            min(map(levels.__getitem__, self._bottoms), default=0),
        )

    def gap(self, levels: Sequence[int]) -> int:
        """Give the gap between the pCPUs that are not helpless."""
        top, bottom = self._ends(levels)
        return top - bottom

    def begins(self, levels: Sequence[int]) -> list[int]:
        """Give where the bands begin by which such loads are judged."""
        top, bottom = self._ends(levels)
        own = (top - self.problem.span + 1, bottom)
        return sorted({*self.middles, *(begin for begin in own if 0 <= begin <= self.last)})

    @cached_property
    def excess_at_home(self) -> int:
        """The load outside the band that suits the host best as it was found."""
        return self.best_excess(self.problem.start)

    def best_begin(self, levels: Sequence[int]) -> int:
        """Give where the band begins that suits these loads best."""
        return min(self.begins(levels), key=lambda begin: total_excess(levels, *self.bounds(begin)))

    def best_excess(self, levels: Sequence[int]) -> int:
        """Give the load outside the band that suits these loads best."""
        return min(
            (total_excess(levels, *self.bounds(begin)) for begin in self.begins(levels)), default=0
        )


class _Ceilings:
    """How much load each pCPU would have with all vCPUs on it that may be there."""

    def __init__(self, problem: Problem, own: Own, fixed: Sequence[int]) -> None:
        self._problem, self._own, self._fixed = problem, own, fixed
        self._largest = heapq.nlargest(SHOWN_BY, (members[-1] for members in own if members))

    def of(self, cpu: int, enough: int) -> int:
        """Give the ceiling of a pCPU, or `enough` where it is more."""
        load, may = self._problem.start[cpu], self._problem.may
        # A few vCPUs nearly always show that it is; to add up all of them takes much longer.
        for size, vcpu in self._largest:
            if load >= enough:
                return enough
            if may[vcpu] >> cpu & 1:
                load += size
        most = sum(size for mask, size in self._coming.items() if mask >> cpu & 1)
        return min(enough, self._fixed[cpu] + most)

    @cached_property
    def _coming(self) -> dict[int, int]:
        """The load of all movable vCPUs, by where they may be."""
        coming: dict[int, int] = {}
        for cpu, members in enumerate(self._own):
            for size, vcpu in members:
                mask = self._problem.may[vcpu] | 1 << cpu
                coming[mask] = coming.get(mask, 0) + size
        return coming


def _range(problem: Problem, own: Own) -> _Range:
    """Leave out, one after another, the pCPUs that no move can bring into the bands."""
    fixed = list(problem.start)
    for size, cpu, mask in zip(problem.loads, problem.home, problem.may, strict=True):
        if mask:
            fixed[cpu] -= size
    largest = [members[-1][0] if members else 0 for members in own]
    ceilings = _Ceilings(problem, own, fixed)
    least_fixed = min((fixed[cpu] for cpu in problem.judged), default=0)
    active, no_low = set(problem.judged), set(problem.wet)
    floor: dict[int, int] = {}
    rest = sum(problem.start[cpu] for cpu in active) + problem.water_ppm
    while True:
        mean = rest // len(active) if active else 0
        high, low = mean + problem.span - 1, mean - problem.span + 1
        helpless: dict[int, int] = {}
        for cpu in active:
            load, giant = fixed[cpu], largest[cpu]
            # Where it would be just as far out elsewhere, a giant may as well stay.
            if giant > high - least_fixed and load <= least_fixed + problem.span // 2:
                load += giant
            if load > high:
                helpless[cpu] = load
        floor.update(helpless)
        if not helpless:
            lacking = [cpu for cpu in active if problem.start[cpu] < low and cpu not in no_low]
            most = {cpu: ceilings.of(cpu, low) for cpu in lacking}
            helpless = {cpu: load for cpu, load in most.items() if load < low}
            no_low.update(helpless)
        if not helpless:
            return _Range(max(0, low), max(0, mean), floor, frozenset(no_low))
        for cpu, load in helpless.items():
            active.remove(cpu)
            rest -= load
