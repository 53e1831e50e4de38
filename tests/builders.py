"""Hosts as values, and a host in memory, for tests that need no libvirt."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from vcpusched.act.actuator import Event
from vcpusched.act.cycle import Cycle, Rules, Scheduler
from vcpusched.host.hypervisor import CpuRefusedError, HypervisorError, VanishedError
from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Host,
    HostCpu,
    Topology,
    Vcpu,
    VcpuId,
)
from vcpusched.plan.planner import Move, Plan
from vcpusched.sample import (
    Busy,
    Definition,
    DomainReading,
    Origin,
    Sample,
    Unread,
    VcpuReading,
    Waited,
)

SECOND_NS = 1_000_000_000


def host(*cpus: Sequence[int], floating: bool = False, allowed: str | None = None) -> Host:
    """Draw a host: for each pCPU the percent of each vCPU on it, every vCPU a guest of its own.

    Guests are named g0, g1, … in the order they are written.
    """
    online = CpuSet.of(range(len(cpus)))
    may = CpuSet.parse(allowed) if allowed is not None else online
    vcpus: list[Vcpu] = []
    for cpu, loads in enumerate(cpus):
        for load in loads:
            name = f"g{len(vcpus)}"
            vcpus.append(
                Vcpu(
                    id=VcpuId(DomainUuid(f"{len(vcpus):04}"), 1, 0),
                    domain=name,
                    load_ppm=load * PPM_PER_POINT,
                    cpus=may if floating else CpuSet.of([cpu]),
                    allowed=may,
                    on=cpu,
                )
            )
    return Host(tuple(HostCpu(Cpu(cpu)) for cpu in online), tuple(vcpus))


def of_caches(drawn: Host, count: int) -> Host:
    """Let as many pCPUs in a row share each of `count` caches."""
    each = len(drawn.cpus) // count
    cpus = (HostCpu(Cpu(cpu.id, cache=cpu.id // each)) for cpu in drawn.cpus)
    return dataclasses.replace(drawn, cpus=tuple(cpus))


def of_one_guest(drawn: Host, *names: str) -> Host:
    """Make the named guests' vCPUs the vCPUs 0, 1, … of one guest."""
    number = {name: index for index, name in enumerate(names)}
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(
                vcpu, id=VcpuId(DomainUuid("0000"), 1, number[vcpu.domain]), domain=names[0]
            )
            if vcpu.domain in number
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )


def change(drawn: Host, *names: str, **changes: object) -> Host:
    """Change all vCPUs of the named guests."""
    vcpus = (
        dataclasses.replace(vcpu, **changes) if vcpu.domain in names else vcpu  # type: ignore[arg-type]
        for vcpu in drawn.vcpus
    )
    return dataclasses.replace(drawn, vcpus=tuple(vcpus))


def after(drawn: Host, plan: Plan) -> Host:
    """Give the host as it is once the plan is carried out, its loads unchanged."""
    to_cpus = {move.vcpu: move.to_cpus for move in plan.moves}
    return dataclasses.replace(
        drawn,
        vcpus=tuple(
            dataclasses.replace(
                vcpu, cpus=to_cpus[vcpu.id], on=next(iter(to_cpus[vcpu.id])), fixed=False
            )
            if vcpu.id in to_cpus
            else vcpu
            for vcpu in drawn.vcpus
        ),
    )


GRAINS = (
    (10 * PPM_PER_POINT, 7),
    (5 * PPM_PER_POINT, 9),
    (PPM_PER_POINT, 60),
    (1, 400_000),
    (1, 900_000),
)
"""Loads to draw from: the unit, and the most of it; coarse ones have many ties, fine ones none."""


