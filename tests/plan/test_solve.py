"""The plan against all plans there are on small hosts, and that each move of an answer pays."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest
from builders import random_host

from vcpusched.model import Host, Vcpu
from vcpusched.plan.board import Board
from vcpusched.plan.frame import Frame, Problem
from vcpusched.plan.gains import exchanges
from vcpusched.plan.planner import Policy, Stop, plan
from vcpusched.plan.solve import UNREACHED_GAIN_PPM, solve

SIZES = [(1, 4), (2, 6), (2, 8), (2, 9), (3, 5), (3, 6), (3, 7), (4, 5)]
"""pCPUs and vCPUs of hosts whose assignments can all be tried."""

POLICY = Policy(balance_threshold_ppm=99_990, min_gain_ppm=0)
"""Loads are often whole points: a gap of just the threshold would be 1 ppm outside the band, and
that is not worth two moves of 1 ppm each."""

Change = tuple[Vcpu, int, int]
"""A vCPU, its pCPU and another one."""


class Choices:
    """All ways in which the vCPUs of a host with only bound ones can be placed."""

    def __init__(self, drawn: Host) -> None:
        self.judged = [cpu.id for cpu in drawn.cpus if cpu.id not in drawn.unsettled]
        self.loads = {cpu.id: cpu.host_load_ppm for cpu in drawn.cpus}
        crowd: Counter[int] = Counter()
        for vcpu in drawn.vcpus:
            crowd[self._home(vcpu)] += 1
            if self._home(vcpu) in self.loads:
                self.loads[self._home(vcpu)] += vcpu.load_ppm
        peak = max((self.loads[cpu] for cpu in self.judged), default=0)
        self.options: list[list[Change]] = []
        for vcpu in drawn.vcpus:
            home = self._home(vcpu)
            if vcpu.fixed or not vcpu.load_ppm or home not in self.judged:
                continue
            if self.loads[home] < peak or crowd[home] > 1:
                targets = [cpu for cpu in self.judged if cpu in vcpu.allowed and cpu != home]
                self.options.append([(vcpu, home, cpu) for cpu in (home, *targets)])

    @staticmethod
    def _home(vcpu: Vcpu) -> int:
        return next(iter(vcpu.cpus))

    def __iter__(self) -> Iterator[list[Change]]:
        for choice in itertools.product(*self.options):
            yield [change for change in choice if change[1] != change[2]]

    def after(self, changes: Iterable[Change]) -> dict[int, int]:
        """Give the loads once these vCPUs are moved."""
        loads = dict(self.loads)
        for vcpu, home, target in changes:
            loads[home] -= vcpu.load_ppm
            loads[target] += vcpu.load_ppm
        return loads

    def peak(self, loads: Mapping[int, int]) -> int:
        """Give the load of the busiest pCPU that is judged."""
        return max((loads[cpu] for cpu in self.judged), default=0)

    def gap(self, loads: Mapping[int, int]) -> int:
        """Give the busiest less the freest of the pCPUs that are judged."""
        return self.peak(loads) - min((loads[cpu] for cpu in self.judged), default=0)

    def can_be_ordered(self, changes: Sequence[Change]) -> bool:
        """Tell whether some order of steps never takes a pCPU above the first peak."""
        steps = in_steps(changes)
        return any(
            all(
                self.peak(self.after(itertools.chain.from_iterable(order[:made])))
                <= self.peak(self.loads)
                for made in range(1, len(order) + 1)
            )
            for order in itertools.permutations(steps)
        )


def in_steps(changes: Sequence[Change]) -> list[list[Change]]:
    """Cut moves into exchanges and single moves."""
    pairs = exchanges([home for _, home, _ in changes], [target for _, _, target in changes])
    paired = {position for pair in pairs for position in pair}
    return [[changes[position] for position in pair] for pair in pairs] + [
        [change] for position, change in enumerate(changes) if position not in paired
    ]


def small_hosts(first: int, last: int) -> Iterator[tuple[int, Host, Choices]]:
    """Give hosts with only bound vCPUs, with masks, fixed vCPUs and host load."""
    for seed in range(first, last):
        drawn = random_host(seed, *SIZES[seed % len(SIZES)], floating=False)
        choices = Choices(drawn)
        if choices.judged:
            yield seed, drawn, choices


@pytest.mark.parametrize("first", range(0, 2_000, 500))
def test_no_plan_has_fewer_moves(first: int) -> None:
    """Where some plan balances a small host, ours does, and none that can be made has fewer moves.

    One that can be made has an order that keeps every pCPU below the first peak.
    """
    met: Counter[object] = Counter()
    for seed, drawn, choices in small_hosts(first, first + 500):
        span = POLICY.balance_threshold_ppm
        balancing = [each for each in choices if choices.gap(choices.after(each)) < span]
        if not balancing:
            continue
        fewest = min(map(len, balancing))
        found = plan(drawn, POLICY)
        balanced = found.stop is Stop.BALANCED
        met[fewest if balanced else "no order"] += 1
        if not balanced or len(found.moves) > fewest:
            limit = len(found.moves) if balanced else fewest + 1
            fewer = [each for each in balancing if len(each) < limit]
            assert not any(choices.can_be_ordered(each) for each in fewer), seed
    assert all(met[moves] > 10 for moves in range(5))
    assert met["no order"] < 10


@pytest.mark.parametrize("first", range(0, 2_000, 500))
def test_out_of_reach_the_gap_is_nearly_the_smallest_there_is(first: int) -> None:
    """Small hosts that no plan balances, with no helpless pCPU: within half a point of the best.

    But for 1 in 20, since the smallest gap may take moves that gain too little each.
    """
    span, worse, met = POLICY.balance_threshold_ppm, 0, 0
    for _, drawn, choices in small_hosts(first, first + 500):
        every = [choices.after(each) for each in choices]
        least = min(map(choices.gap, every))
        mean = sum(choices.loads[cpu] for cpu in choices.judged) // len(choices.judged)
        within = {cpu for each in every for cpu in choices.judged if abs(each[cpu] - mean) < span}
        if least < span or len(within) < len(choices.judged):
            continue
        met += 1
        worse += plan(drawn, POLICY).gap_after_ppm > least + UNREACHED_GAIN_PPM
    assert met > 50
    assert worse * 20 <= met


def problem_of(drawn: Host, policy: Policy) -> Problem:
    """State the problem of a host with only bound vCPUs, as the planner does."""
    board = Board.of(drawn, sorted(drawn.vcpus, key=lambda vcpu: vcpu.id), binding=False)
    lone = board.lone()
    return Problem(
        loads=board.loads,
        home=board.home,
        may=[0 if vcpu in lone else mask for vcpu, mask in enumerate(board.may)],
        start=board.base,
        judged=board.judged,
        span=policy.balance_threshold_ppm,
        min_gain=policy.min_gain_ppm,
        steps_max=policy.steps_max,
    )


def loads_at(problem: Problem, place: Sequence[int]) -> list[int]:
    """Give the loads of the judged pCPUs with the vCPUs at these places."""
    loads = list(problem.start)
    for size, home, cpu in zip(problem.loads, problem.home, place, strict=True):
        if cpu != home:
            loads[home] -= size
            loads[cpu] += size
    return [loads[cpu] for cpu in problem.judged]


def outside_tried(problem: Problem, answer: Sequence[int], loads: Sequence[int]) -> int:
    """Give the load outside the best of the bands tried: eight, and the two that hold the answer.

    Those of `Frame.middles` have no pCPU left out of them in an answer that is balanced.
    """
    span, mean = problem.span, sum(loads) // len(loads)
    own = [begin for begin in (max(answer) - span + 1, min(answer)) if 0 <= begin <= mean]
    return min(
        sum(max(0, begin - load, load - begin - span + 1) for load in loads)
        for begin in (*Frame(problem).middles, *own)
    )


def test_each_move_and_exchange_of_a_balanced_answer_pays() -> None:
    """Without one of them at least `min_gain` for each of its moves is outside the band.

    On 3,000 hosts of all sizes; all moves together gain as much each, too.
    """
    met: Counter[int] = Counter()
    for seed in range(3_000):
        min_gain_ppm = (0, 20_000, 50_000, 100_000)[seed % 4]
        policy = Policy(min_gain_ppm=min_gain_ppm, steps_max=500)
        problem = problem_of(random_host(seed, floating=False), policy)
        place = solve(problem)
        moves = [vcpu for vcpu, cpu in enumerate(place) if cpu != problem.home[vcpu]]
        answer = loads_at(problem, place)
        if not moves or max(answer) - min(answer) >= problem.span:
            continue
        met[min_gain_ppm] += 1
        pairs = exchanges(problem.home, place)
        for step in [*((vcpu,) for vcpu in moves), *pairs, tuple(moves)]:
            without = [problem.home[v] if v in step else cpu for v, cpu in enumerate(place)]
            gain_ppm = outside_tried(problem, answer, loads_at(problem, without))
            assert gain_ppm >= max(min_gain_ppm, 1) * len(step), seed
    assert min(met.values()) > 50
