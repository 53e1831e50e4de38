"""The pCPUs of the simulated host: who runs, who waits, and that no time is lost or made up."""

import itertools
import random
from collections.abc import Sequence

import pytest

from vcpusched.simulate.machine import Machine, VcpuThread

MS = 1_000_000
SECOND = 1000 * MS


def threads(*affinities: int, weights: tuple[int, ...] = ()) -> list[VcpuThread]:
    """Return threads with these bits as affinities, each last seen on the lowest."""
    return [
        VcpuThread(
            index,
            weights[index] if weights else 1024,
            affinity,
            (affinity & -affinity).bit_length() - 1,
        )
        for index, affinity in enumerate(affinities)
    ]


def test_two_that_always_want_share_a_cpu_by_weight() -> None:
    """2:1 shares for 3 s: 2 s and 1 s run, 1 s and 2 s waited, and as much is left."""
    one, other = threads(0b1, 0b1, weights=(2048, 1024))
    machine = Machine(1)
    machine.run(3 * SECOND, [(0, 3 * SECOND, one), (0, 3 * SECOND, other)])
    assert (one.run_ns, one.wait_ns, one.left_ns) == (2 * SECOND, SECOND, SECOND)
    assert (other.run_ns, other.wait_ns, other.left_ns) == (SECOND, 2 * SECOND, 2 * SECOND)
    assert machine.used_ns() == [3 * SECOND]


def test_who_needs_less_than_its_share_leaves_the_rest_to_others() -> None:
    """30 ms and 70 ms on one pCPU: alike until 60 ms, then the second alone; none is lost."""
    light, heavy = threads(0b1, 0b1)
    machine = Machine(1)
    machine.run(100 * MS, [(0, 30 * MS, light), (0, 70 * MS, heavy)])
    assert (light.run_ns, light.wait_ns) == (30 * MS, 30 * MS)
    assert (heavy.run_ns, heavy.wait_ns) == (70 * MS, 30 * MS)


def test_bursts_that_collide_cost_wait_though_there_is_time_for_both() -> None:
    """20 ms each in 100 ms: at the same moment each waits 20 ms, one after the other none does."""
    for later_ms, wait_ms in ((0, 20), (20, 0), (10, 10)):
        one, other = threads(0b1, 0b1)
        Machine(1).run(100 * MS, [(0, 20 * MS, one), (later_ms * MS, 20 * MS, other)])
        assert (one.wait_ns, other.wait_ns) == (wait_ms * MS, wait_ms * MS)
        assert (one.run_ns, other.run_ns) == (20 * MS, 20 * MS)


def test_a_thread_is_never_on_two_cpus() -> None:
    """A floating one with more work than time runs all the time, and no more."""
    (only,) = threads(0b11)
    machine = Machine(2)
    machine.run(SECOND, [(0, 3 * SECOND, only)])
    assert (only.run_ns, only.wait_ns, only.left_ns) == (SECOND, 0, 2 * SECOND)
    assert sum(machine.used_ns()) == SECOND


def test_a_waking_thread_takes_an_idle_cpu() -> None:
    """It comes back to where it ran last if that is idle; else the next idle one, at once.

    At 0 it runs on pCPU 0; at 30 the bound one is there, so on 1; at 60 both are idle: on 1 again.
    """
    bound, floating = threads(0b0001, 0b1111)
    machine = Machine(4)
    machine.run(
        SECOND,
        [
            (0, 10 * MS, floating),
            (20 * MS, 30 * MS, bound),
            (30 * MS, 2 * MS, floating),
            (60 * MS, 5 * MS, floating),
        ],
    )
    assert floating.wait_ns == 0
    assert machine.used_ns() == [40 * MS, 7 * MS, 0, 0]
    assert floating.on == 1


def test_a_waking_thread_keeps_to_its_mask() -> None:
    """Of pCPUs 0 and 2, with 0 busy, it takes 2, though 1 is nearer; with both busy it waits."""
    zero, two, floating = threads(0b001, 0b100, 0b101)
    machine = Machine(3)
    machine.run(SECOND, [(0, SECOND, zero), (10 * MS, 10 * MS, floating)])
    assert machine.used_ns() == [SECOND, 0, 10 * MS]
    machine.run(2 * SECOND, [(SECOND, SECOND, two), (SECOND, 10 * MS, floating)])
    assert machine.used_ns()[1] == 0


