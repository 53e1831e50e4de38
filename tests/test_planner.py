"""The planner: scenarios with their arithmetic, and what holds for every host."""

import dataclasses
import random

import pytest
from hosts import after, host, of_one_guest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcpusched.model import PPM_PER_POINT, Cpu, CpuSet, DomainUuid, Host, HostCpu, Vcpu, VcpuId
from vcpusched.planner import SATURATION_PPM, Floating, Plan, Policy, Stop, plan

POLICY = Policy()
KERNEL = Policy(floating=Floating.KERNEL)


def moves(found: Plan) -> list[tuple[str, str]]:
    """Give guest and target of each move."""
    return [(move.domain, str(move.to_cpus)) for move in found.moves]


def fix(drawn: Host, *names: str) -> Host:
    """Give the host with the vCPUs of the named guests fixed."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, fixed=vcpu.fixed or vcpu.domain in names)
            for vcpu in drawn.vcpus
        ),
    )


def test_all_on_one_pcpu() -> None:
    """[25 25 25 25] [] -> [25 25] [25 25]: two pins, and no more."""
    found = plan(host([25, 25, 25, 25], []), POLICY)
    assert len(found.moves) == 2
    assert (found.gap_before_ppm, found.gap_after_ppm) == (1_000_000, 0)
    assert found.stop is Stop.BALANCED


def test_one_big_move_beats_many_small_ones() -> None:
    """[50 10 10 10 10 10] []: one pin of the 50 does what five of the others would."""
    assert moves(plan(host([50, 10, 10, 10, 10, 10], []), POLICY)) == [("g0", "1")]


def test_a_gap_below_the_threshold_is_balanced() -> None:
    """[50] [41]: 9 points are less than 10, so nothing is touched; 10 points are not."""
    found = plan(host([30, 20], [41]), POLICY)
    assert (found.balanced, found.moves, found.stop) == (True, (), Stop.BALANCED)
    assert not plan(host([30, 20], [40]), POLICY).balanced


def test_a_lone_vcpu_stays() -> None:
    """[100] []: moving it would only swap the imbalance."""
    found = plan(host([100], []), POLICY)
    assert (found.balanced, found.moves, found.stop) == (False, (), Stop.NO_GAIN)


def test_a_lone_vcpu_stays_beside_host_load() -> None:
    """[60] with 40 of the host's own on its pCPU, and []: it stays, as everybody expects."""
    drawn = host([60], [])
    busy = dataclasses.replace(drawn.cpus[0], host_load_ppm=400_000)
    drawn = dataclasses.replace(drawn, cpus=(busy, drawn.cpus[1]))
    assert plan(drawn, POLICY).moves == ()
    assert plan(drawn, POLICY).gap_before_ppm == 1_000_000


def test_a_giant_does_not_keep_others_from_moving() -> None:
    """[100] [60 40] [] []: nothing helps the 100, but the 60 and the 40 should part."""
    found = plan(host([100], [60, 40], [], []), POLICY)
    assert len(found.moves) == 1
    assert found.moves[0].domain in {"g1", "g2"}


def test_five_equal_vcpus_on_four_pcpus_rest() -> None:
    """[20 20] [20] [20] [20]: whatever moves, one pCPU has two."""
    assert moves(plan(host([20, 20], [20], [20], [20]), POLICY)) == []


def test_crumbs_are_not_worth_a_pin() -> None:
    """[60 1] []: the 60 cannot usefully move, and moving the 1 gains a point of 60."""
    assert moves(plan(host([60, 1], []), POLICY)) == []


def test_to_the_freest_first() -> None:
    """[40 40 40 40] [20] []: pCPU 2 (0) gets the first vCPU, then whoever is freest."""
    found = plan(host([40, 40, 40, 40], [20], []), POLICY)
    assert found.moves[0].to_cpus == CpuSet.of([2])
    assert found.gap_after_ppm < found.gap_before_ppm


def test_masks_are_respected() -> None:
    """[50 50] [] [] with pCPUs 0 and 2 allowed: pCPU 1 is free but not allowed."""
    assert moves(plan(host([50, 50], [], [], allowed="0,2"), POLICY)) in (
        [("g0", "2")],
        [("g1", "2")],
    )


def test_fixed_vcpus_stay() -> None:
    """[50 50] []: with one fixed the other goes; with both fixed none does."""
    drawn = host([50, 50], [])
    assert moves(plan(fix(drawn, "g0"), POLICY)) == [("g1", "1")]
    assert moves(plan(fix(drawn, "g0", "g1"), POLICY)) == []


def test_vcpus_of_one_guest_are_kept_apart() -> None:
    """[40 40] [20] [20], the 20s fixed: g0 goes to pCPU 1 or 2, but not to its relative.

    Either way the loads become 60, 40 and 20, so keeping apart costs nothing.
    """
    drawn = fix(host([40, 40], [20], [20]), "g2", "g3")
    assert moves(plan(drawn, POLICY)) == [("g0", "1")]
    # Its neighbour, which has no relative there, goes instead.
    assert moves(plan(of_one_guest(drawn, "g0", "g2"), POLICY)) == [("g1", "1")]
    # With the neighbour fixed it goes to the pCPU where it has no relative.
    alone = fix(drawn, "g1")
    assert moves(plan(of_one_guest(alone, "g0", "g2"), POLICY)) == [("g0", "2")]
    assert moves(plan(of_one_guest(alone, "g0", "g3"), POLICY)) == [("g0", "1")]


