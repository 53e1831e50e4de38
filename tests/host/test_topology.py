"""Topologies of machines of many kinds, out of files like the kernel's in /sys, and out of none."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcpusched.host.cpus import topology
from vcpusched.model import PPM, Cpu, CpuSet, Topology

SYSTEM = Path("sys/devices/system")


def machine(
    root: Path,
    cores: Sequence[str],
    nodes: Mapping[int, str],
    caches: Mapping[int, Sequence[str]] | None = None,
    distances: Mapping[int, str] | None = None,
) -> Path:
    """Write what the kernel says: the pCPUs of each core and node, and of the caches of a level.

    pCPUs that are in no core are offline. Each node is a socket.
    """
    files = {f"node/node{node}/cpulist": cpus for node, cpus in nodes.items()}
    files["node/online"] = str(CpuSet.of(nodes))
    files |= {f"node/node{node}/distance": row for node, row in (distances or {}).items()}
    for siblings in cores:
        for cpu in CpuSet.parse(siblings):
            files[f"cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings
    for node, cpus in nodes.items():
        for cpu in CpuSet.parse(cpus):
            files[f"cpu/cpu{cpu}/topology/physical_package_id"] = str(node)
    shared = [(1, cores), (1, cores), (2, cores), *(caches or {}).items()]  # one for code, too
    for index, (level, its) in enumerate(shared):
        for cpus in its:
            for cpu in CpuSet.parse(cpus):
                files[f"cpu/cpu{cpu}/cache/index{index}/level"] = str(level)
                files[f"cpu/cpu{cpu}/cache/index{index}/shared_cpu_list"] = cpus
    for name, text in files.items():
        path = root / SYSTEM / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def groups(found: Topology, of: str) -> dict[int | None, str]:
    """Give the pCPUs of each socket, node, core or cache, as cpulists."""
    members: dict[int | None, list[int]] = {}
    for cpu in found.cpus:
        members.setdefault(getattr(cpu, of), []).append(cpu.id)
    return {group: str(CpuSet.of(cpus)) for group, cpus in members.items()}


def placed(root: Path, online: str) -> list[tuple[int, int | None, int | None, int | None]]:
    """Give number, node, core and cache of each pCPU."""
    cpus = topology(CpuSet.parse(online), root).cpus
    return [(cpu.id, cpu.node, cpu.core, cpu.cache) for cpu in cpus]


def test_two_sockets_with_threads(tmp_path: Path) -> None:
    """Each is a node and an L3; the two threads of a core are eight apart."""
    sides = {0: "0-3,8-11", 1: "4-7,12-15"}
    cores = [f"{core},{core + 8}" for core in range(8)]
    rows = {0: "10 21", 1: "21 10"}
    found = topology(
        CpuSet.parse("0-15"), machine(tmp_path, cores, sides, {3: [*sides.values()]}, rows)
    )
    assert groups(found, "node") == groups(found, "socket") == sides
    assert groups(found, "cache") == {0: "0-3,8-11", 4: "4-7,12-15"}
    assert groups(found, "core") == {core: f"{core},{core + 8}" for core in range(8)}
    assert found.node_distances == {(0, 0): 10, (0, 1): 21, (1, 0): 21, (1, 1): 10}
    assert {cpu.capacity_ppm for cpu in found.cpus} == {PPM}


def test_several_caches_of_a_node(tmp_path: Path) -> None:
    """As on EPYC: four cores share an L3."""
    caches = ["0-3", "4-7", "8-11", "12-15"]
    root = machine(tmp_path, [*map(str, range(16))], {0: "0-7", 1: "8-15"}, {3: caches})
    found = topology(CpuSet.parse("0-15"), root)
    assert groups(found, "cache") == {0: "0-3", 4: "4-7", 8: "8-11", 12: "12-15"}
    assert groups(found, "core") == {cpu: str(cpu) for cpu in range(16)}


def test_cores_with_and_without_threads(tmp_path: Path) -> None:
    """A hybrid machine; what its cores can do is the host's strongest where nothing is said."""
    cores = ["0-1", "2-3", "4", "5", "6", "7"]
    found = topology(CpuSet.parse("0-7"), machine(tmp_path, cores, {0: "0-7"}, {3: ["0-7"]}))
    assert groups(found, "core") == {0: "0-1", 2: "2-3", 4: "4", 5: "5", 6: "6", 7: "7"}
    assert groups(found, "cache") == groups(found, "node") == {0: "0-7"}


