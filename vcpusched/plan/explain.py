"""Says why a vCPU was moved or was not.

Rule: pure; words what was decided, and decides nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vcpusched.model import Host
from vcpusched.plan.cpu_groups import bins_of
from vcpusched.plan.planner import MIN_WAIT_PPM, Floating, Plan, Policy, Stop
from vcpusched.plan.problem import Problem
from vcpusched.plan.views import problem_of
from vcpusched.text import cpus_text, percent, printable

_ENDS: Final = {
    Stop.BALANCED: "the plan balances the host with other vCPUs",
    Stop.NO_GAIN: "moving it would gain less than min_gain asks for, and the threshold is out of "
    "reach or takes too many pins",
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
    """Return why each known vCPU of a domain, given by name or UUID, is moved or is not."""
    problem = problem_of(host, bins_of(host, policy.pin_to), policy, measured=False)
    moved = {move.vcpu for move in plan.moves}
    return [
        Explanation(
            vcpu.id.vcpu, not vcpu.fixed, vcpu.id in moved, _text(plan, policy, problem, item)
        )
        for item, vcpu in enumerate(host.vcpus)
        if domain in {vcpu.domain, vcpu.id.uuid}
    ]


def trimmed(plan: Plan) -> str:
    """Return what the check of fairness left out of a plan, as a clause."""
    begin = "more was planned, but that" if plan.moves else "a plan was refused, since it"
    return f"{begin} {plan.refused}"


def _text(plan: Plan, policy: Policy, problem: Problem, item: int) -> str:
    vcpu = problem.vcpus[item]
    who = f"vCPU {vcpu.id.vcpu} ({percent(vcpu.load_ppm)})"
    for move in plan.moves:
        if move.vcpu == vcpu.id:
            change = f"from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}"
            return f"{who} is moved {change}: {move.reason}"
    stays = f"{who} stays on {cpus_text(vcpu.cpus)}"
    if vcpu.fixed:
        return f"{stays} and may not be moved: {printable(vcpu.why or 'fixed', 300)}"
    if not vcpu.allowed.is_within(vcpu.cpus):
        stays += f", though it may use {cpus_text(vcpu.allowed)}"
    return f"{stays}: {next(_why_not(plan, policy, problem, item))}"


def _why_not(plan: Plan, policy: Policy, problem: Problem, item: int) -> Iterator[str]:
    """Yield what kept a movable vCPU where it is, the nearest reason first."""
    bins, vcpu = problem.bins, problem.vcpus[item]
    if plan.balanced:
        yield "the host is balanced"
    if not vcpu.load_ppm:
        yield "it has no load, so that moving it would change nothing"
    if bins.bin_of(vcpu.cpus) is not None:
        yield from _why_bound(plan, problem, item)
    elif vcpu.is_bound:
        yield "that pCPU is not managed"
    elif not plan.binds_floaters:
        is_isolated = vcpu.on is not None and vcpu.on in bins.isolated
        if vcpu.wait_ppm < MIN_WAIT_PPM[policy.floating] and not is_isolated:
            yield f"it may use several pCPUs and {_LEFT[policy.floating]}"
        why = "to pin it would not end balanced without a saturated one"
        yield f"it may use several pCPUs, and {why}"
    if plan.refused:
        yield trimmed(plan)
    yield _ENDS[plan.stop]


def _why_bound(plan: Plan, problem: Problem, item: int) -> Iterator[str]:
    bins, vcpu, bin_ = problem.bins, problem.vcpus[item], problem.current[item]
    if not bins.within(vcpu.allowed, most=True) & ~(1 << bin_):
        yield "it may not use half of another set" if bins.are_sets else "it may use no other pCPU"
    if bin_ not in bins.judged:
        yield "a vCPU is on its pCPU whose load is not known yet"
    if not problem.allowed[item] & ~(1 << bin_):
        kin = "one of its guest on the core, or " if vcpu.spread else ""
        yield f"wherever else it may go there is {kin}a vCPU whose load is not known yet"
    if plan.binds_floaters:
        yield "this plan only pins vCPUs that may use several pCPUs"
    if bins.waiting.get(bin_, 1) <= 0:
        yield "its set has a pCPU for each vCPU that runs there"
    if not problem.without_lone().allowed[item]:
        if bins.thread is not None:
            yield "it is alone on its pCPU, which is enough for it"
        yield "it is alone on the busiest pCPU, and elsewhere it would be as busy"