def test_stacking_is_accepted_where_nothing_else_is_as_good() -> None:
    """[60 60] [10], g1 and g2 of one guest and g0 fixed: only g1 can go, and pCPU 1 is all."""
    drawn = of_one_guest(fix(host([60, 60], [10]), "g0"), "g1", "g2")
    assert moves(plan(drawn, POLICY)) == [("g1", "1")]


@pytest.mark.parametrize(
    ("drawn", "pins"),
    [
        (host([25, 25], [], floating=True), 1),  # -> [25] [25]
        (host([30, 30, 30], [], floating=True), 0),  # 60 and 30 at best: not balanced
        (host([30, 30], [30], floating=True), 0),
        (host([60, 60], [60], floating=True), 0),  # 120 and 60
        (host([40, 40, 40], [40, 40], floating=True), 0),  # five hogs of 40 % each
        (host([50, 50, 50, 50], [], floating=True), 0),  # balanced, but saturated
        (host([100], [], floating=True), 0),  # a lone hog
    ],
)
def test_floaters_are_bound_only_where_that_ends_well(drawn: Host, pins: int) -> None:
    """Only where the plan ends balanced and short of saturation; never in "kernel"."""
    found = plan(drawn, POLICY)
    assert len(found.moves) == pins
    assert plan(drawn, KERNEL).moves == ()


def test_floaters_are_poured_to_judge_balance() -> None:
    """[40 40] [] bound and a floater of 80: poured, the loads are 80 and 80, so nothing moves."""
    drawn = host([40, 40], [])
    floater = Vcpu(
        VcpuId(DomainUuid("f"), 1, 0), "f", 800_000, CpuSet.of([0, 1]), CpuSet.of([0, 1]), 0
    )
    drawn = dataclasses.replace(drawn, vcpus=(*drawn.vcpus, floater))
    found = plan(drawn, KERNEL)
    assert (found.balanced, found.gap_before_ppm) == (True, 0)
    # With a floater of 20 pCPU 1 has 20: one of the bound ones goes, and the water follows.
    small = dataclasses.replace(
        drawn, vcpus=(*drawn.vcpus[:2], dataclasses.replace(floater, load_ppm=200_000))
    )
    found = plan(small, KERNEL)
    assert len(found.moves) == 1
    assert found.gap_after_ppm == 0


def test_water_gives_way_to_a_vcpu_that_moves() -> None:
    """[50 50] [] [] [] and three floaters of 80: 100 80 80 80 becomes 85 on each."""
    drawn = host([50, 50], [], [], [])
    anywhere = CpuSet.of(range(4))
    floaters = tuple(
        Vcpu(VcpuId(DomainUuid(f"f{n}"), 1, 0), f"f{n}", 800_000, anywhere, anywhere, n)
        for n in (1, 2, 3)
    )
    found = plan(dataclasses.replace(drawn, vcpus=(*drawn.vcpus, *floaters)), KERNEL)
    assert len(found.moves) == 1
    assert (found.gap_before_ppm, found.gap_after_ppm) == (200_000, 0)


def test_water_is_level_where_masks_overlap() -> None:
    """[10 50] [] [] with floaters of 100 on pCPUs 1-2 and 100 on 0-1: 87 on each, so balanced."""
    drawn = host([10, 50], [], [])
    floaters = tuple(
        Vcpu(VcpuId(DomainUuid(f"f{mask}"), 1, 0), "f", 1_000_000, CpuSet.parse(mask), may, 1)
        for mask, may in (("1-2", CpuSet.parse("1-2")), ("0-1", CpuSet.parse("0-1")))
    )
    found = plan(dataclasses.replace(drawn, vcpus=(*drawn.vcpus, *floaters)), KERNEL)
    assert found.balanced
    assert found.gap_before_ppm < 10_000


def test_a_pool_keeps_its_width() -> None:
    """Two floaters of 25 on pCPU 0 whose mask is a pool: they are not narrowed."""
    assert plan(fix(host([25, 25], [], floating=True), "g0", "g1"), POLICY).moves == ()


def test_each_move_says_why() -> None:
    """The reason names both pCPUs and their loads before and after."""
    found = plan(host([60, 30], []), POLICY)
    assert found.moves[0].reason == (
        "pCPU 0 was at 90 % and pCPU 1 at 0 %; this makes them 60 % and 30 %"
    )


