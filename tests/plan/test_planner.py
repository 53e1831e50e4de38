"""The planner: hosts drawn small, with the arithmetic of what should become of them."""

import dataclasses
import random

import pytest
from builders import after, host, of_one_guest

from vcpusched.model import CpuSet, DomainUuid, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Floating, Plan, Policy, Stop, plan

POLICY = Policy(balance_threshold_ppm=100_000, min_gain_ppm=20_000)
KERNEL = dataclasses.replace(POLICY, floating=Floating.KERNEL)


def moves(found: Plan) -> list[tuple[str, str]]:
    """Give guest and target of each move."""
    return [(move.domain, str(move.to_cpus)) for move in found.moves]


def loads(found: Plan) -> list[int]:
    """Give the percent of each pCPU afterwards."""
    return [load_ppm // 10_000 for _, load_ppm in found.loads_after_ppm]


def rests(drawn: Host, policy: Policy = POLICY) -> bool:
    """Tell whether nothing is moved."""
    return plan(drawn, policy).moves == ()


def fix(drawn: Host, *names: str) -> Host:
    """Give the host with the vCPUs of the named guests fixed."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, fixed=vcpu.fixed or vcpu.domain in names)
            for vcpu in drawn.vcpus
        ),
    )


def with_host_load(drawn: Host, **percent: int) -> Host:
    """Give the host with load of its own on some pCPUs, cpu0=40 and so on."""
    return dataclasses.replace(
        drawn,
        cpus=tuple(
            dataclasses.replace(cpu, host_load_ppm=percent.get(f"cpu{cpu.id}", 0) * 10_000)
            for cpu in drawn.cpus
        ),
    )


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_equal_guests_already_spread(count: int) -> None:
    """[25 25] on each: gap 0, no pin."""
    found = plan(host(*[[25, 25]] * count), POLICY)
    assert (found.balanced, found.moves, found.stop) == (True, (), Stop.BALANCED)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_all_on_one_pcpu(count: int) -> None:
    """[25 25 25 …] [] … -> [25 25] on each, in one plan: two pins for each pCPU but the first."""
    drawn = host([25] * (2 * count), *[[]] * (count - 1))
    found = plan(drawn, POLICY)
    assert loads(found) == [50] * count
    assert len(found.moves) == 2 * (count - 1)
    assert (found.gap_before_ppm, found.gap_after_ppm) == (count * 500_000, 0)
    assert (found.balanced, found.stop) == (False, Stop.BALANCED)
    assert rests(after(drawn, found))


def test_one_big_move_beats_many_small_ones() -> None:
    """[50 10 10 10 10 10] []: one pin of the 50 does what five of the others would."""
    assert moves(plan(host([50, 10, 10, 10, 10, 10], []), POLICY)) == [("g0", "1")]


def test_fewer_pins_than_the_largest_first() -> None:
    """[60 50 40 30] [20]: 180 and 20, and 80 must go: 50 and 30 make them 100 and 100.

    The largest that fits would be the 60, and then nothing makes up for it but a third pin.
    One pin is not enough: even the 60 leaves 120 and 80.
    """
    found = plan(host([60, 50, 40, 30], [20]), POLICY)
    assert len(found.moves) == 2
    assert found.stop is Stop.BALANCED


def test_exchanges_where_moves_do_not_fit() -> None:
    """[60 60] [80] [80] [20 20], 120 on the first and 40 on the last: a 60 for a 20 makes all 80.

    A 60 moved alone would leave 60 and 100.
    """
    drawn = host([60, 60], [80], [80], [20, 20])
    found = plan(drawn, POLICY)
    assert loads(found) == [80, 80, 80, 80]
    there, back = found.moves
    assert (there.from_cpus, there.to_cpus) == (back.to_cpus, back.from_cpus)
    assert {there.load_ppm, back.load_ppm} == {600_000, 200_000}
    assert there.reason.startswith(f"in exchange for vCPU 0 of {back.domain}, since pCPU ")
    assert back.reason.startswith(f"in exchange for vCPU 0 of {there.domain}, since pCPU ")
    assert rests(after(drawn, found))


def test_several_exchanges_follow_one_another_in_pairs() -> None:
    """[60 60 60 60] [20 20 20 20]: 240 and 80; two 60s for two 20s make 160 of each."""
    found = plan(host([60, 60, 60, 60], [20, 20, 20, 20]), POLICY)
    assert loads(found) == [160, 160]
    pairs = list(zip(found.moves[::2], found.moves[1::2], strict=True))
    assert len(pairs) == 2
    for first, second in pairs:
        assert (first.from_cpus, first.to_cpus) == (second.to_cpus, second.from_cpus)
        assert f"in exchange for vCPU 0 of {second.domain}, " in first.reason


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
    drawn = with_host_load(host([60], []), cpu0=40)
    assert rests(drawn)
    assert plan(drawn, POLICY).gap_before_ppm == 1_000_000


def test_guests_leave_a_pcpu_that_the_host_needs() -> None:
    """[30 30] with 40 of the host's own, and [40]: 100 and 40; one 30 goes, and 70 are on each."""
    drawn = with_host_load(host([30, 30], [40]), cpu0=40)
    found = plan(drawn, POLICY)
    assert loads(found) == [70, 70]
    assert len(found.moves) == 1
    assert rests(after(drawn, found))


def test_a_giant_does_not_keep_others_from_moving() -> None:
    """[100] [60 40] [] []: nothing helps the 100, but the 60 and the 40 should part: one pin."""
    drawn = host([100], [60, 40], [], [])
    found = plan(drawn, POLICY)
    assert len(found.moves) == 1
    assert found.moves[0].domain in {"g1", "g2"}
    assert rests(after(drawn, found))


def test_small_ones_leave_a_giant() -> None:
    """[100 20 20] [20] []: the giant's company goes, to 100 40 20 or 100 20 40, and then rest."""
    drawn = host([100, 20, 20], [20], [])
    found = plan(drawn, POLICY)
    assert "g0" not in dict(moves(found))
    assert loads(found)[0] == 100
    assert len(found.moves) == 2
    assert rests(after(drawn, found))


@pytest.mark.parametrize("load", [20, 50, 100])
def test_five_equal_vcpus_on_four_pcpus_rest(load: int) -> None:
    """[x x] [x] [x] [x]: whatever moves, one pCPU has two, so none does."""
    assert rests(host([load, load], [load], [load], [load]))


@pytest.mark.parametrize("load", [20, 50, 100])
def test_five_equal_vcpus_on_one_of_four_pcpus(load: int) -> None:
    """[x x x x x] [] [] []: three go, one to each; two stay together, and then it rests."""
    drawn = host([load] * 5, [], [], [])
    found = plan(drawn, POLICY)
    assert sorted(loads(found)) == [load, load, load, 2 * load]
    assert len(found.moves) == 3
    assert found.stop is Stop.NO_GAIN
    assert rests(after(drawn, found))


def test_fewer_vcpus_than_pcpus_rest_once_alone() -> None:
    """[80 60 40] [] [] []: two go; each alone on its pCPU, nothing moves however far apart."""
    drawn = host([80, 60, 40], [], [], [])
    found = plan(drawn, POLICY)
    assert sorted(loads(found)) == [0, 40, 60, 80]
    assert len(found.moves) == 2
    assert rests(after(drawn, found))
    assert rests(host([80], [60], [40], []))


def test_crumbs_are_not_worth_a_pin() -> None:
    """[60 1] []: the 60 cannot usefully move, and moving the 1 makes 60 and 1 of 61 and 0.

    51 points are then outside a band of 10, and 49 after: the pin gains 2 points, not 3.
    """
    assert rests(host([60, 1], []), dataclasses.replace(POLICY, min_gain_ppm=30_000))


def test_min_gain_is_what_a_pin_must_bring() -> None:
    """[50 30] [40]: 80 and 40 are 30 outside a band of 10; the 30 makes them 50 and 70.

    Then 10 are outside, so the pin gains 20 points: with a `min_gain` of 19 it is made, of 21 not.
    """
    drawn = host([50, 30], [40])
    assert len(plan(drawn, dataclasses.replace(POLICY, min_gain_ppm=190_000)).moves) == 1
    assert rests(drawn, dataclasses.replace(POLICY, min_gain_ppm=210_000))


def test_moves_max_cuts_a_plan_short() -> None:
    """[25 25 25 25 25 25 25 25] [] [] []: six pins, two at a time, in three plans; then rest."""
    limited = dataclasses.replace(POLICY, moves_max=2)
    drawn = host([25] * 8, [], [], [])
    stops = []
    for _ in range(3):
        found = plan(drawn, limited)
        assert len(found.moves) == 2
        stops.append(found.stop)
        drawn = after(drawn, found)
    assert stops == [Stop.MOVE_LIMIT, Stop.MOVE_LIMIT, Stop.BALANCED]
    assert rests(drawn, limited)


def test_an_exchange_is_not_cut_in_two() -> None:
    """[60 60] [20 20]: the exchange takes two pins; with one allowed, nothing is moved."""
    drawn = host([60, 60], [20, 20])
    found = plan(drawn, dataclasses.replace(POLICY, moves_max=1))
    assert (found.moves, found.stop) == ((), Stop.MOVE_LIMIT)
    assert len(plan(drawn, dataclasses.replace(POLICY, moves_max=2)).moves) == 2


def test_a_limit_that_is_not_met_is_not_told() -> None:
    """[25 25] []: one pin, and one is allowed."""
    found = plan(host([25, 25], []), dataclasses.replace(POLICY, moves_max=1))
    assert (len(found.moves), found.stop) == (1, Stop.BALANCED)


def test_the_busiest_is_relieved_first() -> None:
    """[40 40 40 40] [40 40 20] [] []: 160, 100, 0 and 0; the first move is off pCPU 0."""
    found = plan(host([40, 40, 40, 40], [40, 40, 20], [], []), POLICY)
    assert found.moves[0].from_cpus == CpuSet.of([0])
    assert found.gap_after_ppm < found.gap_before_ppm


def test_masks_are_respected() -> None:
    """[50 50] [] [] with pCPUs 0 and 2 allowed: pCPU 1 is free but not allowed."""
    assert moves(plan(host([50, 50], [], [], allowed="0,2"), POLICY)) in (
        [("g0", "2")],
        [("g1", "2")],
    )


def test_masks_make_a_pcpu_helpless() -> None:
    """[50 50] [30 30] [] with pCPUs 0-1 allowed: pCPU 2 gets nothing, the others are near enough.

    100 and 60: a 50 for a 30 makes 80 and 80, whatever pCPU 2 has.
    """
    drawn = host([50, 50], [30, 30], [], allowed="0-1")
    found = plan(drawn, POLICY)
    assert loads(found) == [80, 80, 0]
    assert rests(after(drawn, found))


def test_fixed_vcpus_stay() -> None:
    """[50 50] []: with one fixed the other goes; with both fixed none does."""
    drawn = host([50, 50], [])
    assert moves(plan(fix(drawn, "g0"), POLICY)) == [("g1", "1")]
    assert rests(fix(drawn, "g0", "g1"))


def test_an_unsettled_pcpu_neither_gives_nor_takes() -> None:
    """[50 50 50 50] [] [] with pCPU 2 unsettled: two go to pCPU 1; with pCPU 0 unsettled, none."""
    drawn = host([50, 50, 50, 50], [], [])
    found = plan(dataclasses.replace(drawn, unsettled=CpuSet.of([2])), POLICY)
    assert loads(found) == [100, 100, 0]
    assert (found.gap_before_ppm, found.gap_after_ppm) == (2_000_000, 0)
    assert plan(dataclasses.replace(drawn, unsettled=CpuSet.of([0])), POLICY).balanced


def test_vcpus_of_one_guest_are_kept_apart() -> None:
    """[40 40] [20] [20], the 20s fixed: one 40 goes to pCPU 1 or 2, but not to its relative.

    Either way the loads become 60, 40 and 20, less than 45 apart, so keeping apart costs nothing.
    """
    policy = dataclasses.replace(POLICY, balance_threshold_ppm=450_000)
    drawn = fix(host([40, 40], [20], [20]), "g2", "g3")
    assert len(plan(drawn, policy).moves) == 1
    # One of a guest goes where it has no relative, or its neighbour goes instead.
    assert moves(plan(of_one_guest(drawn, "g0", "g2"), policy)) != [("g0", "1")]
    assert moves(plan(of_one_guest(drawn, "g1", "g3"), policy)) != [("g1", "2")]
    # With the neighbour fixed it goes to the pCPU where it has no relative.
    alone = fix(drawn, "g1")
    assert moves(plan(of_one_guest(alone, "g0", "g2"), policy)) == [("g0", "2")]
    assert moves(plan(of_one_guest(alone, "g0", "g3"), policy)) == [("g0", "1")]


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


def test_each_exchange_says_with_whom() -> None:
    """[60 60] [20 20]: each of both names the other, and what comes of the two together."""
    found = plan(of_one_guest(host([60, 60], [20, 20]), "g0", "g1"), POLICY)
    reasons = {move.domain: move.reason for move in found.moves}
    (partner,) = reasons.keys() - {"g0"}
    (vcpu,) = (move.vcpu.vcpu for move in found.moves if move.domain == "g0")
    assert reasons["g0"] == (
        f"in exchange for vCPU 0 of {partner}, since pCPU 0 was at 120 % and pCPU 1 at 40 %; "
        "together this makes them 80 % and 80 %"
    )
    assert reasons[partner] == (
        f"in exchange for vCPU {vcpu} of g0, since pCPU 1 was at 40 % and pCPU 0 at 120 %; "
        "together this makes them 80 % and 80 %"
    )


def test_reasons_follow_one_another() -> None:
    """[30 30 30 30] [] []: what the first move makes of pCPU 0 is what the second begins with."""
    first, second = plan(host([30, 30, 30, 30], [], []), POLICY).moves
    assert first.reason.endswith("this makes them 90 % and 30 %")
    assert second.reason.startswith("pCPU 0 was at 90 % and ")


def test_a_name_cannot_write_to_the_terminal() -> None:
    """A guest whose name holds an escape sequence is quoted in the reason of its partner."""
    drawn = host([60, 60], [20, 20])
    vcpus = tuple(dataclasses.replace(vcpu, domain="\x1b[2J") for vcpu in drawn.vcpus)
    found = plan(dataclasses.replace(drawn, vcpus=vcpus), POLICY)
    assert len(found.moves) == 2
    assert all(move.reason.isprintable() for move in found.moves)


def test_an_empty_host() -> None:
    """No pCPUs, or no vCPUs: balanced, nothing to do."""
    assert plan(Host((), ()), POLICY).stop is Stop.BALANCED
    assert plan(host([], []), POLICY).stop is Stop.BALANCED


def test_vcpus_that_want_nothing() -> None:
    """[0 0 0 0] []: all loads are 0, so nothing moves; beside a 50 and a 50, they stay too."""
    assert rests(host([0, 0, 0, 0], []))
    assert len(plan(host([0, 50, 0, 50], []), POLICY).moves) == 1


def test_a_vcpu_on_a_pcpu_that_is_not_managed() -> None:
    """[50 50] [] and a 90 bound to pCPU 7, which is not ours: it counts nowhere and stays."""
    drawn = host([50, 50], [])
    elsewhere = dataclasses.replace(
        drawn.vcpus[0],
        id=VcpuId(DomainUuid("e"), 1, 0),
        domain="e",
        load_ppm=900_000,
        cpus=CpuSet.of([7]),
        on=7,
    )
    found = plan(dataclasses.replace(drawn, vcpus=(*drawn.vcpus, elsewhere)), POLICY)
    assert loads(found) == [50, 50]
    assert len(found.moves) == 1
    assert found.moves[0].domain != "e"


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


def test_two_equal_guests_part_whatever_the_least_gain() -> None:
    """[25 25] [] [] []: one pin, with the default gain and with none."""
    drawn = host([25, 25], [], [], [])
    assert len(plan(drawn, POLICY).moves) == 1
    assert len(plan(drawn, dataclasses.replace(POLICY, min_gain_ppm=0)).moves) == 1


def test_a_vcpu_that_fits_no_band_still_leaves_a_busy_pcpu() -> None:
    """[40 40] [20] [20], all but one 40 fixed: 80, 20 and 20 become 40, 60 and 20."""
    drawn = fix(host([40, 40], [20], [20]), "g1", "g2", "g3")
    assert len(plan(drawn, POLICY).moves) == 1


def test_a_place_outside_the_mask_is_left_for_good() -> None:
    """[] [90 100 100 90] []: the middle two may only go to pCPU 0, the last only to pCPU 2.

    Once there, that they were on pCPU 1 before does not count: nothing is left to do.
    """
    drawn = host([], [90, 100, 100, 90], [])
    masks = {"g0": "1", "g1": "0", "g2": "0", "g3": "2"}
    vcpus = tuple(
        dataclasses.replace(vcpu, allowed=CpuSet.parse(masks[vcpu.domain])) for vcpu in drawn.vcpus
    )
    policy = dataclasses.replace(POLICY, min_gain_ppm=0)
    drawn = dataclasses.replace(drawn, vcpus=vcpus)
    assert rests(after(drawn, plan(drawn, policy)), policy)


def test_a_limit_of_one_move_still_does_what_one_move_can() -> None:
    """[50 10] [90 70]: the best is an exchange; with one move allowed, one that helps is made."""
    drawn = host([50, 10], [90, 70])
    policy = dataclasses.replace(POLICY, moves_max=1)
    for _ in range(5):
        found = plan(drawn, policy)
        assert len(found.moves) <= 1
        drawn = after(drawn, found)
    assert plan(drawn, policy).gap_before_ppm <= 1_000_000
