"""The pCPUs of the simulated host: who runs, who waits, and that no time is lost or made up."""

import itertools
import random

import pytest

from vcpusched.machine import Machine, Thread

MS = 1_000_000
SECOND = 1000 * MS


def threads(*affinities: int, weights: tuple[int, ...] = ()) -> list[Thread]:
    """Give threads with these bits as affinities, each last seen on the lowest."""
    return [
        Thread(
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
    for period in range(1, 4):
        start_ns = machine.now_ns
        bursts = sorted(
            (start_ns + chance.randrange(200 * MS), chance.randrange(1, 90 * MS), index)
            for index in range(len(some))
            for _ in range(chance.randrange(4))
        )
        for _, work_ns, index in bursts:
            came[index] += work_ns
        used_before = machine.used_ns()
        machine.run(period * 200 * MS, [(at, work, some[index]) for at, work, index in bursts])
        used = [now - before for now, before in zip(machine.used_ns(), used_before, strict=True)]
        assert all(0 <= cpu <= 200 * MS for cpu in used)
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
