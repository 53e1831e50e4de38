"""What the kernel says of pCPUs: where they lie, what they can do, how busy they are.

Rule: asks neither libvirt nor QEMU, and waits for nobody. What cannot be read is None or absent:
nothing here raises.

Sources: proc(5) for `stat`; Documentation/admin-guide/cputopology for sockets and threads,
Documentation/ABI/stable/sysfs-devices-node for nodes; Documentation/ABI/testing/
sysfs-devices-system-cpu for caches, `cpu_capacity` and `acpi_cppc`, and
arch/x86/events/intel/core.c for the lists of big and small cores. libvirt makes its capabilities
of the same files, but leaves out caches without an `id`, as most ARM boards have, and its first
answer after QEMU or the kernel was changed takes seconds for every QEMU binary (virQEMUCapsInit).
"""

import itertools
import os.path
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vcpusched.host.files import TICK_NS, read_cpus, read_number, read_numbers, read_text
from vcpusched.model import CPU_ID_MAX, DISTANCE_MAX, PPM, Cpu, CpuSet, Topology
from vcpusched.sample import Busy

CACHE_LEVEL_MIN: Final = 3
"""Caches below this are of one core, or of a few small ones."""

_IDLE: Final = frozenset({3, 4, 8, 9})
"""Of the columns of /proc/stat idle and iowait, and guest and guest_nice, which are in user."""

SMALL_PER_CLOCK_PPM: Final = 800_000
"""What a small x86 core does in a clock cycle, relative to a big one.

The kernel's intel_pstate driver takes 100 MHz of a small core for as much as 78.7 MHz (Alder and
Raptor Lake), 80 MHz (Meteor Lake) or 87 MHz (Lunar Lake) of a big one.
"""

SMALL_PPM: Final = 600_000
"""What a small x86 core can do where frequencies are not known, relative to a big one.

That is 3.9 GHz beside 5.1 GHz, as on Alder Lake, by the same reckoning (0.61).
"""

HIGHEST_FREQUENCY: Final = "cpufreq/cpuinfo_max_freq"

WEAKER_PERCENT: Final = 85
"""A core of the same type is weaker if its highest frequency and what firmware says that it can
perform are both below so much of the host's best.

One of them alone says little: firmware shows the scheduler by `highest_perf` which of equal cores
to take first, by 30 % and more, and the bins of a turbo differ by 10 %.
"""


def topology(online: CpuSet, root: Path = Path("/")) -> Topology:
    """Place these pCPUs; a machine of which the kernel says nothing is one node.

    `node` and `socket` are the kernel's numbers, `cache` and `core` the lowest of the pCPUs that
    share it. Each lies within the one before: a cache that spans several nodes (sub-NUMA
    clustering) counts as one in each. Of several nodes (numa=fake) a pCPU is of the first.

    The files of a pCPU that comes online appear after it, and those of others change one by one: so
    it should be read again until it stays.
    """
    system = f"{root}/sys/devices/system"
    nodes = list(read_cpus(f"{system}/node/online"))  # a list of nodes reads like one of pCPUs
    node_of = {
        cpu: node
        for node in reversed(nodes)
        for cpu in read_cpus(f"{system}/node/node{node}/cpulist") & online
    }
    capacity_ppm = capacities(online, root)
    # By the lowest of a group, so that lists of which some are older than others do not part it.
    caches: dict[tuple[int | None, int], int] = {}
    cores: dict[tuple[int | None, int | None, int], int] = {}
    cpus = []
    # In rising order, so that the first of a group, whose number it takes, is its lowest.
    for cpu in online:
        directory = f"{system}/cpu/cpu{cpu}"
        node = node_of.get(cpu, None if nodes else 0)  # a kernel without NUMA has no such files
        sharing = _sharing_cache(directory) & online
        cache = caches.setdefault((node, min(sharing)), cpu) if cpu in sharing else None
        threads = read_cpus(f"{directory}/topology/thread_siblings_list") & online
        core = cores.setdefault((node, cache, min(threads)), cpu) if cpu in threads else None
        socket = read_number(f"{directory}/topology/physical_package_id")
        known = socket is not None and socket <= CPU_ID_MAX  # old ARM firmware gives addresses
        capacity = capacity_ppm.get(cpu, PPM)
        cpus.append(Cpu(cpu, node, core, cache, capacity, socket=socket if known else None))
    return Topology(tuple(cpus), _distances(system, nodes))


def _sharing_cache(directory: str) -> CpuSet:
    """Return with which pCPUs a pCPU shares its last-level cache; none where there is none."""
    caches = (f"{directory}/cache/index{index}" for index in itertools.count())
    levels = {
        read_number(f"{cache}/level") or 0: cache
        for cache in itertools.takewhile(os.path.isdir, caches)
    }
    last = max(levels, default=0)
    return read_cpus(f"{levels[last]}/shared_cpu_list") if last >= CACHE_LEVEL_MIN else CpuSet()


