"""Hosts on which nothing should be done any more, and their noise.

Rule: a host at rest is one whose loads change by noise alone; what the service still does there is
counted on the simulated host, with all that smooths, confirms and waits.
"""

import random
from collections.abc import Iterable, Mapping
from typing import Final

from builders import after
from plans.hosts import Case, gap_ppm, make_host
from plans.judged import POLICY
from plans.optimum import Verdict
from plans.rules import repack
from progress import follow
from sides import Planner, Side

from vcpusched.model import Host, Topology
from vcpusched.simulate.workload import Guest, Workload

NOISE: Final = 0.05

BALANCED: Final = "a balanced host with noise"
REACHED: Final = "a host that a plan has just balanced, with noise"
OUT_OF_REACH: Final = "a host out of reach after its plan, with noise"
KINDS: Final = {BALANCED: "0 pins", REACHED: "1 plan", OUT_OF_REACH: "0 pins"}
"""What hosts there are, and the most that should happen on one."""


def hosts(planner: Planner, cases: Mapping[Case, Verdict], each: int) -> dict[str, list[Host]]:
    """Return the first hosts of each kind, as they are once a planner has done its part."""
    found: dict[str, list[Host]] = {kind: [] for kind in KINDS}
    threshold_ppm = POLICY.balance_threshold_ppm
    for case, verdict in cases.items():
        host = make_host(case)
        spread = after(host, repack(host, POLICY))
        if gap_ppm(spread) < threshold_ppm // 2:
            found[BALANCED].append(spread)
        plan, _ = planner(host)
        planned = after(host, plan)
        if plan.moves and gap_ppm(planned) < threshold_ppm:
            found[REACHED].append(planned)
        if verdict is Verdict.UNREACHABLE:
            found[OUT_OF_REACH].append(planned)
    return {kind: chosen[:each] for kind, chosen in found.items()}


def rested(
    side: Side,
    cases: Mapping[Case, Verdict],
    each: int,
    periods: int,
    **wishes: object,
) -> dict[str, str]:
    """Return for each kind of host the pins of the service, and the most plans on one host."""
    found = {}
    for kind, chosen in hosts(side.planner(**wishes), cases, each).items():
        results = [
            side.service(noisy(host, periods), **wishes)
            for host in follow(chosen, len(chosen), f"{kind}, {side.name}")
        ]
        pins, most = sum(it.pins for it in results), max((it.plans for it in results), default=0)
        found[kind] = f"{pins} pins; {most} plans; {len(results)} hosts"
    return found


def noisy(host: Host, periods: int) -> Workload:
    """Return a host of guests of one vCPU as a workload that stays as it is, but for noise."""
    return Workload(
        "noise",
        len(host.cpus),
        periods,
        tuple(
            Guest(vcpu.domain, (_loads_ppm(vcpu.domain, vcpu.load_ppm, periods),), pin=vcpu.cpus)
            for vcpu in host.vcpus
        ),
        topology=Topology(tuple(cpu.cpu for cpu in host.cpus)),
    )


def _loads_ppm(name: str, load_ppm: int, periods: int) -> tuple[int, ...]:
    chance = random.Random(f"noise {name}")  # noqa: S311  repeatable
    factors: Iterable[float] = (chance.uniform(1 - NOISE, 1 + NOISE) for _ in range(periods))
    return tuple(min(1_000_000, round(load_ppm * factor)) for factor in factors)
