"""Searches a few bins to the end: the cheapest moves that bring every load within its bounds.

Rule: pure; limited in steps. Changes the assignment that it is given, and only for the better.

Problem: of a group of bins, or of a small host, find the assignment of the lowest objective: load
    out of bounds, plus the prices of the moves, plus what the ends are too far apart.
Approach: branch and bound. The bin that is furthest out of bounds must lose an item, or gain one;
    where none is, but the ends are too far apart, the busiest must lose or the least loaded gain.
Algorithm: each move that helps is tried, the most promising first, and forbidden to the tries after
    it, also for its like: items of equal size, bin and mask are of one kind. A branch ends when
    what it has spent, plus the least that is left to pay, is no less than the best found.
Bound: each pin takes a loss off a bin with too much, and brings a gain to one that lacks. So n pins
    bring at most the n largest losses and gains, each cut to what its bin needs.
Properties: what no order leads to is no answer. Where the steps sufficed, nothing costs less.
"""

from collections.abc import Sequence
from itertools import zip_longest
from operator import itemgetter
from typing import Final

from vcpusched.plan.moves import in_order
from vcpusched.plan.objective import Assignment
from vcpusched.plan.problem import SCALE

UNBOUNDED: Final = 1 << 60
TRIES_PER_STEP, DEPTH_MAX = 64, 200
"""So many tries take as long as a step; for more moves at once Python's stack has no room."""


def improve(
    state: Assignment, group: Sequence[int], steps_max: int, *, balanced: bool
) -> tuple[int, bool]:
    """Search a group of bins for what costs less; return the steps it took, and if that was all.

    `balanced`: the ends of all bins must be less than the threshold apart.
    """
    search = _Search(state, group, steps_max, balanced=balanced)
    if search.best <= (search.least if balanced else 0):
        return 0, True  # of one pin there is nothing to save
    search.descend(0)
    return search.steps, search.steps <= search.steps_max


