"""Evens out loads greedily: a good first answer for any host, quickly.

Rule: plain integers and lists; pure, and deterministic for equal input.

Problem: bring every pCPU between its `low` and `high`, or as near as single moves and exchanges
    can.
Approach: move from the busiest pCPU to the freest the vCPU that mends both, else the largest that
    does no harm; where no move from the busiest or to the freest helps, exchange two vCPUs or leave
    that pCPU aside, and look at it again when all others are done.
Terms: the excess of a pCPU is how far its load is out of its bounds.
Properties: every step lowers the sum of the excesses, and never raises a pCPU to the load that the
    source had, so neither the largest load grows nor the smallest shrinks.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Final

from vcpusched.frame import excess
from vcpusched.search import UNBOUNDED, Task

CLOSE_LOOK_MAX: Final = 24
"""Up to this many pCPUs all are tried as partners of one that is stuck; else some that promise."""

PARTNERS_MAX: Final = 6
SIZES_MAX: Final = 6
SWEEPS_MAX: Final = 4

Own = Sequence[Sequence[tuple[int, int]]]
"""The movable vCPUs of each pCPU as (load, vCPU), rising."""


def fill(task: Task, own: Own, gain_min: int) -> list[int]:
    """Give where each vCPU goes.

    A vCPU that is moved off a stuck pCPU, or to one, must gain at least `gain_min`.
    """
    return _Filling(task, own, gain_min).run()


class _Filling:
    """The work under way: `_level`, `_place` and `_own` change with each move."""

    def __init__(self, task: Task, own: Own, gain_min: int) -> None:
        self._task = task
        self._gain_min = gain_min
        self._level = list(task.start)
        self._place = list(task.home)
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
            self._busiest = [(-self._level[cpu], cpu) for cpu in self._taking]
            self._freest = [(self._level[cpu], cpu) for cpu in self._taking]
            heapify(self._busiest)
            heapify(self._freest)
            self._no_donor.clear()
            self._no_receiver.clear()
            mended_stuck = self._sweep()
            # Whatever was left aside was looked at on the way; only later moves can help it.
            if not mended_stuck or not (self._no_donor or self._no_receiver):
                break
        return self._place

    def _sweep(self) -> bool:
        """Mend until only stuck pCPUs are left; tell whether any was mended after the first one."""
        task, level = self._task, self._level
        late = False
        while True:
            source, target = self._ends()
            if source < 0 or target < 0 or source == target:
                return late
            above = level[source] - task.high[source]
            below = task.low[target] - level[target]
            if above <= 0 and below <= 0:
                return late
            vcpu = self._best_fit(source, target, max(above, below, 1))
            if vcpu is not None:
                self._move(vcpu, target)
            elif above > 0:
                if not (self._relieve(source, target) or self._exchange(source)):
                    self._no_donor.add(source)
                    continue
            elif not self._supply(target):
                self._no_receiver.add(target)
                continue
            late = late or bool(self._no_donor or self._no_receiver)

    def _ends(self) -> tuple[int, int]:
        """Give the busiest and the freest pCPU that are not aside; -1 where there is none."""
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

    def _gain(self, source: int, target: int, size: int) -> int:
        """Give by how much moving so much load lowers the excesses; negative: raises."""
        low, high = self._task.low, self._task.high
        here, there = self._level[source], self._level[target]
        if there + size >= here:
            return -1
        return (
            excess(here, low[source], high[source])
            + excess(there, low[target], high[target])
            - excess(here - size, low[source], high[source])
            - excess(there + size, low[target], high[target])
        )

    def _relieve(self, source: int, target: int) -> bool:
        """Make the best single move off a pCPU."""
        here = self._level[source]
        options = [
            (self._gain(source, other, size), -size, vcpu, other)
            for other in self._partners(target, self._freest)
            for size, vcpu in self._own[source]
            if self._level[other] + size < here and self._may(vcpu, other)
        ]
        gain, _, vcpu, other = max(options, default=(0, 0, -1, -1))
        if gain < self._gain_min:
            return False
        self._move(vcpu, other)
        return True

    def _supply(self, target: int) -> bool:
        """Make the best single move to a pCPU that lacks load."""
        options = [
            (self._gain(other, target, size), -size, vcpu)
            for other in self._partners(target, self._busiest)
            if not self._has_nothing_to_give(other)
            for size, vcpu in self._own[other]
            if self._may(vcpu, target)
        ]
        gain, _, vcpu = max(options, default=(0, 0, -1))
        if gain < self._gain_min:
            return False
        self._move(vcpu, target)
        return True

    def _exchange(self, source: int) -> bool:
        """Make the best exchange of a vCPU with a smaller one elsewhere."""
        options = []
        for size, vcpu in self._own[source]:
            for back, returned in self._smaller(source, size):
                other = self._place[returned]
                if other != source and self._may(vcpu, other) and self._may(returned, source):
                    gain = self._gain(source, other, size - back)
                    options.append((gain, -size, vcpu, returned, other))
        gain, _, vcpu, returned, other = max(options, default=(0, 0, -1, -1, -1))
        if gain < 2 * self._gain_min:
            return False
        self._move(vcpu, other)
        self._move(returned, source)
        return True

    def _smaller(self, source: int, size: int) -> Iterable[tuple[int, int]]:
        """Give vCPUs for which one of this size might be exchanged."""
        if len(self._level) <= CLOSE_LOOK_MAX:
            return self._by_size[: bisect_left(self._by_size, (size, -1))]
        # Those that leave the source just within its bounds, and those where there is most room.
        end = bisect_right(
            self._by_size, (size - self._level[source] + self._task.high[source], UNBOUNDED)
        )
        near = self._by_size[max(0, end - SIZES_MAX) : end]
        return near + [
            member
            for _, cpu in self._freest[:PARTNERS_MAX]
            for member in self._own[cpu]
            if member[0] < size
        ]

    @cached_property
    def _by_size(self) -> list[tuple[int, int]]:
        return sorted(member for members in self._own for member in members)

    def _partners(self, first: int, heap: Sequence[tuple[int, int]]) -> Iterable[int]:
        if len(self._level) <= CLOSE_LOOK_MAX:
            return self._taking
        # The front of a heap is nearly sorted, and that is all that a large host needs.
        return dict.fromkeys([first, *(cpu for _, cpu in heap[:PARTNERS_MAX])])

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
