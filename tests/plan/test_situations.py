"""Situations reported by people who pin or balance CPUs: what is right, as drawn and in 20 copies.

A copy has loads off by up to 2 points and the names of its guests shuffled.
"""

import dataclasses
from collections.abc import Sequence

import pytest
from planned import carried_out, copies

from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Granularity,
    Host,
    HostCpu,
    Vcpu,
    VcpuId,
)
from vcpusched.plan.cpu_groups import bins_of
from vcpusched.plan.moves import Plan, Policy, Stop
from vcpusched.plan.planner import plan

SHIPPED = Policy()


def guest(name: str, *vcpus: tuple[int, int], allowed: Sequence[int] | None = None) -> list[Vcpu]:
    """Return the vCPUs of a guest from (percent, pCPU) each."""
    return [
        Vcpu(
            id=VcpuId(DomainUuid(name), 1, number),
            domain=name,
            load_ppm=percent * PPM_PER_POINT,
            cpus=CpuSet.of([cpu]),
            allowed=CpuSet.of(range(64) if allowed is None else allowed),
            on=cpu,
        )
        for number, (percent, cpu) in enumerate(vcpus)
    ]


def host(cpus: Sequence[Cpu], *guests: list[Vcpu], loads: Sequence[int] = ()) -> Host:
    """Return a host of these pCPUs, with the percent that the host itself takes of each."""
    own = [*loads, *[0] * (len(cpus) - len(loads))]
    return Host(
        tuple(HostCpu(cpu, load * PPM_PER_POINT) for cpu, load in zip(cpus, own, strict=True)),
        tuple(vcpu for vcpus in guests for vcpu in vcpus),
    )


def flat(count: int) -> list[Cpu]:
    """Return pCPUs of which only the numbers are known."""
    return [Cpu(cpu) for cpu in range(count)]


def moved(found: Plan) -> set[tuple[str, str]]:
    """Return which guests go where."""
    return {(move.domain, str(move.to_cpus)) for move in found.moves}


