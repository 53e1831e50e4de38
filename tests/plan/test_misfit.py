"""Machines whose pCPUs differ: balanced by what each can do, and heavy vCPUs on the strong ones."""

import dataclasses
import json
import random
from collections.abc import Sequence

import pytest
from builders import after, host, random_host, served_ppm

from vcpusched.act.cycle import Scheduler
from vcpusched.model import PPM_PER_POINT, Cpu, CpuSet, Granularity, Host, HostCpu, Topology
from vcpusched.plan.planner import Floating, Plan, Policy, plan
from vcpusched.report import snapshot
from vcpusched.settings import Settings
from vcpusched.simulate.simulator import simulate
from vcpusched.simulate.workload import Guest, Workload

BOTH = pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.CORE])


def hybrid(percents: Sequence[int], drawn: Host, cores: Sequence[int] | None = None) -> Host:
    """Give a drawn host whose pCPUs do so many percent of the strongest, each a core by itself."""
    cpus = tuple(
        HostCpu(Cpu(cpu, 0, cores[cpu] if cores else cpu, 0, percent * PPM_PER_POINT))
        for cpu, percent in enumerate(percents)
    )
    return dataclasses.replace(drawn, cpus=cpus)


def told(found: Plan) -> set[str]:
    """Give the moves of a plan."""
    return {f"{move.domain}: {move.from_cpus} to {move.to_cpus}" for move in found.moves}


def unmet(drawn: Host) -> int:
    """Give what vCPUs lack of what they want, in points."""
    wanted = sum(vcpu.load_ppm for vcpu in drawn.vcpus)
    return round((wanted - sum(served_ppm(drawn, {}).values())) / PPM_PER_POINT)


