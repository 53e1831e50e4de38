"""Improves an answer group by group: a few pCPUs at a time, searched to the end.

Rule: plain integers and lists, by position; pure, and deterministic for equal input.
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from vcpusched.plan.frame import Problem, moved
from vcpusched.plan.search import UNBOUNDED, Task, search

GROUP_STEPS: Final = 200
GROUP_CPUS: Final = range(4, 9)
MENDING_MOVES: Final = 3
"""Chosen by measurement on random hosts of up to 64 vCPUs on 16 pCPUs with a proven optimum."""


class Groups:
    """An answer, `place`, that is being improved.

    What is kept of `whole` is its bounds and its span: the answer keeps to them, as it did before.
    """

    def __init__(
        self, problem: Problem, whole: Task, place: Sequence[int], chance: random.Random
    ) -> None:
        self._problem = problem
        self._whole = whole
        self.place = list(problem.home)
        self._chance = chance
        self._levels = list(problem.start)
        self._here: list[set[int]] = [set() for _ in problem.start]
        self._moved: set[int] = set()
        # Between which pCPUs vCPUs were moved at first: that is where groups are found.
        self._near: list[list[int]] = [[] for _ in problem.start]
        for vcpu in itertools.compress(range(len(place)), problem.may):
            self._here[problem.home[vcpu]].add(vcpu)
        self._first_moved = moved(problem.home, place)
        for vcpu in self._first_moved:
            home, cpu = problem.home[vcpu], place[vcpu]
            self._put(vcpu, cpu)
            self._near[home].append(cpu)
            self._near[cpu].append(home)
        self._tops_set, self._bottoms_set = set(whole.tops), set(whole.bottoms)
        self._order()

    @property
    def pins(self) -> int:
        """How many vCPUs are not at home."""
        return len(self._moved)

    @property
    def out_of_bounds(self) -> list[int]:
        """The pCPUs whose load is not within its bounds."""
        whole = self._whole
        return [
            cpu
            for cpu in self._problem.judged
            if not whole.low[cpu] <= self._levels[cpu] <= whole.high[cpu]
        ]

    def mend(self) -> int:
        """Bring one that is out of bounds, and its group, within; gives the steps that took."""
        outside = self.out_of_bounds
        first = outside[int(self._chance.random() * len(outside))]
        task, vcpus, pins = self._part(group := self._choose([first]))
        task = replace(task, outside=(-1, UNBOUNDED))
        return self._search(task, group, vcpus, pins + MENDING_MOVES)

    def improve(self) -> int:
        """Search one group for one move less; gives the steps that took."""
        first = self._first_moved[int(self._chance.random() * len(self._first_moved))]
        group = self._choose(dict.fromkeys((self._problem.home[first], self.place[first])))
        task, vcpus, pins = self._part(group)
        # With one move there is nothing to save.
        return self._search(task, group, vcpus, pins - 1) if pins > 1 else 10

    def _search(self, task: Task, group: Sequence[int], vcpus: Sequence[int], pins: int) -> int:
        outcome = search(task, pins, GROUP_STEPS, self._chance.random)
        if outcome.moves is not None:
            before = [self.place[vcpu] for vcpu in vcpus]
            targets = dict(outcome.moves)
            for position, vcpu in enumerate(vcpus):
                target = targets.get(position)
                self._put(vcpu, self._problem.home[vcpu] if target is None else group[target])
            if not self._problem.accept(self.place):
                for vcpu, cpu in zip(vcpus, before, strict=True):
                    self._put(vcpu, cpu)
            self._order()
        return 10 + len(vcpus) // 2 + outcome.steps  # what setting up costs, and the search

    def _order(self) -> None:
        """Sort the pCPUs by load, so that the ends outside a group are found at once."""
        self._tops = sorted(self._whole.tops, key=lambda cpu: -self._levels[cpu])
        self._bottoms = sorted(self._whole.bottoms, key=lambda cpu: self._levels[cpu])

    def _put(self, vcpu: int, cpu: int) -> None:
        before, home = self.place[vcpu], self._problem.home[vcpu]
        if before == cpu:
            return
        self._here[before].discard(vcpu)
        self._here[cpu].add(vcpu)
        self._levels[before] -= self._problem.loads[vcpu]
        self._levels[cpu] += self._problem.loads[vcpu]
        self.place[vcpu] = cpu
        if cpu == home:
            self._moved.discard(vcpu)
        else:
            self._moved.add(vcpu)

    def _choose(self, first: Iterable[int]) -> list[int]:
        judged, draw = self._problem.judged, self._chance.random
        size = min(len(judged), GROUP_CPUS[int(draw() * len(GROUP_CPUS))])
        group = list(first)
        while len(group) < size:
            near = self._near[group[int(draw() * len(group))]]
            others = near if near and draw() < 2 / 3 else judged
            cpu = others[int(draw() * len(others))]
            if cpu not in group:
                group.append(cpu)
        return group

    def _part(self, group: Sequence[int]) -> tuple[Task, list[int], int]:
        problem, whole = self._problem, self._whole
        inside = {cpu: position for position, cpu in enumerate(group)}
        start = [self._levels[cpu] for cpu in group]
        vcpus = sorted(
            vcpu for cpu in group for vcpu in self._here[cpu] if problem.home[vcpu] in inside
        )
        pins = 0
        for vcpu in vcpus:
            home, cpu = problem.home[vcpu], self.place[vcpu]
            if home != cpu:
                pins += 1
                start[inside[cpu]] -= problem.loads[vcpu]
                start[inside[home]] += problem.loads[vcpu]
        top = next((self._levels[cpu] for cpu in self._tops if cpu not in inside), -1)
        bottom = next((self._levels[cpu] for cpu in self._bottoms if cpu not in inside), UNBOUNDED)
        # The others must stay within one band with the group.
        least, most = top - whole.span + 1, bottom + whole.span - 1
        tops = [position for position, cpu in enumerate(group) if cpu in self._tops_set]
        bottoms = [position for position, cpu in enumerate(group) if cpu in self._bottoms_set]
        low = [whole.low[cpu] for cpu in group]
        high = [whole.high[cpu] for cpu in group]
        for position in bottoms:
            low[position] = max(low[position], least)
        for position in tops:
            high[position] = min(high[position], most)
        task = Task(
            loads=[problem.loads[vcpu] for vcpu in vcpus],
            home=[inside[problem.home[vcpu]] for vcpu in vcpus],
            may=[
                sum(
                    1 << position
                    for position, cpu in enumerate(group)
                    if problem.may[vcpu] >> cpu & 1
                )
                for vcpu in vcpus
            ],
            start=start,
            low=low,
            high=high,
            span=whole.span,
            tops=tops,
            bottoms=bottoms,
            outside=(top, bottom),
        )
        return task, vcpus, pins