class _Search:
    """Loads of a group of bins as they are in one branch, and the lowest objective so far.

    Bins are to be between `low` and `high`; with `span`, the ends of all bins must be less than
    that apart, too, where `top` and `bottom` are the ends of the bins outside the group, and
    `bottoms` those of the group that count as a lower end.
    """

    def __init__(
        self, state: Assignment, group: Sequence[int], steps_max: int, *, balanced: bool
    ) -> None:
        problem = state.problem
        self.state, self.bins, self.least = state, group, problem.prices[1]
        self.total, self.level = state.total, list(state.level)
        self.low, self.high = list(state.low), [state.high] * len(self.level)
        self.span, self.top, self.bottom = UNBOUNDED, -1, UNBOUNDED
        self.bottoms = [bin_ for bin_ in group if bin_ not in problem.filled]
        if balanced:
            self.span = problem.span
            others = {bin_: self.level[bin_] for bin_ in problem.bins.judged if bin_ not in group}
            self.top = max(others.values(), default=self.top)
            for bin_ in problem.filled & others.keys():
                del others[bin_]
            self.bottom = min(others.values(), default=self.bottom)
            for bin_ in group:
                self.low[bin_] = max(self.low[bin_], self.top - self.span + 1)
                self.high[bin_] = min(self.high[bin_], self.bottom + self.span - 1)
        mask = sum(1 << bin_ for bin_ in group)
        self.items = sorted(
            one for bin_ in group for _, one in state.own[bin_] if mask >> problem.current[one] & 1
        )
        kinds: dict[tuple[int, int, int], int] = {}
        self.kind: dict[int, int] = {}
        self.own: dict[int, list[tuple[int, int]]] = {bin_: [] for bin_ in group}
        for item in sorted(self.items, key=lambda item: (-problem.size[item], item)):
            current, size = problem.current[item], problem.size[item]
            if feasible := problem.allowed[item] & mask & ~(1 << current):
                self.kind[item] = kinds.setdefault((current, size, feasible), len(kinds))
                self.own[current].append((size, item))
        self.open_to = [feasible for _, _, feasible in kinds]
        self.falling = sorted((size for own in self.own.values() for size, _ in own), reverse=True)
        self.price = {
            item: {bin_: problem.price(item, bin_) for bin_ in group} for item in self.items
        }
        self.best = SCALE * (self._bound()[0] + self._ends()[0])
        for item in self.items:
            bin_, current, size = state.place[item], problem.current[item], problem.size[item]
            self.level[bin_] -= size
            self.level[current] += size
            self.best += self.price[item][bin_]
        self.path: list[tuple[int, int]] = []
        self.steps, self.steps_max = len(self.items) // 2, len(self.items) // 2 + steps_max

    def _accept(self) -> bool:
        """Put the items where the search is, unless they meet or no order leads there."""
        state, problem, to = self.state, self.state.problem, dict(self.path)
        before, place = list(state.place), list(state.place)
        for item in self.items:
            place[item] = to.get(item, problem.current[item])
        self.steps += len(self.items) // 2  # it takes as long as these
        if in_order(problem, place) is None:
            return False
        for item in self.items:
            state.move(item, place[item])
        meets = problem.spread and not all(state.fits(item, bin_) for item, bin_ in to.items())
        if meets or (state.siblings and state.total > self.total):
            for item in self.items:
                state.move(item, before[item])
            return False
        return True

    def descend(self, spent: int) -> None:
        """Search from the loads as they are, and what lies beneath."""
        self.steps = self.steps_max + 1 if len(self.path) > DEPTH_MAX else self.steps + 1
        if self.steps > self.steps_max:
            return
        total, saving, donor, receiver = self._bound()
        if spent + total * SCALE - saving >= self.best:
            return
        apart, busiest, idlest = self._ends()
        now = spent + (total + apart) * SCALE
        if now < self.best and self._accept():
            self.best = now
        if donor >= 0:
            tries = self._tries((donor,), self.bins)
        elif receiver >= 0:
            tries = self._tries(self.bins, (receiver,))
        elif apart and spent + self.least < self.best:
            tries = self._tries((busiest,), self.bins) if busiest >= 0 else []
            if idlest >= 0:
                tries += self._tries([bin_ for bin_ in self.bins if bin_ != busiest], (idlest,))
        else:
            return
        self._attempt(tries, spent)

    def _attempt(self, tries: list[tuple[int, int, int, int, int]], spent: int) -> None:
        level, own, open_to, price = self.level, self.own, self.open_to, self.price
        forbidden: list[tuple[int, int]] = []
        self.steps += len(tries) // TRIES_PER_STEP
        for _, size, item, source, target in sorted(tries, key=itemgetter(0, 1, 2)):
            kind = self.kind[item]
            if self.steps > self.steps_max:
                break
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
        level, low, high = self.level, self.low, self.high
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
        losses.sort(reverse=True)
        gains.sort(reverse=True)
        saving = 0
        for loss, gain in zip_longest(losses, gains, fillvalue=0):
            more = (loss + gain) * SCALE - self.least
            if more <= 0:
                break
            saving += more
        # Where more pins are needed there is less choice.
        if receiver < 0 or (donor >= 0 and len(losses) >= len(gains)):
            return total, saving, donor, -1
        return total, saving, -1, receiver

    def _ends(self) -> tuple[int, int, int]:
        """Return by how much the ends are too far apart, and which they are; -1 for one outside."""
        level = self.level
        busiest = max(self.bins, key=level.__getitem__)
        idlest = min(self.bottoms, key=level.__getitem__, default=-1)
        lowest = min(level[idlest], self.bottom) if idlest >= 0 else self.bottom
        return (
            max(0, max(level[busiest], self.top) - lowest - self.span + 1),
            busiest if level[busiest] >= self.top else -1,
            idlest if idlest >= 0 and level[idlest] <= self.bottom else -1,
        )

    def _tries(
        self, sources: Sequence[int], targets: Sequence[int]
    ) -> list[tuple[int, int, int, int, int]]:
        """Return the moves between these as (cost, size, item, source, target)."""
        level, low, high, price = self.level, self.low, self.high, self.price
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