def test_a_running_floater_gives_way_to_one_that_is_bound() -> None:
    """The bound one wakes on its pCPU while another is idle: neither waits."""
    floating, bound = threads(0b11, 0b01)
    machine = Machine(2)
    machine.run(100 * MS, [(0, 100 * MS, floating), (50 * MS, 50 * MS, bound)])
    assert (floating.wait_ns, bound.wait_ns) == (0, 0)
    assert machine.used_ns() == [100 * MS, 50 * MS]


def test_a_cpu_that_falls_idle_takes_a_waiting_thread() -> None:
    """The floater waits for 15 of its first 30 ms, beside the hog, then has pCPU 1 to itself.

    Of its 80 ms it has run 15 by then; the other 65 are done at 95.
    """
    hog, busy, floating = threads(0b01, 0b10, 0b11)
    machine = Machine(2, slice_ns=SECOND)
    machine.run(
        100 * MS,
        [(0, 100 * MS, hog), (0, 30 * MS, busy), (0, 80 * MS, floating)],
    )
    assert floating.wait_ns == 15 * MS
    assert machine.used_ns() == [100 * MS, 95 * MS]


def test_waiting_goes_round_among_floaters() -> None:
    """Five that always want on four pCPUs for 10 s: each gets 4/5 of a pCPU, within 3 points."""
    five = threads(*[0b1111] * 5)
    machine = Machine(4)
    machine.run(10 * SECOND, [(0, 10 * SECOND, thread) for thread in five])
    assert machine.used_ns() == [10 * SECOND] * 4
    assert all(abs(thread.run_ns - 8 * SECOND) < 300 * MS for thread in five)


def test_floaters_keep_to_their_masks() -> None:
    """Two that may use pCPUs 0 and 1 share them with two hogs; 2 and 3 stay idle."""
    four = threads(0b0011, 0b0011, 0b0001, 0b0010)
    machine = Machine(4)
    machine.run(SECOND, [(0, SECOND, thread) for thread in four])
    assert machine.used_ns() == [SECOND, SECOND, 0, 0]
    assert sum(thread.run_ns for thread in four) == pytest.approx(2 * SECOND, abs=1000)


def busy_time(machine: Machine, some: Sequence[VcpuThread], chance: random.Random) -> list[int]:
    """Run random bursts for 200 ms on no pCPU longer than that; return the work of each thread."""
    start_ns, used_before = machine.now_ns, machine.used_ns()
    bursts = sorted(
        (start_ns + chance.randrange(200 * MS), chance.randrange(1, 90 * MS), index)
        for index in range(len(some))
        for _ in range(chance.randrange(4))
    )
    machine.run(start_ns + 200 * MS, [(at, work, some[index]) for at, work, index in bursts])
    used = [now - before for now, before in zip(machine.used_ns(), used_before, strict=True)]
    assert all(0 <= cpu <= 200 * MS for cpu in used)
    return [sum(work for _, work, index in bursts if index == one) for one in range(len(some))]


@pytest.mark.parametrize("seed", range(40))
def test_no_time_is_lost_or_made_up(seed: int) -> None:
    """Random bursts, masks and weights: run and left are what came; no pCPU is over-used.

    What run times lack of the time used is what whole nanoseconds cannot share.
    """
    chance = random.Random(seed)
    count = chance.choice([1, 2, 3, 5])
    some = threads(
        *[chance.randrange(1, 1 << count) for _ in range(chance.randrange(1, 12))],
        weights=tuple(chance.choice([2, 100, 1024, 3000]) for _ in range(12)),
    )
    machine, came = Machine(count), [0] * len(some)
    for _ in range(3):
        arrived = busy_time(machine, some, chance)
        came = [known + work for known, work in zip(came, arrived, strict=True)]
    assert [thread.run_ns + thread.left_ns for thread in some] == came
    lost_ns = sum(machine.used_ns()) - sum(thread.run_ns for thread in some)
    assert 0 <= lost_ns < 100_000


def test_all_floating_is_work_conserving() -> None:
    """Ten that float on three pCPUs and always want: all three are busy all the time."""
    ten = threads(*[0b111] * 10)
    machine = Machine(3)
    machine.run(SECOND, [(0, SECOND, thread) for thread in ten])
    assert machine.used_ns() == [SECOND] * 3


def test_cpus_without_common_threads_do_not_touch_each_other() -> None:
    """What happens on a pCPU with bound threads is the same whatever happens elsewhere."""
    alone = threads(0b01, 0b01)
    bursts = [(0, 50 * MS, 0), (7 * MS, 40 * MS, 1), (20 * MS, 9 * MS, 0)]
    Machine(1).run(SECOND, [(at, work, alone[index]) for at, work, index in bursts])
    beside = threads(0b01, 0b01, 0b10, 0b10)
    noise = [(at * MS, 3 * MS, index) for at, index in itertools.product(range(90), (2, 3))]
    mixed = sorted([*bursts, *noise])
    Machine(2).run(SECOND, [(at, work, beside[index]) for at, work, index in mixed])
    assert [(t.run_ns, t.wait_ns) for t in alone] == [(t.run_ns, t.wait_ns) for t in beside[:2]]


