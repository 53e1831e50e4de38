"""Evens out loads greedily: a good first answer for any host, quickly.

Rule: plain integers and lists; pure, and deterministic for equal input.

Problem: bring every pCPU between its `low` and `high`, or as near as single moves and exchanges
    can.
Approach: move from the busiest pCPU to the freest the vCPU that mends both, else the largest that
    does no harm; where no move from the busiest or to the freest helps, exchange two vCPUs or leave
    that pCPU aside, and look at it again when all others are done.
    By the load that is moved, the gain of a move between two pCPUs rises, stays the same and falls:
    the best vCPU is found by bisection.
Terms: the excess of a pCPU is how far its load is out of its bounds.
Properties: every step lowers the sum of the excesses, and never raises a pCPU to the load that the
    source had, so neither the largest load grows nor the smallest shrinks.
"""

import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from vcpusched.plan.frame import Own, excess
from vcpusched.plan.search import UNBOUNDED, Task

CLOSE_LOOK_MAX: Final = 24
"""Up to this many pCPUs all are tried as partners of one that is stuck; else some that promise."""

GIVERS_MAX: Final = 6
TAKERS_MAX: Final = 64
"""With more takers, gaps out of reach of balance become smaller, and the time longer."""

SWEEPS_MAX: Final = 4


def fill(task: Task, own: Own, gain_min: int, gain_min_to_end: int | None = None) -> list[int]:
    """Give where each vCPU goes.

    A vCPU that is moved off a stuck pCPU, or to one, must gain at least `gain_min`. With
    `gain_min_to_end` so must all others; but if moves that gain at least that bring every pCPU
    within its bounds in the end, they are made too.
    """
    return _Filling(task, own, gain_min, gain_min_to_end).run()


