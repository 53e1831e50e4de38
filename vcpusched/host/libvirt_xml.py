"""libvirt's XML and pCPU maps, read into values of ours, and what is written in them.

Rule: pure. A definition that cannot be understood raises ValueError.

Sources: libvirt's formatdomain for `<vcpu>`, `<cputune>`, `<numatune>`, the cells of `<cpu>` and
`<metadata>`; the order in which masks hold is that of `virDomainDefGetVcpuPinInfoHelper`. Of a
strict or restrictive `<numatune>` libvirt makes memory policies and `cpuset.mems`; it keeps no vCPU
near that memory (only QEMU while it starts), so that is for us to do. An administrator writes the
wish with `virsh metadata DOMAIN --uri urn:vcpusched:domain:1 --key vcpusched --set '<domain
policy="hold"/>'`, and with `--live`, `--config` or both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final
from xml.etree import ElementTree as ET

from vcpusched.model import ALL_CPUS, CPU_ID_MAX, NO_CPUS, PPM, SHARES, CpuSet
from vcpusched.sample import Definition, Origin

NAMESPACE: Final = "urn:vcpusched:domain:1"
"""The namespace of the metadata element in which a domain asks us for something."""

ORIGIN: Final = "urn:vcpusched:origin:1"
"""The namespace of the element that we write into a running domain before we pin it: where its
vCPUs were before and which pins are ours, so that it goes with the guest wherever that goes, as our
pins do. `packaging/libvirt_hook.py` reads it, too.

