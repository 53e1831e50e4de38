"""A host in memory on which the production `Scheduler` runs unchanged, and what came of it.

Rule: nothing here decides about pins. The scheduler sees no more than on a real host, and what is
measured goes by what guests really wanted, which no scheduler knows.

Problem: whether a change of the planner is worth it shows only over thousands of periods, on loads
    that can be repeated exactly.
Approach: an `Account` whose guests take their loads from a `Workload`, one scheduler cycle at
    each end of a period; the time in between passes in a `Machine`.
Terms: what a vCPU wants of a period is work, in time of the strongest pCPU when its siblings idle,
    and comes in bursts of random length at random moments; their sum is exact. What is not done
    when the period ends is its unmet demand, and is dropped: it would be wanted no more. The load
    of a pCPU in a period is the time for which it was busy, plus the unmet demand of the vCPUs
    bound to it; the gap is that of the most less that of the least loaded one.
Properties: the bursts depend on the workload only, so runs with different schedulers are
    comparable; equal arguments give equal results, whatever the hash seed.
"""

import dataclasses
import enum
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from vcpusched.act.actuator import Event
from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.host.hypervisor import (
    BusyError,
    CpuRefusedError,
    HypervisorError,
    VanishedError,
)
from vcpusched.model import PPM, CpuSet, DomainUuid, Granularity, Topology, VcpuId, sets
from vcpusched.report.simulation import PeriodResult, PinChange, Result, VcpuResult
from vcpusched.sample import Busy, Definition, DomainReading, Origin, Sample, VcpuReading, Waited
from vcpusched.simulate.machine import Machine, VcpuThread
from vcpusched.simulate.workload import Guest, PinAnswer, Workload, bursts

PERIOD_NS: Final = 3_000_000_000
TICK_NS: Final = 10_000_000
"""CPU time is read in steps of this: the kernel brings that of a running thread up to date at its
ticks."""

BACK_PERIODS: Final = 5
"""A vCPU that returns within so many periods was moved for nothing."""


