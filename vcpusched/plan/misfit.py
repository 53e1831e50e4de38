"""Finds stronger pCPUs for vCPUs that want more than theirs can give, however idle that is.

Rule: pure; changes places, and leaves the balance of all others to the search that follows.

Problem: on machines whose pCPUs differ, one vCPU of 80 % on a pCPU that does 60 % lacks 20 points
    that a strong pCPU has. To the search it is a giant that fits nowhere, and so may as well stay.
Approach: before anything else, move each such vCPU to a stronger pCPU, or exchange it for a smaller
    one, where what all of them get rises by enough.
Terms: such a vCPU is a misfit, as in the kernel's scheduler, which moves it in the same way. A pCPU
    leaves undone what is wanted of it beyond what it can do, and what its vCPUs want each beyond
    what one thread of it can.
Properties: a move brings at least the gain that its distance needs, an exchange twice as much; no
    pCPU that takes one becomes busier than the one that gives it was. On machines whose pCPUs are
    all alike there is nothing to do.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from vcpusched.plan.apart import Apart
from vcpusched.plan.board import NOWHERE, Board
from vcpusched.plan.frame import moved
from vcpusched.plan.near import Gains, cost, stretch


def on_stronger(board: Board, gains: Gains) -> Sequence[int]:
    """Give the places with misfits on stronger pCPUs."""
    if not differ(board):
        return board.home
    return _Search(board, gains).run()


def without_idle_steps_up(board: Board, place: Sequence[int]) -> Sequence[int]:
    """Give the places without moves to stronger pCPUs of vCPUs that would be alone at home.

    Where their own pCPU is enough for them, to go only brings loads closer together.
    """
    if not differ(board):
        return place
    sites, base, now = board.sites, board.at(place), list(place)
    there = Counter(place)
    # The small ones first: of two that left together it is the large one that gains.
    for vcpu in sorted(moved(board.home, place), key=lambda vcpu: (board.loads[vcpu], vcpu)):
        home, target, size = board.home[vcpu], place[vcpu], board.loads[vcpu]
        if sites[target].capacity_ppm <= sites[home].capacity_ppm or there[home]:
            continue
        base[home] += size
        base[target] -= size
        # Floaters go out of its way, where they can.
        if board.levels(base)[home] - board.lacks[home] <= board.gives[home]:
            now[vcpu] = home
            there[home] += 1
        else:
            base[home] -= size
            base[target] += size
    return now


def differ(board: Board) -> bool:
    """Tell whether pCPUs differ in what they can do."""
    return len({site.capacity_ppm for site in board.sites}) > 1


def _outgrows(board: Board, vcpu: int, cpu: int) -> bool:
    """Tell whether a vCPU wants more than one pCPU can give it."""
    return board.loads[vcpu] > board.sites[cpu].capacity_ppm


class _Search:
    """Places being changed, one misfit after another."""

    def __init__(self, board: Board, gains: Gains) -> None:
        self._board, self._gains = board, gains
        self._place = list(board.home)
        self._apart = Apart.of(board)
        self._levels = board.levels(board.base)
        self._on: list[list[int]] = [[] for _ in board.cpus]
        for vcpu, cpu in enumerate(board.home):
            if cpu != NOWHERE:
                self._on[cpu].append(vcpu)

    def run(self) -> Sequence[int]:
        board = self._board
        misfits = [
            vcpu
            for cpu in board.judged
            for vcpu in self._on[cpu]
            if board.vcpus[vcpu].is_bound and board.allowed[vcpu] and _outgrows(board, vcpu, cpu)
        ]
        for vcpu in sorted(misfits, key=lambda vcpu: (-board.loads[vcpu], vcpu)):
            if self._place[vcpu] == board.home[vcpu]:
                found = list(self._moves(vcpu)) or list(self._exchanges(vcpu))
                if found:
                    self._make(min(found, key=lambda one: one[0])[1])
        return self._place

    def _targets(self, vcpu: int) -> Iterator[int]:
        sites, home = self._board.sites, self._board.home[vcpu]
        for cpu in self._board.judged:
            stronger = sites[cpu].capacity_ppm > sites[home].capacity_ppm
            if stronger and self._board.allowed[vcpu] >> cpu & 1:
                yield cpu

    def _moves(self, vcpu: int) -> Iterator[tuple[tuple[int, ...], dict[int, int]]]:
        """Give moves that pay, as what orders them, the best first, and the new places."""
        for cpu in self._targets(vcpu):
            far, there = cost(self._board, vcpu, cpu), {vcpu: cpu}
            gain, least = self._gain(there), self._gains.at(stretch(self._board, vcpu, cpu))
            if gain >= max(1, least) and self._is_allowed(there):
                yield (-gain, far, self._levels[cpu], cpu), there

    def _exchanges(self, vcpu: int) -> Iterator[tuple[tuple[int, ...], dict[int, int]]]:
        board, home = self._board, self._board.home[vcpu]
        for cpu in self._targets(vcpu):
            for other in self._on[cpu]:
                if (
                    board.allowed[other] >> home & 1
                    and board.home[other] == cpu
                    and board.loads[other] < board.loads[vcpu]
                    # Where one is too much for the weak pCPU as well, whoever is there just now
                    # looks the larger (`load`): they would change places for ever.
                    and not _outgrows(board, other, home)
                ):
                    there = {vcpu: cpu, other: home}
                    far = cost(board, vcpu, cpu) + cost(board, other, home)
                    gain = self._gain(there)
                    least = self._gains.at(stretch(board, vcpu, cpu)) * 2
                    if gain >= max(1, least) and self._is_allowed(there):
                        yield (-gain, far, other), there

    def _gain(self, there: dict[int, int]) -> int:
        """Give how much less is left undone with these vCPUs at these places."""
        touched = {cpu for vcpu, to in there.items() for cpu in (self._place[vcpu], to)}
        gain = 0
        for cpu in touched:
            after = [vcpu for vcpu in self._on[cpu] if there.get(vcpu, cpu) == cpu]
            after += [vcpu for vcpu, to in there.items() if to == cpu != self._place[vcpu]]
            change = self._sum(after) - self._sum(self._on[cpu])
            gain += self._undone(cpu, self._on[cpu], 0) - self._undone(cpu, after, change)
        return gain

    def _undone(self, cpu: int, there: Sequence[int], change: int) -> int:
        board, one = self._board, self._board.sites[cpu].capacity_ppm
        wanted = self._levels[cpu] - board.lacks[cpu] + change
        each = sum(max(0, board.loads[vcpu] - one) for vcpu in there)
        return max(wanted - board.gives[cpu], each, 0)

    def _sum(self, vcpus: Sequence[int]) -> int:
        return sum(self._board.loads[vcpu] for vcpu in vcpus)

    def _is_allowed(self, there: dict[int, int]) -> bool:
        """Tell whether no pCPU becomes busier than the misfit's was, and guests stay apart."""
        then = list(self._place)
        changes = dict.fromkeys((*there.values(), *(self._place[vcpu] for vcpu in there)), 0)
        for vcpu, cpu in there.items():
            changes[self._place[vcpu]] -= self._board.loads[vcpu]
            changes[cpu] += self._board.loads[vcpu]
            then[vcpu] = cpu
        most = max(self._levels[self._place[vcpu]] for vcpu in there)
        return all(
            self._levels[cpu] + change <= most for cpu, change in changes.items()
        ) and self._apart.holds(then)

    def _make(self, there: dict[int, int]) -> None:
        for vcpu, cpu in there.items():
            size, home = self._board.loads[vcpu], self._place[vcpu]
            self._on[home].remove(vcpu)
            self._levels[home] -= size
            self._on[cpu].append(vcpu)
            self._levels[cpu] += size
            self._place[vcpu] = cpu
