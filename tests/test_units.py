"""Sets of pCPUs treated as one: which there are, what they can do, and how a host looks as them."""

import dataclasses

import pytest
from hosts import host, random_host

from vcpusched.model import PPM, PPM_PER_POINT, Cpu, CpuSet, Host, HostCpu
from vcpusched.units import Granularity, capacity_ppm, grouped, narrow, sets


def machine(cpus: int, per_core: int = 1, per_cache: int = 4, per_node: int = 8) -> list[Cpu]:
    """Give a machine whose pCPUs are numbered core by core."""
    return [
        Cpu(cpu, cpu // per_node, cpu // per_core, cpu // per_cache, PPM) for cpu in range(cpus)
    ]


def on(cpus: list[Cpu], drawn: Host) -> Host:
    """Give a drawn host on a machine."""
    return dataclasses.replace(drawn, cpus=tuple(HostCpu(cpu) for cpu in cpus))


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        (Granularity.CPU, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (Granularity.CORE, ["0-1", "2-3", "4-5", "6-7"]),
        (Granularity.CACHE, ["0-3", "4-7"]),
        (Granularity.NODE, ["0-7"]),
    ],
)
def test_sets(granularity: Granularity, expected: list[str]) -> None:
    """Eight pCPUs, two to a core, four to a cache, one node."""
    assert [str(unit) for unit in sets(machine(8, 2), granularity)] == expected


def test_what_a_machine_does_not_tell() -> None:
    """Without caches nodes stand in; without cores each pCPU is one; without either all are one."""
    no_caches = [Cpu(cpu, node=cpu // 2) for cpu in range(4)]
    assert [str(unit) for unit in sets(no_caches, Granularity.CACHE)] == ["0-1", "2-3"]
    assert len(sets(no_caches, Granularity.CORE)) == 4
    nothing = [Cpu(cpu) for cpu in range(4)]
    assert [str(unit) for unit in sets(nothing, Granularity.NODE)] == ["0-3"]


def test_a_second_thread_is_worth_a_quarter() -> None:
    """Two cores of two threads: 2 * 1.25; an efficient core of 0.6 beside a full one: 1.6."""
    assert capacity_ppm(machine(4, 2)) == 2_500_000
    assert capacity_ppm([Cpu(0, core=0), Cpu(1, core=1, capacity_ppm=600_000)]) == 1_600_000


def test_loads_are_shares_of_the_unit() -> None:
    """{40 40} {} | {40} {}: two caches of two pCPUs: 80 of 200 and 40 of 200 are 40 and 20."""
    units = grouped(on(machine(4, per_cache=2), host([40, 40], [], [40], [])), Granularity.CACHE)
    assert [cpu.name for cpu in units.host.cpus] == ["pCPUs 0-1", "pCPUs 2-3"]
    assert [(vcpu.load_ppm, str(vcpu.cpus)) for vcpu in units.host.vcpus] == [
        (200_000, "0"),
        (200_000, "0"),
        (200_000, "2"),
    ]


def test_less_capacity_counts_as_used_already() -> None:
    """Caches of 4 and 2 pCPUs, 300 in all, so 50 % of each pCPU is the mean.

    In fourths of a pCPU the first should hold 200 / 4 = 50; the second holds 100 / 4 = 25, and 25
    for the two pCPUs that it lacks.
    """
    cpus = [Cpu(cpu, 0, cpu, cpu // 4) for cpu in range(6)]
    even = on(cpus, host([50], [50], [50], [50], [50], [50]))
    units = grouped(even, Granularity.CACHE)
    levels = {cpu.id: cpu.host_load_ppm for cpu in units.host.cpus}
    for vcpu in units.host.vcpus:
        levels[next(iter(vcpu.cpus))] += vcpu.load_ppm
    assert levels == {0: 500_000, 4: 500_000}


def test_only_units_that_are_allowed_in_full() -> None:
    """A definition of 0-2 holds the first cache of two, and half of the second."""
    units = grouped(
        on(machine(4, per_cache=2), host([40], [], [], [], allowed="0-2")), Granularity.CACHE
    )
    assert [str(vcpu.allowed) for vcpu in units.host.vcpus] == ["0"]


def test_narrow_vcpus_are_let_out_where_it_helps() -> None:
    """{40 40 10} {} in one unit: the 40 let out finds 50 beside it: 40 and 50, gap 10.

    A second one makes it level; a lone one stays whatever the gap.
    """
    crowded = on(machine(2, per_cache=2), host([40, 40, 10], []))
    units = grouped(crowded, Granularity.CACHE)
    assert len(narrow(crowded, units, 20 * PPM_PER_POINT)) == 1
    assert len(narrow(crowded, units, 5 * PPM_PER_POINT)) == 2
    lone = on(machine(2, per_cache=2), host([90], []))
    assert narrow(lone, grouped(lone, Granularity.CACHE), 5 * PPM_PER_POINT) == ()


@pytest.mark.parametrize("granularity", Granularity)
def test_nothing_is_lost(granularity: Granularity) -> None:
    """On random hosts: every vCPU is on a unit that is there; single pCPUs change nothing."""
    for seed in range(200):
        drawn = random_host(seed)
        cpus = tuple(
            dataclasses.replace(cpu, cpu=Cpu(cpu.id, cpu.id // 4, cpu.id // 2, cpu.id // 3))
            for cpu in drawn.cpus
        )
        drawn = dataclasses.replace(drawn, cpus=cpus)
        units = grouped(drawn, granularity)
        assert [vcpu.id for vcpu in units.host.vcpus] == [vcpu.id for vcpu in drawn.vcpus]
        assert CpuSet.of(cpu for unit in units.members.values() for cpu in unit) == drawn.online
        for vcpu, shown in zip(drawn.vcpus, units.host.vcpus, strict=True):
            if any(cpu in drawn.online for cpu in vcpu.cpus):
                assert shown.cpus.is_within(units.host.online)
        if granularity is Granularity.CPU:
            assert [vcpu.load_ppm for vcpu in units.host.vcpus] == [
                vcpu.load_ppm for vcpu in drawn.vcpus
            ]
            assert [cpu.host_load_ppm for cpu in units.host.cpus] == [
                cpu.host_load_ppm for cpu in drawn.cpus
            ]
