"""The planner: what holds for every host, on hosts drawn by Hypothesis and on 10,000 from seeds."""

import dataclasses
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from builders import after, random_host
from hypothesis import given, settings
from hypothesis import strategies as st

from vcpusched.model import PPM_PER_POINT, Cpu, CpuSet, DomainUuid, Host, HostCpu, Vcpu, VcpuId
from vcpusched.plan.planner import SATURATION_PPM, Floating, Move, Plan, Policy, Stop, plan

SWEPT = 10_000
CHUNK = 1_000
QUICK = Policy(steps_max=200)


def steps(found: Plan) -> list[tuple[Move, ...]]:
    """Cut the moves of a plan into steps: an exchange is one, and so is any other move."""
    cut, rest = [], list(found.moves)
    while rest:
        size = 2 if rest[0].reason.startswith("in exchange for ") else 1
        cut.append(tuple(rest[:size]))
        del rest[:size]
    return cut


def bound_loads(drawn: Host) -> dict[int, int]:
    """Give the load of each pCPU of its own and of the vCPUs bound to it."""
    loads = {cpu.id: cpu.host_load_ppm for cpu in drawn.cpus}
    for vcpu in drawn.vcpus:
        if vcpu.is_bound:
            (cpu,) = vcpu.cpus
            if cpu in loads:
                loads[cpu] += vcpu.load_ppm
    return loads


def counted_on(drawn: Host, found: Plan) -> dict[VcpuId, int]:
    """Give the pCPU on which each vCPU counts; one that is poured counts on none."""
    seen = {}
    for vcpu in drawn.vcpus:
        on = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
        if on is not None and (vcpu.is_bound or (found.binds_floaters and on in vcpu.cpus)):
            seen[vcpu.id] = on
    return seen


def judged(drawn: Host, loads: dict[int, int]) -> list[int]:
    """Give the loads of the pCPUs that are not unsettled, the largest first."""
    return sorted((load for cpu, load in loads.items() if cpu not in drawn.unsettled), reverse=True)


def gap(drawn: Host, loads: dict[int, int]) -> int:
    """Give the busiest less the freest of the pCPUs that are not unsettled."""
    sorted_loads = judged(drawn, loads) or [0]
    return sorted_loads[0] - sorted_loads[-1]


