"""The order of moves against all orders there are, and guests' vCPUs kept apart at no cost."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Sequence

from builders import host, of_one_guest, random_host

from vcpusched.model import CpuSet, DomainUuid, Host, VcpuId
from vcpusched.plan.arrange import Step, after, as_far_as_ordered, in_order, keep_apart
from vcpusched.plan.board import Board
from vcpusched.plan.frame import moved
from vcpusched.plan.gains import exchanges
from vcpusched.plan.planner import Floating, Policy, plan

SPAN = 100_000


def board_of(drawn: Host) -> Board:
    """Set up a host as the planner does."""
    return Board.of(drawn, sorted(drawn.vcpus, key=lambda vcpu: vcpu.id), binding=False)


def scattered(board: Board, chance: random.Random, moves_max: int) -> list[int]:
    """Give places some of which are not home."""
    place = list(board.home)
    movable = [vcpu for vcpu, mask in enumerate(board.may) if mask]
    for vcpu in chance.sample(movable, min(moves_max, len(movable))):
        targets = [cpu for cpu in range(len(board.cpus)) if board.may[vcpu] >> cpu & 1]
        place[vcpu] = chance.choice(targets)
    return place


def peak(board: Board, loads: Sequence[int]) -> int:
    """Give the load of the busiest pCPU that is judged."""
    return max((loads[cpu] for cpu in board.judged), default=0)


def peaks(board: Board, place: Sequence[int], order: Sequence[Step]) -> list[int]:
    """Give the peak before the first step and after each."""
    return [peak(board, after(board, place, order[:made])) for made in range(len(order) + 1)]


def is_falling(row: Sequence[int]) -> bool:
    """Tell whether no number is above the one before it."""
    return all(first >= second for first, second in itertools.pairwise(row))


def steps_between(board: Board, place: Sequence[int]) -> list[Step]:
    """Cut what is moved into exchanges and single moves."""
    pairs = exchanges(board.home, place)
    paired = {vcpu for pair in pairs for vcpu in pair}
    return [*pairs, *((vcpu,) for vcpu in moved(board.home, place) if vcpu not in paired)]


def test_the_order_is_nearly_as_good_as_any() -> None:
    """No step goes above the first peak; where some order never raises the peak, nor does ours.

    Against all orders of up to 5 steps, on boards with places by chance; ours misses such an order
    on less than one board in a hundred that has one, and finds none where there is one as seldom.
    """
    met: Counter[str] = Counter()
    for seed in range(3_000):
        board = board_of(random_host(seed, 2 + seed % 4, 3 + seed % 9, floating=False))
        place = scattered(board, random.Random(seed), 5)
        if peak(board, board.at(place)) > peak(board, board.base):
            continue
        orders = itertools.permutations(steps_between(board, place))
        all_peaks = [peaks(board, place, order) for order in orders]
        steps = in_order(board, place)
        met["boards"] += 1
        if steps:
            assert sorted(vcpu for step in steps for vcpu in step) == moved(board.home, place)
            found = peaks(board, place, steps)
            assert max(found) == found[0], seed
            rises = not is_falling(found)
            met["rises"] += rises
            met["rises, though need not"] += rises and any(map(is_falling, all_peaks))
        elif moved(board.home, place):
            met["no order"] += 1
            met["no order, though there is"] += any(max(each) == each[0] for each in all_peaks)
    assert met["boards"] > 1_000
    assert met["rises"] > 30
    assert met["no order"] > 30
    assert met["rises, though need not"] < met["boards"] // 100
    assert met["no order, though there is"] < met["boards"] // 100


def test_the_busiest_is_relieved_first() -> None:
    """[40 40 40] [40 40 20] [] []: of moves off 120 and off 100, the one off 120 comes first."""
    board = board_of(host([40, 40, 40], [40, 40, 20], [], []))
    assert in_order(board, [2, 0, 0, 3, 1, 1]) == [(0,), (3,)]
    assert in_order(board, [2, 3, 0, 3, 1, 1])[0][0] in {0, 1}


def test_an_exchange_is_one_step() -> None:
    """[50 40] [30 20]: the 50 for the 30 is one step; first goes what leaves the lower peak."""
    board = board_of(host([50, 40], [30, 20]))
    # In between, pCPU 0 has 120 when the 30 comes first, and pCPU 1 has 100 when the 50 does.
    assert in_order(board, [1, 0, 0, 1]) == [(0, 2)]


def test_no_order_no_steps() -> None:
    """[70 50] [10 20 40 30]: the 50 for the 10 and the 20 would make 100 of each.

    But the 50 first would make 150 of pCPU 1, and the 10 first 130 of pCPU 0, which had 120.
    """
    board = board_of(host([70, 50], [10, 20, 40, 30]))
    assert in_order(board, [0, 1, 0, 0, 1, 1]) == []
    assert as_far_as_ordered(board, [0, 1, 0, 0, 1, 1]) == (board.home, [])


def test_the_others_go_where_some_have_no_order() -> None:
    """The same two pCPUs, and [90 10] [20] beside them: there the 10 can go."""
    board = board_of(host([70, 50], [10, 20, 40, 30], [90, 10], [20]))
    place = [0, 1, 0, 0, 1, 1, 2, 3, 3]
    assert in_order(board, place) == []
    assert as_far_as_ordered(board, place) == ([0, 0, 1, 1, 1, 1, 2, 3, 3], [(7,)])


def joining(board: Board, place: Sequence[int]) -> int:
    """Count the moved vCPUs that share their new pCPU with another one of their guest."""
    guests = [vcpu.id.uuid for vcpu in board.vcpus]
    crowd = Counter(zip(guests, place, strict=True))
    return sum(crowd[guests[vcpu], place[vcpu]] > 1 for vcpu in moved(board.home, place))


def test_keeping_apart_costs_nothing() -> None:
    """No more moves, no less apart, and balanced where it was; else the very same loads."""
    met: Counter[str] = Counter()
    for seed in range(3_000):
        board = board_of(random_host(seed, floating=False))
        place = scattered(board, random.Random(seed), 8)
        if not board.judged:
            continue
        kept = keep_apart(board, place, SPAN)
        before, then = board.at(place), board.at(kept)
        assert len(moved(board.home, kept)) <= len(moved(board.home, place))
        assert joining(board, kept) <= joining(board, place)
        met["apart"] += joining(board, kept) < joining(board, place)
        for vcpu in moved(board.home, kept):
            assert board.may[vcpu] >> kept[vcpu] & 1
        if board.gap_ppm(before) < SPAN:
            met["balanced"] += 1
            assert board.gap_ppm(then) < SPAN
            assert peak(board, then) <= max(peak(board, before), peak(board, board.base))
        else:
            assert sorted(then) == sorted(before)
    assert met["apart"] > 30
    assert met["balanced"] > 30


def test_another_vcpu_goes_instead() -> None:
    """[40 40] [20] with g0 and g2 of one guest: g1 goes beside g2, g0 stays."""
    board = board_of(of_one_guest(host([40, 40], [20]), "g0", "g2"))
    names = [vcpu.domain for vcpu in board.vcpus]
    there = [
        1 if name == "g0" and cpu == 0 else cpu for name, cpu in zip(names, board.home, strict=True)
    ]
    kept = keep_apart(board, there, SPAN)
    assert [(names[vcpu], kept[vcpu]) for vcpu in moved(board.home, kept)] == [("g1", 1)]


def test_keeping_apart_counts_floaters() -> None:
    """[10a] [10a 10b] [15b] [], and 30 on pCPUs 1 and 3: 10 25 15 25; a and b are guests.

    10b goes to the first: 20 20 15 20. As good without the floaters, but not with them, would be
    that 10a goes there beside the other 10a.
    """
    drawn = of_one_guest(host([10], [10, 10, 30], [15], []), "g0", "g1")
    mask = CpuSet.parse("1,3")
    other = DomainUuid("0002")
    drawn = dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, cpus=mask, allowed=mask)
            if vcpu.domain == "g3"
            else dataclasses.replace(vcpu, id=VcpuId(other, 1, int(vcpu.domain == "g4")))
            if vcpu.domain in {"g2", "g4"}
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )
    found = plan(drawn, Policy(min_gain_ppm=20_000, floating=Floating.KERNEL))
    assert [(move.domain, str(move.to_cpus)) for move in found.moves] == [("g2", "0")]
