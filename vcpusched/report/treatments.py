"""Says how guests are treated, and which level of the machine is not reported.

Rule: words what is true of a host before anything is planned, and decides nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from vcpusched.model import Cpu, CpuSet, Granularity, Host
from vcpusched.text import cpus_text, printable

NAMES_MAX: Final = 24
"""Of those that may be moved, so many are named to a person."""

UNREPORTED: Final = {
    Granularity.CORE: ("core", "are threads of one core", "each is taken for a core"),
    Granularity.CACHE: ("cache", "share a cache", "NUMA nodes stand in for caches"),
    Granularity.NODE: ("node", "are on one NUMA node", ""),
}
"""For each level of the machine: where it is known, what that would be, and what replaces it."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """vCPUs of one domain that are treated alike; `all_of_it` when it has no others.

    `why` says why they are held, or what asks for them to be moved or narrows where to.
    """

    domain: str
    uuid: str
    vcpus: CpuSet
    all_of_it: bool
    held: bool
    why: str

    @property
    def whose(self) -> str:
        """Name them in a sentence."""
        name = printable(self.domain)
        if self.all_of_it:
            return name
        return f"vCPU{'s' if len(self.vcpus) > 1 else ''} {self.vcpus} of {name}"


def treatments(host: Host) -> list[Treatment]:
    """Return for every domain whether it may be moved and why, by its name."""
    alike: dict[tuple[str, str], dict[tuple[bool, str], list[int]]] = {}
    for vcpu in host.vcpus:
        of_domain = alike.setdefault((vcpu.domain, vcpu.id.uuid), {})
        of_domain.setdefault((vcpu.fixed, vcpu.why), []).append(vcpu.id.vcpu)
    return [
        Treatment(domain, uuid, CpuSet.of(vcpus), len(reasons) == 1, held, why)
        for (domain, uuid), reasons in sorted(alike.items())
        for (held, why), vcpus in sorted(reasons.items())
    ]


def treatment_lines(host: Host) -> list[str]:
    """Return how domains are treated: a line for each that is held, one for all the others."""
    lines, movable = [], []
    for treated in treatments(host):
        if treated.held:
            stay = "stays" if treated.all_of_it or len(treated.vcpus) == 1 else "stay"
            lines.append(f"{treated.whose} {stay}: {printable(treated.why or 'fixed', 300)}")
        else:
            movable.append(
                treated.whose + (f" ({printable(treated.why, 300)})" if treated.why else "")
            )
    if movable:
        more = f" and {len(movable) - NAMES_MAX} more" if len(movable) > NAMES_MAX else ""
        lines.append(f"May be moved: {', '.join(movable[:NAMES_MAX])}{more}")
    return lines


def treatments_as_json(host: Host) -> list[dict[str, Any]]:
    """Return how domains are treated, one entry for each domain and reason."""
    return [
        {
            "domain": treated.domain,
            "uuid": treated.uuid,
            "vcpus": str(treated.vcpus),
            "movable": not treated.held,
            "why": treated.why,
        }
        for treated in treatments(host)
    ]


def unreported(cpus: Iterable[Cpu], granularity: Granularity) -> str:
    """Return which level of the machine is not reported, and what `sets` does instead, in one line.

    Nothing when it is reported of all pCPUs, or not asked for.
    """
    level, what, instead = UNREPORTED.get(granularity, ("id", "", ""))
    cpus = tuple(cpus)
    missing = [cpu for cpu in cpus if getattr(cpu, level) is None]
    if not missing:
        return ""
    if granularity is not Granularity.CORE and any(cpu.node is None for cpu in missing):
        instead = "all these are taken for one set, within which the kernel alone places vCPUs"
    names = cpus_text(CpuSet.of(cpu.id for cpu in missing))
    of = f" for {names}" if len(missing) < len(cpus) else ""
    return f'pin_to = "{granularity}": this host does not report{of} which pCPUs {what}; {instead}'
