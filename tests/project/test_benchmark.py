"""The benchmark: its rivals do what they say, and its optimum is what trying everything finds."""

import dataclasses
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import after, change, host, random_host
from plans import bars, rest
from plans.hosts import (
    Bonds,
    Case,
    Layout,
    Spread,
    built,
    gap_ppm,
    loads_of,
    make_host,
    outside_ppm,
    seeded,
)
from plans.judged import (
    PLAIN,
    POLICY,
    beyond_ppm,
    cost_ppm,
    crowded_cores,
    distances,
    is_worse,
    planned,
)
from plans.optimum import Optimum, SolverError, Verdict, check, solve
from plans.proven import attempts, prove, score
from plans.rules import Rule, one_move, repack, sticky_repack
from replay import competitors, runs
from replay.competitors import OURS
from sides import HERE, Side, beside, renamed, timed
from soak import memory

from vcpusched.model import PPM_PER_POINT, CpuSet, Host, HostCpu, Vcpu
from vcpusched.plan.planner import Move, Plan, Policy, plan

RULES = [one_move, repack, sticky_repack]
SMALL = [
    Case(*size, spread, bonds, mean_load, 0)
    for size in ((8, 2), (16, 4), (32, 8))
    for spread, bonds in itertools.product(Spread, Bonds)
    for mean_load in (0.4, 0.6, 0.8)
]


def moves(found: Plan) -> list[tuple[str, str]]:
    """Return guest and target of each move."""
    return [(move.domain, str(move.to_cpus)) for move in found.moves]


def test_one_move_takes_the_vcpu_that_evens_most() -> None:
    """[50 30 10] [20] []: the 50 makes 40 and 50; the 30 would make 60 and 30."""
    assert moves(one_move(host([50, 30, 10], [20], []), POLICY)) == [("g0", "2")]


def test_one_move_only_swaps_where_nothing_helps() -> None:
    """[60 40] [50 10], 100 and 60: any move leaves one at 100 or more, but the rule moves."""
    assert moves(one_move(host([60, 40], [50, 10]), POLICY)) == [("g1", "1")]


def test_a_lone_vcpu_stays_and_stops_the_one_move_rule() -> None:
    """[100] [60 20] []: the rule considers the 100 for ever, and never the other two."""
    assert moves(one_move(host([100], [60, 20], []), POLICY)) == []


def test_one_move_obeys_masks_and_fixed_vcpus() -> None:
    """[50 40] [10] []: with the 50 fixed and the 40 kept off pCPU 2, it goes to pCPU 1."""
    drawn = change(host([50, 40], [10], []), "g0", fixed=True)
    assert moves(one_move(drawn, POLICY)) == [("g1", "2")]
    assert moves(one_move(change(drawn, "g1", allowed=CpuSet.parse("0-1")), POLICY)) == [
        ("g1", "1")
    ]


def test_a_repack_starts_with_the_largest() -> None:
    """[10 40 30] [] -> the 40 stays, the 30 goes, the 10 goes beside the 30."""
    assert moves(repack(host([10, 40, 30], []), POLICY)) == [("g0", "1"), ("g2", "1")]


def test_a_sticky_repack_keeps_what_fits() -> None:
    """[24 5 5 5] [10]: 29.5 are allowed, so one 5 stays beside the 24; a re-pack moves it."""
    drawn = host([24, 5, 5, 5], [10])
    assert moves(sticky_repack(drawn, POLICY)) == [("g2", "1"), ("g3", "1")]
    assert moves(repack(drawn, POLICY)) == [("g1", "1"), ("g2", "1"), ("g3", "1")]


@pytest.mark.parametrize("rule", RULES)
def test_a_balanced_host_is_left_alone(rule: Rule) -> None:
    """[30 20] [41]: nine points are no imbalance, to none of them."""
    assert rule(host([30, 20], [41]), POLICY).moves == ()


@pytest.mark.parametrize("rule", RULES)
def test_rules_obey_and_do_not_depend_on_order(rule: Rule) -> None:
    """No vCPU twice, none fixed, none where it may not go; the same in any order of input."""
    chance = random.Random(1)
    for case in SMALL:
        drawn = make_host(case)
        found = rule(drawn, POLICY)
        vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
        for move in found.moves:
            vcpu = vcpus.pop(move.vcpu)
            assert not vcpu.fixed
            assert move.to_cpus.is_within(vcpu.allowed)
            assert move.to_cpus != vcpu.cpus
        assert dict(found.loads_after_ppm) == loads_of(after(drawn, found))
        cpus, others = list(drawn.cpus), list(drawn.vcpus)
        chance.shuffle(cpus)
        chance.shuffle(others)
        assert rule(Host(tuple(cpus), tuple(others)), POLICY) == found