def random_host(
    seed: int, cpus: int | None = None, vcpus: int | None = None, *, floating: bool = True
) -> Host:
    """Give a host from a seed, with everything a host may have.

    Floaters (where `floating`), fixed vCPUs, narrow masks, guests of several vCPUs, loads of 0,
    host load, an unsettled pCPU, gaps between pCPU numbers, vCPUs on a pCPU that is not managed.
    Some are crowded on few pCPUs; every 50th is large, if the size is left to the seed.
    """
    chance = random.Random(seed)
    sizes = [1, 2, 2, 3, 3, 4, 4, 5, 6, 8] if seed % 50 else [12, 16, 24]
    count = chance.choice(sizes) if cpus is None else cpus
    each = chance.choice([2, 4, 5])
    total = chance.randint(0, each * count) if vcpus is None else vcpus
    numbers = list(range(count))
    if chance.random() < 0.2:
        numbers = sorted(chance.sample(range(3 * count), count))
    homes = chance.sample(numbers, chance.randint(1, count))
    unit, most = chance.choice(GRAINS)
    masked, fixed = chance.choice([0, 0, 0.3, 1]), chance.choice([0, 0.1])
    loose = chance.choice([0, 0, 0, 0.3, 1]) if floating else 0
    per_guest = chance.choice([1, 1, 2, 4])
    host_load_ppm_max = chance.choice([0, 0, 30 * PPM_PER_POINT])
    drawn = []
    for index in range(total):
        narrow = chance.random() < masked
        allowed = CpuSet.of(chance.sample(numbers, chance.randint(1, count)) if narrow else numbers)
        on = numbers[-1] + 1 if chance.random() < 0.01 else chance.choice(homes)
        floats = chance.random() < loose
        guest = index // per_guest
        drawn.append(
            Vcpu(
                id=VcpuId(DomainUuid(f"{guest:04}"), 1, index % per_guest),
                domain=f"g{guest}",
                load_ppm=unit * chance.randint(0, most),
                cpus=allowed if floats else CpuSet.of([on]),
                allowed=allowed,
                on=on if on in allowed or not floats else None,
                fixed=chance.random() < fixed,
            )
        )
    unsettled = CpuSet.of([chance.choice(numbers)]) if chance.random() < 0.1 else CpuSet()
    return Host(
        tuple(HostCpu(Cpu(cpu), chance.randint(0, host_load_ppm_max)) for cpu in numbers),
        tuple(drawn),
        unsettled,
    )