class _Filling:
    """The work under way: `_level`, `_place` and `_own` change with each move."""

    def __init__(self, task: Task, own: Own, gain_min: int, gain_min_to_end: int | None) -> None:
        self._task = task
        self._gain_min = gain_min
        self._gain_min_to_end = gain_min_to_end
        self._fit_gain_min = 0 if gain_min_to_end is None else gain_min
        self._level = list(task.start)
        self._place = list(task.home)
        self._is_close = len(task.start) <= CLOSE_LOOK_MAX
        self._usual_low = max(task.low, default=0)
        self._own = [list(members) for members in own]
        self._taking = [cpu for cpu, high in enumerate(task.high) if high < UNBOUNDED]
        # The helpless have a higher bound than others, and below it nothing to give.
        usual = min((task.high[cpu] for cpu in self._taking), default=0)
        self._helpless = {cpu for cpu in self._taking if task.high[cpu] > usual}
        self._no_donor: set[int] = set()
        self._no_receiver: set[int] = set()
        self._busiest: list[tuple[int, int]] = []
        self._freest: list[tuple[int, int]] = []

    def run(self) -> list[int]:
        for _ in range(SWEEPS_MAX):
            mended_stuck = self._sweep()
            # Whatever was left aside was looked at on the way; only later moves can help it.
            if not mended_stuck or not self._is_stuck():
                break
        if self._is_stuck() and self._gain_min_to_end is not None:
            place = list(self._place)
            self._gain_min = self._fit_gain_min = self._gain_min_to_end
            self._sweep(all_or_nothing=True)
            if self._is_stuck():
                return place
        return self._place

    def _is_stuck(self) -> bool:
        return bool(self._no_donor or self._no_receiver)

    def _sweep(self, *, all_or_nothing: bool = False) -> bool:
        """Mend until only stuck pCPUs are left; tell whether any was mended after the first one.

        `all_or_nothing`: stop at the first that is stuck.
        """
        self._busiest = [(-self._level[cpu], cpu) for cpu in self._taking]
        self._freest = [(self._level[cpu], cpu) for cpu in self._taking]
        heapify(self._busiest)
        heapify(self._freest)
        self._no_donor.clear()
        self._no_receiver.clear()
        task, level = self._task, self._level
        late = False
        while not (all_or_nothing and self._is_stuck()):
            source, target = self._ends()
            if source < 0 or target < 0 or source == target:
                return late
            above = level[source] - task.high[source]
            below = task.low[target] - level[target]
            if above <= 0 and below <= 0:
                return late
            vcpu = self._best_fit(source, target, max(above, below, 1))
            if vcpu is not None and (
                not self._fit_gain_min
                or self._gain(source, target, task.loads[vcpu]) >= self._fit_gain_min
            ):
                self._move(vcpu, target)
            elif above > 0:
                if not self._lower(source, target, above):
                    self._no_donor.add(source)
                    continue
            elif below < self._gain_min or not self._supply(target):
                self._no_receiver.add(target)
                continue
            late = late or self._is_stuck()
        return late

    def _ends(self) -> tuple[int, int]:
        level, busiest, freest = self._level, self._busiest, self._freest
        while busiest and (
            -busiest[0][0] != level[busiest[0][1]]
            or busiest[0][1] in self._no_donor
            or self._has_nothing_to_give(busiest[0][1])
        ):
            heappop(busiest)
        while freest and (freest[0][0] != level[freest[0][1]] or freest[0][1] in self._no_receiver):
            heappop(freest)
        return (busiest[0][1] if busiest else -1), (freest[0][1] if freest else -1)

    def _has_nothing_to_give(self, cpu: int) -> bool:
        return cpu in self._helpless and self._level[cpu] <= self._task.high[cpu]

    def _may(self, vcpu: int, cpu: int) -> bool:
        return bool(self._task.may[vcpu] >> cpu & 1) or self._task.home[vcpu] == cpu

    def _best_fit(self, source: int, target: int, want: int) -> int | None:
        """Give the smallest vCPU that mends both ends, else the largest that harms neither."""
        task, own = self._task, self._own[source]
        here, there = self._level[source], self._level[target]
        most = min(here - task.low[source], task.high[target] - there, here - there - 1)
        above = bisect_right(own, (most, len(task.loads)))
        if not above:
            return None
        fits = bisect_left(own, (want, -1), 0, above)
        for position in (*range(fits, above), *range(fits - 1, -1, -1)):
            vcpu: int = own[position][1]
            if self._may(vcpu, target):
                return vcpu
        return None

    def _shape(self, source: int, target: int) -> tuple[int, int, int]:
        """Give how the gain of a move between two pCPUs depends on the load that is moved.

        Up to the first of these loads the gain rises, up to the second it stays at the third
        figure, and from there on it falls: it is how far the excesses of both become lower.
        """
        low, high = self._task.low, self._task.high
        here, there = self._level[source], self._level[target]
        # From each of these on, one more of the ends becomes worse instead of better.
        both, first, last, _ = sorted(
            (here - high[source], here - low[source], low[target] - there, high[target] - there)
        )
        return first, last, first + max(0, both)

    def _gain(self, source: int, target: int, size: int) -> int:
        """Give by how much moving so much load lowers the excesses; negative: raises."""
        low, high = self._task.low, self._task.high
        here, there = self._level[source], self._level[target]
        return (
            excess(here, low[source], high[source])
            + excess(there, low[target], high[target])
            - excess(here - size, low[source], high[source])
            - excess(there + size, low[target], high[target])
        )

    def _best_move(self, source: int, target: int, beats: int) -> tuple[int, int]:
        """Give the gain of the best move and its vCPU; -1 if none gains more than `beats`."""
        first, last, most = self._shape(source, target)
        best = -1
        if most <= beats:
            return beats, best
        own = self._own[source]
        # The source's load is not to be passed on.
        end = bisect_left(own, (self._level[source] - self._level[target], -1))
        middle = bisect_left(own, (first, -1), 0, end)
        for size, vcpu in own[middle:end]:
            if most - (size - last) <= beats:
                break
            if self._may(vcpu, target):
                gain = self._gain(source, target, size)
                if gain > beats:
                    beats, best = gain, vcpu
                break
        for size, vcpu in reversed(own[:middle]):
            if 2 * size <= beats:
                break
            if self._may(vcpu, target):
                gain = self._gain(source, target, size)
                if gain > beats:
                    beats, best = gain, vcpu
                break
        return beats, best

    def _lower(self, source: int, target: int, above: int) -> bool:
        """Make the best single move off a pCPU, else the best exchange, if one gains enough."""
        level = self._level
        lowest = min(level) if self._is_close else level[target]
        most = above + max(0, self._usual_low - lowest)
        if most < self._gain_min:
            return False
        takers = self._takers(source, target)
        if self._relieve(source, takers):
            return True
        return most >= 2 * self._gain_min and self._exchange(source, takers)

    def _relieve(self, source: int, takers: Iterable[int]) -> bool:
        gain, best = self._gain_min - 1, (-1, -1)
        left = [vcpu for _, vcpu in self._own[source]]
        for other in takers:
            gain, vcpu = self._best_move(source, other, gain)
            if vcpu >= 0:
                best = vcpu, other
            # To go where there is less room is no better.
            left = [vcpu for vcpu in left if not self._may(vcpu, other)]
            if not left and not self._is_close:
                break
        if best[0] >= 0:
            self._move(*best)
        return best[0] >= 0

    def _supply(self, target: int) -> bool:
        """Make the best single move to a pCPU that lacks load."""
        gain, best = self._gain_min - 1, -1
        for other in self._givers(target):
            if not self._has_nothing_to_give(other):
                gain, vcpu = self._best_move(other, target, gain)
                if vcpu >= 0:
                    best = vcpu
        if best >= 0:
            self._move(best, target)
        return best >= 0

    def _exchange(self, source: int, takers: Iterable[int]) -> bool:
        gain, best = 2 * self._gain_min - 1, (-1, -1, -1)
        for other in takers:
            gain, vcpu, returned = self._best_exchange(source, other, gain)
            if vcpu >= 0:
                best = vcpu, returned, other
        vcpu, returned, other = best
        if vcpu >= 0:
            self._move(vcpu, other)
            self._move(returned, source)
        return vcpu >= 0

    def _best_exchange(self, source: int, target: int, beats: int) -> tuple[int, int, int]:
        """Give the gain of the best exchange and its vCPUs; -1 if none gains more than `beats`."""
        first, last, most = self._shape(source, target)
        most_moved = min(last + most, self._level[source] - self._level[target] - 1)
        best = -1, -1
        theirs = self._own[target]
        largest = theirs[-1][0] if theirs else 0
        for size, vcpu in self._own[source]:
            if most <= beats or size - largest > most_moved:
                break
            if not self._may(vcpu, target):
                continue
            middle = bisect_left(theirs, (size - first + 1, -1))
            for members in (reversed(theirs[:middle]), theirs[middle:]):
                for back, returned in members:
                    more = size - back
                    if more > most_moved or 2 * more <= beats or most - (more - last) <= beats:
                        break
                    if self._may(returned, source):
                        gain = self._gain(source, target, more)
                        if gain > beats:
                            beats, best = gain, (vcpu, returned)
                        break
        return beats, *best

    def _givers(self, first: int) -> Iterable[int]:
        if self._is_close:
            return self._taking
        # The front of a heap is nearly sorted, and that is all that a large host needs.
        return dict.fromkeys([first, *(cpu for _, cpu in self._busiest[:GIVERS_MAX])])

    def _takers(self, source: int, first: int) -> Iterable[int]:
        """Give the pCPUs to try for one that has too much; if not all, the most room first."""
        if self._is_close:
            return self._taking
        reach = 0
        for _, vcpu in self._own[source]:
            reach |= self._task.may[vcpu]
        level = self._level
        able = (cpu for _, cpu in self._freest if reach >> cpu & 1)
        return sorted({first, *itertools.islice(able, TAKERS_MAX)}, key=level.__getitem__)

    def _move(self, vcpu: int, target: int) -> None:
        size, source = self._task.loads[vcpu], self._place[vcpu]
        own = self._own[source]
        own.pop(bisect_left(own, (size, vcpu)))
        insort(self._own[target], (size, vcpu))
        self._level[source] -= size
        self._level[target] += size
        self._place[vcpu] = target
        for cpu in (source, target):
            heappush(self._busiest, (-self._level[cpu], cpu))
            heappush(self._freest, (self._level[cpu], cpu))
