"""Searches a few bins to the end: the cheapest moves that bring every load within its bounds.

Rule: pure; knows items and bins of one `Task`, and the limit of steps that it is given.

Problem: of a group of bins, or of a small host, find the assignment of the lowest objective: load
    out of bounds, plus the prices of the moves, plus what the ends are too far apart.
Approach: branch and bound. The bin that is furthest out of bounds must lose an item, or gain one;
    where none is out of bounds but the ends are too far apart, the busiest must lose or the least
    loaded must gain one.
Terms: losses are what leaving items can take off bins with too much, gains what items can bring to
    bins that lack. Items of equal size, home and mask are of one kind, and interchangeable.
Algorithm: each move that helps is tried, the most promising first, and forbidden to the tries after
    it, also for its like. A branch ends when what it has spent, plus the least that is left to pay,
    is no less than the best found.
Bound: each pin is one loss and one gain. So n pins bring at most the n largest losses and the n
    largest gains, each cut to what its bin needs.
Properties: deterministic; the last answer is the best one where the steps sufficed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from vcpusched.plan.problem import SCALE

UNBOUNDED: Final = 1 << 60

Moves = list[tuple[int, int]]
"""Items and the bins that they go to."""


@dataclass(frozen=True)
class Task:
    """Items and bins by position; `price` is what each item costs on each bin, 0 at home.

    Bins are to be between `low` and `high`; with `span`, the ends of all bins must be less than
    that apart, too, where `top` and `bottom` are the ends of the bins outside the group, and
    `bottoms` those of the group that count as a lower end.
    """

    size: Sequence[int]
    home: Sequence[int]
    feasible: Sequence[int]
    level: Sequence[int]
    low: Sequence[int]
    high: Sequence[int]
    price: Sequence[Sequence[int]]
    least: int
    span: int = UNBOUNDED
    top: int = -1
    bottom: int = UNBOUNDED
    bottoms: Sequence[int] = ()


class _OutOfStepsError(Exception):
    """The limit is reached."""


def search(
    task: Task, limit: int, steps_max: int, accept: Callable[[Moves], bool]
) -> tuple[int, bool]:
    """Hand `accept` moves of an ever lower objective, the first below the limit.

    What it refuses is none. Return the steps taken, and whether nothing better is left.
    """
    found = _Search(task, limit, steps_max, accept)
    try:
        found.descend(0)
    except _OutOfStepsError:
        return found.steps, False
    return found.steps, True


class _Search:
    """Loads as they are in one branch, and the lowest objective so far."""

    def __init__(
        self, task: Task, limit: int, steps_max: int, accept: Callable[[Moves], bool]
    ) -> None:
        self.task, self.best, self.steps_max, self.accept = task, limit, steps_max, accept
        self.steps = 0
        self.path: Moves = []
        self.level = list(task.level)
        self.bins = range(len(task.level))
        kinds: dict[tuple[int, int, int], int] = {}
        self.kind = [
            kinds.setdefault(key, len(kinds))
            for key in zip(task.home, task.size, task.feasible, strict=True)
        ]
        self.open_to = [mask for _, _, mask in kinds]
        self.own: list[Moves] = [[] for _ in self.bins]
        for item in sorted(range(len(task.size)), key=lambda item: (-task.size[item], item)):
            if task.feasible[item]:
                self.own[task.home[item]].append((task.size[item], item))
        self.falling = sorted((size for own in self.own for size, _ in own), reverse=True)

    def descend(self, spent: int) -> None:
        """Look at the loads as they are, and at what lies beneath."""
        self.steps += 1
        if self.steps > self.steps_max:
            raise _OutOfStepsError
        total, saving, donor, receiver = self._bound()
        if spent + total * SCALE - saving >= self.best:
            return
        apart, busiest, idlest = 0, -1, -1
        if self.task.span < UNBOUNDED:
            apart, busiest, idlest = self._ends()
        now = spent + (total + apart) * SCALE
        if now < self.best and self.accept(self.path):
            self.best = now
        if donor >= 0:
            tries = self._tries((donor,), self.bins)
        elif receiver >= 0:
            tries = self._tries(self.bins, (receiver,))
        elif apart and spent + self.task.least < self.best:
            tries = self._tries((busiest,), self.bins) if busiest >= 0 else []
            if idlest >= 0:
                tries += self._tries([bin_ for bin_ in self.bins if bin_ != busiest], (idlest,))
        else:
            return
        self._attempt(tries, spent)

    def _attempt(self, tries: list[tuple[int, int, int, int, int]], spent: int) -> None:
        level, own, open_to, price = self.level, self.own, self.open_to, self.task.price
        forbidden: list[tuple[int, int]] = []
        for _, size, item, source, target in sorted(tries):
            kind = self.kind[item]
            if not open_to[kind] >> target & 1:
                continue  # like one that was tried
            level[source] -= size
            level[target] += size
            at = own[source].index((size, item))
            del own[source][at]
            self.path.append((item, target))
            self.descend(spent + price[item][target])
            self.path.pop()
            own[source].insert(at, (size, item))
            level[source] += size
            level[target] -= size
            open_to[kind] &= ~(1 << target)
            forbidden.append((kind, target))
        for kind, target in forbidden:
            open_to[kind] |= 1 << target

    def _bound(self) -> tuple[int, int, int, int]:  # noqa: C901, PLR0912  called at every step
        """Return the load out of bounds, what pins can save of it, and where to branch."""
        level, low, high = self.level, self.task.low, self.task.high
        total = above = below = 0
        donor = receiver = -1
        losses: list[int] = []
        gains: list[int] = []
        for bin_ in self.bins:
            load = level[bin_]
            if load > high[bin_]:
                rest = load - high[bin_]
                total += rest
                if rest > above:
                    above, donor = rest, bin_
                for size, item in self.own[bin_]:
                    if self.open_to[self.kind[item]]:
                        losses.append(min(size, rest))
                        rest -= size
                        if rest <= 0:
                            break
            elif load < low[bin_]:
                rest = low[bin_] - load
                total += rest
                if rest > below:
                    below, receiver = rest, bin_
                for size in self.falling:
                    gains.append(min(size, rest))
                    rest -= size
                    if rest <= 0:
                        break
        if not total:
            return 0, 0, -1, -1
        losses.sort(reverse=True)
        gains.sort(reverse=True)
        saving = 0
        for loss, gain in zip_longest(losses, gains, fillvalue=0):
            more = (loss + gain) * SCALE - self.task.least
            if more <= 0:
                break
            saving += more
        # Where more pins are needed there is less choice.
        if receiver < 0 or (donor >= 0 and len(losses) >= len(gains)):
            return total, saving, donor, -1
        return total, saving, -1, receiver

    def _ends(self) -> tuple[int, int, int]:
        """Return by how much the ends are too far apart, and which they are; -1 for one outside."""
        level, task = self.level, self.task
        busiest = max(self.bins, key=level.__getitem__)
        idlest = min(task.bottoms, key=level.__getitem__, default=-1)
        lowest = min(level[idlest], task.bottom) if idlest >= 0 else task.bottom
        return (
            max(0, max(level[busiest], task.top) - lowest - task.span + 1),
            busiest if level[busiest] >= task.top else -1,
            idlest if idlest >= 0 and level[idlest] <= task.bottom else -1,
        )

    def _tries(
        self, sources: Sequence[int], targets: Sequence[int]
    ) -> list[tuple[int, int, int, int, int]]:
        """Return the moves between these as (cost, size, item, source, target)."""
        level, low, high, price = self.level, self.task.low, self.task.high, self.task.price
        tries = []
        for source in sources:
            load = level[source]
            most, least = high[source], low[source]
            before = load - most if load > most else max(0, least - load)
            for size, item in self.own[source]:
                mask = self.open_to[self.kind[item]]
                if not mask:
                    continue
                left = load - size
                here = (left - most if left > most else max(0, least - left)) - before
                for target in targets:
                    if mask >> target & 1:
                        to, much, few = level[target], high[target], low[target]
                        was = to - much if to > much else max(0, few - to)
                        to += size
                        becomes = to - much if to > much else max(0, few - to)
                        cost = (here + becomes - was) * SCALE + price[item][target]
                        tries.append((cost, size, item, source, target))
        return tries
