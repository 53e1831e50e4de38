"""Sets of pCPUs treated as one: which there are, what they can do, and how a host looks as them."""

import dataclasses

import pytest
from builders import after, host, random_host

from vcpusched.model import PPM, PPM_PER_POINT, Cpu, CpuSet, Granularity, Host, HostCpu, sets
from vcpusched.plan.planner import Policy, plan
from vcpusched.plan.units import capacity_ppm, grouped, narrow, untold


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


ALL_OF_IT = "all these are taken for one set, within which the kernel alone places vCPUs"


@pytest.mark.parametrize(
    ("granularity", "known", "said"),
    [
        (Granularity.CPU, {}, ""),
        (Granularity.AUTO, {}, ""),
        (Granularity.CORE, {}, " which are threads of one core; each is taken for a core"),
        (Granularity.CACHE, {"node": 0}, " which share a cache; NUMA nodes stand in for caches"),
        (
            Granularity.CACHE,
            {"core": 0},
            f" which share a cache, nor which are on one NUMA node; {ALL_OF_IT}",
        ),
        (Granularity.NODE, {"cache": 0}, f" which are on one NUMA node; {ALL_OF_IT}"),
    ],
)
def test_what_is_not_told_is_said(
    granularity: Granularity, known: dict[str, int], said: str
) -> None:
    """Of all pCPUs or of some; nothing where the level that is asked for is told."""
    told = Cpu(0, node=0, core=0, cache=0)
    some = [told, *(Cpu(cpu, **known) for cpu in (1, 2))]
    start = f'pin_to = "{granularity}": this host does not tell'
    assert untold(some[1:], granularity) == (f"{start}{said}" if said else "")
    assert untold(some, granularity) == (f"{start} of pCPUs 1-2{said}" if said else "")
    assert untold([told], granularity) == ""


def test_a_second_thread_is_worth_a_quarter() -> None:
    """Two cores of two threads: 2 * 1.25; an efficient core of 0.6 beside a full one: 1.6."""
    assert capacity_ppm(machine(4, 2)) == 2_500_000
    assert capacity_ppm([Cpu(0, core=0), Cpu(1, core=1, capacity_ppm=600_000)]) == 1_600_000


def test_loads_are_shares_of_the_unit() -> None:
    """{40 40} {} | {40} {}: two caches of two pCPUs: 80 of 200 and 40 of 200 are 40 and 20."""
    units = grouped(on(machine(4, per_cache=2), host([40, 40], [], [40], [])), Granularity.CACHE)
    assert [str(cpu.members) for cpu in units.host.cpus] == ["0-1", "2-3"]
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
    levels = {cpu.id: cpu.host_load_ppm + cpu.lacks_ppm for cpu in units.host.cpus}
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


@pytest.mark.parametrize(
    ("drawn", "let_out"),
    [
        # Core 0-1 gives 125 and two want 180, 55 too much; core 2-3 idles. One is let out.
        (host([90], [90], [], []), {"g1"}),
        # The same, though one of them does not contend alone: 160 wanted. The larger one goes.
        (host([70], [90], [10], []), {"g1"}),
        # 120 of 125: nobody lacks anything. 128: less than the least gain is lacking.
        (host([60], [60], [], []), set()),
        (host([64], [64], [], []), set()),
        # No core has room for what is too much: 180 and 180 of 125.
        (host([90], [90], [90], [90]), set()),
    ],
)
def test_narrow_vcpus_are_let_off_a_core_where_they_contend(drawn: Host, let_out: set[str]) -> None:
    """One unit of two cores of two threads, each vCPU bound to a thread of its own.

    0 ████████▌ 90   1 ████████▌ 90  |  2   3      the pCPUs are level in pairs, so none is
                                                   the busiest by itself; their core is.
    """
    here = on(machine(4, 2), drawn)
    for cpus in (None, "0-1"):
        if cpus is not None:  # and as it is where they were bound to the core before
            two = [
                dataclasses.replace(vcpu, cpus=CpuSet.parse(cpus)) if vcpu.on in {0, 1} else vcpu
                for vcpu in here.vcpus
            ]
            here = dataclasses.replace(here, vcpus=tuple(two))
        units = grouped(here, Granularity.CACHE)
        found = narrow(here, units, 20 * PPM_PER_POINT, 5 * PPM_PER_POINT)
        assert {vcpu.domain for vcpu, _ in found} == let_out
        assert all(str(core) == "0-1" for _, core in found)
    policy = Policy(granularity=Granularity.CACHE, service_check=True)
    plans = plan(here, policy)
    assert [str(move.to_cpus) for move in plans.moves] == ["0-3"] * len(let_out)
    assert all("pCPUs 0-1 were the busiest of 0-3" in move.reason for move in plans.moves)
    assert plan(after(here, plans), policy).moves == ()


def test_who_is_left_alone_by_a_plan_stays_where_it_is() -> None:
    """{90 90 | } { | }, sets are cores: one goes, and the other is alone then: one pin, not two."""
    here = on(machine(4, 2), host([90, 90], [], [], []))
    policy = Policy(granularity=Granularity.CORE, service_check=True)
    found = plan(here, policy)
    assert [str(move.to_cpus) for move in found.moves] == ["2-3"]
    assert plan(after(here, found), policy).moves == ()


@pytest.mark.parametrize("changes", [{"fixed": True}, {"allowed": CpuSet.parse("0-2")}])
def test_who_may_not_is_not_let_off_its_core(changes: dict[str, object]) -> None:
    """Held, or without all of the unit in its definition: {90 | 90} { | } stays."""
    here = on(machine(4, 2), host([90], [90], [], []))
    vcpus = tuple(dataclasses.replace(vcpu, **changes) for vcpu in here.vcpus)  # type: ignore[arg-type]
    here = dataclasses.replace(here, vcpus=vcpus)
    assert narrow(here, grouped(here, Granularity.CACHE), 10 * PPM_PER_POINT) == ()


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