def test_capacities_are_of_the_pcpus_that_are_online(tmp_path: Path) -> None:
    """The strongest may be offline."""
    root = machine(tmp_path, ["0", "1"], {0: "0-2"})
    for cpu, capacity in enumerate((256, 512, 1024)):
        (root / SYSTEM / f"cpu/cpu{cpu}/cpu_capacity").write_text(f"{capacity}\n")
    found = topology(CpuSet.parse("0-1"), root)
    assert [cpu.capacity_ppm for cpu in found.cpus] == [PPM // 2, PPM]


def test_small_caches_do_not_count(tmp_path: Path) -> None:
    """Many ARM boards and virtual machines have an L2 only, or files of no cache at all."""
    found = topology(CpuSet.parse("0-3"), machine(tmp_path, ["0-1", "2-3"], {0: "0-3"}))
    assert groups(found, "cache") == {None: "0-3"}
    assert groups(found, "core") == {0: "0-1", 2: "2-3"}


def test_gaps_and_offline_pcpus(tmp_path: Path) -> None:
    """Cores of four threads as on POWER; 2, 3, 41 and 45 are offline, node 255 has memory only.

    So a group's number may change when pCPUs come: it is the lowest of those that are online.
    """
    cores, nodes = ["0-3", "4-7", "40-41", "44-45"], {0: "0-7", 8: "40-41,44-45", 255: ""}
    distances = {0: "10 40 80", 8: "40 10 80", 255: "80 80 10"}
    root = machine(tmp_path, cores, nodes, {3: ["0-7", "40-41,44-45"]}, distances)
    found = topology(CpuSet.parse("0-1,4-7,40,44"), root)
    assert groups(found, "node") == {0: "0-1,4-7", 8: "40,44"}
    assert groups(found, "cache") == {0: "0-1,4-7", 40: "40,44"}
    assert groups(found, "core") == {0: "0-1", 4: "4-7", 40: "40", 44: "44"}
    assert found.node_distances[0, 255] == found.node_distances[255, 8] == 80
    assert placed(root, "1-2,41,45") == [
        (1, 0, 1, 1),
        (2, 0, 1, 1),
        (41, 8, 41, 41),
        (45, 8, 45, 41),
    ]


def test_512_pcpus(tmp_path: Path) -> None:
    """2 sockets x 16 L3 x 8 cores x 2 threads = 512; the second thread of core n is n + 256."""
    cores = {core: f"{core},{core + 256}" for core in range(256)}
    nodes = {0: "0-127,256-383", 1: "128-255,384-511"}
    caches = {low: f"{low}-{low + 7},{low + 256}-{low + 263}" for low in range(0, 256, 8)}
    root = machine(tmp_path, [*cores.values()], nodes, {3: [*caches.values()]})
    found = topology(CpuSet.parse("0-511"), root)
    assert groups(found, "node") == nodes
    assert groups(found, "cache") == caches
    assert groups(found, "core") == cores


def test_the_highest_level_is_the_last(tmp_path: Path) -> None:
    """An L4 over two L3; a pCPU that it leaves out has its L3."""
    caches = {3: ["0-1", "2-3", "4-5"], 4: ["0-3"]}
    root = machine(tmp_path, [*map(str, range(6))], {0: "0-5"}, caches)
    assert groups(topology(CpuSet.parse("0-5"), root), "cache") == {0: "0-3", 4: "4-5"}


def test_a_cache_lies_within_a_node_and_a_core_within_a_cache(tmp_path: Path) -> None:
    """Sub-NUMA clusters share an L3, and a broken machine may list all pCPUs as one core."""
    root = machine(tmp_path, ["0-3"], {0: "0-1", 1: "2-3"}, {3: ["0-3"]})
    assert placed(root, "0-3") == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 1, 2, 2), (3, 1, 2, 2)]