@BOTH
def test_loads_go_by_what_each_can_do(granularity: Granularity) -> None:
    """Three strong pCPUs, two that do 60 %: {20 20} {20 20} {20} ' {20 20 20} {20}.

    strong  ████ 40 %    ████ 40 %    ██ 20 %
    weak    ██████████ 100 %    ███ 33 %

    180 wanted of 420: 43 % of each, so 43 on a strong one and 26 on a weak one. One leaves the
    first weak one for the third strong one: 40 40 40 ' 67 % 33 %. Were all alike, the second weak
    one would do as well.
    """
    drawn = hybrid([100] * 3 + [60] * 2, host([20, 20], [20, 20], [20], [20, 20, 20], [20]))
    found = plan(drawn, Policy(granularity=granularity))
    assert [str(move.to_cpus) for move in found.moves] == ["2"]
    assert [load // PPM_PER_POINT for _, load in found.loads_before_ppm] == [40, 40, 20, 100, 33]
    assert [load // PPM_PER_POINT for _, load in found.loads_after_ppm] == [40, 40, 40, 66, 33]
    assert "pCPU 3 was at 100 % and pCPU 2 at 20 %" in found.moves[0].reason


@BOTH
def test_equal_use_is_balance(granularity: Granularity) -> None:
    """{50} {50} ' {30} {30}: half of what each can do, though the loads are 20 points apart."""
    found = plan(
        hybrid([100, 100, 60, 60], host([50], [50], [30], [30])), Policy(granularity=granularity)
    )
    assert found.balanced
    assert found.gap_before_ppm == 0
    assert {load for _, load in found.loads_before_ppm} == {500_000}


@BOTH
@pytest.mark.parametrize(
    ("percents", "loads", "moves", "lacked"),
    [
        # {80 10} on a weak one: the heavy one goes, and the light one fits where it is.
        ([100, 60], ([], [80, 10]), {"g0: 1 to 0"}, 30),
        ([100, 100, 60, 60], ([], [], [80, 10], []), {"g0: 2 to 0"}, 30),
        # Alone on a weak one it is no better off than beside others, as it is among equals.
        ([100, 60], ([], [80]), {"g0: 1 to 0"}, 20),
        ([100] * 8 + [60] * 8, (*[[]] * 8, [80], *[[]] * 7), {"g0: 8 to 0"}, 20),
        # No strong one has room, but one has a light guest to exchange.
        ([100, 60], ([30], [80]), {"g0: 0 to 1", "g1: 1 to 0"}, 20),
    ],
)
def test_heavy_ones_go_to_strong_pcpus(
    granularity: Granularity,
    percents: Sequence[int],
    loads: Sequence[Sequence[int]],
    moves: set[str],
    lacked: int,
) -> None:
    """Afterwards all that is wanted is done, and there is nothing more to do."""
    drawn = hybrid(percents, host(*loads))
    policy = Policy(granularity=granularity, service_check=True)
    found = plan(drawn, policy)
    then = after(drawn, found)
    assert told(found) == moves
    assert (unmet(drawn), unmet(then)) == (lacked, 0)
    assert plan(then, policy).moves == ()


@BOTH
@pytest.mark.parametrize(
    "loads",
    [
        ([], [50]),  # fits: 83 % of a weak one, and nobody in its way
        ([100], [100]),  # an exchange would only change whose turn it is
        ([90], [62]),  # lacks 2 points, less than the least gain
    ],
)
def test_who_gains_nothing_stays(granularity: Granularity, loads: Sequence[Sequence[int]]) -> None:
    """A strong pCPU and one that does 60 %: nobody gets more by any move."""
    drawn = hybrid([100, 60], host(*loads))
    assert plan(drawn, Policy(granularity=granularity)).moves == ()


def test_cores_that_do_the_same_together_may_differ_in_their_threads() -> None:
    """A core of two threads of 80 % does 100, like one of a single thread: {90 90 | } ' {}.

    One of two that want 90 goes, whichever, and then each core has as much of what it can do.
    """
    drawn = hybrid([80, 80, 100], host([90, 90], [], []), [0, 0, 1])
    policy = Policy(granularity=Granularity.CORE, service_check=True)
    found = plan(drawn, policy)
    assert [str(move.to_cpus) for move in found.moves] == ["2"]
    assert {load for _, load in found.loads_after_ppm} == {900_000}


def test_masks_and_holds_bind_misfits_too() -> None:
    """{} ' {80}, which may not leave the weak pCPU: by its definition, or since it is held."""
    drawn = hybrid([100, 60], host([], [80]))
    for changes in ({"allowed": CpuSet.of([1])}, {"fixed": True}):
        vcpu = dataclasses.replace(drawn.vcpus[0], **changes)
        assert plan(dataclasses.replace(drawn, vcpus=(vcpu,)), Policy()).moves == ()


def test_siblings_of_strong_cores_are_parted() -> None:
    """A core of two threads, two of one that do 60 %: {90 | 20} ' {} {}, {90 | 90} ' {} {}.

    Beside a 20 the 90 lacks nothing: 110 of 125. Of two 90 each gets 62.5, and on a weak core one
    would get 60: nothing is gained, so nothing is moved.
    """
    cores = [0, 0, 1, 2]
    percents = [100, 100, 60, 60]
    assert plan(hybrid(percents, host([90], [90], [], []), cores), Policy()).moves == ()
    calm = plan(hybrid(percents, host([90], [20], [], []), cores), Policy(service_check=True))
    assert all(move.domain != "g0" for move in calm.moves)


@BOTH
def test_on_random_machines(granularity: Granularity) -> None:
    """Every promise of a plan holds, none makes anybody worse off, and it comes to rest."""
    chance = random.Random(7)
    moved = 0
    for seed in range(150):
        drawn = random_host(seed, floating=False)
        threads = chance.choice([1, 2])
        kinds = [chance.choice([100, 100, 60, 35]) for _ in drawn.cpus]
        cpus = tuple(
            dataclasses.replace(
                cpu,
                cpu=Cpu(
                    cpu.id,
                    0,
                    index // threads,
                    0,
                    kinds[index // threads] * PPM_PER_POINT,
                ),
            )
            for index, cpu in enumerate(drawn.cpus)
        )
        now = dataclasses.replace(drawn, cpus=cpus)
        policy = Policy(granularity=granularity, service_check=True)
        vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
        shuffled = list(now.vcpus)
        chance.shuffle(shuffled)
        for _ in range(30):
            found = plan(now, policy)
            if not found.moves:
                break
            moved += len(found.moves)
            assert found.gap_after_ppm <= found.gap_before_ppm, seed
            assert len({move.vcpu for move in found.moves}) == len(found.moves)
            assert all(move.to_cpus.is_within(vcpus[move.vcpu].allowed) for move in found.moves)
            assert not any(vcpus[move.vcpu].fixed for move in found.moves)
            now = after(now, found)
        assert not found.moves, seed
        again = dataclasses.replace(drawn, cpus=cpus, vcpus=tuple(shuffled))
        first = plan(dataclasses.replace(drawn, cpus=cpus), policy)
        assert told(plan(again, policy)) == told(first), seed
    assert moved > 100


@pytest.mark.parametrize("wants", [(80, 80), (75, 75), (80, 70)])
def test_two_misfits_do_not_take_turns(wants: tuple[int, int]) -> None:
    """One of two on a pCPU that does 45 %, and each too much for that: whoever is there, is.

    strong  ████████ 80 %
    weak    ██████████ 100 %, and it never sleeps, so that it may want any more

    It reads as wanting all of a strong pCPU there, and on that one what it wants, as the other does
    then: exchanged once, they would be exchanged for ever.
    """
    cpus = tuple(Cpu(cpu, 0, cpu, 0, part * PPM_PER_POINT) for cpu, part in enumerate((100, 45)))
    guests = tuple(
        Guest(
            f"g{cpu}",
            ((want * PPM_PER_POINT,) * 300,),
            allowed=CpuSet.of(range(2)),
            pin=CpuSet.of([cpu]),
        )
        for cpu, want in enumerate(wants)
    )
    workload = Workload("misfits", 2, 300, guests, topology=Topology(cpus))
    assert len(simulate(workload, Scheduler(), Settings.model_validate({}).rules()).pins) <= 2


@pytest.mark.parametrize(
    ("cpus", "vcpus"),
    [
        # pCPU 0 is not managed, and the vCPUs on it and on 1 contend with what is on 2 and 3.
        ([(1, 0, 0, 1.0), (2, 1, 0, 1.0), (3, 1, 0, 1.0), (4, 2, 0, 1.0)], ["0-1", "0-1"]),
        # What cannot be less can do nothing beside what can.
        ([(0, 0, 0, 1.0), (1, 1, 0, 1.0), (2, 2, 1, 0.000001)], ["0"]),
    ],
)
@pytest.mark.parametrize("granularity", list(Granularity))
def test_odd_snapshots(
    cpus: Sequence[tuple[int, int, int, float]], vcpus: Sequence[str], granularity: Granularity
) -> None:
    """Hosts that the service never sees, but somebody may write into a file."""
    of = [
        {"id": cpu, "node": 0, "core": core, "cache": cache, "capacity": capacity}
        for cpu, core, cache, capacity in cpus
    ]
    on = [
        {"domain": f"g{index}", "vcpu": 0, "load": 1.0, "cpus": where, "allowed": "0-5"}
        for index, where in enumerate(vcpus)
    ]
    drawn = snapshot.parse(json.dumps({"version": 1, "cpus": of, "vcpus": on}))
    for move in plan(drawn, Policy(granularity=granularity)).moves:
        assert move.to_cpus.is_within(CpuSet.parse("0-5"))


def test_floaters_count_for_who_might_as_well_stay() -> None:
    """{} {50} ' {} {25 50}, and 60 on pCPUs 1 and 3: 0 104 ' 0 134.

    Alone on the last pCPU the 50 would have enough, but not beside the floaters, which have nowhere
    to go: it leaves for the first.
    """
    drawn = hybrid([100, 100, 60, 60], host([], [50, 60], [], [25, 50]))
    loose = dataclasses.replace(
        drawn.vcpus[1], cpus=CpuSet.parse("1,3"), allowed=CpuSet.parse("1,3")
    )
    drawn = dataclasses.replace(drawn, vcpus=(drawn.vcpus[0], loose, *drawn.vcpus[2:]))
    policy = Policy(min_gain_ppm=20_000, floating=Floating.KERNEL)
    assert told(plan(drawn, policy)) == {"g2: 3 to 2", "g3: 3 to 0"}


def test_a_misfit_off_its_memory_may_move_beside() -> None:
    """{} ' {75} in a cache, its memory on another node: 15 points are enough to go beside."""
    drawn = hybrid([100, 60], host([], [75]))
    away = dataclasses.replace(drawn.vcpus[0], memory_node=1)
    found = plan(dataclasses.replace(drawn, vcpus=(away,)), Policy(node_gain_ppm=200_000))
    assert told(found) == {"g0: 1 to 0"}
