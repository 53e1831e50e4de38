"""Which floaters are left to the kernel."""

import dataclasses
import random

import pytest
from builders import change, host, random_host

from vcpusched.model import Cpu, CpuSet, DomainUuid, Granularity, Host, HostCpu, VcpuId
from vcpusched.plan.planner import MIN_WAIT_PPM, Floating, Plan, Policy, Stop, plan

WAITS = MIN_WAIT_PPM[Floating.AUTO]


def isolated(drawn: Host, cpus: str) -> Host:
    """Return the host with some of its pCPUs isolated."""
    apart = CpuSet.parse(cpus)
    return dataclasses.replace(
        drawn,
        cpus=tuple(
            HostCpu(dataclasses.replace(cpu.cpu, isolated=cpu.id in apart)) for cpu in drawn.cpus
        ),
    )


@pytest.mark.parametrize("floating", Floating)
@pytest.mark.parametrize(
    ("apart", "wait_ppm"), [("", 0), ("", WAITS - 1), ("", WAITS), ("0-1", 0), ("1", 0)]
)
def test_which_floaters_are_pinned(floating: Floating, apart: str, wait_ppm: int) -> None:
    """{60 60} {}, both floating: with "auto" only who waits; on isolated pCPUs whatever is set.

    Isolated are those on which no floater finds one that is not.
    """
    drawn = isolated(host([60, 60], [], floating=True), apart)
    found = plan(change(drawn, "g0", wait_ppm=wait_ppm), Policy(floating=floating))
    auto = floating is Floating.AUTO and wait_ppm >= WAITS
    pinned = floating is Floating.PIN or apart == "0-1" or auto
    assert len(found.moves) == bool(pinned)


def test_who_is_pinned_to_a_set_does_not_float() -> None:
    """Six of 90 % on one of two caches of four: to let them use all of it is a pin like others."""
    cpus = tuple(HostCpu(Cpu(cpu, cache=cpu // 4)) for cpu in range(8))
    drawn = dataclasses.replace(host([90] * 6, [], allowed="0-7"), cpus=cpus)
    for vcpu in drawn.vcpus:
        drawn = change(drawn, vcpu.domain, cpus=CpuSet.parse("0-3"))
    policy = Policy(floating=Floating.AUTO, pin_to=Granularity.AUTO)
    assert {str(move.to_cpus) for move in plan(drawn, policy).moves} == {"4-7"}


def test_a_limit_of_moves_cuts_what_binds_floaters_and_does_not_forbid_it() -> None:
    """64 floaters of 15 %, all last on pCPUs 0 to 2 of 16: judged whole, made in part."""
    online = CpuSet.parse("0-15")
    drawn = host([15] * 22, [15] * 21, [15] * 21, *[[]] * 13, floating=True)
    for vcpu in drawn.vcpus:
        drawn = change(drawn, vcpu.domain, cpus=online, wait_ppm=200_000)
    policy = Policy(floating=Floating.AUTO, max_moves=32)
    whole = plan(drawn, dataclasses.replace(policy, max_moves=None))
    assert len(whole.moves) > 32
    found = plan(drawn, policy)
    assert found.binds_floaters
    assert found.moves == whole.moves[: len(found.moves)]
    assert 0 < len(found.moves) <= 32


def test_one_that_the_kernel_never_moves_is_pinned_whatever_holds_for_others() -> None:
    """PCPUs 2 and 3 are isolated; of two on 2 one goes to 3, though pCPU 0 cannot be helped."""
    drawn = isolated(host([90, 30], [], [50, 50], []), "2-3")
    for name, cpus, wait_ppm in (("g1", "0-1", 100_000), ("g2", "2-3", 0), ("g3", "2-3", 0)):
        mask = CpuSet.parse(cpus)
        drawn = change(drawn, name, cpus=mask, allowed=mask, wait_ppm=wait_ppm)
    drawn = change(drawn, "g0", fixed=True)
    for floating in Floating:
        found = plan(drawn, Policy(floating=floating))
        pair = [move for move in found.moves if move.domain in {"g2", "g3"}]
        assert [str(move.to_cpus) for move in pair] == ["3"]


def moved(drawn: Host, vcpu: VcpuId, cpu: int) -> Host:
    """Return the host with one vCPU pinned to another pCPU."""
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(one, cpus=CpuSet.of([cpu])) if one.id == vcpu else one
            for one in drawn.vcpus
        ),
    )


def test_a_move_that_counts_on_floaters_to_make_room() -> None:
    """{90 10} {}, and 90 that float: 100 and 90 as it is, 95 each once the 10 are on pCPU 1.

    Where their guest keeps its vCPUs apart, and another one is on pCPU 1, the 90 go instead.
    """
    drawn = change(host([90, 10], [90], [0]), "g2", cpus=CpuSet.parse("0-1"))
    drawn = dataclasses.replace(drawn, cpus=drawn.cpus[:2])
    policy = Policy(floating=Floating.KERNEL)
    found = plan(drawn, policy)
    assert [(move.domain, str(move.to_cpus)) for move in found.moves] == [("g1", "1")]
    assert found.gap_after_ppm == 0
    assert not plan(change(drawn, "g1", cpus=CpuSet.parse("1")), policy).moves
    guest = drawn.vcpus[1].id
    other = {"id": guest._replace(vcpu=1), "cpus": CpuSet.parse("1"), "spread": True}
    apart = change(change(drawn, "g3", **other), "g1", spread=True)
    assert [move.domain for move in plan(apart, policy).moves] == ["g0"]


def floating_third(seed: int) -> Host:
    """Return a host of up to 8 pCPUs and 24 vCPUs, of which a third floats."""
    chance = random.Random(f"third {seed}")
    cpus = chance.randint(2, 8)
    drawn = random_host(seed, cpus, chance.randint(2, 3) * cpus, floating=False)
    every = CpuSet.of(cpu.id for cpu in drawn.cpus)
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(vcpu, cpus=every, allowed=every)
            if chance.random() < 1 / 3
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )


