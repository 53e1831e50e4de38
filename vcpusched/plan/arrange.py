"""Arranges an answer for carrying it out: which of equally good vCPUs go, and in which order.

Rule: pure; changes nothing about how well the host is balanced.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from vcpusched.plan.board import Board, Places
from vcpusched.plan.frame import moved
from vcpusched.plan.gains import exchanges

Step = tuple[int, ...]
"""One vCPU to move, or two that change places, by position on the board."""


def keep_apart(board: Board, place: Sequence[int], span: int) -> Sequence[int]:
    """Give as good places at which no vCPU joins another one of its guest, as far as there are.

    `span` is the threshold: in a balanced answer any loads will do that stay within it.
    """
    movers = moved(board.home, place)
    crowd = Counter(vcpu.id.uuid for vcpu in board.vcpus)
    if all(crowd[board.vcpus[vcpu].id.uuid] == 1 for vcpu in movers):
        return place
    return _Separation(board, Places(board, place, span)).run(movers)


class _Separation:
    """Places being changed, one vCPU after another."""

    def __init__(self, board: Board, places: Places) -> None:
        self._board, self._places = board, places

    def run(self, movers: Sequence[int]) -> list[int]:
        places, home = self._places, self._board.home
        for vcpu in movers:
            target = places.of[vcpu]
            if places.guests[self._board.vcpus[vcpu].id.uuid, target] > 1:
                other = self._another_target(vcpu)
                if other is not None:
                    places.put(vcpu, other)
                elif (instead := self._another_vcpu(vcpu)) is not None:
                    places.put(vcpu, home[vcpu])
                    places.put(instead, target)
        return places.of

    def _another_target(self, vcpu: int) -> int | None:
        board, size, target = self._board, self._board.loads[vcpu], self._places.of[vcpu]
        for other in board.judged:
            if (
                board.allowed[vcpu] >> other & 1
                and not self._places.joins(vcpu, other)
                and self._is_as_good({target: -size, other: size})
            ):
                return other
        return None

    def _another_vcpu(self, vcpu: int) -> int | None:
        board, home, target = self._board, self._board.home[vcpu], self._places.of[vcpu]
        for instead, cpu in enumerate(self._places.of):
            if cpu == home == board.home[instead] and board.allowed[instead] >> target & 1:
                change = board.loads[instead] - board.loads[vcpu]
                if not self._places.joins(instead, target) and self._is_as_good(
                    {home: -change, target: change}
                ):
                    return instead
        return None

    def _is_as_good(self, changes: Mapping[int, int]) -> bool:
        places = self._places
        now = sorted(places.levels[cpu] for cpu in changes)
        then = sorted(places.levels[cpu] + change for cpu, change in changes.items())
        if then == now:
            return True
        return places.is_balanced and places.least <= then[0] and then[-1] <= places.most


def in_order(board: Board, place: Sequence[int]) -> list[Step]:
    """Give the steps in an order in which none makes the busiest pCPU busier.

    The busiest pCPUs are relieved first. Where no such order is found, steps may raise the peak
    again, but not above what it was at first; where none like that is found either, there are no
    steps.
    """
    undoing = _Undoing(board, place)
    steps = undoing.run()
    return [] if undoing.stuck else steps


def as_far_as_ordered(board: Board, place: Sequence[int]) -> tuple[Sequence[int], list[Step]]:
    """Give the places without the steps for which no order is found, and the others in order."""
    while True:
        undoing = _Undoing(board, place)
        steps = undoing.run()
        if not undoing.stuck:
            return place, steps
        place = list(place)
        for vcpu in undoing.stuck:
            place[vcpu] = board.home[vcpu]


_Entry = tuple[int, int, Step, int, int, int]
"""A step to undo: the load that this makes of its source, what decides among equals, the step, its
source and target, and by how much it changes their loads."""


class _Undoing:
    """Finds the order from its end: undo, one by one, the step whose source is raised the least.

    Going back, the peak must never fall, and a pCPU may not be raised above the first peak. `stuck`
    are the vCPUs whose steps this leaves no way for.
    """

    def __init__(self, board: Board, place: Sequence[int]) -> None:
        self._board, self._place = board, place
        self.stuck: list[int] = []
        self._levels = board.at(place)
        first = board.levels(board.base)
        self._first_peak = max((first[cpu] for cpu in board.judged), default=0)
        self._peaks = [(-self._levels[cpu], cpu) for cpu in board.judged]
        heapify(self._peaks)

    def run(self) -> list[Step]:
        levels, peaks = self._levels, self._peaks
        heap = self._entries()
        undone: list[Step] = []
        full: dict[int, list[_Entry]] = {}  # wait until this pCPU is lowered
        held: dict[int, list[_Entry]] = {}  # wait until this pCPU is raised, or the peak is another
        while heap or held:
            forced = not heap
            entry = heappop(heap) if heap else held[next(iter(held))].pop(0)
            key, tie, step, source, target, more = entry
            raised = levels[source] + more
            while -peaks[0][0] != levels[peaks[0][1]]:
                heappop(peaks)
            peak = -peaks[0][0]
            if not forced:  # else there is no order without a new peak
                if raised != key:
                    heappush(heap, (raised, tie, step, source, target, more))
                    continue
                if raised > self._first_peak:
                    full.setdefault(source, []).append(entry)
                    continue
                if more and target == peaks[0][1] and raised < peak and self._peak_is_alone():
                    held.setdefault(source, []).append(entry)
                    continue
            undone.append(step if len(step) == 1 else self._first_the_lower(step))
            free = full.pop(target, [])
            if forced or raised >= peak or levels[target] == peak:
                free += itertools.chain.from_iterable(held.values())
                held.clear()
            elif held:
                free += held.pop(source, [])
            levels[source] = raised
            levels[target] -= more
            heappush(peaks, (-raised, source))
            heappush(peaks, (-levels[target], target))
            for _, tie, step, source, target, more in free:
                heappush(heap, (levels[source] + more, tie, step, source, target, more))
        self.stuck = [vcpu for entries in full.values() for entry in entries for vcpu in entry[2]]
        return undone[::-1]

    def _entries(self) -> list[_Entry]:
        home, place, loads = self._board.home, self._place, self._board.loads
        pairs = exchanges(home, place)
        paired = set(itertools.chain.from_iterable(pairs))
        entries: list[_Entry] = []
        for step in pairs:
            given, taken = step
            if loads[given] < loads[taken]:
                given, taken = taken, given
            source, target, more = home[given], place[given], loads[given] - loads[taken]
            entries.append((self._levels[source] + more, -step[0], step, source, target, more))
        for vcpu in moved(home, place):
            if vcpu not in paired:
                source, more = home[vcpu], loads[vcpu]
                # Among equals the last is undone first, so that the first comes first.
                entries.append(
                    (self._levels[source] + more, -vcpu, (vcpu,), source, place[vcpu], more)
                )
        heapify(entries)
        return entries

    def _peak_is_alone(self) -> bool:
        peaks, levels = self._peaks, self._levels
        top = heappop(peaks)
        while peaks and (-peaks[0][0] != levels[peaks[0][1]] or peaks[0][1] == top[1]):
            heappop(peaks)
        alone = not peaks or -peaks[0][0] < -top[0]
        heappush(peaks, top)
        return alone

    def _first_the_lower(self, step: Step) -> Step:
        loads = self._board.loads
        return tuple(
            sorted(step, key=lambda vcpu: (self._levels[self._place[vcpu]] - loads[vcpu], vcpu))
        )


def after(board: Board, place: Sequence[int], steps: Sequence[Step]) -> list[int]:
    """Give the loads, without the water, once these steps are made."""
    levels = list(board.base)
    for vcpu in itertools.chain.from_iterable(steps):
        levels[board.home[vcpu]] -= board.loads[vcpu]
        levels[place[vcpu]] += board.loads[vcpu]
    return levels
