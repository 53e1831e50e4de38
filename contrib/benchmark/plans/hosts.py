"""Random hosts for the benchmark, each from a name that is also its seed.

Rule: the same `Case` always gives the same `Host`. Loads are whole tenths of a percentage point,
so that a solver that thinks in floating point cannot judge a host differently than integers do.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Host,
    HostCpu,
    Vcpu,
    VcpuId,
)

UNIT_PPM: Final = PPM_PER_POINT // 10
"""Every load is a whole number of these: a tenth of a percentage point of one pCPU."""

HALF_MASK_SHARE: Final = 0.3
FIXED_SHARE: Final = 0.1
"""With masks: how many vCPUs must stay in their half of the host, and how many must not move."""

SHARES: Final = (256, 1024, 1024, 4096)
"""With unequal shares: those of guests, drawn from here."""


class Spread(StrEnum):
    """How unequal the loads of the vCPUs are."""

    LUMPY = "lumpy"  # lognormal: a few giants, many crumbs
    UNIFORM = "uniform"
    MIXED = "mixed"  # each vCPU from either


class Bonds(StrEnum):
    """What stands in the way of moves."""

    FREE = "free"
    MASKS = "masks"


@dataclass(frozen=True, slots=True)
class Case:
    """What a random host of guests of one vCPU is made from; `mean_load` in pCPUs per pCPU."""

    vcpus: int
    cpus: int
    spread: Spread
    bonds: Bonds
    mean_load: float
    number: int

    def __str__(self) -> str:
        size, load = f"{self.vcpus} x {self.cpus}", f"mean load {self.mean_load:.2f}"
        return f"{size}, {self.spread}, {self.bonds}, {load}, number {self.number}"


def seeded(
    seeds: Iterable[int], sizes: Sequence[tuple[int, int]], spreads: Sequence[Spread]
) -> Iterator[Case]:
    """Return a host without bonds for each seed: size, loads and mean load drawn from it."""
    for seed in seeds:
        chance = random.Random(f"seed {seed}")  # noqa: S311  repeatable
        mean_load = round(chance.uniform(0.15, 0.75), 3)  # a half can be balanced
        yield Case(*chance.choice(sizes), chance.choice(spreads), Bonds.FREE, mean_load, seed)


def make_host(case: Case) -> Host:
    """Return the host of a case: every vCPU bound to one random pCPU."""
    chance = random.Random(str(case))  # noqa: S311  chance that can be repeated
    loads_ppm = _loads_ppm(case, chance)
    online = CpuSet.of(range(case.cpus))
    low_half = CpuSet.of(range(case.cpus // 2))
    vcpus = []
    for guest, load_ppm in enumerate(loads_ppm):
        cpu = chance.randrange(case.cpus)
        vcpus.append(
            Vcpu(
                id=VcpuId(DomainUuid(f"{guest:05}"), guest + 1, 0),
                domain=f"guest{guest}",
                load_ppm=load_ppm,
                cpus=CpuSet.of([cpu]),
                allowed=online,
                on=cpu,
            )
        )
    if case.bonds is Bonds.MASKS:
        halves = (low_half, online - low_half)
        vcpus = [_masked(vcpu, halves, chance) for vcpu in vcpus]
    return Host(
        cpus=tuple(HostCpu(Cpu(cpu)) for cpu in online),
        vcpus=tuple(vcpus),
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """How many pCPUs share a node, a last-level cache and a core, and what the weak half can do."""

    per_node: int
    per_cache: int
    per_core: int = 1
    weak_ppm: int = PPM


def built(host: Host, layout: Layout) -> Host:
    """Return the host with nodes, caches, cores, and a weak half where the layout has one."""
    strong = len(host.cpus) // 2
    return replace(
        host,
        cpus=tuple(
            replace(
                cpu,
                cpu=Cpu(
                    cpu.id,
                    node=cpu.id // layout.per_node,
                    core=cpu.id // layout.per_core,
                    cache=cpu.id // layout.per_cache,
                    capacity_ppm=PPM if cpu.id < strong else layout.weak_ppm,
                ),
            )
            for cpu in host.cpus
        ),
    )


def weighted(host: Host, number: int) -> Host:
    """Return the host with guests of unequal CPU shares, drawn from a number."""
    chance = random.Random(f"shares {number}")  # noqa: S311  repeatable
    return replace(
        host, vcpus=tuple(replace(vcpu, shares=chance.choice(SHARES)) for vcpu in host.vcpus)
    )


def loads_of(host: Host) -> dict[int, int]:
    """Return the load of each pCPU, in ppm, from the vCPUs bound to it."""
    loads = {cpu.id: cpu.host_load_ppm for cpu in host.cpus}
    for vcpu in host.vcpus:
        (cpu,) = vcpu.cpus
        loads[cpu] += vcpu.load_ppm
    return loads


def gap_ppm(host: Host) -> int:
    """Return the load of the busiest less that of the least loaded pCPU."""
    loads = loads_of(host).values()
    return max(loads) - min(loads)


def outside_ppm(host: Host, width_ppm: int) -> int:
    """Return how much load lies outside a band of this width, where the band fits best.

    It is 0 for a balanced host. For one that cannot be balanced it says how close it came, which
    the gap does not, because a single giant decides that.
    """
    loads = sorted(loads_of(host).values())
    # As a function of the band's position this is convex and bends only at these places.
    bottoms = {load for high in loads for load in (high, high - width_ppm)}
    return min(
        sum(max(0, bottom - load) + max(0, load - bottom - width_ppm) for load in loads)
        for bottom in bottoms
    )


def _loads_ppm(case: Case, chance: random.Random) -> list[int]:
    weights = [_weight(case.spread, chance) for _ in range(case.vcpus)]
    total = case.mean_load * case.cpus * PPM / UNIT_PPM
    scale = total / sum(weights)
    whole = PPM // UNIT_PPM
    return [UNIT_PPM * max(1, min(whole, round(weight * scale))) for weight in weights]


def _weight(spread: Spread, chance: random.Random) -> float:
    """Draw a weight of mean about 1."""
    if spread is Spread.MIXED:
        spread = chance.choice((Spread.LUMPY, Spread.UNIFORM))
    if spread is Spread.LUMPY:
        return chance.lognormvariate(-0.5, 1)
    return 0.04 + 1.92 * chance.random()


def _masked(vcpu: Vcpu, halves: Sequence[CpuSet], chance: random.Random) -> Vcpu:
    draw = chance.random()
    if draw < HALF_MASK_SHARE:
        return replace(vcpu, allowed=next(half for half in halves if vcpu.cpus.is_within(half)))
    return replace(vcpu, fixed=True) if draw < HALF_MASK_SHARE + FIXED_SHARE else vcpu
