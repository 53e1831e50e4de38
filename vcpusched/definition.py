"""Reads what a domain's definition says about where its vCPUs belong.

Rule: pure; takes libvirt's XML as text and gives a `Definition`.

Sources: libvirt's formatdomain for `<vcpu>`, `<cputune>`, `<numatune>` and `<metadata>`; the order
in which they hold is that of `virDomainDefGetVcpuPinInfoHelper`. An administrator writes the wish
with `virsh metadata DOMAIN --uri urn:vcpusched:domain:1 --key vcpusched --set '<domain
policy="hold"/>'`, and with `--live`, `--config` or both.
"""

from dataclasses import replace
from typing import Final
from xml.etree import ElementTree as ET

from vcpusched.model import ALL_CPUS, NO_CPUS, PPM, SHARES, CpuSet, Definition

NAMESPACE: Final = "urn:vcpusched:domain:1"
"""The namespace of the metadata element in which a domain asks us for something."""

_REALTIME: Final = frozenset({"fifo", "rr"})

QUOTA_PERIOD_US: Final = 100_000
"""What a quota is given for where the definition names no period, as libvirt and the kernel do."""


def parse(xml: str) -> Definition:
    """Read a domain's XML, live or inactive. Raises ValueError when it is no domain definition.

    A `<vcpupin>` outranks `<vcpu cpuset>`, which outranks all pCPUs; with `placement='auto'`
    libvirt ignores the cpuset. Pins of emulator and I/O threads say nothing about vCPUs.
    """
    try:
        root = ET.fromstring(xml)  # noqa: S314  libvirtd made it, and libvirtd is trusted
    except ET.ParseError as error:
        raise ValueError(str(error)) from None
    nodes, strict = _memory(root)
    return Definition(
        allowed=_allowed(root),
        realtime=frozenset(
            vcpu
            for scheduler in root.iterfind("cputune/vcpusched")
            if scheduler.get("scheduler") in _REALTIME
            for vcpu in CpuSet.parse(scheduler.get("vcpus", ""))
        ),
        memory_nodes=nodes,
        memory_strict=strict,
        shares=int(root.findtext("cputune/shares") or SHARES),
        quota_ppm=_quota_ppm(root),
        wish=_wish(root),
    )


def combined(live: Definition, stated: Definition) -> Definition:
    """Combine what a domain runs with and what its definition states for good.

    Where vCPUs may be is for the stated one to say: in the live one are pins of ours. A vCPU that
    either calls a realtime one is one. The live wish outranks the stated one.
    """
    return replace(
        live,
        allowed=stated.allowed,
        realtime=live.realtime | stated.realtime,
        wish=stated.wish if live.wish is None else live.wish,
    )


def _allowed(root: ET.Element) -> dict[int, CpuSet]:
    count, default = 1, ALL_CPUS
    for vcpu in root.iterfind("vcpu"):
        count = int(vcpu.text or "1")
        cpuset = vcpu.get("cpuset")
        if cpuset and vcpu.get("placement") != "auto":
            default = CpuSet.parse(cpuset)
    allowed = dict.fromkeys(range(count), default)
    for pin in root.iterfind("cputune/vcpupin"):
        allowed[int(pin.get("vcpu", ""))] = CpuSet.parse(pin.get("cpuset", ""))
    return allowed


def _memory(root: ET.Element) -> tuple[frozenset[int], bool]:
    """Give the NUMA nodes of the memory; those of a guest's own nodes where these are bound."""
    nodes, strict = NO_CPUS, False
    for name in ("memory", "memnode"):
        for memory in root.iterfind(f"numatune/{name}"):
            # A list of nodes has the syntax of a list of pCPUs.
            nodes |= CpuSet.parse(memory.get("nodeset", ""))
            strict = strict or memory.get("mode", "strict") == "strict"
    return frozenset(nodes), strict and bool(nodes)


def _quota_ppm(root: ET.Element) -> int:
    """Give the most that each vCPU may run; a quota below 1 is none."""
    quota_us = int(root.findtext("cputune/quota") or -1)
    period_us = int(root.findtext("cputune/period") or 0) or QUOTA_PERIOD_US
    return min(PPM, quota_us * PPM // period_us) if quota_us > 0 else PPM


def _wish(root: ET.Element) -> str | None:
    """Give what our metadata element asks for; an empty text when it leaves that out."""
    for element in root.iterfind(f"metadata/{{{NAMESPACE}}}*"):
        return element.get("policy", "")
    return None