Live pins are part of what is migrated and saved, and some managers make a persistent definition of
it: without this our pins would be the administrator's there.
"""

ANYWHERE: Final = "all"
"""What the element says of a vCPU that may be on any pCPU, since other hosts have others."""

_REALTIME: Final = frozenset({"fifo", "rr"})

_BINDING: Final = frozenset({"strict", "restrictive"})
"""Modes of `<numatune>` in which memory comes from the nodes named or from nowhere."""

QUOTA_PERIOD_US: Final = 100_000
"""What a quota is given for where the definition names no period, as libvirt and the kernel do."""


def read_definition(xml: str, usual_shares: int = SHARES) -> Definition:
    """Read a domain's XML, live or inactive. Raises ValueError when it is no domain definition.

    A `<vcpupin>` outranks `<vcpu cpuset>`, which outranks all pCPUs; with `placement='auto'`
    libvirt ignores the cpuset. Pins of emulator and I/O threads say nothing about vCPUs.
    `usual_shares` has a domain whose definition names none.
    """
    root = _root(xml)
    allowed = _allowed(root)
    nodes, strict = _memory(root, allowed)
    return Definition(
        allowed=allowed,
        realtime=frozenset(
            vcpu
            for scheduler in root.iterfind("cputune/vcpusched")
            if scheduler.get("scheduler") in _REALTIME
            for vcpu in CpuSet.parse(scheduler.get("vcpus", ""))
        ),
        memory_nodes=nodes,
        memory_strict=strict,
        helper_pins=tuple(
            CpuSet.parse(pin.get("cpuset", ""))
            for name in ("emulatorpin", "iothreadpin")
            for pin in root.iterfind(f"cputune/{name}")
        ),
        shares=int(root.findtext("cputune/shares") or usual_shares),
        quota_ppm=_quota_ppm(root),
        wish=_wish(root),
        origin=_origin(root),
    )


def combined(live: Definition, stated: Definition) -> Definition:
    """Combine what a domain runs with and what its definition states for good.

    Where vCPUs may be is for the stated one to say: in the live one are pins of ours. Where these
    have got into the stated one, our mark has, too, and says where they were before; a person's pin
    beside it holds. A vCPU that either calls a realtime one is one. The live wish outranks the
    stated one.
    """
    return replace(
        live,
        allowed={vcpu: stated.before_us(vcpu, cpus) for vcpu, cpus in stated.allowed.items()},
        booked=live.allowed,
        realtime=live.realtime | stated.realtime,
        wish=stated.wish if live.wish is None else live.wish,
    )


def _allowed(root: ET.Element) -> dict[int, CpuSet]:
    count, default = 1, ALL_CPUS
    for vcpu in root.iterfind("vcpu"):
        count = int(vcpu.text or "1")
        if count > CPU_ID_MAX + 1:  # bounds what XML can make us allocate, too
            raise ValueError(f"it has {count} vCPUs")
        cpuset = vcpu.get("cpuset")
        if cpuset and vcpu.get("placement") != "auto":
            default = CpuSet.parse(cpuset)
    allowed = dict.fromkeys(range(count), default)
    for pin in root.iterfind("cputune/vcpupin"):
        allowed[int(pin.get("vcpu", ""))] = CpuSet.parse(pin.get("cpuset", ""))
    return allowed


def _memory(
    root: ET.Element, vcpus: Iterable[int]
) -> tuple[dict[int, frozenset[int]], dict[int, frozenset[int]]]:
    """Return the NUMA nodes of the memory beside each vCPU, and those that it cannot be outside of.

    A vCPU of a guest with NUMA cells of its own is beside the memory of its cell; one in no cell
    beside all of it.
    """
    general = [_bound(memory) for memory in root.iterfind("numatune/memory")]
    by_cell = {
        int(memory.get("cellid", "")): _bound(memory)
        for memory in root.iterfind("numatune/memnode")
    }
    cell_of = {
        vcpu: int(cell.get("id", number))
        for number, cell in enumerate(root.iterfind("cpu/numa/cell"))
        for vcpu in CpuSet.parse(cell.get("cpus", ""))
    }
    nodes: dict[int, frozenset[int]] = {}
    strict: dict[int, frozenset[int]] = {}
    for vcpu in vcpus:
        cell = cell_of.get(vcpu)
        bounds = [by_cell[cell]] if cell in by_cell else general
        if cell is None:
            bounds = [*general, *by_cell.values()]
        near = frozenset(node for these, _ in bounds for node in these)
        if cell is not None and not any(is_strict for _, is_strict in bounds):
            # The strict nodes of the whole guest are no less strict for a cell.
            bounds = [bound for bound in general if bound[1]]
        if any(is_strict for _, is_strict in bounds):
            are_named = all(these or not is_strict for these, is_strict in bounds)
            strict[vcpu] = frozenset(node for these, _ in bounds for node in these if are_named)
            near = near & strict[vcpu] or strict[vcpu]
        if near:
            nodes[vcpu] = near
    return nodes, strict


def _bound(memory: ET.Element) -> tuple[CpuSet, bool]:
    """Return the nodes that an element of `<numatune>` names, and whether memory must be there.

    With `placement='auto'` they are those that numad advised when the guest was started, which only
    libvirtd knows, and a nodeset is passed over.
    """
    auto = memory.get("placement") == "auto"
    # A list of nodes has the syntax of a list of pCPUs.
    nodes = NO_CPUS if auto else CpuSet.parse(memory.get("nodeset", ""))
    return nodes, memory.get("mode", "strict") in _BINDING


def _quota_ppm(root: ET.Element) -> int:
    """Return the most that each vCPU may run; a quota below 1 is none."""
    quota_us = int(root.findtext("cputune/quota") or -1)
    period_us = int(root.findtext("cputune/period") or 0) or QUOTA_PERIOD_US
    return min(PPM, quota_us * PPM // period_us) if quota_us > 0 else PPM


def origin_xml(origin: Mapping[int, Origin]) -> str:
    """Return the element that says where vCPUs were and which pins are ours.

    `ALL_CPUS` is written as such. libvirt puts it into the namespace when it is set.
    """
    element = ET.Element("origin")
    for vcpu, one in sorted(origin.items()):
        cpus = ANYWHERE if one.original == ALL_CPUS else str(one.original)
        pins = " ".join(sorted(map(str, one.pins)))
        ET.SubElement(element, "vcpu", id=str(vcpu), cpus=cpus, pins=pins)
    return ET.tostring(element, encoding="unicode")


def _origin(root: ET.Element) -> dict[int, Origin]:
    """Return what the element says; nothing where it says what nobody of us would write."""
    found = {}
    for vcpu in root.iterfind(f"metadata/{{{ORIGIN}}}origin/{{*}}vcpu"):
        cpus = vcpu.get("cpus", "")
        original = ALL_CPUS if cpus == ANYWHERE else CpuSet.read(cpus)
        pins = frozenset(map(CpuSet.read, vcpu.get("pins", "").split()))
        numbers = CpuSet.read(vcpu.get("id", ""))  # one vCPU's, read like a list of pCPUs
        if not (original and pins) or len(numbers) != 1 or NO_CPUS in pins:
            return {}
        found[min(numbers)] = Origin(original, pins)
    return found


def _wish(root: ET.Element) -> str | None:
    """Return what our metadata element asks for; an empty text when it leaves that out."""
    for element in root.iterfind(f"metadata/{{{NAMESPACE}}}*"):
        return element.get("policy", "")
    return None


def from_map(flags: Sequence[bool]) -> CpuSet:
    """Return the pCPUs of one boolean per pCPU, the form in which libvirt's binding gives maps."""
    return CpuSet.of(cpu for cpu, flag in enumerate(flags) if flag)


def to_map(cpus: CpuSet, length: int) -> tuple[bool, ...]:
    """Return one boolean per pCPU below `length`, the form in which libvirt's binding takes maps.

    Raises ValueError when the set reaches beyond `length`: the binding would silently cut it.
    """
    if cpus.bits >> length:
        raise ValueError(f"pCPUs {cpus} do not fit into a map of {length}")
    return tuple(bool(cpus.bits >> cpu & 1) for cpu in range(length))


def _root(xml: str) -> ET.Element:
    """Read XML of others. Raises ValueError for anything else.

    libvirt's XML has no document type, so there is no entity in it that could grow, and none that
    names a file. Whatever has one is refused before it is read.
    """
    if "<!DOCTYPE" in xml:
        raise ValueError("it has a document type, as no XML of libvirt's has")
    try:
        return ET.fromstring(xml)  # noqa: S314  what is dangerous in it is refused
    except ET.ParseError as error:
        raise ValueError(str(error)) from None
