"""Which plans are fair: hosts drawn small with the arithmetic, and seeded hosts with an oracle."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from builders import change, host, random_host
from planned import copies, shuffled, steps_of
from shares import core_of, demands, oracle, weights_of

from vcpusched.model import (
    NO_CPUS,
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Host,
    HostCpu,
    Vcpu,
    VcpuId,
)
from vcpusched.plan import fairness
from vcpusched.plan.fairness import Judge, Unfair, unmet_ppm
from vcpusched.plan.planner import Policy, plan

Step = Sequence[tuple[VcpuId, CpuSet]]


def siblings(drawn: Host) -> Host:
    """Return the host with pCPUs 0 and 1 being the threads of a core, and so on."""
    cpus = tuple(
        dataclasses.replace(cpu, cpu=dataclasses.replace(cpu.cpu, core=cpu.id // 2))
        for cpu in drawn.cpus
    )
    return dataclasses.replace(drawn, cpus=cpus)


def to(drawn: Host, **cpus: int | str) -> list[Step]:
    """Return steps of one move for the named guests, in this order: g0=1, g1="2-3"."""
    named = {vcpu.domain: vcpu.id for vcpu in drawn.vcpus}
    return [[(named[name], CpuSet.parse(str(cpu)))] for name, cpu in cpus.items()]


def by_position(drawn: Host, steps: Sequence[Step]) -> list[fairness.PinChanges]:
    """Return steps that name vCPUs as steps that tell their positions in the host."""
    at = {vcpu.id: index for index, vcpu in enumerate(drawn.vcpus)}
    return [[(at[vcpu], cpus) for vcpu, cpus in step] for step in steps]


def judge(drawn: Host, steps: Sequence[Step], isolated: CpuSet = NO_CPUS) -> tuple[Unfair, ...]:
    """Return why a plan does not pass as a whole; nothing: it does."""
    return tuple(Judge(drawn, isolated).refusals(dict(enumerate(by_position(drawn, steps)))))


def trim(drawn: Host, steps: Sequence[Step]) -> list[Step]:
    """Return the steps of a plan that pass together."""
    return [steps[at] for at in fairness.trim(drawn, by_position(drawn, steps))[0]]


def whys(drawn: Host, steps: Sequence[Step]) -> list[str]:
    """Return the texts of a verdict, without what all have in common."""
    return [
        refusal.why.removeprefix("would cut vCPU 0 of ").replace(" of a pCPU", "")
        for refusal in judge(drawn, steps)
    ]


WEIGHTS = change(host([100, 100, 100], [100]), "g0", "g1", "g2", shares=100)
OTHERS = change(host([100, 100, 100], [100], [100] * 20), "g0", "g1", "g2", shares=100)


@pytest.mark.parametrize("drawn", [*copies(WEIGHTS), *copies(OTHERS)])
def test_a_light_guest_is_not_put_beside_a_heavy_one(drawn: Host) -> None:
    """[100 100 100] of weight 100 beside [100] of weight 1024: there one would have 9 points.

    It has 33 now. Twenty hogs with 5 points each on a pCPU of their own are no excuse.
    """
    for steps in (to(drawn, g0=1), to(drawn, g3=0), to(drawn, g0=1, g1=1)):
        assert judge(drawn, steps)
        assert trim(drawn, steps) == []


BATCH = change(host([100] * 4, [100, 100]), "g5", shares=2)


@pytest.mark.parametrize("drawn", copies(BATCH))
def test_a_batch_guest_has_no_veto(drawn: Host) -> None:
    """[100 100 100 100] beside [100 100], the last of weight 2: a hog may join it.

    The batch guest falls from 0.2 to 0.1 points, which is more for its weight than a hog has.
    """
    assert judge(drawn, to(drawn, g0=1)) == ()


def test_rounding_is_no_excuse() -> None:
    """Of three batch guests beside 25 heavy hogs each has a third of a ppm, taken as nothing.

    Four of the hogs may not join 25 others all the same: 34,500 ppm are left there of 40,000.
    """
    drawn = host([100] * 28, [100] * 25)
    drawn = change(drawn, *{vcpu.domain for vcpu in drawn.vcpus}, shares=262_144)
    drawn = change(drawn, "g25", "g26", "g27", shares=2)
    assert judge(drawn, to(drawn, g0=1)) == ()
    assert judge(drawn, to(drawn, g0=1, g1=1, g2=1, g3=1))


def hyper_threads() -> Host:
    """Return 8 cores with 16 threads, of which 8 to 15 are the second ones, and 48 vCPUs."""
    chance = random.Random(6)
    return Host(
        tuple(HostCpu(Cpu(cpu, core=cpu % 8), 2 * PPM_PER_POINT) for cpu in range(16)),
        tuple(
            Vcpu(
                id=VcpuId(DomainUuid(f"{index // 4:04}"), 1, index % 4),
                domain=f"g{index}",
                load_ppm=round(1_000 * min(1000, 10 + chance.expovariate(1 / 260))),
                cpus=CpuSet.of([chance.choice([0, 1, 2, 3, 9, 10, 11, 4, 5])]),
                allowed=CpuSet.of(range(16)),
            )
            for index in range(48)
        ),
    )


@pytest.mark.parametrize("drawn", copies(hyper_threads()))
def test_hyper_threads_are_used(drawn: Host) -> None:
    """Filling an idle sibling takes from the thread beside it, and still relieves the starving."""
    steps = [
        [(move.vcpu, move.to_cpus) for move in step] for step in steps_of(plan(drawn, Policy()))
    ]
    assert len(steps) > 5
    was, then = oracle(drawn, {}), oracle(drawn, dict(move for step in steps for move in step))
    assert any(was[vcpu] - then[vcpu] > PPM_PER_POINT for vcpu in was)
    assert trim(drawn, steps) == steps


def test_what_a_sibling_takes() -> None:
    """[100 100 |  | 100 | ], a core of 0 and 1, one of 2 and 3: all end with 62.5 points or more.

    The one alone on its core falls from 100 to 62.5, above the 50 that two have. With a heavy one
    the others would have 11 points. [95 |  | 40 | ]: together they would lack ten of their points.
    """
    drawn = siblings(host([100, 100], [], [100], []))
    assert whys(drawn, to(drawn, g0=3)) == []
    heavy = change(drawn, "g2", shares=8 * 1024)
    assert whys(heavy, to(heavy, g0=2)) == ["g0 from ~50% to ~11.1%, less than is fair"]
    drawn = siblings(host([95], [], [40], []))
    assert whys(drawn, to(drawn, g1=1)) == ["g0 from ~95% to ~85%, less than is fair"]
    drawn = siblings(host([95], [], [34], []))
    assert whys(drawn, to(drawn, g1=1)) == [
        "g0 from ~95% to ~91%, and all together get ~4 points less"
    ]
    drawn = siblings(host([95], [], [31], []))
    assert whys(drawn, to(drawn, g1=1)) == []


def test_what_relieves_is_not_blamed_for_what_is_lost() -> None:
    """Five of ten hogs to the sibling: 25 points more. Twelve times a 34 beside a 95: 48 less.

    Of the twelve some are dropped, until no more is lost in all; the hogs stay in the plan.
    """
    drawn = siblings(host([100] * 10, [], *[[95], [], [34], []] * 12))
    relief = to(drawn, **{f"g{hog}": 1 for hog in range(5)})
    waste = to(drawn, **{f"g{11 + 2 * pair}": 3 + 4 * pair for pair in range(12)})
    assert whys(drawn, relief) == []
    every = [*relief, *waste]
    for seed in range(5):
        again, steps = renamed(drawn, every, random.Random(seed))
        assert trim(again, steps) == steps[:5] + steps[11:]


def test_who_may_lose_what() -> None:
    """[90] [100 100 50] []: the 90 may fall to 50, as others have 33; an idle pCPU is no matter.

    One that just misses all it wants is no measure: [20 20 20 20 20 5] leaves the 20 19 points, and
    the 100 on another pCPU may not fall to 50 for that.
    """
    drawn = host([90], [100, 100, 50], [])
    assert whys(drawn, to(drawn, g1=0)) == []
    drawn = host([20] * 5 + [5], [100])
    assert whys(drawn, to(drawn, g0=1)) == ["g6 from ~100% to ~80%, less than is fair"]


def test_steps_that_make_room_go_with_those_that_need_it() -> None:
    """[80] [80] [20 20 60]: the 80 of pCPU 0 to pCPU 1 only if the other leaves, as it must not.

    g1 (80) must not go to pCPU 2, which is full; without that step g0 has no room on pCPU 1.
    """
    drawn = host([80], [80], [20, 20, 60])
    kept, refusals = fairness.trim(drawn, by_position(drawn, to(drawn, g1=2, g0=1)))
    assert kept == []
    assert [refusal.steps for refusal in refusals] == [(0,), (1,)]
    assert whys(drawn, to(drawn, g0=1, g1=0)) == []
    swap: list[Step] = [[*to(drawn, g0=1)[0], *to(drawn, g1=0)[0]]]
    assert trim(drawn, swap) == swap


def test_what_brings_most_is_dropped_first() -> None:
    """[70] [50] [10] [10], all to the first pCPU: without the 50 the others fit.

    Of sixty hogs none may join the first; it takes a few rounds to see.
    """
    drawn = host([70], [50], [10], [10])
    assert trim(drawn, to(drawn, g1=0, g2=0, g3=0)) == to(drawn, g2=0, g3=0)
    drawn = host(*[[100]] * 61)
    steps = to(drawn, **{f"g{hog}": 0 for hog in range(1, 61)})
    kept, refusals = fairness.trim(drawn, by_position(drawn, steps))
    assert kept == []
    assert len(refusals) < 15


def test_floaters_flow_to_where_there_is_room() -> None:
    """[100 30] [100] []: a hog that floats over all makes way for another, while one is idle.

    Where it floats over two pCPUs, and another hog is on one of these, a third leaves 67 points, to
    that other, too, but only what the third joins is compared.
    Let in on one more, it leaves all of them what they want. On isolated pCPUs nothing flows. Hogs
    that share a pCPU with a floater only are no more of an excuse than without it.
    """
    drawn = change(host([100, 30], [100], []), "g2", cpus=CpuSet.of(range(3)))
    assert whys(drawn, to(drawn, g0=1)) == []
    full = change(host([100], [100], [100], []), "g1", cpus=CpuSet.of([1, 2]))
    assert sorted(whys(full, to(full, g0=1))) == [
        f"{name} from ~100% to ~66.7%, less than is fair" for name in ("g0", "g1")
    ]
    assert whys(full, to(full, g1="1-3")) == []
    drawn = change(host([100, 100], [100], [], []), "g0", "g1", cpus=CpuSet.of(range(4)))
    assert judge(drawn, to(drawn, g2=0)) == ()
    assert judge(drawn, to(drawn, g2=0), isolated=CpuSet.of(range(4)))
    assert judge(drawn, to(drawn, g0=3), isolated=CpuSet.of(range(4))) == ()
    drawn = host([100, 100, 100], [100, 10], [100] * 20)
    drawn = change(drawn, "g0", "g1", "g2", shares=100)
    drawn = change(drawn, "g4", cpus=CpuSet.of(range(3)))
    assert judge(drawn, to(drawn, g0=1))


def crowded_host(seed: int, *, floating: bool = False) -> Host:
    """Return a host with siblings, weak pCPUs, shares, quotas and more demand than it can meet."""
    chance = random.Random(seed)
    drawn = random_host(seed, floating=floating)
    drawn = siblings(drawn) if seed % 3 == 0 else drawn
    cpus = [
        HostCpu(
            dataclasses.replace(cpu.cpu, capacity_ppm=chance.choice([PPM, PPM, 600_000])),
            chance.choice([cpu.host_load_ppm, cpu.host_load_ppm, 900_000]),
        )
        for cpu in drawn.cpus
    ]
    vcpus = [
        dataclasses.replace(
            vcpu,
            load_ppm=min(PPM, chance.choice([2 * vcpu.load_ppm] * 9 + [5_000])),
            shares=chance.choice([1024, 1024, 512, 4096, 2]),
            quota_ppm=chance.choice([PPM, PPM, 400_000]),
        )
        for vcpu in drawn.vcpus
    ]
    return dataclasses.replace(drawn, cpus=tuple(cpus), vcpus=tuple(vcpus))


def some_steps(drawn: Host, seed: int) -> list[Step]:
    """Return moves by chance, some of them in pairs, of which some are good and some are not."""
    chance = random.Random(seed)
    moves = [
        (vcpu.id, CpuSet.of([chance.choice(list(drawn.online))]))
        for vcpu in drawn.vcpus
        if chance.random() < 0.4
    ]
    cut = chance.randint(0, len(moves))
    pairs = [moves[at : at + 2] for at in range(cut, len(moves), 2)]
    return [*([move] for move in moves[:cut]), *pairs]


def harm(drawn: Host, steps: Sequence[Step]) -> Fraction:
    """Return by how much a plan is unfair to one vCPU or to all, in ppm; up to 0: it is fair."""
    moved, weight, demand = (
        dict(move for step in steps for move in step),
        weights_of(drawn),
        demands(drawn),
    )
    was, then = oracle(drawn, {}), oracle(drawn, moved)
    core = {cpu.id: core_of(cpu) for cpu in drawn.cpus}
    ends = {
        vcpu.id: [next(iter(vcpu.cpus)), next(iter(moved.get(vcpu.id, vcpu.cpus)))]
        for vcpu in drawn.vcpus
    }
    touched = {core[cpu] for vcpu in moved for cpu in ends[vcpu] if cpu in core}
    among = [vcpu for vcpu, cpus in ends.items() if core.get(cpus[1]) in touched]
    levels = [was[vcpu] / weight[vcpu] for vcpu in among if was[vcpu] < demand[vcpu] * 9 / 10]
    floor = min(levels, default=Fraction(PPM))
    each = [Fraction(9, 10) * min(was[one], weight[one] * floor) - then[one] for one in among]
    return max([sum([was[one] - then[one] for one in among], Fraction(-PPM_PER_POINT)), *each])


def test_the_verdict_is_exact_where_all_are_bound() -> None:
    """A thousand seeded plans, judged and trimmed as an oracle in fractions finds them."""
    passed = refused = trimmed = 0
    for seed in range(1000):
        drawn = crowded_host(seed)
        steps = some_steps(drawn, seed)
        refusals, kept = judge(drawn, steps), trim(drawn, steps)
        assert (harm(drawn, steps) > 10) >= bool(refusals) >= (harm(drawn, steps) > 60), seed
        assert harm(drawn, kept) <= 60, seed
        assert judge(drawn, kept) == ()
        assert refusals or kept == steps
        passed += bool(steps) and not refusals
        refused += bool(refusals)
        trimmed += bool(refusals) and bool(kept)
    assert passed > 250
    assert refused > 125
    assert trimmed > 50


def renamed(drawn: Host, steps: Sequence[Step], chance: random.Random) -> tuple[Host, list[Step]]:
    """Return the same host and plan in another order and with other names."""
    guests = sorted({vcpu.id.uuid for vcpu in drawn.vcpus})
    other = dict(zip(guests, chance.sample(guests, len(guests)), strict=True))
    ids = {vcpu.id: vcpu.id._replace(uuid=other[vcpu.id.uuid]) for vcpu in drawn.vcpus}
    named = [dataclasses.replace(vcpu, id=ids[vcpu.id], domain="x") for vcpu in drawn.vcpus]
    again = shuffled(dataclasses.replace(drawn, vcpus=tuple(named)), chance)
    return again, [[(ids[vcpu], cpus) for vcpu, cpus in step] for step in steps]


@pytest.mark.parametrize("floating", [False, True])
def test_order_and_names_do_not_matter(floating: bool) -> None:  # noqa: FBT001  by parametrize
    """Hosts with and without floaters, given in another order with other names: the same steps."""
    refused = 0
    for seed in range(400):
        drawn, chance = crowded_host(seed, floating=floating), random.Random(seed)
        steps = some_steps(drawn, seed)
        again, those = renamed(drawn, steps, chance)
        blamed = sorted(refusal.steps for refusal in judge(drawn, steps))
        assert sorted(refusal.steps for refusal in judge(again, those)) == blamed, seed
        kept, kept_again = trim(drawn, steps), trim(again, those)
        assert [steps.index(step) for step in kept] == [those.index(step) for step in kept_again]
        assert judge(drawn, kept) == ()
        refused += bool(blamed)
    assert refused > 50


def test_unmet_demand_is_what_no_placement_can_meet() -> None:
    """What is confined to some pCPUs and exceeds them, for the worst choice of these (Hall).

    A core of two threads and a pCPU beside it give 225 points.
    """
    assert unmet_ppm(siblings(host([100], [100], [25], floating=True))) < 200
    exact = total = 0
    for seed in range(600):
        drawn = random_host(seed)
        if len(drawn.cpus) > 6:
            continue
        gives = {cpu.id: max(PPM - cpu.host_load_ppm, PPM // 2) for cpu in drawn.cpus}
        wants = Counter[CpuSet]()
        for vcpu in drawn.vcpus:
            wants[vcpu.allowed & drawn.online or vcpu.cpus & drawn.online] += 2 * vcpu.load_ppm
        least = max(
            sum(want for cpus, want in wants.items() if cpus and cpus.is_within(CpuSet.of(chosen)))
            - sum(gives[cpu] for cpu in chosen)
            for count in range(len(gives) + 1)
            for chosen in itertools.combinations(gives, count)
        )
        twice = [
            dataclasses.replace(vcpu, load_ppm=2 * vcpu.load_ppm, quota_ppm=2 * PPM)
            for vcpu in drawn.vcpus
        ]
        found = unmet_ppm(dataclasses.replace(drawn, vcpus=tuple(twice)))
        assert found > least - 200
        exact += found < least + 200
        total += 1
    assert exact > total * 99 // 100
