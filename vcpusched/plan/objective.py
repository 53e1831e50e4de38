"""What a placement costs, the less the better, and what one change does to that.

Rule: everything that is wanted of a plan is a part of one sum, and nothing is wanted beside it.

Problem: fewest pins, small gap, short ways, strong pCPUs, idle cores used: these pull in different
    directions, and a rule for each, one after the other, undoes what the others did.
Approach: one objective, in thousandths of a ppm of load:

    J = overload of bins                       load outside the tolerance band
      + half the overload of whole cores       of their second busiest threads: two busy siblings
      + for each item that moves, its price    `Problem.price`, that is:
            min_gain within a cache, 2.5 times to another cache, 4 times to another node
            + a little for each pin            fewest pins win
            + what a weaker pCPU cannot give
            + 2 points off its memory, 1 tie apart from its guest (at most two fifths of a pin)
      + a little for each two of one guest on one bin

Terms: the tolerance band is as wide as the threshold and the same for all bins, [low, high]; a host
    whose loads all lie in it is balanced. Where it lies best depends on the loads (`best_band`).
Algorithm: a change is judged by what it touches: two bins, their cores, one or two prices. Between
    two bins the gain, as a function of the load moved, rises, stays, and falls, so that the best
    item is found by bisection.
Properties: a change is made exactly when it brings more load into the band than its price.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from vcpusched.plan.problem import SCALE, Problem

BESIDE: Final = 40
"""What it costs to sit beside a vCPU of one's own guest: less than any pin."""

Change = tuple[int, ...]
"""An item and where it goes; with two more numbers, an item that comes back in exchange."""


def best_band(loads: Sequence[int], span: int) -> tuple[int, int]:
    """Return the load outside the band that suits these loads best, and where that band begins."""
    loads, width = sorted(loads), span - 1
    sums = list(accumulate(loads, initial=0))

    def outside(begin: int) -> tuple[int, int]:
        below, within = bisect_left(loads, begin), bisect_right(loads, begin + width)
        above = sums[-1] - sums[within] - (begin + width) * (len(loads) - within)
        return begin * below - sums[below] + above, begin

    # As a function of its beginning this is convex, and bends only at these places.
    bends = {*loads, *(max(0, load - width) for load in loads)}
    return min(map(outside, bends), default=(0, 0))