def _distances(system: str, nodes: list[int]) -> dict[tuple[int, int], int]:
    return {
        (node, other): distance
        for node in nodes
        for other, distance in zip(
            nodes, read_numbers(f"{system}/node/node{node}/distance"), strict=False
        )
        if 0 < distance <= DISTANCE_MAX
    }


def isolated(root: Path = Path("/")) -> CpuSet:
    """Return the pCPUs that the kernel keeps free of what is not pinned there (isolcpus=)."""
    return read_cpus(f"{root}/sys/devices/system/cpu/isolated")


def tickless(root: Path = Path("/")) -> CpuSet:
    """Return the pCPUs without a scheduler tick (nohz_full=): each is meant for one thread."""
    return read_cpus(f"{root}/sys/devices/system/cpu/nohz_full")


def capacities(cpus: CpuSet, root: Path = Path("/")) -> Mapping[int, int]:
    """Return what each of these pCPUs can do, in ppm of the strongest of them: above 0, up to PPM.

    Empty where the kernel reports no difference. What it reckons itself (`cpu_capacity`, from 0 to
    1024) comes first. On hybrid x86 that is one and the same for all before Linux 6.12 and wherever
    SMT is possible, and there the core type shows in which of its counters a pCPU has. Of cores
    that differ in nothing else (dense ones of AMD's) frequency and firmware together show it.
    """
    directory = root / "sys/devices/system/cpu"
    reckoned = _by_kernel(cpus, directory)
    if len(set(reckoned.values())) > 1:
        return reckoned
    return _by_core_type(cpus, root / "sys/devices") or _by_performance(cpus, directory)


def _by_kernel(cpus: CpuSet, directory: Path) -> dict[int, int]:
    """Return what the kernel reckons; nothing unless it does for all."""
    reckoned = _numbers(cpus, directory, "cpu_capacity")
    if not all(reckoned.values()):
        return {}
    strongest = max(reckoned.values(), default=0)
    return {cpu: max(capacity * PPM // strongest, 1) for cpu, capacity in reckoned.items()}


def _by_core_type(cpus: CpuSet, devices: Path) -> dict[int, int]:
    """Return PPM for big cores, for small ones what follows from how fast both can be clocked."""
    big = read_cpus(devices / "cpu_core/cpus") & cpus
    small = read_cpus(devices / "cpu_atom/cpus") | read_cpus(devices / "cpu_lowpower/cpus")
    small = (small & cpus) - big
    if not big or not small:
        return {}
    clocked = _numbers(big | small, devices / "system/cpu", HIGHEST_FREQUENCY)
    # Big cores differ by a step or two, which no load can show: they count as equals.
    fastest = max(clocked[cpu] for cpu in big)
    found = dict.fromkeys(cpus, PPM)
    for cpu in small:
        known = fastest and clocked[cpu]
        can_ppm = clocked[cpu] * SMALL_PER_CLOCK_PPM // fastest if known else SMALL_PPM
        found[cpu] = min(max(can_ppm, 1), PPM)
    return found


def _by_performance(cpus: CpuSet, directory: Path) -> dict[int, int]:
    """Return the ratio of frequencies for weaker cores, PPM for others; nothing without any."""
    clocked = _numbers(cpus, directory, HIGHEST_FREQUENCY)
    performs = _numbers(cpus, directory, "acpi_cppc/highest_perf")
    if not (all(clocked.values()) and all(performs.values())):
        return {}
    fastest, best = max(clocked.values(), default=0), max(performs.values(), default=0)
    weaker = {
        cpu: clocked[cpu] * PPM // fastest
        for cpu in cpus
        if clocked[cpu] * 100 < fastest * WEAKER_PERCENT
        and performs[cpu] * 100 < best * WEAKER_PERCENT
    }
    return dict.fromkeys(cpus, PPM) | weaker if weaker else {}


def _numbers(cpus: CpuSet, directory: Path, name: str) -> dict[int, int]:
    """Return the number in each pCPU's file of that name, 0 where there is none."""
    return {cpu: read_number(directory / f"cpu{cpu}/{name}") or 0 for cpu in cpus}


def busy(root: Path = Path("/")) -> Busy | None:
    """Return how long each pCPU has not been idle since it came up, in steps of a clock tick."""
    at_ns = time.monotonic_ns()
    text = read_text(f"{root}/proc/stat")
    if text is None:
        return None
    by_cpu_ns = {}
    for line in text.splitlines():
        if not line.startswith("cpu"):
            break  # the next line has a column for each interrupt that there is
        name, *columns = line.split()
        if name != "cpu":
            ticks = sum(int(ticks) for index, ticks in enumerate(columns) if index not in _IDLE)
            by_cpu_ns[int(name[3:])] = ticks * TICK_NS
    return Busy(at_ns, by_cpu_ns)