def test_a_pcpu_in_several_nodes_is_of_the_first(tmp_path: Path) -> None:
    """As with numa=fake=2, where both nodes have all pCPUs."""
    root = machine(tmp_path, ["0", "1"], {0: "0-1", 1: "0-1"})
    assert placed(root, "0-1") == [(0, 0, 0, None), (1, 0, 1, None)]


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("cpu/cpu1/topology/thread_siblings_list", "", (1, 0, None, 0)),
        ("cpu/cpu1/topology/thread_siblings_list", "some", (1, 0, None, 0)),
        ("cpu/cpu1/topology/thread_siblings_list", "0-99999", (1, 0, None, 0)),
        ("cpu/cpu1/topology/thread_siblings_list", "0", (1, 0, None, 0)),
        ("cpu/cpu1/cache/index3/level", "-1", (1, 0, 1, None)),
        ("cpu/cpu1/cache/index3/shared_cpu_list", "\0", (1, 0, 1, None)),
        ("cpu/cpu1/topology/physical_package_id", "-1", (1, 0, 0, 0)),
        ("cpu/cpu1/topology/physical_package_id", "9" * 5000, (1, 0, 0, 0)),
    ],
)
def test_a_broken_file_harms_nothing_else(
    tmp_path: Path, name: str, text: str, place: tuple[int, int | None, int | None, int | None]
) -> None:
    """What is known of the same pCPU and of the others stays known."""
    root = machine(tmp_path, ["0-1"], {0: "0-1"}, {3: ["0-1"]})
    (root / SYSTEM / name).write_text(text)
    assert placed(root, "0-1") == [(0, 0, 0, 0), place]


def test_distances_that_are_none_are_left_out(tmp_path: Path) -> None:
    """Those between others stay known."""
    distances = {0: "10 0 999", 1: "10 x 10", 2: "20"}
    root = machine(tmp_path, ["0", "1", "2"], {0: "0", 1: "1", 2: "2"}, None, distances)
    found = topology(CpuSet.parse("0-2"), root)
    assert found.node_distances == {(0, 0): 10, (2, 0): 20}


def test_without_files_the_numbers_remain(tmp_path: Path) -> None:
    """A kernel without NUMA has none for nodes: all are on one, whose memory guests may name."""
    found = topology(CpuSet.parse("0,2"), tmp_path)
    assert found == Topology((Cpu(0, node=0), Cpu(2, node=0)))


def test_lists_of_which_some_are_older_part_no_group(tmp_path: Path) -> None:
    """While pCPU 3 comes online the lists of others have it one after the other."""
    root = machine(tmp_path, ["0-1", "2-3"], {0: "0-3"}, {3: ["0-3"]})
    for name, text in (("cpu0/cache/index3", "0-2"), ("cpu1/cache/index3", "0-2")):
        (root / SYSTEM / "cpu" / name / "shared_cpu_list").write_text(text)
    (root / SYSTEM / "cpu/cpu2/topology/thread_siblings_list").write_text("2")
    assert placed(root, "0-3") == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 2, 0), (3, 0, 2, 0)]


WORDS = ["", "-1", "0", "3", "0-70", "70-0", "^0", "99999999", "9" * 5000, "x", "0-3,40", "10 20"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(0, 9)).map(CpuSet.of))
def test_any_files_are_read(
    tmp_path_factory: pytest.TempPathFactory, seed: int, online: CpuSet
) -> None:
    """Nothing raises, the pCPUs online are there, groups are unique and lie within each other."""
    chance = random.Random(seed)
    root = tmp_path_factory.mktemp("machine")
    machine(root, ["0-1", "2-3", "4-5", "6-7"], {0: "0-3", 1: "4-7"}, {3: ["0-3", "4-7"]})
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in chance.sample(files, chance.randrange(len(files))):
        path.write_text(chance.choice([*WORDS, path.read_text()]))
    cpus = topology(online, root).cpus
    assert [cpu.id for cpu in cpus] == list(online)
    caches = {cpu.cache: cpu.node for cpu in cpus}
    cores = {cpu.core: (cpu.node, cpu.cache) for cpu in cpus}
    for cpu in cpus:
        assert cpu.cache is None or caches[cpu.cache] == cpu.node
        assert cpu.core is None or cores[cpu.core] == (cpu.node, cpu.cache)
