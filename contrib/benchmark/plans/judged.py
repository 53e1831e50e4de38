"""Judges what a plan makes of one host by where the vCPUs are, not by what the plan says.

Rule: pure, and independent of the planners that it judges. All vCPUs are bound to one pCPU each.

What vCPUs get is weighted max-min fair: a level rises, and each vCPU takes level times weight until
    it has what it wants. It stops for the vCPUs of a thread that gives all it can, and for those of
    a core whose threads together do: each further thread is worth a quarter.
Terms: the weight of a vCPU is its guest's shares, split over those of the guest's vCPUs that have a
    load. Its level is what it gets divided by its weight, for vCPUs that do not get all they want.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from builders import after
from plans.hosts import loads_of, outside_ppm
from plans.methods import POLICY
from sides import Planner

from vcpusched.model import PPM_PER_POINT, Host, VcpuId
from vcpusched.plan.planner import Plan

FURTHER_THREADS: Final = 0.25

NEAR_PPM, CACHE_PPM, NODE_PPM = 5 * PPM_PER_POINT, 25 * PPM_PER_POINT // 2, 20 * PPM_PER_POINT
"""What a pin costs in J: within a cache, to another cache, to another node. The same for all."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A host, what it is once a plan is carried out, how that plan pins, and its CPU time."""

    before: Host
    after: Host
    pins: Mapping[VcpuId, tuple[int, int]]
    took_ns: int


def planned(planner: Planner, host: Host) -> Planned:
    """Plan for a host, and check the plan."""
    found, took_ns = planner(host)
    check(host, found)
    was = {vcpu.id: next(iter(vcpu.cpus)) for vcpu in host.vcpus}
    pins = {move.vcpu: (was[move.vcpu], next(iter(move.to_cpus))) for move in found.moves}
    return Planned(host, after(host, found), pins, took_ns)


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


def check(host: Host, found: Plan) -> None:
    """Refuse a plan that moves what must not be moved, or moves it where it may not go."""
    vcpus = {vcpu.id: vcpu for vcpu in host.vcpus}
    for move in found.moves:
        vcpu = vcpus.pop(move.vcpu)  # none twice
        if vcpu.fixed or not move.to_cpus.is_within(vcpu.allowed) or len(move.to_cpus) != 1:
            raise ValueError(f"{move.vcpu} may not go to pCPUs {move.to_cpus}")
        if move.to_cpus == vcpu.cpus:
            raise ValueError(f"{move.vcpu} is on pCPU {move.to_cpus} already")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a vCPU wants in ppm of a pCPU, at most its quota, and its weight."""

    vcpu: VcpuId
    wants_ppm: int
    weight: float

    def gets_ppm(self, level: float) -> float:
        """Return what it takes at a level."""
        return min(self.wants_ppm, level * self.weight)


@dataclass(frozen=True, slots=True)
class Got:
    """What a vCPU gets of what it wants, in ppm of a pCPU; its level is infinite if it gets all."""

    wants_ppm: int
    gets_ppm: float
    level: float


def shared(host: Host) -> dict[VcpuId, Got]:
    """Return what each vCPU with a load gets; all must be bound to one managed pCPU."""
    loaded = [vcpu for vcpu in host.vcpus if vcpu.load_ppm]
    siblings = Counter((vcpu.id.uuid, vcpu.id.domain_id) for vcpu in loaded)
    claims: defaultdict[int, list[Claim]] = defaultdict(list)
    for vcpu in loaded:
        (cpu,) = vcpu.cpus
        weight = vcpu.shares / siblings[vcpu.id.uuid, vcpu.id.domain_id]
        claims[cpu].append(Claim(vcpu.id, min(vcpu.load_ppm, vcpu.quota_ppm), weight))
    cores = defaultdict(list)
    for one in host.cpus:
        cores[(0, one.id) if one.cpu.core is None else (1, one.cpu.core)].append(one)
    found = {}
    for threads in cores.values():
        stops = {
            one.id: _full_at([(claims[one.id], math.inf)], one.cpu.capacity_ppm - one.host_load_ppm)
            for one in threads
        }
        strongest_ppm = max(one.cpu.capacity_ppm for one in threads)
        together_ppm = strongest_ppm * (1 + FURTHER_THREADS * (len(threads) - 1))
        together_ppm -= sum(one.host_load_ppm for one in threads)
        stop = _full_at([(claims[cpu], level) for cpu, level in stops.items()], together_ppm)
        for cpu, level in stops.items():
            for claim in claims[cpu]:
                gets_ppm = claim.gets_ppm(min(level, stop))
                is_short = gets_ppm < claim.wants_ppm
                level_of = min(level, stop) if is_short else math.inf
                found[claim.vcpu] = Got(claim.wants_ppm, gets_ppm, level_of)
    return found


def is_worse(before: Mapping[VcpuId, Got], after: Mapping[VcpuId, Got]) -> bool:
    """Return whether the lowest level falls by more than a tenth."""
    then, now = (min((one.level for one in got.values()), default=0.0) for got in (before, after))
    return now < (then * 0.9 if math.isfinite(then) else math.inf)


def _full_at(parts: Sequence[tuple[Sequence[Claim], float]], gives_ppm: float) -> float:
    """Return the level at which claims, none above the level of its part, take all there is."""

    def taken_ppm(level: float) -> float:
        return sum(claim.gets_ppm(min(level, stop)) for claims, stop in parts for claim in claims)

    if taken_ppm(math.inf) <= gives_ppm:
        return math.inf
    # As a function of the level this is linear between these places, and constant after the last.
    bends = {claim.wants_ppm / claim.weight for claims, _ in parts for claim in claims}
    low = 0.0
    for high in sorted(bends | {stop for _, stop in parts}):
        if taken_ppm(high) >= gives_ppm:
            rise = (gives_ppm - taken_ppm(low)) / (taken_ppm(high) - taken_ppm(low))
            return low + (high - low) * max(0.0, rise)
        low = high
    raise AssertionError("claims that want too much never took it")