class Assignment:
    """Where items are; `level` and `own` follow each move, and so does `total`, the objective."""

    def __init__(
        self, problem: Problem, begin: int, place: Sequence[int] = (), *, hurry: bool = False
    ) -> None:
        self.problem, self.begin, self.hurry = problem, begin, hurry
        self.high = begin + problem.span - 1
        self.low = [begin] * len(problem.base)
        for bin_ in problem.filled:
            self.low[bin_] = -1  # floaters fill it
        self.place, self.level = list(problem.current), list(problem.base)
        self.own = [members.copy() for members in problem.own]
        self.guest = problem.guest
        self.there = Counter(zip(self.guest or (), problem.current, strict=False))
        self.siblings = problem.bins.siblings
        # In a hurry no item is taken to have moved, as nearly none has: each change costs a pin.
        self.is_brief = hurry and problem.bins.thread is None
        self.is_plain = problem.bins.sites is None and problem.bins.thread is None
        self.total = SCALE * self.overload
        self.total += sum(map(self.contention, problem.bins.firsts))
        for item in problem.moved(place):
            self.move(item, place[item])

    def reprice(self, problem: Problem) -> None:
        """Take the prices of pins of another problem."""
        for item in problem.moved(self.place):
            self.total += problem.price(item, self.place[item])
            self.total -= self.problem.price(item, self.place[item])
        self.problem = problem

    @property
    def overload(self) -> int:
        """The load outside the band."""
        return sum(map(self.outside, self.problem.bins.judged))

    def outside(self, bin_: int) -> int:
        """Return how far a bin is outside the band."""
        load = self.level[bin_]
        return max(load - self.high, self.low[bin_] - load, 0)

    def contention(self, bin_: int) -> int:
        """Return what the second busiest thread of a bin's core costs."""
        if self.level[bin_] <= self.begin and len(self.siblings[bin_]) < 2:  # noqa: PLR2004
            return 0
        second = self.problem.bins.second(self.level, bin_) - self.begin
        return SCALE * second // 2 if second > 0 else 0

    def shift(self, source: int, target: int, load: int) -> int:
        """Return by how much moving so much load lowers the objective, prices aside."""
        here, there, high = self.level[source], self.level[target], self.high
        least, low = self.low[source], self.low[target]
        gain = here - high if here > high else least - here if here < least else 0
        gain += there - high if there > high else low - there if there < low else 0
        here, there = here - load, there + load
        gain -= here - high if here > high else least - here if here < least else 0
        gain -= there - high if there > high else low - there if there < low else 0
        gain *= SCALE
        if self.siblings:
            one, other = self.siblings[source], self.siblings[target]
            if one or other:
                gain += self._parting(source, target, load, one, other)
        return gain

    def _parting(
        self, source: int, target: int, load: int, one: Sequence[int], other: Sequence[int]
    ) -> int:
        """Return by how much moving so much load lowers the cost of second threads."""
        level, begin, gain = self.level, self.begin, 0
        if len(one) < 2 and len(other) < 2 and target not in one:  # noqa: PLR2004  as it mostly is
            if one and (sibling := level[one[0]]) > begin and (here := level[source]) > begin:
                gain += min(here, sibling) - max(begin, min(here - load, sibling))
            if other and (sibling := level[other[0]]) > begin:
                there = level[target]
                if there + load > begin:
                    gain -= min(there + load, sibling) - max(begin, min(there, sibling))
            return gain * SCALE // 2
        ends = (source,) if target in one else (source, target)
        gain = sum(map(self.contention, ends))
        level[source] -= load
        level[target] += load
        gain -= sum(map(self.contention, ends))
        level[source] += load
        level[target] -= load
        return gain

    def fits(self, item: int, bin_: int) -> bool:
        """Return whether an item may be on a bin now."""
        problem = self.problem
        if problem.current[item] == bin_:
            return True
        if not problem.allowed[item] >> bin_ & 1:
            return False
        if problem.surplus and (source := self.place[item]) == problem.current[item]:
            gone = len(problem.own[source]) - len(self.own[source])
            if gone >= problem.surplus[source]:
                return False  # nobody waits there any more
        if not problem.spread or self.guest is None:
            return True
        core = problem.bins.cores[bin_]
        return not any(
            core >> where & 1
            for other in problem.spread.get(self.guest[item], ())
            if other != item
            for where in (self.place[other], problem.origin[other])
            if where >= 0
        )

    def price(self, item: int, source: int, target: int) -> int:
        """Return how much more an item costs on one bin than on the other, balance aside."""
        problem = self.problem
        if self.is_plain:
            current, pin = problem.current[item], problem.prices[1]
            more = (pin if target != current else 0) - (pin if source != current else 0)
        else:
            more = problem.price(item, target) - problem.price(item, source)
        if self.guest is not None:
            guest = self.guest[item]
            more += BESIDE * ((self.there[guest, target] > 0) - (self.there[guest, source] > 1))
        return more

    def gain(self, change: Change) -> int:
        """Return by how much a change lowers the objective; each item goes from where it is."""
        item, target = change[:2]
        source, load = self.place[item], self.problem.size[item]
        price = self.price(item, source, target)
        if len(change) > 2:  # noqa: PLR2004  an exchange
            load -= self.problem.size[change[2]]
            price += self.price(change[2], target, source)
        return self.shift(source, target, load) - price

    def move(self, item: int, target: int) -> None:
        """Move an item."""
        if self.place[item] != target:
            self.make((item, target), self.gain((item, target)))

    def make(self, change: Change, gain: int) -> None:
        """Make a change that lowers the objective by so much."""
        self.total -= gain
        for at in range(0, len(change), 2):
            item, target = change[at], change[at + 1]
            source, size = self.place[item], self.problem.size[item]
            member, own = (size, item), self.own[source]
            del own[bisect_left(own, member)]
            insort(self.own[target], member)
            self.level[source] -= size
            self.level[target] += size
            self.place[item] = target
            if self.guest is not None:
                guest = self.guest[item]
                self.there[guest, source] -= 1
                self.there[guest, target] += 1

    def _plateau(self, source: int, target: int) -> tuple[int, int, int]:
        """Return from which to which load the gain is highest, and how high that is at most."""
        here, there, high = self.level[source], self.level[target], self.high
        over, spare = here - high, here - self.low[source]
        lacks, room = self.low[target] - there, high - there
        # Each of these ends one of the four slopes that make up the gain.
        less, first = (over, lacks) if over < lacks else (lacks, over)
        second = min(room, spare)
        rise, fall = (first, second) if first < second else (second, first)
        most = rise + less if less > 0 else rise
        most = SCALE * most if most > 0 else 0
        if self.siblings and self.siblings[source]:
            most += self.contention(source)
        if self.is_brief:
            most -= self.problem.prices[self.problem.bins.distance(source, target)]
        return rise, fall, most

    def best_relocation(self, source: int, target: int, beats: int) -> tuple[int, Change]:
        """Return the best move between two bins that gains more than `beats`."""
        best: Change = ()
        rise, _, most = self._plateau(source, target)
        if most <= beats:
            return beats, best
        own = self.own[source]
        # What makes the target as busy as the source was is no gain, but to part two siblings.
        end = bisect_left(own, (self.level[source] - self.level[target] + bool(self.siblings), -1))
        middle = bisect_left(own, (rise, -1), 0, end)
        for members in (own[middle:end], own[:middle][::-1]):
            for size, item in members:
                if self.fits(item, target):
                    gain = self.shift(source, target, size) - self.price(item, source, target)
                    if gain > beats:
                        beats, best = gain, (item, target)
                    break
        return beats, best

    def best_exchange(self, source: int, target: int, beats: int) -> tuple[int, Change]:
        """Return the best exchange between two bins that gains more than `beats`."""
        best: Change = ()
        rise, fall, most = self._plateau(source, target)
        theirs = self.own[target]
        if most <= beats or not theirs:
            return beats, best
        widest = min(fall + most // SCALE, self.level[source] - self.level[target] - 1)
        largest, least = theirs[-1][0], max(1, beats // (2 * SCALE))
        own = self.own[source]
        for size, item in own[bisect_left(own, (least, -1)) :]:
            if size - largest > widest:
                break
            if not self.fits(item, target):
                continue
            middle = bisect_left(theirs, (size - rise + 1, -1))
            for members in (reversed(theirs[:middle]), theirs[middle:]):
                for back, other in members:
                    load = size - back
                    if load > widest or load < least:
                        break
                    if self.fits(other, source):
                        gain = self.shift(source, target, load)
                        gain -= self.price(item, source, target)
                        gain -= self.price(other, target, source)
                        if gain > beats:
                            beats, best = gain, (item, target, other, source)
                        break
        return beats, best
