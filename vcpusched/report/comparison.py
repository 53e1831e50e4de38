"""What the same host comes to with vCPUs pinned to single pCPUs, caches or nodes.

Rule: pure. The gap is that between the sets of each row, so that gaps of rows say little beside one
another; how the worst-served vCPU fares is measured alike in all.
"""

from dataclasses import dataclass, replace
from typing import Any

from vcpusched.model import NO_CPUS, PPM, PPM_PER_POINT, Granularity, Host
from vcpusched.plan.fairness import Judge
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.report.plan_text import sets_of


@dataclass(frozen=True, slots=True)
class Compared:
    """A plan for one granularity, on so many `sets` of pCPUs (0: each pCPU is one).

    `worst` is which share of what it wants the vCPU gets that gets the least, before and after, in
    ppm, as far as loads tell.
    """

    pin_to: Granularity
    sets: int
    plan: Plan
    worst_ppm: tuple[int, int]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "pin_to": self.pin_to.value,
            "sets": self.sets,
            "pins": len(self.plan.moves),
            "gap_before": self.plan.gap_before_ppm / PPM,
            "gap_after": self.plan.gap_after_ppm / PPM,
            "worst_served_before": self.worst_ppm[0] / PPM,
            "worst_served_after": self.worst_ppm[1] / PPM,
        }


def compared(host: Host, policy: Policy) -> Compared:
    """Return what a policy comes to on a host."""
    found = plan(host, policy)
    to = {move.vcpu: move.to_cpus for move in found.moves}
    vcpus = (replace(vcpu, cpus=to.get(vcpu.id, vcpu.cpus)) for vcpu in host.vcpus)
    after = replace(host, vcpus=tuple(vcpus))
    worst = worst_served_ppm(host), worst_served_ppm(after)
    return Compared(policy.pin_to, len(sets_of(host, policy.pin_to)), found, worst)


def worst_served_ppm(host: Host) -> int:
    """Return which share of its demand that vCPU gets which gets the least, in ppm.

    Demands below a point do not count.
    """
    judging = Judge(host, NO_CPUS)
    got_ppm = judging.divide(judging.places, host.online.bits)
    pairs = zip(got_ppm, judging.demands_ppm, strict=True)
    shares = (got * PPM // wants for got, wants in pairs if wants >= PPM_PER_POINT)
    return min(shares, default=PPM)