TWO_CACHES = [Cpu(cpu, 0, cpu, cpu // 4 * 4) for cpu in range(8)]


@pytest.mark.parametrize("granularity", [Granularity.CACHE, Granularity.NODE])
@pytest.mark.parametrize("drawn", copies(host(TWO_CACHES, guest("a", (90, 2)), loads=[5, 5, 90])))
def test_within_a_set_it_is_let_in_all_of_it(drawn: Host, granularity: Granularity) -> None:
    """A pCPU that is crowded while its set has room: the vCPU may use all of the set."""
    found = plan(drawn, Policy(pin_to=granularity))
    assert len(found.moves) == 1
    assert len(found.moves[0].to_cpus) > 1
    assert not plan(carried_out(drawn, found), Policy(pin_to=granularity)).moves


GAP = host(
    flat(4),
    guest("a", (30, 0)),
    guest("b", (31, 0)),
    guest("c", (29, 1)),
    guest("d", (20, 1)),
    guest("e", (30, 2)),
    guest("f", (26, 2)),
    guest("g", (30, 3)),
    guest("h", (25, 3)),
)


def test_a_gap_just_above_the_threshold_is_closed() -> None:
    """A gap of 12 points, threshold 10: an exchange closes it, though it gains less than two."""
    found = plan(GAP, SHIPPED)
    assert found.gap_before_ppm == 12 * PPM_PER_POINT
    assert found.stop is Stop.BALANCED
    assert len(found.moves) == 2


THREADS = [Cpu(cpu, 0, cpu % 8, 0) for cpu in range(16)]


@pytest.mark.parametrize(
    "drawn", copies(host(THREADS, *(guest(f"g{cpu}", (90, cpu)) for cpu in (0, 8, 1, 9))))
)
def test_two_busy_siblings_part_while_cores_idle(drawn: Host) -> None:
    """Also where each is alone on its thread: one of each pair goes to a core of its own."""
    found = plan(drawn, SHIPPED)
    busy = [next(iter(vcpu.cpus)) % 8 for vcpu in carried_out(drawn, found).vcpus]
    assert len(found.moves) == 2
    assert len(set(busy)) == 4


def test_siblings_stay_where_no_core_idles() -> None:
    """All cores have one busy thread, one has two: there is nowhere better."""
    drawn = host(THREADS, *(guest(f"g{cpu}", (90, cpu)) for cpu in range(9)))
    assert not plan(drawn, SHIPPED).moves


HYBRID = [Cpu(cpu, 0, cpu, 0, PPM if cpu < 2 else 600_000) for cpu in range(4)]


@pytest.mark.parametrize(
    "drawn", copies(host(HYBRID, guest("big", (90, 2)), guest("small", (10, 3))))
)
def test_what_a_weak_pcpu_cannot_give_is_found_on_a_strong_one(drawn: Host) -> None:
    """90 percent on a pCPU that can do 60, beside idle ones that can do 100."""
    found = plan(drawn, SHIPPED)
    assert [(move.domain, str(move.to_cpus)) for move in found.moves] in (
        [("big", "0")],
        [("big", "1")],
    )


@pytest.mark.parametrize("percents", [(12, 16, 37, 39, 46), (46, 39, 37, 16, 12)])
def test_what_takes_most_goes_first(percents: Sequence[int]) -> None:
    """Off one pCPU, whatever the names: a plan is cut, and what is left may never come."""
    guests = (guest(f"g{at}", (percent, 0)) for at, percent in enumerate(percents))
    drawn = host(flat(3), *guests)
    loads = [move.load_ppm // PPM_PER_POINT for move in plan(drawn, SHIPPED).moves]
    assert loads == [46, 39, 12]
    (first,) = plan(drawn, dataclasses.replace(SHIPPED, max_moves=1)).moves
    assert first.load_ppm == 46 * PPM_PER_POINT


def test_leave_out_what_nothing_can_help() -> None:
    """{100}, {60, 40}, {}, {}: the 100 stays, and one of the others still moves."""
    drawn = host(flat(4), guest("a", (100, 0)), guest("b", (60, 1)), guest("c", (40, 1)))
    found = plan(drawn, SHIPPED)
    assert len(found.moves) == 1
    assert found.moves[0].domain in {"b", "c"}
    assert found.stop is Stop.NO_GAIN


def test_sets_in_which_nobody_waits_are_no_source() -> None:
    """Four busy vCPUs on four pCPUs of a cache, the other cache idle: nobody waits."""
    drawn = host(
        TWO_CACHES,
        *(
            [Vcpu(VcpuId(DomainUuid(f"g{number}"), 1, 0), f"g{number}", PPM, half, every, 0)]
            for number in range(4)
            for half, every in [(CpuSet.parse("0-3"), CpuSet.parse("0-7"))]
        ),
    )
    assert not plan(drawn, Policy(pin_to=Granularity.CACHE)).moves


def test_one_more_than_pcpus_leaves_its_set() -> None:
    """A fifth waits for one of four pCPUs: it leaves, and no other, since nobody waits then."""
    half, every = CpuSet.parse("0-3"), CpuSet.parse("0-7")
    vcpus = [
        Vcpu(VcpuId(DomainUuid(f"g{number}"), 1, 0), f"g{number}", PPM, half, every, 0)
        for number in range(5)
    ]
    found = plan(host(TWO_CACHES, vcpus), Policy(pin_to=Granularity.CACHE))
    assert [str(move.to_cpus) for move in found.moves] == ["4-7"]


@pytest.mark.parametrize("size", [4, 8, 16, 48])
@pytest.mark.parametrize("granularity", [Granularity.CACHE, Granularity.NODE])
def test_a_set_that_idles_takes_over_however_large_it_is(
    size: int, granularity: Granularity
) -> None:
    """All on one of two sets of equal pCPUs, 1.5 times what it has: half of them leave.

    What a pin must gain is a part of a pCPU, not of a set.
    """
    first, every = CpuSet.of(range(size)), CpuSet.of(range(2 * size))
    nodes = 2 * size if granularity is Granularity.CACHE else size
    cpus = [Cpu(cpu, node=cpu // nodes, cache=cpu // size) for cpu in every]
    vcpus = [
        Vcpu(VcpuId(DomainUuid(f"{number:03}"), 1, 0), f"g{number}", 300_000, first, every, 0)
        for number in range(5 * size)
    ]
    found = plan(host(cpus, vcpus), dataclasses.replace(SHIPPED, pin_to=granularity))
    assert found.stop is Stop.BALANCED
    assert len(found.moves) <= 5 * size // 2
    assert moved_sets(found) == {f"{size}-{2 * size - 1}"}


@pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.CACHE])
def test_what_nothing_may_fill_is_left_out(granularity: Granularity) -> None:
    """All guests are strictly on node 0, one part of which is crowded while node 1 idles.

    The host cannot be balanced; that nobody may use node 1 keeps no vCPU from leaving the crowd.
    """
    each = 1 if granularity is Granularity.CPU else 8
    cpus = [Cpu(cpu, cpu // (4 * each), cpu, cpu // each) for cpu in range(8 * each)]
    node_0 = CpuSet.of(range(4 * each))
    vcpus = [
        Vcpu(VcpuId(DomainUuid(f"{number:03}"), 1, 0), f"g{number}", 300_000, on, node_0, None)
        for number in range(14 * each)
        for at in [max(0, number - 8 * each) // (2 * each)]
        for on in [CpuSet.of(range(at * each, (at + 1) * each))]
    ]
    found = plan(host(cpus, vcpus), dataclasses.replace(SHIPPED, pin_to=granularity))
    assert found.stop is Stop.NO_GAIN
    assert max(load for _, load in found.loads_before_ppm) >= 2_400_000
    assert max(load for _, load in found.loads_after_ppm) <= 1_250_000


@pytest.mark.parametrize(("allowed", "to"), [("1-15", "1-7"), ("4-15", "4-7"), ("5-15", "")])
def test_a_set_is_entered_where_half_of_it_may_be_used(allowed: str, to: str) -> None:
    """As where the first pCPUs are kept for the host, or one of each set is reserved."""
    cpus, half = [Cpu(cpu, 0, cpu, cpu // 8) for cpu in range(16)], CpuSet.parse("8-15")
    vcpus = [
        Vcpu(VcpuId(DomainUuid(f"{number:03}"), 1, 0), f"g{number}", 900_000, half, may, 8)
        for number in range(14)
        for may in [CpuSet.parse(allowed)]
    ]
    found = plan(host(cpus, vcpus), dataclasses.replace(SHIPPED, pin_to=Granularity.CACHE))
    assert moved_sets(found) == ({to} if to else set())


def moved_sets(found: Plan) -> set[str]:
    """Return where a plan moves vCPUs to."""
    return {str(move.to_cpus) for move in found.moves}


def test_one_that_makes_all_the_load_of_its_pcpu_stays_bound_there() -> None:
    """90 % alone on one of four pCPUs of a cache: on all of them it would be no better off."""
    drawn = host(TWO_CACHES, guest("a", (90, 0)), guest("b", (90, 4)))
    assert not plan(drawn, Policy(pin_to=Granularity.CACHE)).moves


def test_an_isolated_thread_is_no_sibling_of_the_sets() -> None:
    """Of core 0 one thread is isolated, a bin by itself; the other is in the set of its cache."""
    cpus = [Cpu(cpu, 0, cpu // 2, cpu // 8, isolated=cpu == 1) for cpu in range(16)]
    drawn = Host(cpus=tuple(HostCpu(cpu, 0) for cpu in cpus), vcpus=())
    assert not bins_of(drawn, Granularity.CACHE).siblings
    assert bins_of(drawn, Granularity.CPU).siblings