def test_busy_siblings_do_a_quarter_more_than_one() -> None:
    """Two that always want on one core do 62.5 % each, and neither waits: both are busy all along.

    Each further thread of a core adds another quarter: 1.5 / 3 and 1.75 / 4 each.
    """
    for count, each_ns in ((2, 625 * MS), (3, 500 * MS), (4, 437_500_000)):
        wanting = threads(*(1 << cpu for cpu in range(count)))
        machine = Machine(count, cores=[range(count)])
        machine.run(SECOND, [(0, SECOND, thread) for thread in wanting])
        for thread in wanting:
            assert (thread.run_ns, thread.wait_ns) == (SECOND, 0)
            assert SECOND - thread.left_ns == each_ns
        assert machine.used_ns() == [SECOND] * count
        # In the next span of time only one wants anything.
        first, left_ns = wanting[0], wanting[0].left_ns
        first.left_ns = 0
        machine.run(2 * SECOND, [(SECOND, left_ns, first)])
        assert (first.run_ns, first.left_ns) == (SECOND + left_ns, 0)


def test_a_thread_has_its_core_to_itself_when_its_sibling_is_done() -> None:
    """250 ms of work take 400 ms beside the other, which has 250 of its 800 done by then.

    The other 550 take 550 ms: done at 950. A third, on the next core, notices nothing.
    """
    short, long, third = threads(0b001, 0b010, 0b100)
    machine = Machine(3, cores=[(0, 1), (2,)])
    machine.run(SECOND, [(0, 250 * MS, short), (0, 800 * MS, long), (0, 700 * MS, third)])
    assert (short.run_ns, long.run_ns, third.run_ns) == (400 * MS, 950 * MS, 700 * MS)
    assert not short.left_ns + long.left_ns + third.left_ns


def test_two_on_one_thread_beside_a_busy_sibling() -> None:
    """Shares 2:1 of 62.5 %: 416 2/3 and 208 1/3 ms of work in a second."""
    heavy, light, beside = threads(0b01, 0b01, 0b10, weights=(2048, 1024, 1024))
    machine = Machine(2, cores=[(0, 1)])
    machine.run(SECOND, [(0, SECOND, thread) for thread in (heavy, light, beside)])
    done_ns = [SECOND - thread.left_ns for thread in (heavy, light, beside)]
    assert done_ns == pytest.approx([SECOND * 5 / 12, SECOND * 5 / 24, SECOND * 5 / 8], abs=1000)
    assert heavy.run_ns + light.run_ns == pytest.approx(SECOND, abs=1000)


def test_a_weak_cpu_takes_longer() -> None:
    """300 ms of work on a pCPU that does 60 %: 500 ms."""
    (only,) = threads(0b1)
    machine = Machine(1, capacities_ppm=[600_000])
    machine.run(SECOND, [(0, 300 * MS, only)])
    assert (only.run_ns, only.left_ns, machine.used_ns()) == (500 * MS, 0, [500 * MS])


def test_a_waking_floater_goes_where_it_does_most() -> None:
    """Cores {0 1} {2 3} and weak pCPUs 4 and 5: beside the bound one only the second core is free.

    The next floater finds a weak one, 60 %, worth more than a quarter; and so does the third; the
    fourth goes beside a busy sibling, before it would wait.
    """
    bound, *floaters = threads(0b000001, *[0b111111] * 4)
    machine = Machine(6, cores=[(0, 1), (2, 3)], capacities_ppm=[1_000_000] * 4 + [600_000] * 2)
    arriving = [(number * MS, 500 * MS, thread) for number, thread in enumerate(floaters, 1)]
    machine.run(100 * MS, [(0, 500 * MS, bound), *arriving])
    assert [thread.on for thread in floaters] in ([2, 4, 5, 1], [2, 4, 5, 3])
    assert not any(thread.wait_ns for thread in floaters)


def test_a_floater_leaves_a_core_that_another_thread_wakes_on() -> None:
    """It ran alone on the core of pCPUs 0 and 1; the bound one wakes there; pCPU 2 is free."""
    floating, bound = threads(0b1111, 0b0010)
    machine = Machine(4, cores=[(0, 1), (2, 3)])
    machine.run(SECOND, [(0, SECOND, floating), (500 * MS, 500 * MS, bound)])
    assert machine.used_ns() == [500 * MS, 500 * MS, 500 * MS, 0]
    assert not floating.left_ns + bound.left_ns