def test_an_empty_host() -> None:
    """No pCPUs, or no vCPUs: balanced, nothing to do."""
    assert plan(Host((), ()), POLICY).stop is Stop.BALANCED
    assert plan(host([], []), POLICY).stop is Stop.BALANCED


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """Give hosts of up to 8 pCPUs and 24 vCPUs: bound and floating, fixed and masked."""
    count = draw(st.integers(1, 8))
    online = CpuSet.of(range(count))
    cpu = st.integers(0, count - 1)
    vcpus = []
    for index in range(draw(st.integers(0, 24))):
        allowed = CpuSet.of(draw(st.sets(cpu, min_size=1))) if draw(st.booleans()) else online
        on = draw(cpu)
        bound = draw(st.booleans())
        vcpus.append(
            Vcpu(
                id=VcpuId(DomainUuid(str(index % 7)), 1, index),
                domain=f"g{index % 7}",
                load_ppm=draw(st.integers(0, 100)) * PPM_PER_POINT,
                cpus=CpuSet.of([on]) if bound else allowed,
                allowed=allowed,
                on=on if bound or on in allowed else None,
                fixed=draw(st.integers(0, 9)) == 0,
            )
        )
    loads = st.integers(0, 50).map(lambda load: load * PPM_PER_POINT)
    return Host(tuple(HostCpu(Cpu(cpu), draw(loads)) for cpu in online), tuple(vcpus))


def random_host(seed: int) -> Host:
    """Give a host from a seed: sizes and loads that Hypothesis seldom draws."""
    chance = random.Random(seed)
    count = chance.choice([1, 2, 3, 4, 8, 12])
    drawn = host(
        *([chance.randint(0, 70) for _ in range(chance.randint(0, 5))] for _ in range(count))
    )
    floating = chance.choice([0.0, 0.0, 0.3, 1.0])
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(
                vcpu,
                fixed=chance.random() < 0.1,
                cpus=vcpu.allowed if chance.random() < floating else vcpu.cpus,
            )
            for vcpu in drawn.vcpus
        ),
    )


def check_properties(drawn: Host, policy: Policy) -> None:
    """Hold everything that is promised of every plan."""
    found = plan(drawn, policy)
    vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
    assert len({move.vcpu for move in found.moves}) == len(found.moves)
    for move in found.moves:
        vcpu = vcpus[move.vcpu]
        assert len(move.to_cpus) == 1
        assert move.to_cpus.is_within(vcpu.allowed)
        assert move.to_cpus != vcpu.cpus
        assert move.from_cpus == vcpu.cpus
        assert not vcpu.fixed
        assert vcpu.is_bound or policy.floating is Floating.PIN
    assert found.gap_after_ppm <= found.gap_before_ppm
    before = sorted(dict(found.loads_before_ppm).values(), reverse=True)
    later = sorted(dict(found.loads_after_ppm).values(), reverse=True)
    assert later < before or not found.moves
    if found.balanced:
        assert not found.moves
    again = plan(after(drawn, found), policy)
    if found.binds_floaters:
        assert found.stop is Stop.BALANCED
        loads = dict(found.loads_after_ppm)
        assert all(loads[next(iter(move.to_cpus))] < SATURATION_PPM for move in found.moves)
        assert all(not vcpus[move.vcpu].is_bound for move in found.moves)
    else:
        assert again.moves == () or again.binds_floaters
    # Carried out once more, too, the floaters bound this time are not bound again.
    once = {move.vcpu for move in found.moves if len(move.from_cpus) > 1}
    assert not once & {move.vcpu for move in again.moves if again.binds_floaters}


@settings(max_examples=300, deadline=None)
@given(hosts(), st.sampled_from([POLICY, KERNEL]))
def test_properties(drawn: Host, policy: Policy) -> None:
    """No vCPU twice; masks and fixed ones respected; never worse; nothing left to do after."""
    check_properties(drawn, policy)


def test_properties_on_a_seeded_sweep() -> None:
    """The same on 2,000 hosts from fixed seeds."""
    for seed in range(2000):
        check_properties(random_host(seed), POLICY)


@settings(max_examples=100, deadline=None)
@given(hosts(), st.randoms(use_true_random=False))
def test_order_of_input_does_not_matter(drawn: Host, chance: random.Random) -> None:
    """A host told in another order gets the same plan."""
    cpus, vcpus = list(drawn.cpus), list(drawn.vcpus)
    chance.shuffle(cpus)
    chance.shuffle(vcpus)
    assert plan(Host(tuple(cpus), tuple(vcpus)), POLICY) == plan(drawn, POLICY)


def test_floaters_are_bound_at_most_once_each() -> None:
    """However the kernel moves floaters between looks, no vCPU is pinned twice.

    Two floaters of 25 on two pCPUs: 200 looks at random places; each plan is carried out.
    """
    chance = random.Random(3)
    drawn = host([25, 25], [], floating=True)
    pins: list[str] = []
    for _ in range(200):
        drawn = dataclasses.replace(
            drawn,
            vcpus=tuple(
                vcpu if vcpu.is_bound else dataclasses.replace(vcpu, on=chance.randint(0, 1))
                for vcpu in drawn.vcpus
            ),
        )
        found = plan(drawn, POLICY)
        pins += [move.domain for move in found.moves]
        drawn = after(drawn, found)
    assert sorted(pins) == ["g0", "g1"]
