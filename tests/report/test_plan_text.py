"""What is said of a plan, of sets of pCPUs, and of the gap inside them."""

import dataclasses

import pytest
from builders import change, host, of_caches

from vcpusched.model import NO_CPUS, CpuSet, Granularity, Host, HostCpu
from vcpusched.plan.planner import Floating, Plan, Policy, Stop, plan
from vcpusched.report.plan_text import gap_inside, inside_text, plan_text, sets_of

SETS = Policy(pin_to=Granularity.CACHE, floating=Floating.AUTO)
HALVES = (CpuSet.parse("0-1"), CpuSet.parse("2-3"))

LET_IN = of_caches(host([50, 50], [], [45], [45]), 2)
"""Two on one pCPU, one of which may use the pCPU beside it; the sets are balanced."""

CROWDED = of_caches(host([90, 80, 60], [70], [], []), 2)
"""Three vCPUs on one pCPU; two of four leave their set."""


def said(drawn: Host, policy: Policy, **changes: object) -> str:
    """Say what a plan would do."""
    found = dataclasses.replace(plan(drawn, policy), **changes)  # type: ignore[arg-type]
    return plan_text(found, drawn, policy)


def done(drawn: Host, found: Plan, count: int | None = None) -> str:
    """Say what a plan did of which the first moves were made, all where nothing is said."""
    return plan_text(found, drawn, SETS, found.moves[:count])


def test_a_plan_for_pcpus() -> None:
    """The gap is that between pCPUs; how it ends is reported."""
    assert said(host([50, 50], []), Policy()) == (
        "1 pin, gap 100 -> ~0 points (threshold 10); then balanced"
    )
    assert said(host([50], [45]), Policy()) == "Balanced: gap 5 points (threshold 10)"
    nearly = change(host([50], [40]), "g0", load_ppm=499_600)
    assert said(nearly, Policy()) == "Balanced: gap 9 points (threshold 10)"
    assert said(host([100], [60, 40], [], []), Policy()) == (
        "1 pin, gap stays ~100 points (threshold 10); no further move is worth a pin"
    )
    assert said(host([20, 20, 20, 20], []), Policy(max_moves=1)).endswith(
        "; max_moves allows no more in one plan"
    )


def test_a_host_that_rests_unbalanced() -> None:
    """It is settled, and the words say why."""
    assert said(host([90], []), Policy()) == (
        "Unbalanced, nothing worth a pin: gap 90 points (threshold 10); vCPU 0 of g0 is alone on"
        " pCPU 0, the busiest"
    )
    why = "would cut vCPU 0 of g1 from ~30% to ~9% of a pCPU, less than is fair"
    assert said(host([90], []), Policy(), refused=why).endswith(
        f"; a plan was refused, since it {why}"
    )


def test_a_host_whose_last_plan_did_not_help() -> None:
    """There may be something worth a pin, so the words claim nothing of that."""
    assert said(host([60, 60], []), Policy(max_moves=0), stop=Stop.IN_VAIN) == (
        "Unbalanced: gap 120 points (threshold 10); the last plan did not help, so the next waits"
        " for minutes or for a change"
    )


def test_vcpus_that_are_only_let_in_their_set() -> None:
    """Nothing is said to become balanced that is, nor a gap to go where it was."""
    found = plan(LET_IN, SETS)
    assert [str(move.to_cpus) for move in found.moves] == ["0-1"]
    assert said(LET_IN, SETS) == (
        "1 vCPU let into its whole set, gap between sets stays ~5 points (threshold 10)"
    )
    assert done(LET_IN, found) == (
        "1 vCPU let into its whole set, gap between sets stays ~5 points"
    )
    two = dataclasses.replace(found, moves=found.moves * 2)
    assert done(LET_IN, two).startswith("2 vCPUs let into their whole set, ")
    assert done(LET_IN, two, 1).startswith("1 of 2 vCPUs let into their whole set, ")
    at_rest = dataclasses.replace(found, balanced=False)
    assert done(LET_IN, at_rest).endswith(
        "points; pCPUs 0-1, the busiest, have a pCPU for each vCPU that runs there"
    )


def test_both_kinds_of_moves() -> None:
    """Those that only let in are counted apart."""
    found = plan(CROWDED, SETS)
    between = [move for move in found.moves if not move.from_cpus.is_within(move.to_cpus)]
    assert between
    let_in = dataclasses.replace(between[0], to_cpus=between[0].from_cpus | CpuSet.of([1]))
    both = dataclasses.replace(found, moves=(between[0], let_in))
    assert done(CROWDED, both).startswith(
        "2 pins, 1 of which only lets a vCPU into its whole set, gap between sets 150 -> ~"
    )
    more = dataclasses.replace(found, moves=(between[0], let_in, let_in))
    assert "3 pins, 2 of which only let vCPUs into their whole set" in done(CROWDED, more)


def test_sets() -> None:
    """There are none where each pCPU counts by itself."""
    assert sets_of(LET_IN, Granularity.CACHE) == HALVES
    assert sets_of(LET_IN, Granularity.CPU) == ()
    assert sets_of(LET_IN, Granularity.AUTO) == ()  # of two pCPUs each, which is too few
    assert len(sets_of(of_caches(host(*[[]] * 8), 2), Granularity.AUTO)) == 2


def test_the_gap_inside_a_set() -> None:
    """What is bound to one pCPU makes it; what may use all of the set finds the least loaded."""
    assert gap_inside(LET_IN, HALVES) == (1_000_000, HALVES[0])
    assert gap_inside(LET_IN, HALVES, plan(LET_IN, SETS)) == (0, NO_CPUS)
    wide = [dataclasses.replace(vcpu, cpus=HALVES[0]) for vcpu in LET_IN.vcpus[:1]]
    poured = dataclasses.replace(LET_IN, vcpus=(*wide, *LET_IN.vcpus[1:]))
    assert gap_inside(poured, HALVES) == (0, NO_CPUS)
    apart = of_caches(host([50, 50], [], [], [], *[[]] * 4), 2)
    some = (dataclasses.replace(vcpu, cpus=CpuSet.of([0, 1])) for vcpu in apart.vcpus)
    part = dataclasses.replace(apart, vcpus=tuple(some))
    fours = (CpuSet.parse("0-3"), CpuSet.parse("4-7"))
    assert gap_inside(part, fours) == (500_000, fours[0])
    busy = (HostCpu(LET_IN.cpus[0].cpu, 200_000), *LET_IN.cpus[1:])
    assert gap_inside(dataclasses.replace(poured, cpus=busy), HALVES)[0] == 200_000
    assert gap_inside(dataclasses.replace(LET_IN, unsettled=CpuSet.of([1])), HALVES) == (0, NO_CPUS)
    assert gap_inside(LET_IN, ()) == (0, NO_CPUS)


@pytest.mark.parametrize(
    ("threshold_ppm", "text"),
    [
        (1_000_000, "Largest gap inside a set: ~100 -> ~0 points (pCPUs 0-1)"),
        (1_000_001, ""),
    ],
)
def test_it_is_shown_from_the_threshold_on(threshold_ppm: int, text: str) -> None:
    """Smaller ones are no news."""
    assert inside_text(LET_IN, HALVES, threshold_ppm, plan(LET_IN, SETS)) == text
    assert inside_text(LET_IN, HALVES, threshold_ppm) == text.replace(" -> ~0", "")