class Place(enum.StrEnum):
    """Where vCPUs start if their guest has no pin."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    ONE = "one"
    FLOATING = "floating"


class SimulatedHost:
    """An `Account` in memory: guests as a workload has them. Time passes only in `pass_period`.

    `place` says where vCPUs start if their guest has no pin. pCPUs do what the workload's topology
    says: by their capacities, and busy siblings together 1.25 times the work of one. `topology` is
    what the machine reports where that differs, as in a virtual one.
    """

    def __init__(
        self,
        workload: Workload,
        place: Place = Place.RANDOM,
        period_ns: int = PERIOD_NS,
        topology: Topology | None = None,
    ) -> None:
        self.workload = workload
        self.period = 0
        self.pins: list[PinChange] = []
        self.refused = 0
        self._online = CpuSet.of(range(workload.cpu_count))
        real = workload.machine()
        self._topology = topology or real
        self._period_ns = period_ns
        self._machine = Machine(
            workload.cpu_count,
            cores=sets(real.cpus, Granularity.CORE),
            capacities_ppm=[cpu.capacity_ppm for cpu in real.cpus],
        )
        self._starts = list(_starts(workload, place, self._online))
        self._definitions = [guest.definition() for guest in workload.guests]
        self._domain_ids: dict[int, int] = {}
        self._next_domain_id = itertools.count(1)
        self._threads: dict[tuple[int, int], VcpuThread] = {}
        """By the numbers of guest and vCPU, as `_chance` and `_totals`."""
        self._chance = {
            (number, vcpu): random.Random(f"{workload.seed}/bursts/{guest.name}/{vcpu}")  # noqa: S311  chance that can be repeated
            for number, guest in enumerate(workload.guests)
            for vcpu in range(len(guest.loads_ppm))
        }
        self._totals = {key: Counter[str]() for key in self._chance}

    def sample(self) -> Sample:
        """Read the host."""
        return Sample(
            topology=self._topology,
            domains=tuple(self._read(number) for number in sorted(self._domain_ids)),
            busy=Busy(self._machine.now_ns, dict(enumerate(self._machine.used_ns()))),
        )

    def definition(self, uuid: DomainUuid) -> Definition:
        """Return the definition of a guest. Raises VanishedError when it is not running."""
        return self._definitions[self._number(uuid)]

    def affinity(self, vcpu: VcpuId) -> CpuSet:
        """Return a vCPU's affinity. Raises VanishedError when it is not running."""
        return CpuSet(self._threads[self._number(vcpu.uuid, vcpu.vcpu), vcpu.vcpu].affinity)

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Set a vCPU's affinity, from the next period on.

        Raises VanishedError when its domain has ended or was restarted, what the guest answers
        by its description, CpuRefusedError for pCPUs outside its cpuset, and HypervisorError for
        pCPUs that the host does not have.
        """
        number = self._number(vcpu.uuid, vcpu.vcpu, vcpu.domain_id)
        guest = self.workload.guests[number]
        if guest.refuses is not None:
            self.refused += 1
            if guest.refuses is PinAnswer.BUSY:
                raise BusyError("the domain is busy with something else")
            raise HypervisorError("the pin was refused")
        if not cpus or not cpus.is_within(self._online):
            raise HypervisorError(f"there are no pCPUs {cpus}")
        if not cpus & guest.cpuset:
            self.refused += 1
            raise CpuRefusedError(f"no pCPU of {cpus} is in the cpuset {guest.cpuset}")
        cpus &= guest.cpuset
        thread = self._threads[number, vcpu.vcpu]
        self.pins.append(
            PinChange(
                period=self.period,
                domain=guest.name,
                vcpu=vcpu.vcpu,
                from_cpus=CpuSet(thread.affinity),
                to_cpus=cpus,
                back=self._is_back(guest.name, vcpu.vcpu, cpus),
            )
        )
        thread.affinity = cpus.bits

    def settle(self, _on_event: Callable[[Event], None], *, rests: bool) -> None:
        """Write nothing down, because a simulated host is never restored."""

    def intend(self, _moves: Sequence[object]) -> None:
        """Write nothing down."""

    def mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        """Mark a guest until it ends. Raises VanishedError when it has, or was restarted."""
        number = self._number(uuid, domain_id=domain_id)
        known = self._definitions[number]
        self._definitions[number] = dataclasses.replace(known, origin=dict(origin))

    def pass_period(self) -> PeriodResult:
        """Let guests end and start, then all of them run for one period.

        Nothing is planned in the result: pins are made after it, and belong to `period`.
        """
        self._end_and_start()
        used_before_ns = self._machine.used_ns()
        before = [(thread.run_ns, thread.wait_ns) for thread in self._threads.values()]
        wanted = [self._wanted_ns(guest, vcpu) for guest, vcpu in self._threads]
        arrivals = sorted(self._bursts(wanted), key=lambda burst: (burst[0], burst[2].index))
        self._machine.run(self._machine.now_ns + self._period_ns, arrivals)
        loads_ns = [
            after - earlier
            for earlier, after in zip(used_before_ns, self._machine.used_ns(), strict=True)
        ]
        sums = Counter[str]()
        for (key, thread), (run_ns, wait_ns), wanted_ns in zip(
            self._threads.items(), before, wanted, strict=True
        ):
            unmet_ns, thread.left_ns = thread.left_ns, 0
            if not thread.floats:
                loads_ns[thread.affinity.bit_length() - 1] += unmet_ns
            for totals in (sums, self._totals[key]):
                totals["demanded_ns"] += wanted_ns
                totals["run_ns"] += thread.run_ns - run_ns
                totals["wait_ns"] += thread.wait_ns - wait_ns
                totals["unmet_ns"] += unmet_ns
        return PeriodResult(
            gap_ppm=(max(loads_ns) - min(loads_ns)) * PPM // self._period_ns,
            planned=False,
            **sums,
        )

    def vcpu_results(self) -> tuple[VcpuResult, ...]:
        """Return what each vCPU wanted and got so far."""
        return tuple(
            VcpuResult(self.workload.guests[guest].name, vcpu, **totals)
            for (guest, vcpu), totals in self._totals.items()
        )

    def _end_and_start(self) -> None:
        for number, guest in enumerate(self.workload.guests):
            if self.period == guest.end or self.period in guest.restarts:
                del self._domain_ids[number]
                for vcpu in range(len(guest.loads_ppm)):
                    del self._threads[number, vcpu]
            if self.period == guest.start or self.period in guest.restarts:
                self._start(number, guest)

    def _start(self, number: int, guest: Guest) -> None:
        self._domain_ids[number] = next(self._next_domain_id)
        self._definitions[number] = dataclasses.replace(self._definitions[number], origin={})
        for vcpu, affinity in enumerate(self._starts[number]):
            first = next(iter(affinity))
            thread = VcpuThread(number * 1024 + vcpu, guest.shares, affinity.bits, first)
            self._threads[number, vcpu] = thread

    def _wanted_ns(self, number: int, vcpu: int) -> int:
        guest = self.workload.guests[number]
        return guest.loads_ppm[vcpu][self.period - guest.start] * self._period_ns // PPM

    def _bursts(self, wanted: Sequence[int]) -> Iterator[tuple[int, int, VcpuThread]]:
        mean_ns = self.workload.burst_ms * 1_000_000
        for (key, thread), wanted_ns in zip(self._threads.items(), wanted, strict=True):
            for at_ns, work_ns in bursts(self._chance[key], wanted_ns, self._period_ns, mean_ns):
                yield self._machine.now_ns + at_ns, work_ns, thread

    def _read(self, number: int) -> DomainReading:
        guest = self.workload.guests[number]
        threads = (self._threads[number, vcpu] for vcpu in range(len(guest.loads_ppm)))
        readings = (
            VcpuReading(
                vcpu=vcpu,
                run_ns=thread.run_ns - thread.run_ns % TICK_NS,
                affinity=CpuSet(thread.affinity),
                on=thread.on,
                waited=Waited(thread.wait_ns),
            )
            for vcpu, thread in enumerate(threads)
        )
        return DomainReading(
            uuid=DomainUuid(f"00000000-0000-4000-8000-{number:012x}"),
            domain_id=self._domain_ids[number],
            name=guest.name,
            at_ns=self._machine.now_ns,
            vcpus=tuple(readings),
            definition=self._definitions[number],
        )

    def _number(self, uuid: DomainUuid, vcpu: int = 0, domain_id: int | None = None) -> int:
        """Return the number of the running guest with this vCPU, and with this ID if given."""
        number = int(uuid.rpartition("-")[2], 16)
        running = self._domain_ids.get(number)
        if (number, vcpu) not in self._threads or domain_id not in {None, running}:
            raise VanishedError("the domain is not running any more")
        return number

    def _is_back(self, domain: str, vcpu: int, cpus: CpuSet) -> bool:
        first = self.period - BACK_PERIODS
        recent = itertools.takewhile(lambda pin: pin.period >= first, reversed(self.pins))
        return any((pin.domain, pin.vcpu, pin.from_cpus) == (domain, vcpu, cpus) for pin in recent)


def simulate(  # noqa: PLR0913  each is a choice of its own
    workload: Workload,
    scheduler: Scheduler | None,
    rules: Rules | None = None,
    *,
    place: Place = Place.RANDOM,
    period_ns: int = PERIOD_NS,
    topology: Topology | None = None,
    on_period: Callable[[], object] = lambda: None,
) -> Result:
    """Run a workload to its end, with one cycle of the scheduler after each period.

    Without a scheduler everything stays as `place` and the guests' own pins have it. `on_period`
    is called after each period.
    """
    host = SimulatedHost(workload, place, period_ns, topology)
    periods = []
    for _ in range(workload.periods):
        passed = host.pass_period()
        cycle = scheduler.cycle(host, rules or Rules()) if scheduler is not None else None
        planned = cycle is not None and cycle.executed and not cycle.dry_run
        periods.append(dataclasses.replace(passed, planned=planned))
        on_period()
        host.period += 1
    return Result(tuple(periods), host.vcpu_results(), tuple(host.pins), host.refused)


def _starts(workload: Workload, place: Place, online: CpuSet) -> Iterator[tuple[CpuSet, ...]]:
    turn = 0
    for guest in workload.guests:
        allowed = guest.allowed & guest.cpuset & online
        cpus = tuple(allowed)
        chance = random.Random(f"{workload.seed}/place/{guest.name}")  # noqa: S311  repeatable
        chosen = []
        for _ in guest.loads_ppm:
            if guest.pin is not None or place is Place.FLOATING:
                chosen.append(guest.pin or allowed)
            elif place is Place.ONE:
                chosen.append(CpuSet.of(cpus[:1]))
            elif place is Place.ROUND_ROBIN:
                chosen.append(CpuSet.of([cpus[turn % len(cpus)]]))
            else:
                chosen.append(CpuSet.of([chance.choice(cpus)]))
            turn += 1
        yield tuple(chosen)
