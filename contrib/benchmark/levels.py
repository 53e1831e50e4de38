"""Tells what vCPUs get of the pCPUs that they are bound to, whatever a planner thinks of it.

Rule: pure, and independent of the planners that it judges.

Approach: weighted max-min fairness by filling: a level rises, and each vCPU takes level times
    weight until it has what it wants. It stops for the vCPUs of a thread that gives all it can,
    and for those of a core whose threads together do: each further thread is worth a quarter.
Terms: the weight of a vCPU is its guest's shares, split over those of the guest's vCPUs that have a
    load. Its level is what it gets divided by its weight, told for vCPUs that do not get all they
    want.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import Host, VcpuId

FURTHER_THREADS: Final = 0.25


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


def is_worse_by_level(before: Mapping[VcpuId, Got], after: Mapping[VcpuId, Got]) -> bool:
    """Tell whether the lowest level falls by more than a tenth."""
    then, now = (min((one.level for one in got.values()), default=0.0) for got in (before, after))
    return now < (then * 0.9 if math.isfinite(then) else math.inf)


def is_worse_by_share(before: Mapping[VcpuId, Got], after: Mapping[VcpuId, Got]) -> bool:
    """Tell whether the least share of its wants that any vCPU gets falls by more than a point."""
    then, now = (
        min((one.gets_ppm / one.wants_ppm for one in got.values()), default=1.0)
        for got in (before, after)
    )
    return now < then - 0.01


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
