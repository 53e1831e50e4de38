"""Finds where the vCPUs of a host should be: balanced with the fewest moves, or as near as pays.

Rule: plain integers and lists; pure, deterministic, and limited in steps, never in seconds.

Problem: bring the busiest and the freest pCPU less than `span` apart with the fewest moves, none of
    which gains less than `min_gain`; where that is out of reach, come as near as moves that pay.
Approach: a host is balanced when all loads lie in one band (`frame`), so try bands. Small hosts are
    searched to the end. For larger ones a greedy answer is improved: by short searches with
    chance, and by searching small groups of pCPUs to the end, over and over.
Terms: the gain of a move (or of an exchange) is what leaving it out would add to the excess.
Algorithm: 1. Search for a balanced answer. 2. Where there is none: the greedy answer, or on a small
    host the closest one. 3. Take back what does not pay.
Properties: where the search of step 1 came to its end, no fewer moves balance the host. An answer
    has less excess than the host as found, by at least `min_gain` for each of its moves.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Final

from vcpusched.plan.fill import fill
from vcpusched.plan.frame import Frame, Problem, any_will_do, moved
from vcpusched.plan.gains import Answer, pays
from vcpusched.plan.groups import Groups
from vcpusched.plan.search import UNBOUNDED, Task, lower_bound, search

SMALL_CPUS_MAX: Final = 4
SMALL_VCPUS_MAX: Final = 16
"""A host up to here is searched to the end, where the steps allow it; nearly always they do."""

SMALL_STEPS: Final = 4
"""For so many times the steps a small host may be searched: enough for all of 424 random ones, of
which one was not searched to the end without."""

RESTART_STEPS: Final = 100
MENDED_MAX: Final = 4
UNREACHED_GAIN_PPM: Final = 5_000
"""Half a percentage point: where balance is out of reach no move that gains less is worth a pin,
however small `min_gain` is."""


def solve(problem: Problem) -> list[int]:
    """Give where each vCPU goes; most stay at home."""
    return _Solver(problem).solve()


class _Solver:
    """One problem being solved; `_steps` are the steps left."""

    def __init__(self, problem: Problem) -> None:
        self._frame = Frame(problem)
        if self._frame.is_large:
            # To ask takes as long as to fill, so who asks for a plan looks once, at the end.
            problem = replace(problem, accept=any_will_do)
        self._problem = problem
        self._is_small = (
            len(problem.judged) <= SMALL_CPUS_MAX and self._frame.movable <= SMALL_VCPUS_MAX
        )
        steps = problem.steps_max * (SMALL_STEPS if self._is_small else 1)
        # What filling a large host takes is taken off the search.
        self._steps = max(0, steps - self._frame.movable * 3 // 2)
        if problem.again and not self._is_small:
            self._steps = 0
        self._chance = random.Random(0)  # noqa: S311  the same every time is what is wanted

    def solve(self) -> list[int]:
        problem, frame = self._problem, self._frame
        home = list(problem.home)
        if not frame.movable or frame.excess_at_home < self._least(balanced=True):
            return home
        if frame.is_large:
            return self._solve_large()
        greedy = min(self._first_fillings.values(), key=self._key)
        # At rest this is all that a look costs: where nothing greedy pays, more seldom does.
        kept = self._kept(greedy)
        if not self._is_small and self._key(kept) >= self._key(home):
            return home
        balanced = self._reach()
        if balanced is not None and not problem.min_gain:
            return self._kept(balanced)
        answers = [self._with_fewer_moves(greedy)]
        if balanced is not None:
            answers.append(balanced)
        elif self._is_small:
            answers.append(self._closest())
        return min([home, *map(self._kept, answers)], key=self._key)

    def _solve_large(self) -> list[int]:
        """Fill to the band by which the host is judged; there is no time to try others."""
        begin = self._frame.best_begin(self._problem.start)
        filled = self._filled([begin])[begin]
        if filled == self._problem.home:
            return filled
        kept = self._kept(filled)
        return self._kept(self._fewer(kept, self._frame.whole)) if self._steps else kept

    def _least(self, *, balanced: bool) -> int:
        return max(self._problem.min_gain, 1 if balanced else UNREACHED_GAIN_PPM)

    def _kept(self, place: Sequence[int]) -> list[int]:
        answer = Answer(self._frame, place)
        balanced = not answer.outside
        kept = pays(answer, self._least(balanced=balanced))
        if self._problem.accept(kept):
            return kept
        # A move that gains nothing may be what makes room for the others.
        enough = balanced and self._least(balanced=True) == 1 and self._problem.accept(place)
        return list(place if enough else self._problem.home)

    def _key(self, place: Sequence[int]) -> tuple[int, int, int]:
        """Give what orders answers that are not balanced; the less the better."""
        levels, pins = self._frame.levels(place), len(moved(self._problem.home, place))
        judged = [levels[cpu] for cpu in self._problem.judged]
        outside, gap = self._frame.best_excess(levels), max(judged) - min(judged)
        if self._problem.min_gain:
            return outside + pins * self._problem.min_gain, gap, pins
        return gap, outside, pins

    def _spend(self, steps: int, cpus: int) -> None:
        # A step looks at every pCPU.
        self._steps -= steps * (1 + cpus // 16)

    # Balanced answers.

    def _reach(self) -> list[int] | None:
        """Search for a balanced answer with the fewest moves; None where none was found."""
        whole = self._frame.whole
        if not self._steps:
            return self._least_balanced()
        least = lower_bound(whole)
        if least is None:
            return None
        steps = self._steps if self._is_small else self._steps // 4
        for pins in range(least, self._frame.movable + 1):
            outcome = search(whole, pins, steps, accept=self._accepts)
            steps -= outcome.steps
            self._spend(outcome.steps, len(whole.start))
            if outcome.moves is not None:
                return self._with(outcome.moves)
            if not outcome.complete:
                return self._reach_by_chance(pins)
        return None

    def _reach_by_chance(self, least: int) -> list[int] | None:
        """Improve on the greedy answer, search after search, until the steps are used up.

        Fewer than `least` moves are known not to do.
        """
        tasks = [self._frame.task(first, last) for first, last in self._frame.slices]
        bounds = [_at_least(least, lower_bound(task)) for task in tasks]
        best = self._least_balanced() or self._mended()
        steps, rounds = RESTART_STEPS, 0
        # Any balanced answer at all is worth twice the search that fewer moves are worth.
        more = self._problem.steps_max
        while self._steps > (0 if best is not None else -more):
            rounds += 1
            if best is not None:
                pins = len(moved(self._problem.home, best)) - 1
            else:
                wider = max(2, self._frame.movable // 8) * rounds
                pins = min(self._frame.movable, least + wider)
            if min(bounds) > pins:
                break
            found = self._try_each(tasks, bounds, pins, steps, with_chance=rounds > 1)
            if found is None:
                steps = steps * 3 // 2
            else:
                best = found
            if best is not None:
                best = self._fewer(best, self._frame.whole, steps * 8)
        return best

    def _try_each(
        self, tasks: Sequence[Task], bounds: list[int], pins: int, steps: int, *, with_chance: bool
    ) -> list[int] | None:
        """Search each slice for a moment; raises `bounds` where there is no answer."""
        chance = self._chance.random if with_chance else None
        for index, task in enumerate(tasks):
            if bounds[index] <= pins:
                outcome = search(task, pins, steps, chance, self._accepts)
                self._spend(outcome.steps, len(task.start))
                if outcome.moves is not None:
                    return self._with(outcome.moves)
                if outcome.complete:
                    bounds[index] = pins + 1
        return None

    def _accepts(self, moves: Iterable[tuple[int, int]]) -> bool:
        return self._problem.accept(self._with(moves))

    def _with(self, moves: Iterable[tuple[int, int]]) -> list[int]:
        place = list(self._problem.home)
        for vcpu, cpu in moves:
            place[vcpu] = cpu
        return place

    def _least_balanced(self) -> list[int] | None:
        """Give the greedy answer with the fewest moves among those that are balanced."""
        balanced = [
            place
            for place in self._fillings.values()
            if not self._frame.best_excess(self._frame.levels(place))
            and self._problem.accept(place)
        ]
        return min(balanced, key=lambda place: len(moved(self._problem.home, place)), default=None)

    def _mended(self) -> list[int] | None:
        """Bring greedy answers within their bands, group by group; None where that fails."""
        order = sorted(
            self._fillings.items(),
            key=lambda filled: self._frame.best_excess(self._frame.levels(filled[1])),
        )
        for begin, place in order[:MENDED_MAX]:
            groups = Groups(self._problem, self._frame.task(begin, begin), place, self._chance)
            end = self._steps - self._problem.steps_max // 4
            while self._steps > end and groups.out_of_bounds:
                self._spend(groups.mend(), 0)
            if not groups.out_of_bounds and self._problem.accept(groups.place):
                return groups.place
        return None

    def _filled(self, begins: Sequence[int]) -> dict[int, list[int]]:
        frame, least = self._frame, self._least(balanced=False)
        # Where searches follow, a move that gains little may make room for others.
        to_end = self._least(balanced=True) if frame.is_large else None
        return {begin: fill(frame.task(begin, begin), frame.own, least, to_end) for begin in begins}

    @cached_property
    def _first_fillings(self) -> dict[int, list[int]]:
        """Greedy answers for every other band, by where it begins."""
        return self._filled(self._frame.middles[1::2] or self._frame.middles)

    @cached_property
    def _fillings(self) -> dict[int, list[int]]:
        """Greedy answers for all bands, if there are steps for them."""
        others = [begin for begin in self._frame.middles if begin not in self._first_fillings]
        if self._steps <= self._frame.movable * len(others) // 2:
            return self._first_fillings
        self._spend(self._frame.movable * len(others) // 4, 0)
        return self._first_fillings | self._filled(others)

    def _fewer(self, place: list[int], whole: Task, steps: int = UNBOUNDED) -> list[int]:
        if self._steps <= 0:
            return place
        groups = Groups(self._problem, whole, place, self._chance)
        end = max(0, self._steps - steps)
        while self._steps > end and groups.pins > 1:
            self._spend(groups.improve(), 0)
        return groups.place

    # Where balance is out of reach.

    def _with_fewer_moves(self, place: Sequence[int]) -> list[int]:
        frame = self._frame
        levels = frame.levels(place)
        begin = frame.best_begin(levels)
        # What is outside its bounds may stay so.
        task = frame.task(begin, begin)
        task = replace(
            task,
            low=[min(low, level) for low, level in zip(task.low, levels, strict=True)],
            high=[max(high, level) for high, level in zip(task.high, levels, strict=True)],
            tops=(),
            bottoms=(),
        )
        if not self._problem.again:
            self._steps = max(self._steps, self._problem.steps_max // 4)
        return self._fewer(list(place), task, self._problem.steps_max // 4)

    def _closest(self) -> list[int]:
        """Give the answer with the smallest gap, on a small host."""
        span, middle = self._problem.span, self._frame.last
        near, far = span, self._frame.gap(self._problem.start)
        best = list(self._problem.home)
        steps = self._problem.steps_max // 4
        while far - near > UNREACHED_GAIN_PPM and steps > 0:
            width = (near + far) // 2
            task = self._frame.task(max(0, middle - width + 1), middle, width)
            found = None
            least = lower_bound(task)
            for pins in range(least, self._frame.movable + 1) if least is not None else ():
                outcome = search(task, pins, max(1, steps // 2), accept=self._accepts)
                steps -= outcome.steps
                if outcome.moves is not None:
                    found = self._with(outcome.moves)
                if found is not None or not outcome.complete:
                    break
            if found is None:
                near = width
            else:
                best, far = found, self._frame.gap(self._frame.levels(found))
        return best


def _at_least(least: int, bound: int | None) -> int:
    return UNBOUNDED if bound is None else max(least, bound)