def check_moves(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that no vCPU moves twice, each move is a change, and no rule of the host is broken."""
    vcpus = {vcpu.id: vcpu for vcpu in drawn.vcpus}
    on = counted_on(drawn, found)
    assert len({move.vcpu for move in found.moves}) == len(found.moves)
    for move in found.moves:
        vcpu = vcpus[move.vcpu]
        assert not vcpu.fixed
        assert (move.domain, move.load_ppm) == (vcpu.domain, vcpu.load_ppm)
        assert move.from_cpus == vcpu.cpus
        assert move.to_cpus != vcpu.cpus
        assert len(move.to_cpus) == 1
        assert move.to_cpus.is_within(vcpu.allowed)
        assert not (move.to_cpus | CpuSet.of([on[move.vcpu]])) & drawn.unsettled
        assert vcpu.is_bound is not found.binds_floaters
    assert not (found.binds_floaters and policy.floating is Floating.KERNEL)


def check_figures(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that loads and gaps are told as they are, and never get worse."""
    before, later = dict(found.loads_before_ppm), dict(found.loads_after_ppm)
    if all(vcpu.is_bound for vcpu in drawn.vcpus):
        assert before == bound_loads(drawn)
        assert later == bound_loads(after(drawn, found))
    assert sum(before.values()) == sum(later.values())
    assert found.gap_before_ppm == gap(drawn, before)
    assert found.gap_after_ppm == gap(drawn, later)
    assert found.gap_after_ppm <= found.gap_before_ppm
    assert judged(drawn, later) < judged(drawn, before) or not found.moves
    assert found.balanced is (found.gap_before_ppm < policy.balance_threshold_ppm)
    assert not (found.balanced and found.moves)
    assert (found.stop is Stop.BALANCED) is (found.gap_after_ppm < policy.balance_threshold_ppm)
    if policy.moves_max is None:
        assert found.stop is not Stop.MOVE_LIMIT


def peaks(drawn: Host, found: Plan) -> list[int]:
    """Give the load of the busiest pCPU before the first step and after each.

    Where floaters are poured, water flows with each step, so there is nothing to tell.
    """
    on = counted_on(drawn, found)
    if any(vcpu.id not in on for vcpu in drawn.vcpus):
        return []
    loads = dict(found.loads_before_ppm)
    row = judged(drawn, loads)[:1]
    for step in steps(found):
        for move in step:
            (target,) = move.to_cpus
            loads[on[move.vcpu]] -= move.load_ppm
            loads[target] += move.load_ppm
        row += judged(drawn, loads)[:1]
    return row


def check_steps(drawn: Host, found: Plan) -> None:
    """Hold that no step goes above the first peak, and an exchange goes to and fro."""
    row = peaks(drawn, found)
    assert max(row, default=0) == max(row[:1], default=0)
    on = counted_on(drawn, found)
    for step in steps(found):
        if len(step) > 1:
            there, back = step
            assert back.to_cpus == CpuSet.of([on[there.vcpu]])
            assert there.to_cpus == CpuSet.of([on[back.vcpu]])


def raises_the_peak(drawn: Host, found: Plan) -> bool:
    """Tell whether a step goes above the peak that the steps before it have left."""
    return any(before < then for before, then in itertools.pairwise(peaks(drawn, found)))


def check_lone(drawn: Host, found: Plan) -> None:
    """Hold that a vCPU alone on the busiest pCPU stays: elsewhere it would be as busy."""
    loads = dict(found.loads_before_ppm)
    on = counted_on(drawn, found)
    crowd = Counter(on.values())
    peak = max(judged(drawn, loads), default=0)
    for move in found.moves:
        assert loads[on[move.vcpu]] < peak or crowd[on[move.vcpu]] > 1


def check_rest(drawn: Host, policy: Policy, found: Plan) -> None:
    """Hold that nothing is left to do, planned again; no floater is bound a second time."""
    again = plan(after(drawn, found), policy)
    if found.binds_floaters:
        assert found.stop is Stop.BALANCED
        loads, on = dict(found.loads_after_ppm), counted_on(drawn, found)
        touched = {cpu for move in found.moves for cpu in (on[move.vcpu], *move.to_cpus)}
        assert all(loads[cpu] < SATURATION_PPM for cpu in touched)
        once = {move.vcpu for move in found.moves}
        assert not again.binds_floaters or not once & {move.vcpu for move in again.moves}
    else:
        assert again.moves == () or again.binds_floaters
        if not again.binds_floaters:
            assert again.loads_before_ppm == found.loads_after_ppm


def check_limit(drawn: Host, policy: Policy, whole: Plan, moves_max: int) -> None:
    """Hold that a plan cut short begins as the whole one, and repeated comes to rest.

    Where the limit allows no beginning that helps, it is one step from further on.
    """
    limited = dataclasses.replace(policy, moves_max=moves_max)
    now = drawn
    for _ in range(3 * len(drawn.vcpus) + 1):
        found = plan(now, limited)
        assert len(found.moves) <= moves_max
        check_moves(now, limited, found)
        check_figures(now, limited, found)
        check_steps(now, found)
        check_lone(now, found)
        if now is drawn and not found.binds_floaters and not whole.binds_floaters:
            begins = found.moves == whole.moves[: len(found.moves)]
            changes = {(move.vcpu, move.to_cpus) for move in whole.moves}
            one_step = len(steps(found)) == 1 and changes >= {
                (move.vcpu, move.to_cpus) for move in found.moves
            }
            assert begins or one_step
            if found.stop is Stop.MOVE_LIMIT:
                assert len(found.moves) < len(whole.moves)
        if not found.moves:
            break
        now = after(now, found)
    assert not found.moves


def check(drawn: Host, policy: Policy) -> Plan:
    """Hold all that is promised of every plan that is not cut short."""
    found = plan(drawn, policy)
    check_moves(drawn, policy, found)
    check_figures(drawn, policy, found)
    check_steps(drawn, found)
    check_lone(drawn, found)
    check_rest(drawn, policy, found)
    return found


def seeded_policy(seed: int) -> Policy:
    """Give a policy from a seed; the long search is for every 20th."""
    chance = random.Random(seed)
    return Policy(
        balance_threshold_ppm=chance.choice([100_000, 100_000, 50_000, 250_000, 1]),
        min_gain_ppm=chance.choice([0, 20_000, 50_000]),
        floating=chance.choice([Floating.PIN, Floating.PIN, Floating.KERNEL]),
        steps_max=1_000 if seed % 20 else Policy().steps_max,
    )


@pytest.mark.parametrize(
    "first",
    [0, *(pytest.param(first, marks=pytest.mark.full) for first in range(CHUNK, SWEPT, CHUNK))],
)
def test_ten_thousand_hosts(first: int) -> None:
    """Everything promised holds on hosts from fixed seeds; the failing seed is in the traceback.

    No step may go above the first peak; hardly one in a thousand goes above the one before it.
    """
    rises = 0
    for seed in range(first, first + CHUNK):
        drawn, policy = random_host(seed), seeded_policy(seed)
        found = check(drawn, policy)
        rises += raises_the_peak(drawn, found)
        if seed % 5 == 0 and found.moves:
            check_limit(drawn, policy, found, 1 + seed // 5 % 3)
    assert rises <= CHUNK // 500


def test_the_sweep_meets_what_it_is_for() -> None:
    """The seeds give exchanges, floaters bound, hosts that cannot be balanced, and long plans."""
    met: Counter[str] = Counter()
    for seed in range(400):
        found = plan(random_host(seed), seeded_policy(seed))
        met["exchanges"] += any(len(step) > 1 for step in steps(found))
        met["binding"] += found.binds_floaters
        met["long"] += len(found.moves) > 5
        met["reached"] += bool(found.moves) and found.stop is Stop.BALANCED
        met["unreached"] += bool(found.moves) and found.stop is Stop.NO_GAIN
    assert all(met[what] >= 5 for what in ("exchanges", "binding", "long"))
    assert met["reached"] > 50
    assert met["unreached"] > 50


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """Give hosts of up to 6 pCPUs and 16 vCPUs: bound and floating, fixed and masked."""
    numbers = sorted(draw(st.sets(st.integers(0, 70), min_size=1, max_size=6)))
    cpu, online = st.sampled_from(numbers), CpuSet.of(numbers)
    bound_only = draw(st.booleans())
    vcpus = []
    for index in range(draw(st.integers(0, 16))):
        allowed = CpuSet.of(draw(st.sets(cpu, min_size=1))) if draw(st.booleans()) else online
        on = draw(cpu)
        bound = bound_only or draw(st.booleans())
        vcpus.append(
            Vcpu(
                id=VcpuId(DomainUuid(str(index % 7)), 1, index),
                domain=f"g{index % 7}",
                load_ppm=draw(st.integers(0, 20)) * 5 * PPM_PER_POINT,
                cpus=CpuSet.of([on]) if bound else allowed,
                allowed=allowed,
                on=on if bound or on in allowed else None,
                fixed=draw(st.integers(0, 9)) == 0,
            )
        )
    load = st.integers(0, 10).map(lambda load: load * 5 * PPM_PER_POINT)
    unsettled = CpuSet.of(draw(st.sets(cpu, max_size=1)))
    return Host(tuple(HostCpu(Cpu(cpu), draw(load)) for cpu in numbers), tuple(vcpus), unsettled)


policies = st.builds(
    Policy,
    balance_threshold_ppm=st.sampled_from([100_000, 1]),
    min_gain_ppm=st.sampled_from([0, 20_000]),
    floating=st.sampled_from(Floating),
    steps_max=st.sampled_from([0, 200]),
)


@settings(max_examples=200, deadline=None)
@given(hosts(), policies, st.integers(0, 3))
def test_every_promise(drawn: Host, policy: Policy, moves_max: int) -> None:
    """Everything promised holds, however short the search and whatever the limit of moves."""
    check_limit(drawn, policy, check(drawn, policy), moves_max)


def shuffled(drawn: Host, chance: random.Random) -> Host:
    """Tell the same host in another order."""
    cpus, vcpus = list(drawn.cpus), list(drawn.vcpus)
    chance.shuffle(cpus)
    chance.shuffle(vcpus)
    return Host(tuple(cpus), tuple(vcpus), drawn.unsettled)


@settings(max_examples=200, deadline=None)
@given(hosts(), st.randoms(use_true_random=False))
def test_order_of_input_does_not_matter(drawn: Host, chance: random.Random) -> None:
    """A host told in another order gets the same plan, to the letter."""
    assert plan(shuffled(drawn, chance), QUICK) == plan(drawn, QUICK)


def test_order_of_input_does_not_matter_on_large_hosts() -> None:
    """The same on hosts whose search makes use of chance: 6 to 24 pCPUs."""
    for seed in range(60):
        drawn = random_host(seed, cpus=6 + seed % 19)
        again = plan(shuffled(drawn, random.Random(seed)), QUICK)
        assert again == plan(drawn, QUICK), seed


PLAN_MANY = """
from builders import random_host
from vcpusched.plan.planner import Policy, plan
for seed in range(300):
    print(plan(random_host(seed), Policy(balance_threshold_ppm=400_000, steps_max=50)))
"""


def test_hash_seeds_do_not_matter() -> None:
    """Python's hashes of strings differ from run to run; the plans do not."""
    told = [
        subprocess.run(
            [sys.executable, "-c", PLAN_MANY],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "1", "2")
    ]
    assert told[0].count("Plan(") == 300
    assert told[1:] == told[:1] * 2


@pytest.mark.parametrize(
    ("cpus", "vcpus"), [(1, 1), (1, 40), (2, 1), (64, 500), (65, 500), (64, 700), (200, 2_000)]
)
def test_odd_and_large_sizes(cpus: int, vcpus: int) -> None:
    """Everything promised holds from one vCPU on one pCPU to 2,000 on 200."""
    for seed in range(3):
        check(random_host(seed, cpus, vcpus), Policy(steps_max=1_000))
