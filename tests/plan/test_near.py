"""Answers brought nearer: the nearest pCPUs that will do, far moves that pay, whole cores."""

import dataclasses
import random
from collections.abc import Sequence

import pytest
from builders import after, host, random_host

from vcpusched.model import PPM_PER_POINT, Cpu, CpuSet, Host, HostCpu
from vcpusched.plan.board import Board
from vcpusched.plan.near import ACROSS, CACHE, CORE, NODE, SAME, Gains, distance, part_siblings
from vcpusched.plan.planner import Floating, Plan, Policy, plan

POLICY = Policy(balance_threshold_ppm=100_000, min_gain_ppm=20_000, node_gain_ppm=200_000)
KERNEL = dataclasses.replace(POLICY, floating=Floating.KERNEL)


def machine(cpus: int, per_core: int = 1, per_cache: int = 2, per_node: int = 4) -> list[Cpu]:
    """Give a machine whose pCPUs are numbered core by core, cache by cache, node by node."""
    return [Cpu(cpu, cpu // per_node, cpu // per_core, cpu // per_cache) for cpu in range(cpus)]


def on(cpus: Sequence[Cpu], drawn: Host) -> Host:
    """Give a drawn host on a machine."""
    return dataclasses.replace(drawn, cpus=tuple(HostCpu(cpu) for cpu in cpus))


def told(found: Plan) -> list[str]:
    """Give the moves of a plan."""
    return [f"{move.domain}: {move.from_cpus} to {move.to_cpus}" for move in found.moves]


def test_distance() -> None:
    """Two threads to a core, four to a cache, eight to a node; then one that tells nothing."""
    cpus = machine(16, 2, 4, 8)
    assert [distance(cpus[0], cpus[other]) for other in (0, 1, 2, 4, 8)] == [
        SAME,
        CORE,
        CACHE,
        NODE,
        ACROSS,
    ]
    assert distance(Cpu(0), Cpu(1)) == CACHE


def test_each_step_out_needs_more() -> None:
    """5 points within a cache, 20 across nodes, so 12.5 to another cache; never less than near."""
    gains = Gains(50_000, 200_000)
    assert [gains.at(far) for far in (CORE, CACHE, NODE, ACROSS)] == [
        50_000,
        50_000,
        125_000,
        200_000,
    ]
    assert Gains(50_000, 0).at(ACROSS) == 50_000


@pytest.mark.parametrize(
    ("empty", "target"), [((1, 2, 4), "1"), ((2, 4), "2"), ((3, 6), "3"), ((5, 7), None)]
)
def test_the_nearest_that_will_do(empty: tuple[int, ...], target: str | None) -> None:
    """{40 40} on pCPU 0; some others are empty, the rest at 40: one 40 goes to the nearest empty.

    pCPU 1 is in the same cache, 2 and 3 in the same node, 4 to 7 in another one. All bring 40
    inside the band, which is enough for any distance.
    """
    drawn = host(*([40, 40] if cpu == 0 else [] if cpu in empty else [40] for cpu in range(8)))
    found = plan(on(machine(8), drawn), POLICY)
    assert len(found.moves) == 1
    if target is not None:
        assert str(found.moves[0].to_cpus) == target
    else:
        assert str(found.moves[0].to_cpus) in {"5", "7"}


def test_two_that_cross_change_targets() -> None:
    """{40 40} {40} | {40 40} {}, and one empty pCPU beside each: nobody crosses the nodes."""
    drawn = host([40, 40], [40], [], [40], [40, 40], [40], [], [40])
    found = plan(on(machine(8), drawn), POLICY)
    assert sorted(move[4:] for move in told(found)) == ["0 to 2", "4 to 6"]


def test_a_move_to_another_node_must_gain_more() -> None:
    """{30 15} {30} {30} {30} | {30} {30} {30} {15}: 15 to the last pCPU makes 30 everywhere.

    The band of 10 is at best 25 to 35: 45 and 15 leave 20 outside, all of which it brings inside;
    less than 25 is not enough to leave the node, and 15 is.
    """
    drawn = on(machine(8), host([30, 15], [30], [30], [30], [30], [30], [30], [15]))
    near = dataclasses.replace(POLICY, node_gain_ppm=150_000)
    far = dataclasses.replace(POLICY, node_gain_ppm=250_000)
    assert told(plan(drawn, near)) == ["g1: 0 to 7"]
    assert told(plan(drawn, far)) == []


@pytest.mark.parametrize("per_core", [1, 2])
def test_a_far_move_that_does_not_pay_goes_near(per_core: int) -> None:
    """{15 15 15 15} {} {} {} | {} {} {}, and up to 3 points of the host's own on each: three pins.

    Each brings 15 points or less inside the band: too little for the other node (20), enough for
    this one (12.5 and 5); that the host's own loads differ by a hair is no matter. With threads the
    nearest pCPU shares its core with another busy one, and two of four cores are in the other node:
    to part siblings is worth going there.
    """
    for seed in range(60):
        chance = random.Random(seed)
        drawn = on(machine(7, per_core, 4), host([15, 15, 15, 15], *([] for _ in range(6))))
        cpus = tuple(
            dataclasses.replace(cpu, host_load_ppm=chance.randrange(30_000)) for cpu in drawn.cpus
        )
        vcpus = tuple(
            dataclasses.replace(vcpu, load_ppm=vcpu.load_ppm + chance.randrange(-2000, 2000))
            for vcpu in drawn.vcpus
        )
        drawn = dataclasses.replace(drawn, cpus=cpus, vcpus=vcpus)
        found = plan(drawn, Policy())
        assert len(found.moves) == 3, seed
        then = after(drawn, found)
        cores = {cpu.cpu.id: cpu.cpu.core for cpu in then.cpus}
        assert len({cores[next(iter(vcpu.cpus))] for vcpu in then.vcpus}) == 4, seed
        assert plan(then, Policy()).moves == (), seed


def test_memory_draws_a_guest_home() -> None:
    """The 40 whose memory is on node 1 goes there, though a pCPU beside it would do, too."""
    drawn = on(machine(8), host([40, 40], [], [40], [40], [40], [], [40], [40]))
    home = dataclasses.replace(drawn.vcpus[0], memory_node=1)
    other = dataclasses.replace(drawn.vcpus[1], fixed=True)
    found = plan(dataclasses.replace(drawn, vcpus=(home, other, *drawn.vcpus[2:])), POLICY)
    assert told(found) == ["g0: 0 to 5"]


def test_two_busy_siblings_are_parted() -> None:
    """{90 | 90} {0 | 0}: both threads of one core, none of the other; one must go, and only one."""
    drawn = on(machine(4, per_core=2, per_cache=4), host([90], [90], [], []))
    found = plan(drawn, POLICY)
    assert len(found.moves) == 1
    assert str(found.moves[0].to_cpus) in {"2", "3"}
    assert plan(after(drawn, found), POLICY).moves == ()


def test_siblings_stay_where_no_core_idles() -> None:
    """{90 | 90} {90 | 0}: three for two cores; whoever moved, two would share a core."""
    assert plan(on(machine(4, 2, 4), host([90], [90], [90], [])), POLICY).moves == ()
    assert plan(on(machine(4, 1, 4), host([90], [90], [], [])), POLICY).moves == ()


@pytest.mark.full
def test_on_random_machines() -> None:
    """Masks and fixed vCPUs hold, the gap never grows, and it ends.

    However the machine is built; compared with the same host whose pCPUs are all alike, at most a
    pin more for each core.
    """
    for seed in range(300):
        chance = random.Random(seed)
        drawn = random_host(seed)
        per_core, per_cache, per_node = chance.choice([1, 2]), chance.choice([2, 4]), 4
        cpus = [
            dataclasses.replace(
                cpu,
                cpu=Cpu(cpu.id, cpu.id // per_node, cpu.id // per_core, cpu.id // per_cache),
            )
            for cpu in drawn.cpus
        ]
        built = dataclasses.replace(drawn, cpus=tuple(cpus))
        found, flat = plan(built, POLICY), plan(drawn, POLICY)
        vcpus = {vcpu.id: vcpu for vcpu in built.vcpus}
        assert found.gap_after_ppm <= found.gap_before_ppm
        assert len({move.vcpu for move in found.moves}) == len(found.moves)
        for move in found.moves:
            assert move.to_cpus.is_within(vcpus[move.vcpu].allowed), seed
            assert not vcpus[move.vcpu].fixed
        assert len(found.moves) <= len(flat.moves) + len(built.cpus)
        now = built
        for _ in range(20):
            again = plan(now, POLICY)
            if not again.moves:
                break
            now = after(now, again)
        assert not again.moves, seed


@pytest.mark.parametrize(("empty", "target"), [((0, 7), "7"), ((1, 3, 4), "4")])
def test_the_nearest_is_not_the_first(empty: tuple[int, ...], target: str) -> None:
    """The same with the two 40 on pCPU 6: what is near has the higher number."""
    drawn = host(*([40, 40] if cpu == 6 else [] if cpu in empty else [40] for cpu in range(8)))
    found = plan(on(machine(8), drawn), POLICY)
    assert [str(move.to_cpus) for move in found.moves] == [target]


def floats(drawn: Host, **masks: str) -> Host:
    """Let some guests float over these pCPUs."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, cpus=mask, allowed=mask)
            if (text := masks.get(vcpu.domain)) is not None and (mask := CpuSet.parse(text))
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )


def test_floaters_count_where_a_far_move_must_pay() -> None:
    """{} {} | {} {15}, 60 on pCPUs 1 to 3, 10 on 1 and 2: the kernel makes 0 28 28 28 of it.

    The 15 goes to the empty pCPU of the other node: 15 23 23 23. Without the floaters pCPU 3 would
    be left at 0, as empty as the one it goes to, and nothing gained.
    """
    drawn = floats(host([], [10, 60], [], [15]), g0="1-2", g1="1-3")
    found = plan(on(machine(4, per_cache=1, per_node=2), drawn), KERNEL)
    assert told(found) == ["g2: 3 to 0"]
    assert [load // PPM_PER_POINT for _, load in found.loads_before_ppm] == [0, 28, 28, 28]
    assert [load // PPM_PER_POINT for _, load in found.loads_after_ppm] == [15, 23, 23, 23]


def test_who_is_off_its_memory_may_move_beside() -> None:
    """{30 20} {} | … {20} … in a cache, the memory of both on the other node, where it is full.

    A step within the cache takes nobody further from it: 20 points are more than enough for that,
    and would not be (25) for leaving a node.
    """
    drawn = on(machine(8), host([], [], [], [30, 20], [30], [30], [20], [30]))
    there = tuple(dataclasses.replace(vcpu, memory_node=1) for vcpu in drawn.vcpus)
    policy = dataclasses.replace(POLICY, node_gain_ppm=250_000)
    assert told(plan(dataclasses.replace(drawn, vcpus=there), policy)) == ["g1: 3 to 2"]


def test_a_move_home_to_memory_is_not_made_one_beside_instead() -> None:
    """{20 12} {12} {30} {25} | {25} {25} {35} {10}, all memory on the second node.

    The 12 of pCPU 0 would go to the last pCPU, to its memory, and that does not pay. To go beside
    instead would leave it as far from its memory as it is.
    """
    loads = ([20, 12], [12], [30], [25], [25], [25], [35], [10])
    drawn = on(machine(8), host(*loads))
    there = tuple(dataclasses.replace(vcpu, memory_node=1) for vcpu in drawn.vcpus)
    assert told(plan(dataclasses.replace(drawn, vcpus=there), Policy(steps_max=2000))) == []


def test_an_unsettled_sibling_is_no_idle_core() -> None:
    """{15 | 50} {0 | ?}: what the last thread does is not known, so its core may be busy."""
    drawn = on(machine(4, 2, 4), host([15], [50], [], []))
    assert plan(dataclasses.replace(drawn, unsettled=CpuSet.of([3])), POLICY).moves == ()
    assert len(plan(drawn, POLICY).moves) == 1


def test_parting_siblings_leaves_balance_alone() -> None:
    """{15 | 8 7} {10} {18}: 7 on an idler core would make 15 8 17 18 of it, a gap of 10.

    It moves anyway, from the last core, so that two points more would be no matter elsewhere.
    """
    cpus = [Cpu(0, core=0), Cpu(1, core=0), Cpu(2, core=1), Cpu(3, core=2)]
    drawn = on(cpus, host([15], [8], [10], [18, 7]))
    vcpus = sorted(drawn.vcpus, key=lambda vcpu: vcpu.id)
    board = Board.of(drawn, vcpus, binding=False)
    place = [
        1 if vcpu.domain == "g4" else home for vcpu, home in zip(vcpus, board.home, strict=True)
    ]
    assert part_siblings(board, place, 100_000, 20_000) == place
    assert part_siblings(board, place, 101_000, 20_000) == place
