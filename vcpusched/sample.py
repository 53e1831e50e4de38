"""What was read of a host in one cycle.

Rule: values only, as in `model`: what the kernel and libvirt said, before anything is concluded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vcpusched.model import ALL_CPUS, NO_CPUS, PPM, SHARES, CpuSet, DomainUuid, Topology, VcpuId


@dataclass(frozen=True, slots=True)
class Waited:
    """What the kernel said about the run queue that one vCPU's thread is in, at one moment.

    `wait_ns` is how long since it began the thread was runnable without running, of that
    `throttled_ns` because its quota was used up.
    """

    wait_ns: int
    throttled_ns: int = 0


@dataclass(frozen=True, slots=True)
class Busy:
    """How long each pCPU has run anything at all since it came up, read at `at_ns`."""

    at_ns: int
    by_cpu_ns: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class VcpuReading:
    """What the hypervisor said about one vCPU at one moment.

    `run_ns` is the CPU time of its thread since it began; `affinity` the pCPUs its thread may
    really use; `on` the pCPU it last ran on, if known; `waited` is None where it was not asked for
    or cannot be known. `ours` says whether its affinity is known to be a pin of ours; `original`
    is the affinity before our first pin, while one of ours is in force; `pin` is that pin, and
    `undone` whether the kernel reset it; `held` why it must be left alone, whatever else holds.
    """

    vcpu: int
    run_ns: int
    affinity: CpuSet
    on: int | None = None
    waited: Waited | None = None
    ours: bool = False
    original: CpuSet | None = None
    pin: CpuSet | None = None
    undone: bool = False
    held: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the mark in a running domain says of one vCPU: its original affinity, and our pins.

    `pins` are those that may be in force: the last, and the one that was about to be made.
    """

    original: CpuSet
    pins: frozenset[CpuSet]

    def explains(self, pin: CpuSet, within: CpuSet = ALL_CPUS) -> bool:
        """Return whether a pin is ours by this mark, as far as it lies within these pCPUs."""
        return any(ours & within == pin & within for ours in self.pins)


@dataclass(frozen=True, slots=True)
class Definition:
    """What a domain's definition says about where its vCPUs belong, and what bounds that.

    `allowed` gives, per vCPU number, where it may run: `ALL_CPUS` where nothing is said; a vCPU
    missing there must not be moved; `began` what that was when this run was first seen. `cpuset` is
    where the kernel lets the guest run, by its group, `is_cpuset_known` whether that could be read.
    `realtime` are the vCPUs with a realtime scheduler, `helper_pins` where its emulator and I/O
    threads are pinned to. `memory_nodes` gives, per vCPU number, the NUMA nodes that the memory
    beside it is asked to be on; a vCPU is missing where nothing is said. `memory_strict` gives
    those that it cannot be outside of; none where these nodes are not known. `shares`
    is the guest's weight, which all its vCPUs share, `quota_ppm` the most that each vCPU may run, a
    whole pCPU without a quota. `wish` is the text in which it asks us for something, None where it
    asks for nothing. `booked` is where libvirt last put each vCPU of the running domain, by its own
    books; `origin` what the mark says that a vcpusched wrote into the running domain before it
    pinned vCPUs.
    """

    allowed: Mapping[int, CpuSet] = field(default_factory=dict)
    realtime: frozenset[int] = frozenset()
    memory_nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    memory_strict: Mapping[int, frozenset[int]] = field(default_factory=dict)
    shares: int = SHARES
    quota_ppm: int = PPM
    wish: str | None = None
    booked: Mapping[int, CpuSet] = field(default_factory=dict)
    origin: Mapping[int, Origin] = field(default_factory=dict)
    cpuset: CpuSet = ALL_CPUS
    helper_pins: tuple[CpuSet, ...] = ()
    began: Mapping[int, CpuSet] = field(default_factory=dict)
    is_cpuset_known: bool = True

    def before_us(self, vcpu: int, pin: CpuSet) -> CpuSet:
        """Return where a vCPU was before a pin, if that is ours by the mark; else the pin."""
        origin = self.origin.get(vcpu)
        return origin.original if origin is not None and origin.explains(pin) else pin

    def memory_node(self, vcpu: int) -> int | None:
        """Return the NUMA node of the memory beside a vCPU, if it is one."""
        nodes = self.memory_nodes.get(vcpu, ())
        return next(iter(nodes)) if len(nodes) == 1 else None


@dataclass(frozen=True, slots=True)
class DomainReading:
    """What the hypervisor said about one running domain.

    `at_ns` is the monotonic clock just before it was read. `definition` is empty where that could
    not be read.
    """

    uuid: DomainUuid
    domain_id: int
    name: str
    at_ns: int
    vcpus: tuple[VcpuReading, ...]
    definition: Definition = field(default_factory=Definition)


@dataclass(frozen=True, slots=True)
class Unread:
    """A domain that runs but could not be read, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The whole host as read in one cycle.

    `unread` holds the domains that run but could not be read; `busy` is None where it is not known.
    `isolated` are the pCPUs that the kernel keeps free of what is not pinned there, `tickless`
    those that have no scheduler tick and that it balances, `offline` those that there are and that
    are not online. `by_libvirt` names the domains that were read through libvirt because the kernel
    did not show their vCPU threads, by the reason. Readings say whose affinities are whose where
    the sample `is_reconciled`.
    """

    topology: Topology = field(default_factory=lambda: Topology(()))
    domains: tuple[DomainReading, ...] = ()
    unread: Mapping[DomainUuid, "Unread"] = field(default_factory=dict)
    busy: Busy | None = None
    isolated: CpuSet = NO_CPUS
    tickless: CpuSet = NO_CPUS
    by_libvirt: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    offline: CpuSet = NO_CPUS
    is_reconciled: bool = False

    @property
    def online(self) -> CpuSet:
        """Return the pCPUs that are online."""
        return self.topology.online

    @property
    def present(self) -> CpuSet:
        """Return the pCPUs that there are, online or not."""
        return self.online | self.offline

    @property
    def at_ns(self) -> int:
        """Return when the host was read: its last guest, or without any its pCPUs."""
        idle_ns = self.busy.at_ns if self.busy is not None else 0
        return max((domain.at_ns for domain in self.domains), default=idle_ns)

    def affinity(self, vcpu: VcpuId) -> CpuSet | None:
        """Return the affinity of a vCPU, None where it was not read."""
        for domain in self.domains:
            if domain.uuid == vcpu.uuid:
                return next((one.affinity for one in domain.vcpus if one.vcpu == vcpu.vcpu), None)
        return None
