"""Arranges an answer for carrying it out: which of equally good vCPUs go, and in which order.

Rule: pure; changes nothing about how well the host is balanced.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from vcpusched.board import Board
from vcpusched.frame import moved
from vcpusched.solve import exchanges

Step = tuple[int, ...]
"""One vCPU to move, or two that change places, by position on the board."""


def keep_apart(board: Board, place: Sequence[int], span: int) -> Sequence[int]:
    """Give as good places at which no vCPU joins another one of its guest, as far as there are.

    `span` is the threshold: in a balanced answer any loads will do that stay within it.
    """
    movers = moved(board.home, place)
    guests = {board.vcpus[vcpu].id.uuid for vcpu in movers}
    relatives = [
        (vcpu.id.uuid, cpu)
        for vcpu, cpu in zip(board.vcpus, place, strict=True)
        if vcpu.id.uuid in guests
    ]
    if len(relatives) == len(guests):
        return place  # each of them has one vCPU
    return _Separation(board, place, span).run(movers, Counter(relatives))


class _Separation:
    """Places being changed, one vCPU after another."""

    def __init__(self, board: Board, place: Sequence[int], span: int) -> None:
        self._board = board
        self._place = list(place)
        self._levels = board.at(place)
        judged = [self._levels[cpu] for cpu in board.judged]
        self._least, self._most = min(judged), max(judged)
        if self._most - self._least < span:
            peak = max(board.base[cpu] for cpu in board.judged)
            self._most = max(self._most, min(self._least + span - 1, peak))
        else:
            self._most = self._least - 1  # nothing will do but the same loads

    def run(self, movers: Sequence[int], relatives: Counter[tuple[str, int]]) -> list[int]:
        for vcpu in movers:
            guest, target = self._board.vcpus[vcpu].id.uuid, self._place[vcpu]
            if relatives[guest, target] > 1:
                other = self._another_target(vcpu, relatives)
                if other is not None:
                    self._put(vcpu, other)
                    relatives[guest, target] -= 1
                    relatives[guest, other] += 1
                elif (instead := self._another_vcpu(vcpu)) is not None:
                    self._put(vcpu, self._board.home[vcpu])
                    self._put(instead, target)
                    relatives[guest, target] -= 1
                    relatives[guest, self._board.home[vcpu]] += 1
                    other_guest = self._board.vcpus[instead].id.uuid
                    relatives[other_guest, self._board.home[instead]] -= 1
                    relatives[other_guest, target] += 1
        return self._place

    def _another_target(self, vcpu: int, relatives: Counter[tuple[str, int]]) -> int | None:
        board, size, target = self._board, self._board.loads[vcpu], self._place[vcpu]
        guest = board.vcpus[vcpu].id.uuid
        for other in board.judged:
            if (
                board.allowed[vcpu] >> other & 1
                and not relatives[guest, other]
                and self._is_as_good({target: -size, other: size})
            ):
                return other
        return None

    def _another_vcpu(self, vcpu: int) -> int | None:
        board, home, target = self._board, self._board.home[vcpu], self._place[vcpu]
        there = {
            other.id.uuid
            for other, cpu in zip(board.vcpus, self._place, strict=True)
            if cpu == target
        }
        for instead, cpu in enumerate(self._place):
            if cpu == home == board.home[instead] and board.allowed[instead] >> target & 1:
                change = board.loads[instead] - board.loads[vcpu]
                if board.vcpus[instead].id.uuid not in there and self._is_as_good(
                    {home: -change, target: change}
                ):
                    return instead
        return None

    def _is_as_good(self, changes: Mapping[int, int]) -> bool:
        now = sorted(self._levels[cpu] for cpu in changes)
        then = sorted(self._levels[cpu] + change for cpu, change in changes.items())
        return then == now or (self._least <= then[0] and then[-1] <= self._most)

    def _put(self, vcpu: int, cpu: int) -> None:
        size = self._board.loads[vcpu]
        self._levels[self._place[vcpu]] -= size
        self._levels[cpu] += size
        self._place[vcpu] = cpu


def in_order(board: Board, place: Sequence[int]) -> list[Step]:
    """Give the steps in an order in which none makes the busiest pCPU busier.

    The busiest pCPUs are relieved first. Where no such order is found, steps may raise the peak
    again, but not above what it was at first; where none like that is found either, there are no
    steps.
    """
    return _Undoing(board, place).run()


class _Undoing:
    """Finds the order from its end: undo, one by one, the step whose source is raised the least.

    Going back, the peak must never fall, and a pCPU may not be raised above the first peak.
    """

    def __init__(self, board: Board, place: Sequence[int]) -> None:
        self._board, self._place = board, place
        pairs = exchanges(board.home, place)
        paired = {vcpu for pair in pairs for vcpu in pair}
        single = [vcpu for vcpu in moved(board.home, place) if vcpu not in paired]
        self._steps: list[Step] = [*pairs, *((vcpu,) for vcpu in single)]
        self._changes = {step: _change(board, place, step) for step in self._steps}
        self._levels = board.at(place)
        first = board.levels(board.base)
        self._first_peak = max((first[cpu] for cpu in board.judged), default=0)
        self._peaks = [(-self._levels[cpu], cpu) for cpu in board.judged]
        heapify(self._peaks)

    def run(self) -> list[Step]:
        undone: list[Step] = []
        # Among equals the last is undone first, so that the first comes first.
        heap = [(self._key(step), -min(step), step) for step in self._steps]
        heapify(heap)
        full: dict[int, list[Step]] = {}  # wait until this pCPU is lowered
        held: list[Step] = []  # wait until another pCPU holds the peak
        while heap or held:
            if not heap:
                step = held.pop(0)  # no order without a new peak
            else:
                key, _, step = heappop(heap)
                if (now := self._key(step)) != key:
                    heappush(heap, (now, -min(step), step))
                    continue
                change = self._changes[step]
                over = self._overfull(change)
                if over is not None:
                    full.setdefault(over, []).append(step)
                    continue
                if self._lowers_the_peak(change):
                    held.append(step)
                    continue
            change = self._changes[step]
            undone.append(self._first_the_lower(step))
            for cpu, more in change.items():
                self._levels[cpu] -= more
                heappush(self._peaks, (-self._levels[cpu], cpu))
                if more > 0:
                    held += full.pop(cpu, [])
            for waiting in held:
                heappush(heap, (self._key(waiting), -min(waiting), waiting))
            held.clear()
        return undone[::-1] if len(undone) == len(self._steps) else []

    def _key(self, step: Step) -> int:
        change = self._changes[step]
        return max(
            (self._levels[cpu] - more for cpu, more in change.items() if more < 0), default=0
        )

    def _overfull(self, change: Mapping[int, int]) -> int | None:
        for cpu, more in change.items():
            if more < 0 and self._levels[cpu] - more > self._first_peak:
                return cpu
        return None

    def _lowers_the_peak(self, change: Mapping[int, int]) -> bool:
        peaks, levels = self._peaks, self._levels
        while -peaks[0][0] != levels[peaks[0][1]]:
            heappop(peaks)
        peak, highest = -peaks[0][0], peaks[0][1]
        if change.get(highest, 0) <= 0:
            return False
        if any(levels[cpu] - more >= peak for cpu, more in change.items()):
            return False
        top = heappop(peaks)
        while peaks and (-peaks[0][0] != levels[peaks[0][1]] or peaks[0][1] == highest):
            heappop(peaks)
        unique = not peaks or -peaks[0][0] < peak
        heappush(peaks, top)
        return unique

    def _first_the_lower(self, step: Step) -> Step:
        """Give the vCPUs of a step in the order that leaves the lower peak in between."""
        loads = self._board.loads
        return tuple(
            sorted(step, key=lambda vcpu: (self._levels[self._place[vcpu]] - loads[vcpu], vcpu))
        )


def _change(board: Board, place: Sequence[int], step: Step) -> dict[int, int]:
    change: dict[int, int] = {}
    for vcpu in step:
        size = board.loads[vcpu]
        for cpu, more in ((board.home[vcpu], -size), (place[vcpu], size)):
            change[cpu] = change.get(cpu, 0) + more
    return change


def after(board: Board, place: Sequence[int], steps: Sequence[Step]) -> list[int]:
    """Give the loads, without the water, once these steps are made."""
    levels = list(board.base)
    for step in steps:
        for cpu, more in _change(board, place, step).items():
            levels[cpu] += more
    return levels
