"""Says how guests are treated, and which level of the machine is not reported.

Rule: words what is true of a host before anything is planned, and decides nothing.
"""

from collections.abc import Iterable, Iterator
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

_Alike = tuple[bool, str, CpuSet]
"""Whether vCPUs of a domain are held, why, and their numbers. The reason may also be what asks for
them to be moved, or narrows where to."""


def _by_reason(host: Host) -> Iterator[tuple[str, str, list[_Alike]]]:
    """Yield each domain with its UUID and its vCPUs, those together that are treated alike."""
    alike: dict[tuple[str, str], dict[tuple[bool, str], list[int]]] = {}
    for vcpu in host.vcpus:
        of_domain = alike.setdefault((vcpu.domain, vcpu.id.uuid), {})
        of_domain.setdefault((vcpu.fixed, vcpu.why), []).append(vcpu.id.vcpu)
    for (domain, uuid), reasons in sorted(alike.items()):
        yield domain, uuid, [(*key, CpuSet.of(vcpus)) for key, vcpus in sorted(reasons.items())]


def treatment_lines(host: Host) -> list[str]:
    """Return how domains are treated: a line for each that is held, one for all the others."""
    lines, movable = [], []
    for domain, _uuid, groups in _by_reason(host):
        for is_held, why, vcpus in groups:
            whose, stay = printable(domain), "stays"
            if len(groups) > 1 and len(vcpus) > 1:
                whose, stay = f"vCPUs {vcpus} of {whose}", "stay"
            elif len(groups) > 1:
                whose = f"vCPU {vcpus} of {whose}"
            if is_held:
                lines.append(f"{whose} {stay}: {printable(why or 'fixed', 300)}")
            else:
                movable.append(whose + (f" ({printable(why, 300)})" if why else ""))
    if movable:
        more = f" and {len(movable) - NAMES_MAX} more" if len(movable) > NAMES_MAX else ""
        lines.append(f"May be moved: {', '.join(movable[:NAMES_MAX])}{more}")
    return lines


def treatments_as_json(host: Host) -> list[dict[str, Any]]:
    """Return how domains are treated, one entry for each domain and reason."""
    return [
        {
            "domain": domain,
            "uuid": uuid,
            "vcpus": str(vcpus),
            "movable": not is_held,
            "why": why,
        }
        for domain, uuid, groups in _by_reason(host)
        for is_held, why, vcpus in groups
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