def test_a_floater_goes_to_a_better_cpu_that_falls_idle() -> None:
    """From beside a busy sibling to a core of its own, at 300 ms; and from a weak one, too.

    On pCPU 1 it does 62.5 %: 187.5 ms of its 600 by then; the other 412.5 take as long. From a weak
    pCPU of 50 %: 150 and 450.
    """
    for cores, capacities, ends_ns in (
        ([(0, 1), (2,)], [1_000_000] * 3, 712_500_000),
        ([], [1_000_000, 500_000, 1_000_000], 750 * MS),
    ):
        hog, floating, short = threads(0b001, 0b110, 0b100)
        machine = Machine(3, cores=cores, capacities_ppm=capacities)
        bursts = [(0, SECOND, hog), (0, 300 * MS, short), (0, 600 * MS, floating)]
        machine.run(SECOND, bursts)
        assert (floating.run_ns, floating.left_ns) == (ends_ns, 0)
        assert machine.used_ns()[1] == 300 * MS


def test_a_thread_on_a_worse_cpu_follows() -> None:
    """Of pCPUs of 100, 50 and 20 % the first falls idle at 300 ms: both others go one up.

    By then they did 150 and 60 ms of their 400 each. The one does its other 250 by 550; the other,
    which may not use the first, its 340 at 50 %: by 980.
    """
    short, middle, last = threads(0b001, 0b011, 0b110)
    machine = Machine(3, capacities_ppm=[1_000_000, 500_000, 200_000])
    bursts = [(0, 300 * MS, short), (0, 400 * MS, middle), (0, 400 * MS, last)]
    machine.run(SECOND, bursts)
    assert (middle.run_ns, last.run_ns) == (550 * MS, 980 * MS)
    assert machine.used_ns() == [550 * MS, 980 * MS, 300 * MS]


@pytest.mark.parametrize("seed", range(40))
def test_no_work_is_lost_or_made_up_on_a_machine_of_all_sorts(seed: int) -> None:
    """Random bursts, masks and weights: a core does what it can and no more, and none idles.

    What a thread did is at most what its time was good for, on the best of its pCPUs alone, and at
    least what it was on the worst of them with a busy core.
    """
    chance = random.Random(seed)
    sizes = [chance.choice([1, 2, 2, 4]) for _ in range(chance.randrange(1, 4))]
    count = sum(sizes)
    firsts = itertools.accumulate(sizes, initial=0)
    cores = [range(first, first + size) for first, size in zip(firsts, sizes, strict=False)]
    capacities = [0] * count
    for core in cores:
        capacity = chance.choice([1_000_000, 1_000_000, 600_000, 10_000])
        for cpu in core:
            capacities[cpu] = capacity
    some = threads(
        *[
            chance.choice([1 << chance.randrange(count), chance.randrange(1, 1 << count)])
            for _ in range(chance.randrange(1, 12))
        ],
        weights=tuple(chance.choice([2, 100, 1024, 3000]) for _ in range(12)),
    )
    machine, came = Machine(count, cores=cores, capacities_ppm=capacities), [0] * len(some)
    for _ in range(3):
        before = [thread.left_ns for thread in some]
        arrived = busy_time(machine, some, chance)
        came = [known + work for known, work in zip(came, arrived, strict=True)]
        done = [
            left + work - thread.left_ns
            for left, work, thread in zip(before, arrived, some, strict=True)
        ]
        for core in cores:
            here = sum(1 << cpu for cpu in core)
            inside = sum(
                work for work, thread in zip(done, some, strict=True) if not thread.affinity & ~here
            )
            can_ppm = capacities[core[0]] * (75 + 25 * len(core)) // 100
            assert inside <= 200 * MS * can_ppm // 1_000_000
    for thread, work_ns in zip(some, came, strict=True):
        speeds = [
            (
                capacities[cpu],
                capacities[cpu] * (3 + len(core)) // (4 * len(core)),
            )
            for core in cores
            for cpu in core
            if thread.affinity >> cpu & 1
        ]
        done_ns = work_ns - thread.left_ns
        assert thread.left_ns >= 0
        assert done_ns <= thread.run_ns * max(best for best, _ in speeds) // 1_000_000 + 1000
        assert done_ns >= thread.run_ns * min(worst for _, worst in speeds) // 1_000_000 - 1000