def one_that_balances(drawn: Host, policy: Policy) -> bool:
    """Return whether one pin brings a host under the threshold, and well below what it was."""
    still = dataclasses.replace(policy, max_moves=0)

    def loads(found: Plan) -> list[int]:
        return sorted((load for _, load in found.loads_before_ppm), reverse=True)

    now = plan(drawn, still)
    ways = (
        plan(moved(drawn, vcpu.id, cpu), still)
        for vcpu in drawn.vcpus
        if vcpu.is_bound and not vcpu.fixed
        for cpu in vcpu.allowed - vcpu.cpus - drawn.unsettled
    )
    margin_ppm = policy.min_gain_ppm * 3 // 5
    return any(
        then.balanced
        and then.gap_before_ppm <= now.gap_before_ppm - margin_ppm
        and loads(then) < loads(now)
        for then in ways
    )


def test_a_host_that_one_pin_balances_gets_one() -> None:
    """Of hosts of which a third floats none is left alone, and none gets two."""
    policy, count = Policy(floating=Floating.KERNEL, steps_max=1_000), 0
    for seed in range(200):
        drawn = floating_third(seed)
        found = plan(drawn, policy)
        if not found.balanced and not drawn.unsettled and one_that_balances(drawn, policy):
            assert (len(found.moves), found.stop) == (1, Stop.BALANCED), seed
            count += 1
    assert count > 20


@pytest.mark.parametrize("pin_to", Granularity)
def test_no_pcpu_to_balance(pin_to: Granularity) -> None:
    """Nothing is planned, whatever vCPUs are pinned to."""
    assert not plan(Host((), ()), Policy(pin_to=pin_to)).moves


def test_a_balance_that_floaters_do_not_make_asks_for_no_pins() -> None:
    """Floaters fill pCPUs 0 to 3 up to 83%; 4 to 7, of 61 to 69%, are no room for them.

    Five pins were made there, and the gap stayed to the ppm.
    """
    bound = [28], [53], [37], [52], [25, 39], [18, 51], [14, 39, 11], [21, 30, 11]
    drawn = host(*bound)
    for name in ("g0", "g1", "g2", "g3", "g4", "g5", "g8", "g13"):
        drawn = change(drawn, name, fixed=True)
    pool = host([10], [15], [40], [47], [51], floating=True, allowed="0-3").vcpus
    floaters = (
        dataclasses.replace(vcpu, id=VcpuId(DomainUuid(f"f{at}"), 1, 0), domain=f"f{at}")
        for at, vcpu in enumerate(pool)
    )
    drawn = dataclasses.replace(drawn, vcpus=(*drawn.vcpus, *floaters))
    found = plan(drawn, Policy(floating=Floating.KERNEL))
    assert (found.balanced, found.moves) == (False, ())
