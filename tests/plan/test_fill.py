"""The greedy answer: drawn cases, and that it never makes anything worse."""

import random
from collections import Counter
from collections.abc import Sequence

from builders import random_host

from vcpusched.plan.board import Board
from vcpusched.plan.fill import fill
from vcpusched.plan.search import UNBOUNDED, Task

Own = list[list[tuple[int, int]]]


def task_of(*cpus: Sequence[int], low: int, high: int) -> tuple[Task, Own]:
    """Draw a task: for each pCPU the vCPUs on it, all of which may go anywhere."""
    loads = [load for members in cpus for load in members]
    home = [cpu for cpu, members in enumerate(cpus) for _ in members]
    count = len(cpus)
    task = Task(
        loads=loads,
        home=home,
        may=[((1 << count) - 1) & ~(1 << own) for own in home],
        start=[sum(members) for members in cpus],
        low=[low] * count,
        high=[high] * count,
        span=high - low + 1,
        tops=range(count),
        bottoms=range(count),
    )
    return task, own_of(task)


def own_of(task: Task) -> Own:
    """Give the movable vCPUs of each pCPU as (load, vCPU), rising."""
    return [
        sorted(
            (task.loads[vcpu], vcpu)
            for vcpu, home in enumerate(task.home)
            if home == cpu and task.may[vcpu]
        )
        for cpu in range(len(task.start))
    ]


def levels(task: Task, place: Sequence[int]) -> list[int]:
    """Give the loads with the vCPUs at these places."""
    loads = list(task.start)
    for size, home, cpu in zip(task.loads, task.home, place, strict=True):
        if home != cpu:
            loads[home] -= size
            loads[cpu] += size
    return loads


def excess(task: Task, loads: Sequence[int]) -> int:
    """Give the load outside the bounds."""
    rows = zip(loads, task.low, task.high, strict=True)
    return sum(max(0, load - high, low - load) for load, low, high in rows)


def test_the_vcpu_that_mends_both_ends_goes() -> None:
    """[50 30 10] [10], band 40-60: the 30 makes them 60 and 40; 50 or 10 would not do."""
    assert fill(*task_of([50, 30, 10], [10], low=40, high=60), 1) == [0, 1, 0, 1]


def test_an_exchange_where_no_move_helps() -> None:
    """[70 60] [50 40], band 105-115: any move would turn it round; an exchange makes them 110.

    130 and 90 are 15 above and 15 below, so the two moves gain 30 together.
    """
    task, own = task_of([70, 60], [50, 40], low=105, high=115)
    place = fill(task, own, 15)
    assert levels(task, place) == [110, 110]
    assert sum(cpu != home for cpu, home in zip(place, task.home, strict=True)) == 2
    assert fill(task, own, 16) == task.home


def test_moves_that_gain_little_are_made_only_to_reach_the_end() -> None:
    """[52 3] [40], band 42-53: the 3 brings 55 and 40 within it, and gains 4.

    With [90] beside them, which is stuck, that is no end, and it stays.
    """
    task, own = task_of([52, 3], [40], low=42, high=53)
    assert fill(task, own, 5, 5) == task.home
    assert fill(task, own, 5, 1) == [0, 1, 1]
    task, own = task_of([52, 3], [40], [90], low=42, high=53)
    assert fill(task, own, 5, 1) == task.home
    assert fill(task, own, 5) == [0, 1, 1, 2]


def test_it_never_makes_anything_worse() -> None:
    """Within masks: less is outside the bounds, no higher peak, no lower bottom; 2,000 tasks."""
    met: Counter[str] = Counter()
    for seed in range(2_000):
        task = random_task(seed)
        place = fill(task, own_of(task), random.Random(seed).choice([1, 5_000, 20_000]))
        for vcpu, cpu in enumerate(place):
            assert cpu == task.home[vcpu] or task.may[vcpu] >> cpu & 1
        then = levels(task, place)
        moved = place != list(task.home)
        met["moved"] += moved
        met["reached"] += moved and not excess(task, then)
        assert excess(task, then) < excess(task, task.start) or not moved
        assert max(then) <= max(task.start)
        assert min(then) >= min(task.start)
    assert met["moved"] > 500
    assert met["reached"] > 100


def random_task(seed: int) -> Task:
    """Give a task on a host from a seed: a band around the mean; some pCPUs are helpless."""
    chance = random.Random(seed)
    drawn = random_host(seed, floating=False)
    board = Board.of(drawn, sorted(drawn.vcpus, key=lambda vcpu: vcpu.id), binding=False)
    count = len(board.cpus)
    mean, span = sum(board.base) // count, chance.choice([10_000, 100_000, 300_000])
    low = [max(0, mean - span // 2)] * count
    high = [mean + span // 2] * count
    for cpu in range(count):
        if chance.random() < 0.1:
            high[cpu] += chance.randint(0, 500_000)
    if chance.random() < 0.1:
        low[0], high[0] = -1, UNBOUNDED
    return Task(
        loads=board.loads,
        home=board.home,
        may=board.may,
        start=board.base,
        low=low,
        high=high,
        span=span,
        tops=range(count),
        bottoms=range(count),
    )
