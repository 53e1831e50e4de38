"""Says of every guest whether it may be moved, and of every vCPU why it was moved or was not.

Rule: pure; tells what `house`, `scheduler` and `planner` decided, in words, and decides nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from vcpusched.model import PPM, CpuSet, Host, Vcpu
from vcpusched.plan.planner import Plan, Stop
from vcpusched.text import cpus_text, percent, printable

NAMES_MAX: Final = 24
"""Of those that may be moved, so many are named to a person."""

_ENDS: Final = {
    Stop.BALANCED: "the plan balances the host with other vCPUs",
    Stop.NO_GAIN: "no move of it would gain min_gain",
    Stop.MOVE_LIMIT: "max_moves ended the plan before it",
}


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


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a vCPU was moved, or was not, as a sentence; JSON has the same fields."""

    vcpu: int
    movable: bool
    moved: bool
    text: str


def treatments(host: Host) -> list[Treatment]:
    """Give for every domain whether it may be moved and why, by its name."""
    alike: dict[tuple[str, str], dict[tuple[bool, str], list[int]]] = {}
    for vcpu in host.vcpus:
        of_domain = alike.setdefault((vcpu.domain, vcpu.id.uuid), {})
        of_domain.setdefault((vcpu.fixed, vcpu.why), []).append(vcpu.id.vcpu)
    return [
        Treatment(domain, uuid, CpuSet.of(vcpus), len(reasons) == 1, held, why)
        for (domain, uuid), reasons in sorted(alike.items())
        for (held, why), vcpus in sorted(reasons.items())
    ]


def told(host: Host) -> list[str]:
    """Tell how domains are treated: a line for each that is held, one for all the others."""
    lines, movable = [], []
    for treated in treatments(host):
        if treated.held:
            stay = "stays" if treated.all_of_it or len(treated.vcpus) == 1 else "stay"
            lines.append(f"{treated.whose} {stay}: {treated.why or 'fixed'}")
        else:
            movable.append(treated.whose + (f" ({treated.why})" if treated.why else ""))
    if movable:
        more = f" and {len(movable) - NAMES_MAX} more" if len(movable) > NAMES_MAX else ""
        lines.append(f"May be moved: {', '.join(movable[:NAMES_MAX])}{more}")
    return lines


def treatments_as_json(host: Host) -> list[dict[str, Any]]:
    """Give how domains are treated, one entry for each domain and reason."""
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


def explained(host: Host, plan: Plan, domain: str) -> list[Explanation]:
    """Say of each vCPU of a domain, given by name or UUID, why the plan moves it or does not.

    Empty when nothing is known of such a domain.
    """
    loads_ppm = dict(plan.loads_before_ppm)
    return [
        _explained(host, plan, vcpu, loads_ppm)
        for vcpu in host.vcpus
        if domain in {vcpu.domain, vcpu.id.uuid}
    ]


def explanations_as_json(explanations: list[Explanation]) -> list[dict[str, Any]]:
    """Give explanations as JSON."""
    return [asdict(one) for one in explanations]


def _explained(host: Host, plan: Plan, vcpu: Vcpu, loads_ppm: Mapping[int, int]) -> Explanation:
    who = f"vCPU {vcpu.id.vcpu} ({percent(vcpu.load_ppm)})"
    for move in plan.moves:
        if move.vcpu == vcpu.id:
            change = f"from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}"
            text = f"{who} is moved {change}: {move.reason}"
            return Explanation(vcpu.id.vcpu, movable=True, moved=True, text=text)
    place = f"{who} stays on {cpus_text(vcpu.cpus)}"
    if vcpu.fixed:
        text = f"{place} and may not be moved: {vcpu.why or 'fixed'}"
        return Explanation(vcpu.id.vcpu, movable=False, moved=False, text=text)
    why = next(_why_not(host, plan, vcpu, loads_ppm))
    text = f"{place}, though it may use {cpus_text(vcpu.allowed)}: {why}"
    return Explanation(vcpu.id.vcpu, movable=True, moved=False, text=text)


def _why_not(host: Host, plan: Plan, vcpu: Vcpu, loads_ppm: Mapping[int, int]) -> Iterator[str]:
    """Give what kept a movable vCPU where it is, the nearest reason first."""
    if plan.balanced:
        yield "the host is balanced"
    if vcpu.allowed.is_within(vcpu.cpus) and vcpu.is_bound:
        yield "that is where it is"
    if not vcpu.load_ppm:
        yield "it has no load, so that moving it would change nothing"
    if not vcpu.is_bound:
        if not plan.binds_floaters:
            yield (
                "it floats, and the kernel spreads it; to pin it would not end balanced and short"
                " of saturation, or floating says not to"
            )
        yield _ENDS[plan.stop]
    if vcpu.cpus & host.unsettled:
        yield "a vCPU is on its pCPU whose load is not known yet"
    if plan.binds_floaters:
        yield "this plan only pins vCPUs that float"
    beside = [other for other in host.vcpus if other.is_bound and other.cpus == vcpu.cpus]
    load_ppm = loads_ppm.get(next(iter(vcpu.cpus)), 0)
    differ = len({cpu.cpu.capacity_ppm for cpu in host.cpus}) > 1
    if differ and len(beside) == 1 and load_ppm <= PPM:
        yield "it is alone on its pCPU, which is enough for it"
    if len(beside) == 1 and load_ppm == max(loads_ppm.values(), default=0):
        yield "it is alone on the busiest pCPU, and elsewhere it would be as busy"
    yield _ENDS[plan.stop]
