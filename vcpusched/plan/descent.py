"""Improves an assignment step by step: relocate one item, exchange two, undo one.

Rule: pure; changes the assignment that it is given, and only so that its objective falls.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

from vcpusched.plan.moves import steps_between
from vcpusched.plan.objective import BESIDE, Assignment, Change
from vcpusched.plan.problem import SCALE

CLOSE, PARTNERS, EXCHANGED = 32, 4, 3
"""Of up to `CLOSE` bins all are tried as partners, of more the best few; fewer to exchange."""

SWEEPS: Final = 4
"""How often all bins are searched where there is time; most come to rest in two."""

NEAREST: Final = 4
"""To how many idle pCPUs the busy threads of a core are tried to part."""

MANY_MOVES: Final = 512
"""From here on there is no time to search for exchanges to take back."""


def descend(state: Assignment, bins: Sequence[int], *, all_or_nothing: bool = False) -> None:
    """Make the best changes off bins that have too much, then to those that lack, until none pays.

    Of those the busiest come first, of these the least loaded.
    `all_or_nothing`: give up at the first bin that cannot be helped.
    """
    level = state.level
    for _ in range(1 if state.hurry else SWEEPS):
        before, rank = state.total, _Rank(state, bins)
        for is_off in (True, False):
            for bin_ in sorted(bins, key=level.__getitem__, reverse=is_off):
                while (
                    rest := level[bin_] - state.high if is_off else state.low[bin_] - level[bin_]
                ) > 0:
                    gain, change = _step(state, bin_, rank, rest, is_off=is_off)
                    if not change:
                        break
                    rank.make(change, gain)
                if all_or_nothing and rest > 0:
                    return
        if state.total == before:
            break


def undo(state: Assignment) -> None:
    """Take back moves and exchanges that do not pay, the least useful first.

    What is left says whether balance is worth its pins. Of an exchange neither half can be taken
    back alone, so without that an exchange of equals would pass for worth it.
    """
    problem, changed = state.problem, set(state.problem.bins.judged)
    current = problem.current
    while changed:
        moved = problem.moved(state.place)
        backs: list[Change] = [(item, current[item]) for item in moved]
        if len(moved) <= MANY_MOVES:
            steps = steps_between(problem, state.place)
            backs += [(a, current[a], b, current[b]) for (a, _), *rest in steps for b, _ in rest]
        useless = sorted(
            (-gain, back)
            for back in backs
            if (back[1] in changed or state.place[back[0]] in changed)
            and (gain := state.gain(back)) > 0
        )
        changed = set()
        for _, back in useless:
            is_there = all(state.place[item] != current[item] for item in back[::2])
            if is_there and (gain := state.gain(back)) > 0:
                for bin_ in (back[1], state.place[back[0]]):
                    changed |= {bin_, *(state.siblings[bin_] if state.siblings else ())}
                state.make(back, gain)


def _step(
    state: Assignment, bin_: int, rank: "_Rank", rest: int, *, is_off: bool
) -> tuple[int, Change]:
    """Return the best move off a bin that has so much too much, or to one that lacks it.

    Where none pays, the best exchange, but to a bin that lacks only where bins are few.
    """
    own, siblings, low = state.own[bin_], state.siblings, state.low
    least = state.problem.prices[1] if state.is_brief else BESIDE
    most = rest * SCALE - least + (state.contention(bin_) if siblings else 0)
    # What makes a target busier than the source was is no gain; to part siblings, as busy will do.
    room = state.level[bin_] - (not siblings) - (own[0][0] if own else state.level[bin_])
    for best_of, count in (
        (state.best_relocation, rank.tried),
        (state.best_exchange, rank.exchanged if is_off or rank.is_close else 0),
    ):
        gain: int = 0
        best: Change = ()
        # The least loaded first, or else the busiest.
        for load, other in rank.order[:count] if is_off else rank.order[: -1 - count : -1]:
            beyond = low[other] - load if is_off else (load - state.high) * (1 + bool(siblings))
            if gain >= most + max(0, beyond) * SCALE or (is_off and load > room):
                break  # where there is less room it is no better
            if other != bin_:
                gain, found = best_of(*((bin_, other) if is_off else (other, bin_)), gain)
                best = found or best
        if best:
            return gain, best
        room = state.level[bin_] - (not siblings) - 1
    return 0, ()


def part(state: Assignment) -> None:
    """Part busy threads of a core while another core idles: the one that costs least to move."""
    problem, level, span = state.problem, state.level, state.problem.span
    least = max(1, problem.min_gain)

    def load(bin_: int) -> int:
        return level[bin_] + sum(level[other] for other in state.siblings[bin_])

    idle = [bin_ for bin_ in problem.bins.judged if load(bin_) < span]
    for core in sorted(problem.bins.judged, key=load, reverse=True):
        if not idle or problem.bins.second(level, core) < span or level[core] < span:
            continue
        steps = []
        for bin_ in (core, *state.siblings[core]):
            targets = sorted(idle, key=lambda target: problem.bins.distance(bin_, target))[:NEAREST]
            steps += [
                (
                    state.price(item, bin_, target),
                    -min(size, load(bin_) - load(target) - size),
                    item,
                    target,
                )
                for target in targets
                for size, item in state.own[bin_]
                if level[target] + size <= level[bin_] and state.fits(item, target)
            ]
        _, less, item, target = min(steps, default=(0, 0, 0, 0))
        if -less >= least:
            state.make((item, target), state.gain((item, target)))
            idle = [bin_ for bin_ in idle if load(bin_) < span]


class _Rank:
    """Bins by level, the least loaded first."""

    def __init__(self, state: Assignment, bins: Sequence[int]) -> None:
        self._state = state
        self.order = sorted((state.level[bin_], bin_) for bin_ in bins)
        self.is_close = len(self.order) <= CLOSE and not state.hurry
        # On a large host a choice of partners, and exchanges, are for what no cache can do alone.
        is_inner = state.hurry and len(bins) < len(state.problem.bins.judged)
        few = (1, 0) if is_inner else (PARTNERS, EXCHANGED)
        self.tried, self.exchanged = (CLOSE, CLOSE) if self.is_close else few

    def make(self, change: Change, gain: int) -> None:
        """Make a change that lowers the objective by so much."""
        state = self._state
        bins = (state.place[change[0]], change[1])
        for bin_ in bins:
            del self.order[bisect_left(self.order, (state.level[bin_], bin_))]
        state.make(change, gain)
        for bin_ in bins:
            insort(self.order, (state.level[bin_], bin_))
