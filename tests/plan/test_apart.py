"""Guests that keep their vCPUs on different cores."""

import dataclasses
import random

import pytest
from builders import after, host, of_one_guest, random_host

from vcpusched.model import CpuSet, Host, VcpuId
from vcpusched.plan.planner import Plan, Policy, plan


def spread(drawn: Host, *domains: str) -> Host:
    """Have these guests keep their vCPUs apart."""
    vcpus = (
        dataclasses.replace(vcpu, spread=vcpu.domain in domains) if domains else vcpu
        for vcpu in drawn.vcpus
    )
    return dataclasses.replace(drawn, vcpus=tuple(vcpus))


def with_cores(drawn: Host, *cores: int | None) -> Host:
    """Put pCPUs onto these cores."""
    cpus = (
        dataclasses.replace(cpu, cpu=dataclasses.replace(cpu.cpu, core=core))
        for cpu, core in zip(drawn.cpus, cores, strict=True)
    )
    return dataclasses.replace(drawn, cpus=tuple(cpus))


def core_of(drawn: Host) -> dict[int, tuple[str, int]]:
    """Give the core of each pCPU; one of which it is not known is its own."""
    return {
        cpu.id: ("cpu", cpu.id) if cpu.cpu.core is None else ("core", cpu.cpu.core)
        for cpu in drawn.cpus
    }


def check(drawn: Host, found: Plan) -> None:
    """Hold that no move of the plan, in its order, joins two vCPUs of a spread guest on a core."""
    cores, at = core_of(drawn), dict[VcpuId, CpuSet]()
    for vcpu in drawn.vcpus:
        at[vcpu.id] = vcpu.cpus
    apart = {vcpu.id for vcpu in drawn.vcpus if vcpu.spread}
    assert len({move.vcpu for move in found.moves}) == len(found.moves)
    for move in found.moves:
        at[move.vcpu] = move.to_cpus
        if move.vcpu not in apart:
            continue
        (target,) = move.to_cpus
        for other in apart - {move.vcpu}:
            if other.uuid == move.vcpu.uuid and len(at[other]) == 1:
                (there,) = at[other]
                assert cores.get(there) != cores[target], (drawn, move)


def moves(drawn: Host) -> dict[str, str]:
    """Give where vCPUs are moved by a plan, as domain/number."""
    found = plan(drawn, Policy(min_gain_ppm=0))
    check(drawn, found)
    return {f"{move.domain}/{move.vcpu.vcpu}": str(move.to_cpus) for move in found.moves}


def test_nobody_joins_its_sibling() -> None:
    """[30a 30b] [5a]: one of them goes, and it is not that of the guest that is on pCPU 1."""
    drawn = of_one_guest(host([30, 30], [5]), "g0", "g2")
    assert moves(spread(drawn, "g0")) == {"g1/0": "1"}
    alone = of_one_guest(host([30, 30], [5]), "g0", "g1", "g2")
    assert moves(alone) != {}
    assert moves(spread(alone, "g0")) == {}


def test_siblings_threads_are_one_core() -> None:
    """[40a 40b] [] [40a] []: pCPUs 2 and 3 are one core, so of a only pCPU 1 may take one."""
    drawn = of_one_guest(host([40, 40], [], [40], []), "g0", "g2")
    drawn = with_cores(drawn, 0, 1, 2, 2)
    fixed = tuple(dataclasses.replace(vcpu, fixed=vcpu.domain == "g1") for vcpu in drawn.vcpus)
    drawn = spread(dataclasses.replace(drawn, vcpus=fixed), "g0")
    assert moves(drawn) in ({"g0/0": "1"}, {"g0/0": "1", "g0/1": "3"})


def test_two_that_leave_do_not_meet() -> None:
    """[25 x 4 of one guest] [] []: they go to different pCPUs, and two have to stay together."""
    drawn = of_one_guest(host([25, 25, 25, 25], [], []), "g0", "g1", "g2", "g3")
    found = moves(spread(drawn, "g0"))
    assert sorted(found.values()) == ["1", "2"]
    for cores in ((0, 1, 1), (0, 0, 1)):
        assert len(moves(spread(with_cores(drawn, *cores), "g0"))) == 1


def test_without_the_wish_nothing_changes() -> None:
    """The constraint is for those that ask for it."""
    drawn = of_one_guest(host([60, 20], [20]), "g0", "g2")
    assert plan(spread(drawn), Policy()) == plan(drawn, Policy())


@pytest.mark.parametrize("seed", range(200))
def test_on_random_hosts(seed: int) -> None:
    """On hosts with everything, siblings are never joined; and plans come to an end."""
    chance = random.Random(seed)
    drawn = random_host(seed)
    names = {vcpu.domain for vcpu in drawn.vcpus}
    drawn = spread(drawn, *sorted(name for name in names if chance.random() < 0.6))
    known = [chance.choice([None, number // 2, number // 2]) for number in range(len(drawn.cpus))]
    drawn = with_cores(drawn, *known)
    policy = Policy(
        min_gain_ppm=chance.choice([0, 50_000]), moves_max=chance.choice([None, None, 2])
    )
    for _ in range(12):
        found = plan(drawn, policy)
        check(drawn, found)
        assert found.gap_after_ppm <= found.gap_before_ppm
        if not found.moves or found.binds_floaters:
            return
        drawn = after(drawn, found)
    assert policy.moves_max is not None
