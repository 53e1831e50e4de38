"""What a host is made of, the host with loads that is planned for, and why affinities change.

Rule: values only. Everything here is frozen and holds no handle to the outside world; loads are
integers in parts per million of one pCPU (`_ppm`), since with floats a plan would depend on the
order of its input.
"""

import enum
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NewType, Self

DomainUuid = NewType("DomainUuid", str)

PPM: Final = 1_000_000
"""Parts per million that make one whole pCPU."""

PPM_PER_POINT: Final = 10_000
"""Parts per million of a pCPU in one percentage point of it."""

SHARES: Final = 1024
"""The weight of a guest for which none is given, as in cgroups of version 1."""

CPU_ID_MAX: Final = 65_535
"""The largest pCPU number accepted in text: bounds what a hostile cpulist can make us allocate."""

DISTANCE_MAX: Final = 255
"""The largest distance between NUMA nodes: firmware has a byte for it."""


@dataclass(frozen=True, slots=True)
class CpuSet:
    """An immutable set of pCPU numbers of any size, held as the bits of an integer."""

    bits: int = 0

    @classmethod
    def of(cls, cpus: Iterable[int]) -> Self:
        """Build a set from pCPU numbers."""
        bits = 0
        for cpu in cpus:
            bits |= 1 << cpu
        return cls(bits)

    @classmethod
    def parse(cls, text: str, **words: "CpuSet") -> Self:
        """Parse the kernel's cpulist syntax ("0-3,8"), with libvirt's "^2" to take one out again.

        Each of the `words` stands for a set. Raises ValueError for anything else, and for pCPU
        numbers above `CPU_ID_MAX`.
        """
        bits = 0
        for part in filter(None, (part.strip() for part in text.split(","))):
            name = part.removeprefix("^")
            span = words[name].bits if name in words else _span(name)
            bits = bits & ~span if part.startswith("^") else bits | span
        return cls(bits)

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the pCPUs of a list as `parse` takes it, none where the text is no such list."""
        try:
            return cls.parse(text)
        except ValueError:
            return cls()

    def __iter__(self) -> Iterator[int]:
        return iter(_members(self.bits))

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __contains__(self, cpu: int) -> bool:
        return bool(self.bits >> cpu & 1)

    def __and__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.bits & other.bits)

    def __or__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.bits | other.bits)

    def __sub__(self, other: "CpuSet") -> "CpuSet":
        return CpuSet(self.bits & ~other.bits)

    def is_within(self, other: "CpuSet") -> bool:
        """Return whether every pCPU of this set is in `other` too."""
        return not self.bits & ~other.bits

    def meets(self, other: "CpuSet") -> bool:
        """Return whether any pCPU of this set is in `other` too."""
        return bool(self.bits & other.bits)

    def __str__(self) -> str:
        return _text(self.bits)


# A host of thousands of vCPUs has few different sets, and goes through each of them every cycle.
@functools.lru_cache(maxsize=1024)
def _members(bits: int) -> tuple[int, ...]:
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def _text(bits: int) -> str:
    runs = []
    while bits:
        first = (bits & -bits).bit_length() - 1
        beyond = bits + (1 << first)  # the run became one bit, just above where it was
        last = (beyond & -beyond).bit_length() - 2
        runs.append(f"{first}" if first == last else f"{first}-{last}")
        bits = beyond & (beyond - 1)
    return ",".join(runs)


def _span(text: str) -> int:
    first, dash, last = text.partition("-")
    if not all(number.isascii() and number.isdigit() for number in (first, last if dash else "0")):
        raise ValueError(f"{text[:80]!r} is no list of pCPUs such as 0-3,8")
    low, high = int(first), int(last or first)
    if high > CPU_ID_MAX or low > high:
        raise ValueError(f"{text[:80]!r} names a pCPU above {CPU_ID_MAX} or runs backwards")
    return ((1 << (high - low + 1)) - 1) << low


NO_CPUS: Final = CpuSet()

ALL_CPUS: Final = CpuSet((1 << (CPU_ID_MAX + 1)) - 1)
"""Where a guest may run if its definition says nothing: every pCPU, present or to come."""


class VcpuId(NamedTuple):
    """Which vCPU of which run of which domain.

    A domain that was started anew has another `domain_id`, so its vCPUs are other vCPUs
    (libvirt gives a running domain a number that no other running domain has). It is the key of
    most tables: a tuple's hash takes a fifth of the time of a dataclass's.
    """

    uuid: DomainUuid
    domain_id: int
    vcpu: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """One online pCPU; its position is optional, because not every machine reports it.

    Two pCPUs with the same `core` are siblings: threads of one core; `cache` is a last-level cache.
    Each is unique on the host. `capacity_ppm` is what it can do when its siblings idle, relative to
    the strongest pCPU. An `isolated` one the kernel keeps free of what is not pinned there, and
    moves nothing between it and others. `socket` has the number that the machine gives.
    """

    id: int
    node: int | None = None
    core: int | None = None
    cache: int | None = None
    capacity_ppm: int = PPM
    isolated: bool = False
    socket: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The pCPUs that are online, in rising order of their numbers.

    `node_distances` are those between NUMA nodes: 10 from a node to itself, twice as much for twice
    the latency; empty where the machine does not report them. `online` are the pCPUs' numbers.
    """

    cpus: tuple[Cpu, ...]
    node_distances: Mapping[tuple[int, int], int] = field(default_factory=dict)
    online: CpuSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Kept, because every cycle asks for it once a guest.
        object.__setattr__(self, "online", CpuSet.of(cpu.id for cpu in self.cpus))


