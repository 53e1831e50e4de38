"""Keeps the vCPUs of guests that ask for it on different cores.

Rule: pure; a constraint on moves, not a goal: it never makes a move, it only forbids some.

A vCPU of such a guest must not be moved onto a core that holds another vCPU of the guest. Which one
a core holds changes while a plan is carried out, one move after another, and a plan may be cut
short. So that it holds at each moment and for each beginning of a plan, a core counts as held from
the first to the last move of a plan by whoever is there before it or after it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from vcpusched.plan.board import NOWHERE, Board


class Apart:
    """The guests on a board whose vCPUs keep apart."""

    def __init__(self, board: Board, guests: Sequence[Sequence[int]]) -> None:
        self._board = board
        self._guests = guests

    @classmethod
    def of(cls, board: Board) -> Self:
        """Find these guests; one of which a single vCPU is known has nothing to keep apart."""
        guests: dict[tuple[str, int], list[int]] = {}
        for index in board.spread:
            identity = board.vcpus[index].id
            guests.setdefault((identity.uuid, identity.domain_id), []).append(index)
        return cls(board, [vcpus for vcpus in guests.values() if len(vcpus) > 1])

    @property
    def is_needed(self) -> bool:
        """Whether there are any such guests."""
        return bool(self._guests)

    def forbid(self, masks: Sequence[int]) -> list[int]:
        """Take out of each vCPU's mask of positions the cores that others of its guest hold."""
        board, kept = self._board, list(masks)
        for guest in self._guests:
            for vcpu in guest:
                for other in guest:
                    home = board.home[other]
                    if other != vcpu and home != NOWHERE:
                        kept[vcpu] &= ~board.cores[home]
        return kept

    def holds(self, place: Sequence[int]) -> bool:
        """Tell whether no vCPU goes to these places onto a core that another one holds."""
        board = self._board
        for guest in self._guests:
            taken = 0
            movers = [vcpu for vcpu in guest if place[vcpu] != board.home[vcpu]]
            for vcpu in movers:
                if taken >> place[vcpu] & 1:
                    return False
                taken |= board.cores[place[vcpu]]
            for other in guest:
                home = board.home[other]
                if home != NOWHERE and any(
                    board.cores[home] >> place[vcpu] & 1 for vcpu in movers if vcpu != other
                ):
                    return False
        return True

    def one_each(self, masks: Sequence[int], levels: Sequence[int]) -> list[int]:
        """Leave one vCPU of each guest free to move, the largest on the busiest pCPU.

        A search that looks at all of them may find nothing but answers in which two meet.
        """
        board, kept = self._board, list(masks)
        for guest in self._guests:
            movable = [vcpu for vcpu in guest if masks[vcpu]]
            first = max(
                movable,
                key=lambda vcpu: (levels[board.home[vcpu]], board.loads[vcpu], -vcpu),
                default=NOWHERE,
            )
            for vcpu in movable:
                if vcpu != first:
                    kept[vcpu] = 0
        return kept


def separated(board: Board) -> Board:
    """Give the board on which no vCPU may go to where another one of its guest is now."""
    apart = Apart.of(board)
    return replace(board, allowed=apart.forbid(board.allowed)) if apart.is_needed else board
