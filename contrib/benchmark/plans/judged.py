"""Judges what a plan makes of one host by where the vCPUs are, not by what the plan says.

Rule: pure, and independent of the planners that it judges. All vCPUs are bound to one pCPU each.

Terms: what vCPUs get is weighted max-min fair, as the tests of plans work it out (`shares`). The
    level of a vCPU that does not get all it wants is what it gets divided by its weight.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from builders import after
from planned import check_moves
from plans.hosts import loads_of, outside_ppm
from shares import demands, oracle, weights_of
from sides import HERE, Planner

from vcpusched.model import PPM_PER_POINT, Host, VcpuId
from vcpusched.plan.planner import Policy

PLAIN: Final[Mapping[str, object]] = {
    "pin_to": "cpu",
    "max_moves": 0,
    "fair_shares": False,
    "min_gain": 0,
}
"""The settings under which plans are compared with the proven fewest pin changes."""

POLICY: Final[Policy] = HERE.settings(**PLAIN).policy()

NEAR_PPM, CACHE_PPM, NODE_PPM = 5 * PPM_PER_POINT, 25 * PPM_PER_POINT // 2, 20 * PPM_PER_POINT
"""What a pin costs in J: within a cache, to another cache, to another node. The same for all."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A host, what it is once a plan is carried out, and how that plan pins."""

    before: Host
    after: Host
    pins: Mapping[VcpuId, tuple[int, int]]


def planned(planner: Planner, host: Host) -> Planned:
    """Plan for a host, and check the plan."""
    found, _took_ns = planner(host)
    check_moves(host, POLICY, found)
    was = {vcpu.id: next(iter(vcpu.cpus)) for vcpu in host.vcpus}
    pins = {move.vcpu: (was[move.vcpu], next(iter(move.to_cpus))) for move in found.moves}
    return Planned(host, after(host, found), pins)


def crowded_cores(host: Host) -> int:
    """Count cores with two busy threads, as far as there are idle cores to part them to."""
    loads, threshold_ppm = loads_of(host), POLICY.balance_threshold_ppm
    cores: dict[int | None, list[int]] = {}
    for one in host.cpus:
        cores.setdefault(one.cpu.core, []).append(loads[one.id])
    crowded = sum(len(core) > 1 and min(core) >= threshold_ppm for core in cores.values())
    return min(crowded, sum(sum(core) < threshold_ppm for core in cores.values()))


def distances(one: Planned) -> tuple[int, int, int]:
    """Count pins within a cache, to another cache of the node, and to another node."""
    site = {one.id: one.cpu for one in one.before.cpus}
    counts = [0, 0, 0]
    for was, then in one.pins.values():
        leaves_node = site[was].node != site[then].node
        counts[2 if leaves_node else int(site[was].cache != site[then].cache)] += 1
    return counts[0], counts[1], counts[2]


def cost_ppm(one: Planned) -> int:
    """Return J: the load outside the best band, and the price of each pin."""
    within, caches, nodes = distances(one)
    prices_ppm = within * NEAR_PPM + caches * CACHE_PPM + nodes * NODE_PPM
    return outside_ppm(one.after, POLICY.balance_threshold_ppm) + prices_ppm


def beyond_ppm(host: Host) -> int:
    """Return what vCPUs want beyond all that their pCPU can do."""
    gives_ppm = {cpu.id: cpu.cpu.capacity_ppm for cpu in host.cpus}
    return sum(max(0, vcpu.load_ppm - gives_ppm[next(iter(vcpu.cpus))]) for vcpu in host.vcpus)


def is_worse(before: Host, after: Host) -> bool:
    """Return whether the lowest level falls by more than a tenth."""
    then, now = map(_lowest_level, (before, after))
    return now < (then * Fraction(9, 10) if math.isfinite(then) else then)


def _lowest_level(host: Host) -> Fraction | float:
    weight, wants, gets = weights_of(host), demands(host), oracle(host, {})
    return min(
        (gets[one] / weight[one] for one in gets if gets[one] < wants[one]), default=math.inf
    )
