"""Where each pCPU sits in the machine, from the capabilities that libvirt reports of a host.

Rule: text in, a `Topology` out. Machines tell their topology badly, and none of it is worth a cycle
for: what is missing or cannot be understood is unknown, and nothing here raises.

Source: https://libvirt.org/formatcaps.html, and libvirt's src/conf/capabilities.c where that says
too little. A `<cpu>` of a cell says its `siblings` with its own number among them, or nothing but
its number when it was offline or could not be asked; `core_id` begins anew in each socket and
`cluster_id` came with 10.1, so neither is read. `<bank>`s begin at level 3, and are left out where
the kernel gives them no number, as on most ARM boards and in many virtual machines. Without NUMA
support in libvirt all is in cells numbered 0, with siblings guessed from how many there are.
"""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from vcpusched import markup
from vcpusched.model import CPU_ID_MAX, Cpu, CpuSet, Topology


def flat(online: CpuSet) -> Topology:
    """Give the topology of pCPUs of which only the numbers are known."""
    return Topology(tuple(Cpu(cpu) for cpu in online))


def parse(xml: str, online: CpuSet) -> Topology:
    """Place the pCPUs of `online`, and no others, as the XML says.

    `node` is the number of the cell, `cache` and `core` the lowest of the pCPUs that share it. Each
    lies within the one before: a bank that spans several nodes (sub-NUMA clustering) counts as one
    in each. Of several banks that hold a pCPU the smallest of the highest level is its own, of
    several cells (NUMA emulation) the first. A pCPU that is not mentioned, or whose part is broken,
    has a number only, and so have all when the text is no XML. Raises nothing; capacities are for
    others to add.
    """
    try:
        root = markup.parse(xml)
    except ValueError:
        return flat(online)
    nodes: dict[int, int] = {}
    siblings: dict[int, CpuSet] = {}
    for node, cpu, listed in _cpus(root):
        if node is not None:
            nodes.setdefault(cpu, node)
        if listed:
            siblings.setdefault(cpu, (listed | CpuSet.of([cpu])) & online)
    banks = _banks(root, online)
    caches: dict[tuple[int | None, CpuSet], int] = {}
    cores: dict[tuple[int | None, int | None, int], int] = {}
    cpus = []
    # In rising order, so that the first of a group, whose number it takes, is its lowest.
    for cpu in online:
        node = nodes.get(cpu)
        cache = caches.setdefault((node, banks[cpu]), cpu) if cpu in banks else None
        core = None
        if cpu in siblings:
            lowest = next(iter(siblings[cpu]))
            core = cores.setdefault((node, cache, lowest), cpu)
        cpus.append(Cpu(cpu, node, core, cache))
    return Topology(tuple(cpus))


def _cpus(root: ET.Element) -> Iterator[tuple[int | None, int, CpuSet]]:
    """Give the cell, the number and the listed siblings of each pCPU."""
    for cell in root.iterfind("host/topology/cells/cell"):
        for entry in cell.iterfind("cpus/cpu"):
            cpu = _number(entry.get("id"))
            if cpu is not None:
                yield _number(cell.get("id")), cpu, _cpulist(entry.get("siblings"))


def _banks(root: ET.Element, online: CpuSet) -> dict[int, CpuSet]:
    """Give the pCPUs with which each pCPU shares its last-level cache; it may be listed often."""
    listed = {
        (level, cpus)
        for bank in root.iterfind("host/cache/bank")
        if (level := _number(bank.get("level"))) is not None
        and (cpus := _cpulist(bank.get("cpus")) & online)
    }
    found = {}
    # The last word has the highest level, there the smallest bank, of equals that further down.
    for _level, cpus in sorted(listed, key=lambda bank: (bank[0], -len(bank[1]), -bank[1].bits)):
        found.update(dict.fromkeys(cpus, cpus))
    return found


def _number(text: str | None) -> int | None:
    """Read a number up to `CPU_ID_MAX`, which no node and no level of a cache exceeds either."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > len(str(CPU_ID_MAX)):
        return None
    number = int(text)
    return number if number <= CPU_ID_MAX else None


def _cpulist(text: str | None) -> CpuSet:
    try:
        return CpuSet.parse(text or "")
    except ValueError:
        return CpuSet()
