"""The benchmark: its rivals do what they say, and its optimum is what trying everything finds."""

import dataclasses
import itertools
import random
from pathlib import Path

import pictures
import pytest
import replay
import scaling
import soak
import static
from baselines import Rule, descent, one_move, repack, sticky_repack
from builders import host
from grid import Bonds, Case, Spread, carried_out, cases, gap_ppm, loads_of, make_host, outside_ppm
from methods import METHODS, OURS, POLICY
from optimum import SolverError, Verdict, check, solve
from replay_tables import replay_tables
from static_tables import scaling_tables, static_tables

from vcpusched.model import PPM_PER_POINT, CpuSet, Host, HostCpu, Vcpu
from vcpusched.plan.planner import Plan, Policy, plan

RULES = [one_move, descent, repack, sticky_repack]
SMALL = [
    case for case in cases([(8, 2), (16, 4), (32, 8)], 3) if case.bonds in {Bonds.FREE, Bonds.ALL}
]


def moves(found: Plan) -> list[tuple[str, str]]:
    """Give guest and target of each move."""
    return [(move.domain, str(move.to_cpus)) for move in found.moves]


def change(drawn: Host, name: str, *, fixed: bool = False, allowed: str | None = None) -> Host:
    """Give the host with one guest fixed or masked."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(
                vcpu,
                fixed=fixed,
                allowed=vcpu.allowed if allowed is None else CpuSet.parse(allowed),
            )
            if vcpu.domain == name
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )


def test_one_move_takes_the_vcpu_that_evens_most() -> None:
    """[50 30 10] [20] []: the 50 makes 40 and 50; the 30 would make 60 and 30."""
    assert moves(one_move(host([50, 30, 10], [20], []), POLICY)) == [("g0", "2")]


def test_one_move_only_swaps_where_nothing_helps() -> None:
    """[60 40] [50 10], 100 and 60: any move leaves one at 100 or more, but the rule moves."""
    drawn = host([60, 40], [50, 10])
    assert moves(one_move(drawn, POLICY)) == [("g1", "1")]
    assert moves(descent(drawn, POLICY)) == []


def test_a_lone_vcpu_stays_and_stops_the_one_move_rule() -> None:
    """[100] [60 20] []: the rule looks at the 100 for ever; the paying move parts the others."""
    drawn = host([100], [60, 20], [])
    assert moves(one_move(drawn, POLICY)) == []
    assert moves(descent(drawn, POLICY)) == [("g2", "2")]


def test_one_move_obeys_masks_and_fixed_vcpus() -> None:
    """[50 40] [10] []: with the 50 fixed and the 40 kept off pCPU 2, it goes to pCPU 1."""
    drawn = change(host([50, 40], [10], []), "g0", fixed=True)
    assert moves(one_move(drawn, POLICY)) == [("g1", "2")]
    assert moves(one_move(change(drawn, "g1", allowed="0-1"), POLICY)) == [("g1", "1")]


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
        assert dict(found.loads_after_ppm) == loads_of(carried_out(drawn, found))
        cpus, others = list(drawn.cpus), list(drawn.vcpus)
        chance.shuffle(cpus)
        chance.shuffle(others)
        assert rule(Host(tuple(cpus), tuple(others)), POLICY) == found


def test_the_repack_is_what_a_plain_one_finds() -> None:
    """The heap changes nothing: the freest allowed pCPU, or where the vCPU is if equally free."""
    for case in SMALL:
        drawn = make_host(case)
        loads = {cpu.id: cpu.host_load_ppm for cpu in drawn.cpus}
        for vcpu in drawn.vcpus:
            if vcpu.fixed:
                loads[next(iter(vcpu.cpus))] += vcpu.load_ppm
        targets = {}
        movable = [vcpu for vcpu in drawn.vcpus if not vcpu.fixed]
        for vcpu in sorted(movable, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
            (home,) = vcpu.cpus
            target = min(vcpu.allowed, key=lambda cpu: (loads[cpu], cpu != home, cpu))
            loads[target] += vcpu.load_ppm
            targets[vcpu.id] = target
        found = repack(drawn, POLICY)
        if not found.balanced:
            after = carried_out(drawn, found)
            assert {
                vcpu.id: next(iter(vcpu.cpus)) for vcpu in after.vcpus if not vcpu.fixed
            } == targets


def test_one_paying_move_comes_to_rest() -> None:
    """However long it may go on, it never comes back to where it was."""
    for case in SMALL:
        outcome = static.attempt(make_host(case), METHODS["one paying move"])
        assert not outcome.cycled
        assert outcome.periods < METHODS["one paying move"].periods_max


def tiny_host(seed: int) -> Host:
    """Give a host of up to 7 vCPUs and 3 pCPUs: some masked, some fixed, some host load."""
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
    """Give the fewest pin changes to balance, by trying every placement."""
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
            assert (gap_ppm(carried_out(drawn, found)) < 100_000, len(found.moves)) == (
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
    drawn = change(host([40, 40], []), "g0", allowed="0")
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


def test_the_static_part(tmp_path: Path) -> None:
    """A small run: every host has a verdict, every competitor an outcome; tables and pictures."""
    rows = static.run(static.Scale(each=(((8, 2), 1), ((16, 4), 1)), limit_s=10), jobs=1)
    assert len(rows) == 2 * len(Spread) * len(Bonds)
    assert all(set(row.outcomes) == set(METHODS) for row in rows)
    scored = static.score(rows, OURS)
    assert 0 < scored.reached <= scored.reachable
    assert scored.ratio is not None
    assert scored.ratio >= 1
    for table in static_tables(rows):
        assert table.markdown().startswith("### ")
    assert [path.suffix for path in pictures.draw_static(rows, tmp_path)] == [".png", ".svg"]


def test_the_scaling_part(tmp_path: Path) -> None:
    """A small run: every competitor is timed on every kind and size."""
    points = scaling.run(scaling.Scale(sizes=((20, 4), (40, 8)), each=1))
    names = {*METHODS, scaling.AT_REST}
    assert {point.method for point in points} == names
    assert len(points) == 2 * len(scaling.KINDS) * len(names)
    assert all(point.plan_ns for point in points)
    (table,) = scaling_tables(points)
    assert "20 x 4" in table.markdown()
    assert pictures.draw_scaling(points, tmp_path)


@pytest.mark.full
def test_the_replay_part(tmp_path: Path) -> None:
    """Traces of both kinds and made-up loads: all competitors want the same; some do not pin."""
    chance = random.Random(5)
    rows = [[str(chance.randint(0, 40)) for _ in range(288)] for _ in range(40)]
    (tmp_path / "single.csv").write_text("".join(f"20110303,{','.join(row)}\n" for row in rows))
    rows = [[str(chance.randint(100, 1000)) for _ in range(20)] for _ in range(40)]
    (tmp_path / "several.csv").write_text("".join(f"1,4,{','.join(row)}\n" for row in rows))
    sets = replay.load_sets(tmp_path, replay.Scale((3, 1), (3, 1), (3, 1)))
    assert [(one.name, one.cpus) for one in sets] == [
        ("several", 48),
        ("single", 32),
        ("made up", 32),
    ]
    runs = replay.run(sets, jobs=1)
    assert len(runs) == len(sets) * len(replay.COMPETITORS)
    for one in sets:
        here = {run.competitor: run for run in runs if run.load_set == one.name}
        assert len({run.demanded_ns for run in here.values()}) == 1
        assert here["floating, the kernel alone"].pins == here["fixed random pins"].pins == 0
        assert here["re-pack"].pins > here["one-move rule"].pins > 0
    assert len(replay_tables(runs)) == len(sets) + 1
    assert pictures.draw_replay(runs, tmp_path)


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    """Rather than quietly replaying made-up loads only."""
    with pytest.raises(ValueError, match="holds no file"):
        replay.load_sets(tmp_path, replay.QUICK)


@pytest.mark.full
def test_a_short_soak(tmp_path: Path) -> None:
    """A hundredth of the long one: nothing of what must be true is broken."""
    assert soak.soak(1000, 2, tmp_path)
