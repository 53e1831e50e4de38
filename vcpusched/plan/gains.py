"""What each move of an answer gains, and an answer without those that gain too little.

Rule: plain integers and lists, by position; pure, and deterministic for equal input.

Terms: the gain of a move (or of an exchange) is what leaving it out would add to the excess, the
load outside the band that suits best.
"""

import operator
from collections.abc import Sequence

from vcpusched.plan.frame import Frame, moved, total_excess


def exchanges(home: Sequence[int], place: Sequence[int]) -> list[tuple[int, ...]]:
    """Give the pairs of moved vCPUs that change places with each other."""
    waiting: dict[tuple[int, int], list[int]] = {}
    pairs: list[tuple[int, ...]] = []
    for vcpu in moved(home, place):
        partners = waiting.get((place[vcpu], home[vcpu]))
        if partners:
            pairs.append((partners.pop(0), vcpu))
        else:
            waiting.setdefault((home[vcpu], place[vcpu]), []).append(vcpu)
    return pairs


class Answer:
    """An answer from which moves are being taken back: its `place`, and its excess in each band."""

    def __init__(self, frame: Frame, place: Sequence[int]) -> None:
        self.home = frame.problem.home
        self.place = list(place)
        self._loads = frame.problem.loads
        self._excess_at_home = frame.excess_at_home
        self._levels = frame.levels(place)
        self._bounds = [frame.bounds(begin) for begin in frame.begins(self._levels)]
        self._outside = [total_excess(self._levels, low, high) for low, high in self._bounds]
        # What is known of a step stays true until one of its pCPUs changes.
        self._changes = [0] * len(self._levels)
        self._known: dict[tuple[int, ...], tuple[int, list[int]]] = {}

    @property
    def outside(self) -> int:
        """The load outside the band that suits best."""
        return min(self._outside, default=0)

    @property
    def gained(self) -> int:
        """By how much the excess is less than with every vCPU at home."""
        return self._excess_at_home - self.outside

    @property
    def pins(self) -> int:
        """How many vCPUs are not at home."""
        return len(moved(self.home, self.place))

    def has(self, step: Sequence[int]) -> bool:
        """Tell whether all of these vCPUs are not at home."""
        return all(self.place[vcpu] != self.home[vcpu] for vcpu in step)

    def steps(self) -> list[tuple[int, ...]]:
        """Give every move, and every exchange."""
        home, place = self.home, self.place
        return [(vcpu,) for vcpu in moved(home, place)] + exchanges(home, place)

    def gain(self, step: tuple[int, ...]) -> int:
        """Give by how much the excess would grow without these moves."""
        then: int = min(map(operator.add, self._outside, self._more_without(step)))
        return then - self.outside

    def take_back(self, step: tuple[int, ...]) -> None:
        """Send these vCPUs home."""
        self._outside = list(map(operator.add, self._outside, self._more_without(step)))
        source, target, size = self._flow(step)
        for cpu, more in ((source, size), (target, -size)):
            self._levels[cpu] += more
            self._changes[cpu] += 1
        for vcpu in step:
            self.place[vcpu] = self.home[vcpu]

    def _flow(self, step: Sequence[int]) -> tuple[int, int, int]:
        """Give between which pCPUs a step moves how much load: less than 0, the other way."""
        first = step[0]
        size = self._loads[first]
        if len(step) > 1:
            size -= self._loads[step[1]]
        return self.home[first], self.place[first], size

    def _more_without(self, step: tuple[int, ...]) -> list[int]:
        source, target, size = self._flow(step)
        changes = self._changes[source] + self._changes[target]
        known = self._known.get(step)
        if known is not None and known[0] == changes:
            return known[1]
        here, there = self._levels[source], self._levels[target]
        ends = (source, here, here + size), (target, there, there - size)
        result = []
        # For large hosts most of the time goes here, and calls would take most of that.
        for low, high in self._bounds:
            more = 0
            for cpu, now, then in ends:
                least, most = low[cpu], high[cpu]
                if then > most:
                    more += then - most
                elif then < least:
                    more += least - then
                if now > most:
                    more -= now - most
                elif now < least:
                    more -= least - now
            result.append(more)
        self._known[step] = changes, result
        return result


def pays(answer: Answer, gain_min: int) -> list[int]:
    """Give an answer without the moves and exchanges that gain less than `gain_min` a move.

    The least useful are taken back first; all of them where together they do not gain enough.
    """
    while useless := [
        (gain // len(step), step)
        for step in answer.steps()
        if (gain := answer.gain(step)) < gain_min * len(step)
    ]:
        for _, step in sorted(useless):
            # What was taken back before may have made this one useful.
            if answer.has(step) and answer.gain(step) < gain_min * len(step):
                answer.take_back(step)
    enough = answer.gained >= gain_min * answer.pins
    return answer.place if enough else list(answer.home)
