"""What the guests of a simulated host want, period by period.

Rule: frozen values and pure arithmetic on them; no file is read here (`workload_files`) and nothing
is run (`simulator`). Chance comes only from named seeds, so that the same words give the same load.

Terms: a period is the time between two cycles of the scheduler. A load is what a vCPU wants of the
    strongest pCPU in one period, in parts per million. A guest's life begins and ends between two
    periods. Within a period a vCPU runs in bursts of random length at random moments.
"""

import dataclasses
import enum
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vcpusched.model import ALL_CPUS, PPM, PPM_PER_POINT, SHARES, Cpu, CpuSet, Topology
from vcpusched.sample import Definition

VERSION: Final = 1
"""Of the results as JSON; version 1 grows by further keys only."""

CPUS_MAX: Final = 1024
VCPUS_MAX: Final = 16_384
PERIODS_MAX: Final = 30_000
"""A day of periods of 3 s, and a little."""

LOADS_MAX: Final = 8_000_000
"""vCPUs times periods: all loads are kept in memory, 10 to 40 bytes each."""

BURST_MS: Final = 50
"""How long a vCPU runs at a time, on average."""

SCALINGS: Final = 60
"""How often a factor is corrected until the mean is right: each time what exceeds 100% is lost."""


class WorkloadError(ValueError):
    """A workload cannot be used; the text says what is wrong and what is allowed, on one line."""


