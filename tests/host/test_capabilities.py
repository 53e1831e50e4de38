"""Topologies out of capabilities of many kinds, and out of none.

The files in tests/data/capabilities were written by hand after libvirt's documentation of the
format, but for emulated-epyc-*.xml, which were captured; the machine of 512 pCPUs is made here,
since it would fill 600 lines.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcpusched.host.libvirt_xml import flat_topology, read_topology
from vcpusched.model import PPM, Cpu, CpuSet, Topology

DATA = Path(__file__).parents[1] / "data/capabilities"


def parsed(name: str, online: str) -> Topology:
    """Read one of the files."""
    return read_topology((DATA / f"{name}.xml").read_text(), CpuSet.parse(online))


def groups(topology: Topology, of: str) -> dict[int | None, str]:
    """Give the pCPUs of each node, core or cache, as cpulists."""
    members: dict[int | None, list[int]] = {}
    for cpu in topology.cpus:
        members.setdefault(getattr(cpu, of), []).append(cpu.id)
    return {group: str(CpuSet.of(cpus)) for group, cpus in members.items()}


def xml(cells: Sequence[Sequence[str]], *banks: str) -> str:
    """Write capabilities: the pCPUs of each cell, and banks, as attributes."""
    written = "".join(
        f"<cell id='{node}'><cpus>{''.join(f'<cpu {cpu}/>' for cpu in cpus)}</cpus></cell>"
        for node, cpus in enumerate(cells)
    )
    caches = "".join(f"<bank {bank}/>" for bank in banks)
    return (
        f"<capabilities><host><topology><cells>{written}</cells></topology>"
        f"<cache>{caches}</cache></host></capabilities>"
    )


def placed(text: str, online: str) -> list[tuple[int, int | None, int | None, int | None]]:
    """Give number, node, core and cache of each pCPU."""
    cpus = read_topology(text, CpuSet.parse(online)).cpus
    return [(cpu.id, cpu.node, cpu.core, cpu.cache) for cpu in cpus]


def test_one_socket_without_smt() -> None:
    """Six pCPUs are six cores, of one node and one L3."""
    topology = parsed("one-socket", "0-5")
    assert groups(topology, "node") == {0: "0-5"}
    assert groups(topology, "cache") == {0: "0-5"}
    assert groups(topology, "core") == {cpu: str(cpu) for cpu in range(6)}
    assert {cpu.capacity_ppm for cpu in topology.cpus} == {PPM}


def test_two_sockets_with_smt() -> None:
    """2 sockets x 4 cores x 2 threads = 16; the second thread of core n is n + 8.

    core_id is 0, 1, 4, 9 in both sockets: by that there were 4 cores of four threads, not 8 of two.
    """
    topology = parsed("two-sockets-smt", "0-15")
    assert groups(topology, "node") == {0: "0-3,8-11", 1: "4-7,12-15"}
    assert groups(topology, "socket") == groups(topology, "node")
    assert groups(topology, "cache") == {0: "0-3,8-11", 4: "4-7,12-15"}
    assert groups(topology, "core") == {core: f"{core},{core + 8}" for core in range(8)}


def test_several_caches_in_a_node() -> None:
    """2 nodes x 4 L3 x 2 cores x 2 threads = 32; the second thread of core n is n + 16."""
    topology = parsed("epyc", "0-31")
    assert groups(topology, "node") == {0: "0-7,16-23", 1: "8-15,24-31"}
    assert groups(topology, "cache") == {
        low: f"{low}-{low + 1},{low + 16}-{low + 17}" for low in range(0, 16, 2)
    }
    assert groups(topology, "core") == {core: f"{core},{core + 16}" for core in range(16)}


def test_how_far_nodes_are_from_each_other() -> None:
    """As libvirt has it from the firmware; what is no distance is left out."""
    topology = parsed("emulated-epyc-bookworm", "0-7")
    assert topology.node_distances == {(0, 0): 10, (0, 1): 20, (1, 0): 20, (1, 1): 10}
    told = "".join(f"<sibling id='1' value='{value}'/>" for value in ("0", "256", "x", ""))
    cells = f"<cells><cell id='0'><distances>{told}</distances></cell></cells>"
    text = f"<capabilities><host><topology>{cells}</topology></host></capabilities>"
    assert read_topology(text, CpuSet.of([0])).node_distances == {}


def test_hybrid() -> None:
    """4 cores x 2 threads + 8 cores x 1 = 16; what each can do libvirt does not say."""
    topology = parsed("hybrid", "0-15")
    assert groups(topology, "core") == {
        **{core: f"{core}-{core + 1}" for core in range(0, 8, 2)},
        **{core: str(core) for core in range(8, 16)},
    }
    assert groups(topology, "node") == groups(topology, "cache") == {0: "0-15"}


def test_without_caches() -> None:
    """That its pCPUs share none is not said either."""
    topology = parsed("arm-without-caches", "0-7")
    assert groups(topology, "cache") == {None: "0-7"}
    assert groups(topology, "node") == {0: "0-7"}
    assert groups(topology, "core") == {core: str(core) for core in range(8)}


def test_sparse_and_offline_pcpus() -> None:
    """Siblings that are offline are none; an offline pCPU is not there, whatever is said of it."""
    topology = parsed("sparse-offline", "0-1,4-7,40,44")
    assert groups(topology, "node") == {0: "0-1,4-7", 8: "40,44"}
    assert groups(topology, "cache") == {0: "0-1,4-7", 40: "40,44"}
    assert groups(topology, "core") == {0: "0-1", 4: "4-7", 40: "40", 44: "44"}


def test_a_pcpu_that_came_back_is_only_half_known() -> None:
    """Capabilities older than the map: of 2 the node is reported, of 45 nothing, of 41 the node."""
    topology = parsed("sparse-offline", "1-2,41,45")
    assert topology.cpus == (
        Cpu(1, node=0, core=1, cache=1, socket=0),
        Cpu(2, node=0),
        Cpu(41, node=8),
        Cpu(45),
    )


def test_512_pcpus() -> None:
    """2 sockets x 16 L3 x 8 cores x 2 threads = 512; the second thread of core n is n + 256."""
    cells = [
        [
            f"id='{cpu}' socket_id='{socket}' die_id='0' core_id='{cpu % 128}'"
            f" siblings='{cpu % 256},{cpu % 256 + 256}'"
            for first in (socket * 128, 256 + socket * 128)
            for cpu in range(first, first + 128)
        ]
        for socket in (0, 1)
    ]
    caches = {low: f"{low}-{low + 7},{low + 256}-{low + 263}" for low in range(0, 256, 8)}
    banks = [f"id='{low // 8}' level='3' cpus='{cpus}'" for low, cpus in caches.items()]
    topology = read_topology(xml(cells, *banks), CpuSet.parse("0-511"))
    assert groups(topology, "node") == {0: "0-127,256-383", 1: "128-255,384-511"}
    assert len(caches) == 32
    assert groups(topology, "cache") == caches
    assert groups(topology, "core") == {core: f"{core},{core + 256}" for core in range(256)}


@pytest.mark.parametrize(
    ("release", "cores"),
    [
        ("bookworm", {cpu: str(cpu) for cpu in range(8)}),
        ("trixie", {0: "0-1", 2: "2-3", 4: "4-5", 6: "6-7"}),
    ],
)
def test_emulated_machine(release: str, cores: dict[int, str]) -> None:
    """2 nodes x 4 pCPUs, each node one L3 that is listed four times; its Linux reports threads."""
    topology = parsed(f"emulated-epyc-{release}", "0-7")
    assert groups(topology, "node") == {0: "0-3", 1: "4-7"}
    assert groups(topology, "cache") == {0: "0-3", 4: "4-7"}
    assert groups(topology, "core") == cores


def test_banks_of_whole_nodes_listed_many_times() -> None:
    """As emulated machines do: each bank with all pCPUs of its node, four times over."""
    cells = [[f"id='{cpu}' siblings='{cpu}'" for cpu in range(low, low + 4)] for low in (0, 4)]
    banks = [
        f"id='{bank}' level='3' cpus='{bank // 4 * 4}-{bank // 4 * 4 + 3}'" for bank in range(8)
    ]
    topology = read_topology(xml(cells, *banks), CpuSet.parse("0-7"))
    assert groups(topology, "cache") == {0: "0-3", 4: "4-7"}


def test_overlapping_banks() -> None:
    """The smallest that holds a pCPU is its own; of equals the one that begins lower."""
    cells = [[f"id='{cpu}' siblings='{cpu}'" for cpu in range(8)]]
    banks = ["level='3' cpus='0-7'", "level='3' cpus='0-1'", "level='3' cpus='1-2'"]
    topology = read_topology(xml(cells, *banks), CpuSet.parse("0-7"))
    assert groups(topology, "cache") == {0: "0-1", 2: "2", 3: "3-7"}


def test_the_highest_level_is_the_last() -> None:
    """An L4 over two L3; a pCPU that it leaves out has its L3."""
    cells = [[f"id='{cpu}' siblings='{cpu}'" for cpu in range(6)]]
    banks = [
        "level='4' cpus='0-3'",
        *(f"level='3' cpus='{cpus}'" for cpus in ("0-1", "2-3", "4-5")),
    ]
    topology = read_topology(xml(cells, *banks), CpuSet.parse("0-5"))
    assert groups(topology, "cache") == {0: "0-3", 4: "4-5"}


def test_a_cache_lies_within_a_node_and_a_core_within_a_cache() -> None:
    """Sub-NUMA clusters share an L3, and a broken machine may list all pCPUs as one core."""
    cells = [[f"id='{cpu}' siblings='0-3'" for cpu in cpus] for cpus in ((0, 1), (2, 3))]
    assert placed(xml(cells, "level='3' cpus='0-3'"), "0-3") == [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (2, 1, 2, 2),
        (3, 1, 2, 2),
    ]


def test_a_pcpu_in_several_cells_is_of_the_first() -> None:
    """As with numa=fake=2, where both nodes have all pCPUs."""
    cells = [[f"id='{cpu}' siblings='{cpu}'" for cpu in range(2)]] * 2
    assert placed(xml(cells), "0-1") == [(0, 0, 0, None), (1, 0, 1, None)]


@pytest.mark.parametrize(
    ("cpu", "place"),
    [
        ("id='1' siblings='0-1'", (1, 0, 0, 0)),
        ("id='1' siblings='0'", (1, 0, 0, 0)),  # itself is left out
        ("id='1'", (1, 0, None, 0)),
        ("id='1' siblings=''", (1, 0, None, 0)),
        ("id='1' siblings='some'", (1, 0, None, 0)),
        ("id='1' siblings='0-99999'", (1, 0, None, 0)),
        ("id='-1' siblings='0-1'", (1, None, None, 1)),
        ("id='\u0661' siblings='0-1'", (1, None, None, 1)),  # a one that int() would take
        ("siblings='0-1'", (1, None, None, 1)),
    ],
)
def test_a_broken_part_harms_no_other(
    cpu: str, place: tuple[int, int | None, int | None, int | None]
) -> None:
    """What is known of the same pCPU and of the others stays known.

    Of a pCPU whose node nobody reports nobody knows whether it shares the cache in that node.
    """
    text = xml(
        [["id='0' siblings='0-1'", cpu]],
        "level='x' cpus='0'",
        "level='3'",
        "level='3' cpus='?'",
        "cpus='0'",
        "level='3' cpus='0-1'",
    )
    assert placed(text, "0-1") == [(0, 0, 0, 0), place]


@pytest.mark.parametrize(
    "text", ["", "<", "<capabilities/>", "<other><host/></other>", "\x00", "\ud800", xml([[]])]
)
def test_without_a_topology_the_numbers_remain(text: str) -> None:
    """Broken or empty: the machine is flat_topology."""
    online = CpuSet.parse("0,2")
    assert read_topology(text, online) == flat_topology(online) == Topology((Cpu(0), Cpu(2)))


def check(text: str, online: CpuSet) -> None:
    """Parse, and demand what holds of every topology."""
    cpus = read_topology(text, online).cpus
    assert [cpu.id for cpu in cpus] == list(online)
    # Groups are unique on the host and lie within each other.
    caches = {cpu.cache: cpu.node for cpu in cpus}
    cores = {cpu.core: (cpu.node, cpu.cache) for cpu in cpus}
    for cpu in cpus:
        assert cpu.cache is None or caches[cpu.cache] == cpu.node
        assert cpu.core is None or cores[cpu.core] == (cpu.node, cpu.cache)


sets_of_pcpus = st.sets(st.integers(0, 70)).map(CpuSet.of)
FILES = [file.read_text() for file in sorted(DATA.glob("*.xml"))]


def test_all_files_are_here() -> None:
    """And with every pCPU online there may be, each has what holds of every topology."""
    assert len(FILES) == 8
    for text in FILES:
        check(text, CpuSet.parse("0-70"))


@settings(max_examples=100, deadline=None)
@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")), sets_of_pcpus)
def test_any_text_is_read(text: str, online: CpuSet) -> None:
    """It never raises, and has the pCPUs that are online in rising order."""
    check(text, online)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 2**32), sets_of_pcpus)
def test_mutilated_capabilities_are_read(text: str, seed: int, online: CpuSet) -> None:
    """Values swapped for others, and sometimes a stretch cut out, which seldom leaves XML."""
    chance = random.Random(seed)
    parts = text.split("'")
    values = range(1, len(parts), 2)
    others = ["", "-1", "0", "3", "0-70", "70-0", "^0", "99999999", "9" * 5000, "x", "0-3,40"]
    for value in chance.sample(values, chance.randint(1, len(values))):
        parts[value] = chance.choice([*others, parts[chance.choice(values)]])
    text = "'".join(parts)
    if chance.random() < 0.2:
        start = chance.randrange(len(text))
        text = text[:start] + text[start + chance.randrange(40) :]
    check(text, online)