def tiny_host(seed: int) -> Host:
    """Return a host of up to 7 vCPUs and 3 pCPUs: some masked, some fixed, some host load."""
    chance = random.Random(seed)
    count = chance.choice([2, 3])
    drawn = host(
        *(
            [chance.randint(1, 60) for _ in range(chance.randint(1, 7 // count))]
            for _ in range(count)
        )
    )

    def bound(vcpu: Vcpu) -> Vcpu:
        draw = chance.random()
        if draw < 0.15:
            return dataclasses.replace(vcpu, fixed=True)
        others = CpuSet.of(cpu for cpu in drawn.online if chance.random() < 0.5)
        return vcpu if draw < 0.6 else dataclasses.replace(vcpu, allowed=vcpu.cpus | others)

    return dataclasses.replace(
        drawn,
        vcpus=tuple(bound(vcpu) for vcpu in drawn.vcpus),
        cpus=tuple(
            HostCpu(cpu.cpu, chance.choice([0, 0, 15]) * PPM_PER_POINT) for cpu in drawn.cpus
        ),
    )


def fewest_by_trying(drawn: Host) -> int | None:
    """Return the fewest pin changes to balance, by trying every placement."""
    choices = [tuple(vcpu.cpus if vcpu.fixed else vcpu.allowed) for vcpu in drawn.vcpus]
    best = None
    for places in itertools.product(*choices):
        loads = {cpu.id: cpu.host_load_ppm for cpu in drawn.cpus}
        for vcpu, cpu in zip(drawn.vcpus, places, strict=True):
            loads[cpu] += vcpu.load_ppm
        if max(loads.values()) - min(loads.values()) < POLICY.balance_threshold_ppm:
            pins = sum(cpu not in vcpu.cpus for vcpu, cpu in zip(drawn.vcpus, places, strict=True))
            best = pins if best is None else min(best, pins)
    return best


def test_the_optimum_is_what_trying_everything_finds() -> None:
    """On 200 tiny hosts the solver and brute force agree, on what is out of reach as well."""
    verdicts = set()
    for seed in range(200):
        drawn = tiny_host(seed)
        fewest, found = fewest_by_trying(drawn), solve(drawn, POLICY, limit_s=10)
        expected = Verdict.UNREACHABLE if fewest is None else Verdict.PROVEN
        assert (found.verdict, found.pins) == (expected, fewest), seed
        verdicts.add(found.verdict)
    assert verdicts == {Verdict.PROVEN, Verdict.UNREACHABLE}


def test_the_optimum_counts_exactly_at_the_threshold() -> None:
    """[30] [20]: 10.0 points are unbalanced and nothing helps; 9.9 points are balanced."""
    drawn = host([30], [20])
    assert solve(drawn, POLICY, limit_s=10).verdict is Verdict.UNREACHABLE
    first = dataclasses.replace(drawn.vcpus[0], load_ppm=299_000)
    closer = dataclasses.replace(drawn, vcpus=(first, drawn.vcpus[1]))
    assert solve(closer, POLICY, limit_s=10).pins == 0


def test_small_hosts_are_planned_with_the_proven_fewest_moves() -> None:
    """The hardest of 424 small ones of the grid (proven: 10), and one of each kind."""
    small = [Case(16, 4, spread, bonds, 0.6, 3) for spread in Spread for bonds in Bonds]
    hardest = Case(16, 4, Spread.MIXED, Bonds.MASKS, 0.892, 19)
    proven = 0
    for case in (hardest, *small):
        drawn = make_host(case)
        best = solve(drawn, Policy(min_gain_ppm=0), limit_s=20.0)
        if best.verdict is Verdict.PROVEN:
            proven += 1
            found = plan(drawn, Policy(min_gain_ppm=0))
            assert (gap_ppm(after(drawn, found)) < 100_000, len(found.moves)) == (
                True,
                best.pins,
            ), case
    assert proven > len(small) // 2


def test_no_time_is_no_verdict() -> None:
    """Without time to search the host counts as unknown, not as anything else."""
    hard = make_host(Case(64, 16, Spread.UNIFORM, Bonds.FREE, 0.7, 0))
    found = solve(hard, POLICY, limit_s=0)
    assert (found.verdict, found.pins) == (Verdict.UNKNOWN, None)


def test_an_answer_that_does_not_stand_is_refused() -> None:
    """A wrong count, a gap that is left, and a place that is not allowed."""
    drawn = change(host([40, 40], []), "g0", allowed=CpuSet.parse("0"))
    first, second = (vcpu.id for vcpu in drawn.vcpus)
    check(drawn, POLICY, {first: 0, second: 1}, 1)
    for places, pins in (
        ({first: 0, second: 1}, 0),
        ({first: 0, second: 0}, 0),
        ({first: 1, second: 0}, 1),
    ):
        with pytest.raises(SolverError):
            check(drawn, POLICY, places, pins)


def test_hosts_come_from_their_case_alone() -> None:
    """The same case gives the same host; loads are whole tenths of a point."""
    for case in SMALL:
        drawn = make_host(case)
        assert drawn == make_host(case)
        assert len(drawn.vcpus) == case.vcpus
        assert all(vcpu.load_ppm % 1000 == 0 for vcpu in drawn.vcpus)
        assert all(vcpu.cpus.is_within(vcpu.allowed) for vcpu in drawn.vcpus)


def test_load_outside_the_band() -> None:
    """[50] [45] [30] [] with a band of 10: best at 30 to 40, with 10, 5 and 30 outside."""
    drawn = host([50], [45], [30], [])
    assert outside_ppm(drawn, POLICY.balance_threshold_ppm) == 450_000
    assert gap_ppm(drawn) == 500_000


def test_what_planners_reach_on_proven_hosts() -> None:
    """The planner reaches what can be reached; the one-move rule needs several periods for that."""
    optima = prove(SMALL[:6], limit_s=10, jobs=1)
    reachable = sum(optimum.verdict is Verdict.PROVEN for optimum in optima.values())
    ours = score(attempts(HERE.planner(**PLAIN), optima, "ours"))
    assert ours.startswith(f"{reachable} of {reachable} (100.0%), 1.")
    planner = timed(lambda drawn: one_move(drawn, POLICY))
    once, long = (attempts(planner, optima, "rule", periods_max=most) for most in (1, 200))
    assert max(did.pins for _, did in once) == 1
    assert sum(did.reached for _, did in once) < sum(did.reached for _, did in long)


def test_what_cannot_be_is_refused() -> None:
    """A plan that balances a host of which the solver says that none does, or with more pins."""
    (case,) = seeded([3], [(8, 2)], [Spread.UNIFORM])
    for optimum in (Optimum(Verdict.UNREACHABLE), Optimum(Verdict.UNKNOWN, pins_min=9)):
        with pytest.raises(SolverError, match="pins balance a host"):
            attempts(HERE.planner(**PLAIN), {case: optimum}, "ours")


@pytest.mark.full
def test_the_replay_part(tmp_path: Path) -> None:
    """Traces of both kinds and made-up loads: all competitors want the same; some do not pin."""
    chance = random.Random(5)
    rows = [[str(chance.randint(0, 40)) for _ in range(288)] for _ in range(40)]
    (tmp_path / "single.csv").write_text("".join(f"20110303,{','.join(row)}\n" for row in rows))
    rows = [[str(chance.randint(100, 1000)) for _ in range(20)] for _ in range(40)]
    (tmp_path / "several.csv").write_text("".join(f"1,4,{','.join(row)}\n" for row in rows))
    sets = runs.load_sets(tmp_path, runs.Scale((3, 1), (3, 1), (3, 1)))
    assert [(one.name, one.cpus) for one in sets] == [
        ("several", 48),
        ("single", 32),
        ("made up", 32),
    ]
    with beside("HEAD") as there:
        rivals = competitors.with_side(there)
        found = runs.run(sets, jobs=1, competitors=rivals)
    assert list(found) == [one.name for one in sets]
    for here in found.values():
        (pins, demands) = ({}, set())
        for name, (result,) in here.items():
            pins[name] = len(result.pins)
            demands.add(sum(period.demanded_ns for period in result.periods))
        assert len(demands) == 1
        assert set(pins) == set(rivals)
        assert pins["floating, the kernel alone"] == pins["fixed random pins"] == 0
        assert pins["re-pack"] > pins["one-move rule"] > 0
        assert pins[f"{OURS} at HEAD"] > 0
    assert len(runs.tables(runs.summaries(found))) == len(sets) + 1


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    """Rather than quietly replaying made-up loads only."""
    with pytest.raises(ValueError, match="holds no file"):
        runs.load_sets(tmp_path, runs.QUICK)


@pytest.mark.full
def test_a_short_soak(tmp_path: Path) -> None:
    """A hundredth of the long one: nothing of what must be true is broken."""
    assert memory.soak(1000, 2, tmp_path)


FORMER_MODEL = """
from dataclasses import dataclass

@dataclass(frozen=True)
class CpuSet:
    bits: int = 0

@dataclass(frozen=True)
class VcpuId:
    uuid: str
    domain_id: int
    vcpu: int

@dataclass(frozen=True)
class Cpu:
    id: int

@dataclass(frozen=True)
class HostCpu:
    cpu: Cpu
    host_load_ppm: int = 0

@dataclass(frozen=True)
class Vcpu:
    id: VcpuId
    domain: str
    load_ppm: int
    cpus: CpuSet
    allowed: CpuSet
    on: int

@dataclass(frozen=True)
class Host:
    cpus: tuple[HostCpu, ...]
    vcpus: tuple[Vcpu, ...]
"""
FORMER_PLANNER = """
import enum
from dataclasses import dataclass

from vcpusched.model import CpuSet, Host, VcpuId

class Stop(enum.StrEnum):
    BALANCED = "balanced"

@dataclass(frozen=True)
class Move:
    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    load_ppm: int
    reason: str

@dataclass(frozen=True)
class Plan:
    balanced: bool
    stop: Stop
    gap_before_ppm: int
    gap_after_ppm: int
    loads_before_ppm: tuple[tuple[int, int], ...]
    loads_after_ppm: tuple[tuple[int, int], ...]
    moves: tuple[Move, ...]

def plan(host: Host, moves_max: int) -> Plan:
    to = CpuSet(1 << host.cpus[-1].cpu.id)
    moves = [
        Move(one.id, one.domain, one.cpus, to, one.load_ppm, "") for one in host.vcpus
    ]
    return Plan(False, Stop.BALANCED, 0, 0, (), (), tuple(moves[:moves_max]))
"""
FORMER_SETTINGS = """
class Settings:
    model_fields = ("moves_max",)

    def __init__(self, moves_max: int = 1) -> None:
        self.moves_max = moves_max

    def policy(self) -> int:
        return self.moves_max
"""


@pytest.fixture
def former(tmp_path: Path) -> Iterator[Side]:
    """Return a commit without rooms, which moves the first vCPUs to the last pCPU."""
    (tmp_path / "vcpusched").mkdir()
    texts = {"model": FORMER_MODEL, "planner": FORMER_PLANNER, "config": FORMER_SETTINGS}
    for name, text in texts.items():
        (tmp_path / "vcpusched" / f"{name}.py").write_text(text)
    with renamed(tmp_path, "of old") as side:
        yield side


def test_a_commit_without_rooms_is_asked_in_its_own_words(former: Side) -> None:
    """Its limit has another name, and a setting that it lacks is left out; moves come back."""
    drawn = host([10, 20], [30], [])
    for wishes, expected in (
        ({}, [("g0", "2")]),
        ({"max_moves": 2, "pin_to": "cpu"}, [("g0", "2"), ("g1", "2")]),
    ):
        found, took_ns = former.planner(**wishes)(drawn)
        assert moves(found) == expected
        assert type(found) is Plan
        assert [move.vcpu for move in found.moves] == [
            vcpu.id for vcpu in drawn.vcpus[: len(expected)]
        ]
        assert took_ns >= 0


def test_a_host_of_which_a_commit_would_lose_something_is_refused(former: Side) -> None:
    """That one knows no cores and no fixed vCPUs: what it said of such a host would be wrong."""
    drawn = host([10, 20], [30], [])
    for more in (built(drawn, Layout(1, 1)), change(drawn, "g0", fixed=True)):
        with pytest.raises(ValueError, match="of old does not know all that a Host says"):
            former.planner()(more)


def test_the_planner_of_a_commit_is_another_one() -> None:
    """Its classes are its own, it gets all that a host has, and nothing of it stays behind."""
    with beside("HEAD") as there:
        for seed in range(20):
            drawn = random_host(seed)
            assert type(there.converted(drawn)).__module__ == f"{there.package}.model"
        found, _ = there.planner(**PLAIN)(host([30, 30], []))
        assert len(found.moves) == 1
        package = there.package
    assert not [name for name in sys.modules if name.partition(".")[0] == package]


def test_who_is_served_worse() -> None:
    """{60 60} {100}: 50 each and 100; with all of them on one, 33: a lower level.

    {100 100} {}: parting them is no loss; {100} {}: two on one are, since none fell short before.
    """
    apart, beside_all = host([60, 60], [100]), host([60, 60, 100], [])
    assert is_worse(apart, beside_all)
    assert not is_worse(beside_all, apart)
    assert not is_worse(apart, apart)
    assert is_worse(host([100], [100]), host([100, 100], []))


def test_crowded_cores() -> None:
    """Two busy threads count where another core idles, and only as far as there are such cores."""
    layout = Layout(8, 8, per_core=2)
    assert crowded_cores(built(host([30], [30], [5], []), layout)) == 1
    assert crowded_cores(built(host([30], [30], [30], []), layout)) == 0
    assert crowded_cores(built(host([30], [5], [], []), layout)) == 0
    assert crowded_cores(built(host([30], [30], [30], [30], [], []), layout)) == 1


def test_how_far_pins_go_and_what_they_cost() -> None:
    """One pin within a cache, one to another cache, one to another node: 5, 12.5 and 20 points."""
    drawn = built(host([90, 30, 30, 30], [], [], *([] for _ in range(5))), Layout(4, 2))
    targets = zip(drawn.vcpus[1:], (1, 2, 4), strict=True)

    def planner(_host: Host) -> tuple[Plan, int]:
        return dataclasses.replace(
            plan(drawn, POLICY),
            moves=tuple(
                Move(vcpu.id, vcpu.domain, vcpu.cpus, CpuSet.of([cpu]), vcpu.load_ppm, "")
                for vcpu, cpu in targets
            ),
        ), 0

    found = planned(planner, drawn)
    assert distances(found) == (1, 1, 1)
    # {90} {30} {30} {} {30} {} {} {}: 80 and three times 20 lie above a band from 0 to 10.
    assert cost_ppm(found) == (80 + 3 * 20 + 37.5) * PPM_PER_POINT


def test_what_vcpus_want_beyond_their_pcpu() -> None:
    """{70} on a weak one of 0.6 wants 10 more than it can give; on a strong one nothing."""
    layout = Layout(2, 2, weak_ppm=600_000)
    assert beyond_ppm(built(host([], [70]), layout)) == 100_000
    assert beyond_ppm(built(host([70], []), layout)) == 0


def test_rest_counts_what_the_service_does() -> None:
    """{40 40} {} with noise: one plan of one pin; {40} {40}: none, with loads within 5 %."""
    unbalanced = rest.noisy(host([40, 40], []), 40)
    done = HERE.service(unbalanced, pin_to="cpu")
    assert (done.plans, done.pins, len(done.cycles_ns)) == (1, 1, 40)
    done = HERE.service(rest.noisy(host([40], [40]), 40), pin_to="cpu")
    assert (done.plans, done.pins) == (0, 0)
    loads = [load for guest in unbalanced.guests for load in guest.loads_ppm[0]]
    assert 380_000 <= min(loads) < 390_000
    assert 410_000 < max(loads) <= 420_000


def test_hosts_at_rest_are_what_they_are_called() -> None:
    """Balanced by half the threshold; under it by a plan with moves; proven out of reach."""
    drawn = list(seeded(range(1, 13), [(8, 2), (9, 3)], [Spread.LUMPY]))
    verdicts = {case: solve(make_host(case), POLICY, limit_s=10).verdict for case in drawn}
    found = rest.hosts(HERE.planner(**PLAIN), verdicts, 20)
    threshold_ppm = POLICY.balance_threshold_ppm
    assert all(found.values())
    assert max(gap_ppm(one) for one in found[rest.BALANCED]) < threshold_ppm // 2
    assert max(gap_ppm(one) for one in found[rest.REACHED]) < threshold_ppm
    assert min(gap_ppm(one) for one in found[rest.OUT_OF_REACH]) >= threshold_ppm


def test_the_bars() -> None:
    """A small run with two sides: every row has its cell of each, and times are compared."""
    scale = bars.Scale(
        seeds=4,
        limit_s=1,
        topology=4,
        smt=(((8, 4), 2),),
        hybrid=2,
        size=(40, 8),
        timed=2,
        rest=1,
        periods=20,
    )
    with beside("HEAD") as there:
        rows = bars.run([there, HERE], scale, jobs=1)
    assert len({row.bar for row in rows}) == len(rows)
    assert all(set(row.reached) == {"HEAD", "now"} for row in rows)
    rules = [row for row in rows if "re-pack" in row.bar or "one-move" in row.bar]
    assert [len(set(row.reached.values())) for row in rules] == [1, 1, 1]
    assert "ratio" in next(row.reached["now"] for row in rows if row.bar.startswith("one plan"))
    assert bars.table(rows).columns == ("what", "wanted", "HEAD", "now")