class MemoryHost:
    """A hypervisor in memory: guests of one vCPU that use what they want; time is passed to it.

    `wants` gives the usage of each guest, `cpus` its affinity, `definitions` its definition, and
    `host_wants` what each pCPU runs besides, with guests that are bound, and `isolated` the pCPUs
    that the kernel keeps free. `on_pin` is called before a pin and may raise what libvirt would,
    as may `on_mark` and `on_read` before a mark and before an affinity is read. The kernel takes
    only affinities that have a pCPU of `cpuset`, which definitions need not say; unless it
    `takes_offline` pCPUs a pin may name none, nor one outside of `cpuset`, as with version 1 of
    cgroups. `waits` gives for
    which share of the time guests wait; how long the others waited is not known.
    """

    def __init__(
        self,
        cpu_count: int,
        wants: Mapping[str, float],
        cpus: Mapping[str, str],
        on_pin: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.online = self.present = CpuSet.of(range(cpu_count))
        self.nodes: Mapping[int, int] = {}
        self.takes_offline = True
        self.wants = dict(wants)
        self.cpus = {name: CpuSet.parse(text) for name, text in cpus.items()}
        self.definitions = dict.fromkeys(wants, Definition({0: ALL_CPUS}))
        self.domain_ids = {name: number for number, name in enumerate(wants, 1)}
        self.run_ns = dict.fromkeys(wants, 0)
        self.waits: dict[str, float] = {}
        self.wait_ns = dict.fromkeys(wants, 0)
        self.host_wants: dict[int, float] = {}
        self.isolated = NO_CPUS
        self.cpuset = ALL_CPUS
        self.busy_ns = dict.fromkeys(range(cpu_count), 0)
        self.now_ns = SECOND_NS
        self.pins: list[tuple[str, str]] = []
        self.sample_error: HypervisorError | None = None
        self.unread: set[str] = set()
        self.definitions_read = 0
        self._on_pin = on_pin
        self.on_mark: Callable[[str], None] = lambda _name: None
        self.on_read: Callable[[str], None] = lambda _name: None

    def pass_time(self, seconds: float = 1.0) -> None:
        """Let every guest run for a while."""
        self.now_ns += round(seconds * SECOND_NS)
        for name, want in self.wants.items():
            self.run_ns[name] += round(want * seconds * SECOND_NS)
            self.busy_ns[next(iter(self.cpus[name]))] += round(want * seconds * SECOND_NS)
        for name, share in self.waits.items():
            self.wait_ns[name] += round(share * seconds * SECOND_NS)
        for cpu, want in self.host_wants.items():
            self.busy_ns[cpu] += round(want * seconds * SECOND_NS)

    def add(self, name: str, want: float, cpus: str) -> None:
        """Start another guest."""
        self.wants[name], self.cpus[name] = want, CpuSet.parse(cpus)
        self.definitions[name], self.run_ns[name] = Definition({0: ALL_CPUS}), 0
        self.domain_ids[name] = max(self.domain_ids.values()) + 1

    def restart(self, name: str) -> None:
        """Start a guest anew under its old name and UUID; its counter begins at 0."""
        self.domain_ids[name] = max(self.domain_ids.values()) + 1
        self.run_ns[name] = 0
        known = self.definitions[name]  # live metadata and live pins end with the run
        self.definitions[name] = dataclasses.replace(known, origin={}, booked={})

    def sample(self) -> Sample:
        """Read the host."""
        if self.sample_error is not None:
            raise self.sample_error
        return Sample(
            topology=Topology(tuple(Cpu(cpu, self.nodes.get(cpu)) for cpu in self.online)),
            domains=tuple(self._read(name) for name in self.wants if name not in self.unread),
            unread={DomainUuid(name): Unread(name, "does not answer") for name in self.unread},
            busy=Busy(self.now_ns, dict(self.busy_ns)) if self.host_wants else None,
            isolated=self.isolated,
            offline=self.present - self.online,
        )

    def definition(self, uuid: DomainUuid) -> Definition:
        """Give a guest's definition."""
        self.definitions_read += 1
        if uuid not in self.wants:
            raise VanishedError("the domain is not running any more")
        return self.definitions[uuid]

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Give what a guest may use."""
        self.on_read(vcpu.uuid)
        if vcpu.uuid not in self.wants:
            raise VanishedError("the domain is not running any more")
        return self.cpus[vcpu.uuid]

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Pin a guest."""
        self._on_pin(vcpu.uuid)
        if not cpus & self.cpuset:
            raise CpuRefusedError("Invalid argument")
        reach = self.online & self.cpuset
        if not (cpus & reach if self.takes_offline else cpus.is_within(reach)):
            raise HypervisorError(f"no pCPU of {cpus} can be used")
        self.pins.append((vcpu.uuid, str(cpus)))
        self.cpus[vcpu.uuid] = cpus & self.online
        known = self.definitions[vcpu.uuid]
        self.definitions[vcpu.uuid] = dataclasses.replace(known, booked={vcpu.vcpu: cpus})

    def settle(self, _on_event: Callable[[Event], None], *, rests: bool) -> None:
        """Write nothing down: a test that wants that puts a reconciler before it."""

    def intend(self, moves: Sequence[Move]) -> None:
        """Write nothing down."""

    def mark(self, uuid: DomainUuid, _domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Mark a guest."""
        self.on_mark(uuid)
        self.definitions[uuid] = dataclasses.replace(self.definitions[uuid], origin=dict(origin))

    def _read(self, name: str) -> DomainReading:
        cpus = self.cpus[name]
        waited = Waited(self.wait_ns[name]) if name in self.waits else None
        return DomainReading(
            uuid=DomainUuid(name),
            domain_id=self.domain_ids[name],
            name=name,
            at_ns=self.now_ns,
            vcpus=(VcpuReading(0, self.run_ns[name], cpus, next(iter(cpus)), waited),),
            definition=self.definitions[name],
        )


def crowded(on_pin: Callable[[str], None] = lambda _name: None) -> MemoryHost:
    """Give a host of two pCPUs with four guests of 25 % on pCPU 0."""
    names = [f"g{index}" for index in range(4)]
    return MemoryHost(2, dict.fromkeys(names, 0.25), dict.fromkeys(names, "0"), on_pin)


def run(scheduler: Scheduler, host: MemoryHost, cycles: int, rules: Rules | None = None) -> Cycle:
    """Run cycles a second apart; gives the last."""
    for _ in range(cycles):
        cycle = scheduler.cycle(host, rules or Rules())
        host.pass_time()
    return cycle