class PinAnswer(enum.StrEnum):
    """How a guest answers every pin."""

    BUSY = "busy"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Guest:
    """One guest: what each of its vCPUs wants in each period of its life, and where it may run.

    `loads_ppm` holds, per vCPU, the load of each period from `start` on; the guest ends where they
    end. `allowed` is its definition, `cpuset` what the kernel lets it use, `memory_nodes` the NUMA
    nodes that its memory is strictly on, none for anywhere; `policy` what its metadata asks for,
    None for nothing; `pin` the affinity that it starts with, None where the simulation chooses one.
    At each period of `restarts` it is restarted.
    """

    name: str
    loads_ppm: tuple[tuple[int, ...], ...]
    start: int = 0
    shares: int = SHARES
    allowed: CpuSet = ALL_CPUS
    cpuset: CpuSet = ALL_CPUS
    pin: CpuSet | None = None
    restarts: tuple[int, ...] = ()
    refuses: PinAnswer | None = None
    memory_nodes: frozenset[int] = frozenset()
    policy: str | None = None

    @property
    def end(self) -> int:
        """Return the first period in which it does not run any more."""
        return self.start + len(self.loads_ppm[0])

    def definition(self) -> Definition:
        """Return what libvirt would say of it."""
        vcpus, nodes = range(len(self.loads_ppm)), self.memory_nodes
        return Definition(
            dict.fromkeys(vcpus, self.allowed),
            memory_nodes=dict.fromkeys(vcpus, nodes) if nodes else {},
            memory_strict=dict.fromkeys(vcpus, nodes) if nodes else {},
            shares=self.shares,
            wish=self.policy,
            cpuset=self.cpuset,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """Guests on a host with `cpu_count` pCPUs, for a number of periods, read from `source`.

    `burst_ms` is the mean length of a burst. `topology` says what pCPUs share and what they can do;
    None stands for equal pCPUs that share nothing.
    """

    source: str
    cpu_count: int
    periods: int
    guests: tuple[Guest, ...]
    seed: int = 0
    burst_ms: int = BURST_MS
    topology: Topology | None = None

    @property
    def vcpu_count(self) -> int:
        """Return the number of all vCPUs, also those that never run at the same time."""
        return sum(len(guest.loads_ppm) for guest in self.guests)

    def machine(self) -> Topology:
        """Return the topology, by default equal pCPUs that share nothing."""
        return self.topology or Topology(tuple(Cpu(cpu) for cpu in range(self.cpu_count)))

    def about(self, place: str, period_ns: int) -> dict[str, Any]:
        """Return what was run as the head of the results as JSON: the mean load is in pCPUs."""
        return {
            "version": VERSION,
            "workload": self.source,
            "seed": self.seed,
            "place": place,
            "cpus": self.cpu_count,
            "vcpus": self.vcpu_count,
            "periods": self.periods,
            "period_s": period_ns / 1e9,
            "mean_load": self.mean_ppm() / PPM,
        }

    def mean_ppm(self) -> int:
        """Return the mean load of a pCPU if all demand were met."""
        total = sum(sum(loads) for guest in self.guests for loads in guest.loads_ppm)
        return total // (self.cpu_count * self.periods)


def check_size(vcpu_count: int, periods: int) -> None:
    """Refuse what would not fit into memory. Raises WorkloadError."""
    if vcpu_count * periods > LOADS_MAX:
        raise WorkloadError(
            f"{vcpu_count} vCPUs in {periods} periods are not allowed:"
            f" their product must be at most {LOADS_MAX:,}"
        )


def scaled(workload: Workload, mean_ppm: int) -> Workload:
    """Scale all loads by one factor, so that pCPUs have this mean load; no vCPU exceeds 100%.

    Raises WorkloadError when that is out of reach.
    """
    goal = mean_ppm * workload.cpu_count * workload.periods
    loads = [load for guest in workload.guests for row in guest.loads_ppm for load in row if load]
    factor = 1.0
    for _ in range(SCALINGS):
        reached = sum(min(PPM, round(load * factor)) for load in loads)
        if abs(reached - goal) * 1000 <= goal:
            break
        factor *= goal / reached if reached else 1.0
    else:
        share = len(loads) * PPM // (workload.cpu_count * workload.periods)
        raise WorkloadError(
            f"a mean load of {mean_ppm / PPM_PER_POINT:.0f}% is out of reach:"
            f" with all vCPUs at 100% it would be {share / PPM_PER_POINT:.0f}%"
        )
    guests = tuple(
        dataclasses.replace(
            guest,
            loads_ppm=tuple(
                tuple(min(PPM, round(load * factor)) for load in row) for row in guest.loads_ppm
            ),
        )
        for guest in workload.guests
    )
    return dataclasses.replace(workload, guests=guests)


def shares_of_vcpus(vcpu_count: int, chance: random.Random) -> tuple[int, ...]:
    """Draw how a guest's load is spread over its vCPUs: weights of a Dirichlet(4) distribution."""
    return tuple(max(1, round(chance.gammavariate(4, 1) * PPM)) for _ in range(vcpu_count))


def split(load_ppm: int, weights: Sequence[int]) -> list[int]:
    """Split a guest's load over its vCPUs by weight, none above 100 %; the sum stays the same.

    A load above 100 % of every vCPU is cut.
    """
    parts = [0] * len(weights)
    left_ppm, open_ends = min(load_ppm, PPM * len(weights)), list(range(len(weights)))
    while left_ppm > 0:
        total = sum(weights[index] for index in open_ends)
        full = [index for index in open_ends if left_ppm * weights[index] >= PPM * total]
        if not full:
            break
        for index in full:
            parts[index] = PPM
        left_ppm -= PPM * len(full)
        open_ends = [index for index in open_ends if not parts[index]]
    total = sum(weights[index] for index in open_ends)
    given_ppm = 0
    for index in open_ends:
        parts[index] = left_ppm * weights[index] // total
        given_ppm += parts[index]
    for index in open_ends[: left_ppm - given_ppm if open_ends else 0]:
        parts[index] += 1  # what whole numbers could not share
    return parts


def bursts(
    chance: random.Random, wanted_ns: int, period_ns: int, mean_ns: int
) -> Iterator[tuple[int, int]]:
    """Draw bursts of `wanted_ns` in all, as (moment, length); undisturbed they end in the period.

    Lengths are exponential but for the last, which is what is left; the moments are uniform.
    """
    if wanted_ns == period_ns:
        yield 0, wanted_ns
        return
    lengths, left_ns = [], wanted_ns
    while left_ns > 0:
        length_ns = min(left_ns, 1 + int(chance.expovariate(1 / mean_ns)))
        lengths.append(length_ns)
        left_ns -= length_ns
    idle_ns = period_ns - wanted_ns
    offsets = sorted(int(chance.random() * (idle_ns + 1)) for _ in lengths)
    for done_ns, length_ns, offset_ns in zip(
        itertools.accumulate(lengths, initial=0), lengths, offsets, strict=False
    ):
        yield done_ns + offset_ns, length_ns