class Granularity(enum.StrEnum):
    """What a vCPU is pinned to; `AUTO` is `resolved` for each host."""

    AUTO = "auto"
    CPU = "cpu"
    CORE = "core"
    CACHE = "cache"
    NODE = "node"


MIN_AUTO_CPUS: Final = 4
"""Smaller sets cost more in balance than the kernel gains by choosing within them."""


def resolved(cpus: Iterable[Cpu], granularity: Granularity) -> Granularity:
    """Return what "auto" stands for on a host: caches or nodes where it has large ones."""
    if granularity is not Granularity.AUTO:
        return granularity
    shared = [cpu for cpu in cpus if not cpu.isolated]
    for level, numbers in (
        (Granularity.CACHE, Counter(cpu.cache for cpu in shared if cpu.cache is not None)),
        (Granularity.NODE, Counter(cpu.node for cpu in shared if cpu.node is not None)),
    ):
        if sum(count >= MIN_AUTO_CPUS for count in numbers.values()) > 1:
            return level
    return Granularity.CPU


def sets(cpus: Iterable[Cpu], granularity: Granularity) -> tuple[CpuSet, ...]:
    """Return the sets of pCPUs that vCPUs are pinned to, in rising order of their lowest pCPU.

    Where the machine reports no caches, nodes stand in for them; pCPUs of which neither is known
    are one set. An isolated pCPU is one by itself, as is one without a core.
    """
    cpus = tuple(cpus)
    granularity = resolved(cpus, granularity)
    found: defaultdict[tuple[Granularity, int | None], int] = defaultdict(int)
    for cpu in cpus:
        level = granularity
        if cpu.isolated or (level is Granularity.CORE and cpu.core is None):
            level = Granularity.CPU
        elif level is Granularity.CACHE and cpu.cache is None:
            level = Granularity.NODE
        number = {"cpu": cpu.id, "core": cpu.core, "cache": cpu.cache, "node": cpu.node}[level]
        found[level, number] |= 1 << cpu.id
    return tuple(CpuSet(bits) for bits in sorted(found.values(), key=lambda bits: bits & -bits))


@dataclass(frozen=True, slots=True)
class Vcpu:
    """One vCPU with its load, as the planner sees it.

    `cpus` is its present affinity, `allowed` where policy lets it go, `on` the pCPU on which it was
    last seen. A `fixed` vCPU counts but must not be moved; `why` says why, for people, or what asks
    for it to be moved or narrows where to. `memory_node` is the NUMA node of the memory beside it,
    where that is known. `shares` are its guest's, which all of the guest's vCPUs share, `quota_ppm`
    the most that it may run. A `spread` one must not join another vCPU of its guest on a core.
    `wait_ppm` is for which share of the period it waited, without what its quota held back, if one
    of several pCPUs that it may use, managed and not isolated, idled for at least a fifth of the
    period; 0 where none did, or that is not known.
    """

    id: VcpuId
    domain: str
    load_ppm: int
    cpus: CpuSet
    allowed: CpuSet
    on: int | None = None
    fixed: bool = False
    why: str = ""
    memory_node: int | None = None
    shares: int = SHARES
    quota_ppm: int = PPM
    spread: bool = False
    wait_ppm: int = 0

    @property
    def is_bound(self) -> bool:
        """Return whether it may use one pCPU only; otherwise it floats."""
        return len(self.cpus) == 1


class Cause(enum.StrEnum):
    """Why an affinity is changed, or was.

    By us: `BALANCE`: by a plan. `WORSE_OFF`: back to the original, as it waited while others idled.
    `NOT_ALLOWED`: back to the original, as settings or definitions do not allow our pin any more.
    `RESET`: pinned again, as the kernel had reset our pin. `RESTORED`: back, on request.
    By others: `PINNED` to one pCPU, or `POOLED` on several; `LEFT`: reset by the kernel once too
    often.
    """

    BALANCE = "balance"
    WORSE_OFF = "worse_off"
    NOT_ALLOWED = "not_allowed"
    RESET = "reset"
    RESTORED = "given_back"
    PINNED = "pinned"
    POOLED = "pooled"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class HostCpu:
    """One managed pCPU and the load that anything but our vCPUs puts on it."""

    cpu: Cpu
    host_load_ppm: int = 0

    @property
    def id(self) -> int:
        """Return the number of the pCPU."""
        return self.cpu.id


@dataclass(frozen=True, slots=True)
class Host:
    """The host with loads: all that the planner decides on.

    Both tuples are sorted by number and by `VcpuId`. vCPUs whose load is not known yet are absent;
    the pCPUs that any of them are bound to are `unsettled`: what seems to be free there may not be.
    `node_distances` are those of the `Topology`.
    """

    cpus: tuple[HostCpu, ...]
    vcpus: tuple[Vcpu, ...]
    unsettled: CpuSet = NO_CPUS
    node_distances: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def online(self) -> CpuSet:
        """Return the numbers of the managed pCPUs."""
        return CpuSet.of(cpu.id for cpu in self.cpus)
