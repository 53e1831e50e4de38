"""Says why a vCPU was moved or was not, and why an unbalanced host rests.

Rule: pure; words what was decided, and decides nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vcpusched.model import PPM, Granularity, Host, Vcpu
from vcpusched.plan.cpu_groups import Bins, bins_of
from vcpusched.plan.planner import MIN_WAIT_PPM, Floating, Plan, Policy, Stop
from vcpusched.text import cpus_text, percent, printable, vcpu_text

_ENDS: Final = {
    Stop.BALANCED: "the plan balances the host with other vCPUs",
    Stop.NO_GAIN: "moving it would gain less than min_gain, and the threshold is out of reach or "
    "takes too many pins",
    Stop.MOVE_LIMIT: "max_moves ended the plan before it",
}

_LEFT: Final = {
    Floating.AUTO: 'does not wait; floating = "auto" leaves it to the kernel',
    Floating.KERNEL: 'floating = "kernel" leaves it to the kernel',
}
"""Why a vCPU that may use several pCPUs is not for us to place; others could be pinned."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a vCPU was moved, or was not, as a sentence; JSON has the same fields."""

    vcpu: int
    movable: bool
    moved: bool
    text: str


def explained(host: Host, plan: Plan, policy: Policy, domain: str) -> list[Explanation]:
    """Return of each vCPU of a domain, given by name or UUID, why the plan moves it or does not.

    Empty when nothing is known of such a domain.
    """
    bins = bins_of(host, policy.pin_to)
    return [
        _explained(host, plan, policy, bins, vcpu)
        for vcpu in host.vcpus
        if domain in {vcpu.domain, vcpu.id.uuid}
    ]


def settled(host: Host, plan: Plan, pin_to: Granularity) -> str:
    """Return why a host that is unbalanced has no move between its bins, as a clause."""
    if plan.refused:
        return trimmed(plan)
    if plan.stop is Stop.MOVE_LIMIT:
        return "what would help takes more pins than max_moves allows"
    bins, loads_ppm = bins_of(host, pin_to), dict(plan.loads_before_ppm)
    known = [cpu for cpu in loads_ppm if cpu not in host.unsettled] or list(loads_ppm)
    busiest = bins.of_cpu[max(known, key=lambda cpu: (loads_ppm[cpu], -cpu))]
    name, there = bins.names[busiest], _on(host, bins, busiest)
    others = ~(1 << busiest)
    if not any(bins.within(one.allowed, whole=True) & others for one in there if not one.fixed):
        return f"no vCPU that is pinned to {name}, the busiest, may be moved elsewhere"
    if len(there) == 1:
        return f"{vcpu_text(there[0].id.vcpu, there[0].domain)} is alone on {name}, the busiest"
    if bins.waiting.get(busiest, 1) <= 0:
        return f"{name}, the busiest, have a pCPU for each vCPU that runs there"
    return "no pin is worth it: each would gain less than min_gain"


def trimmed(plan: Plan) -> str:
    """Return what the check of fairness left out of a plan, as a clause."""
    return f"more was planned, but that {plan.refused}"


def _on(host: Host, bins: Bins, bin_: int) -> list[Vcpu]:
    """Return the vCPUs with load that are bound to a bin."""
    return [vcpu for vcpu in host.vcpus if vcpu.load_ppm and bins.home(vcpu.cpus) == bin_]


def _explained(host: Host, plan: Plan, policy: Policy, bins: Bins, vcpu: Vcpu) -> Explanation:
    who = f"vCPU {vcpu.id.vcpu} ({percent(vcpu.load_ppm)})"
    for move in plan.moves:
        if move.vcpu == vcpu.id:
            change = f"from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}"
            text = f"{who} is moved {change}: {move.reason}"
            return Explanation(vcpu.id.vcpu, movable=True, moved=True, text=text)
    stays = f"{who} stays on {cpus_text(vcpu.cpus)}"
    if vcpu.fixed:
        text = f"{stays} and may not be moved: {printable(vcpu.why or 'fixed', 300)}"
        return Explanation(vcpu.id.vcpu, movable=False, moved=False, text=text)
    if not vcpu.allowed.is_within(vcpu.cpus):
        stays += f", though it may use {cpus_text(vcpu.allowed)}"
    text = f"{stays}: {next(_why_not(host, plan, policy, bins, vcpu))}"
    return Explanation(vcpu.id.vcpu, movable=True, moved=False, text=text)


def _why_not(host: Host, plan: Plan, policy: Policy, bins: Bins, vcpu: Vcpu) -> Iterator[str]:
    """Yield what kept a movable vCPU where it is, the nearest reason first."""
    if plan.balanced:
        yield "the host is balanced"
    if not vcpu.load_ppm:
        yield "it has no load, so that moving it would change nothing"
    bin_, left = bins.home(vcpu.cpus), _LEFT.get(policy.floating, "")
    if bin_ is not None:
        yield from _why_bound(host, plan, bins, vcpu, bin_)
    elif vcpu.is_bound:
        yield "that pCPU is not managed"
    elif not plan.binds_floaters:
        is_isolated = vcpu.on is not None and vcpu.on in bins.isolated
        if left and vcpu.wait_ppm < MIN_WAIT_PPM[policy.floating] and not is_isolated:
            yield f"it may use several pCPUs and {left}"
        why = "to pin it would not end balanced without a saturated one"
        yield f"it may use several pCPUs, and {why}"
    if plan.refused:
        yield trimmed(plan)
    yield _ENDS[plan.stop]


def _why_bound(host: Host, plan: Plan, bins: Bins, vcpu: Vcpu, bin_: int) -> Iterator[str]:
    if not bins.within(vcpu.allowed, whole=True) & ~(1 << bin_):
        yield "it may use no other set as a whole" if bins.are_sets else "it may use no other pCPU"
    if bins.members[bin_] & host.unsettled:
        yield "a vCPU is on its pCPU whose load is not known yet"
    if plan.binds_floaters:
        yield "this plan only pins vCPUs that may use several pCPUs"
    if bins.waiting.get(bin_, 1) <= 0:
        yield "its set has a pCPU for each vCPU that runs there"
    loads_ppm = dict(plan.loads_before_ppm)
    load_ppm, is_alone = loads_ppm[next(iter(bins.members[bin_]))], len(_on(host, bins, bin_)) == 1
    differ = len({cpu.cpu.capacity_ppm for cpu in host.cpus}) > 1
    if is_alone and differ and load_ppm <= PPM:
        yield "it is alone on its pCPU, which is enough for it"
    if is_alone and load_ppm == max(loads_ppm.values()):
        yield "it is alone on the busiest pCPU, and elsewhere it would be as busy"
