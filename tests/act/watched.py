"""A reconciler whose changes are noted, on a host in memory, and a host that it has balanced."""

from pathlib import Path

from builders import MemoryHost, crowded

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.cycle import Cycle, Rules, Scheduler
from vcpusched.act.ledger import Changed
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.hypervisor import ConnectionLostError
from vcpusched.model import CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import VcpuReading
from vcpusched.service.run_directory import LedgerFile

NAMES = ("g0", "g1", "g2", "g3")


class Watched(Reconciler):
    """A reconciler whose repairs are made when it is looked at, and whose changes are noted.

    Pins of plans are no changes here. While it `rests` nothing is repaired.
    """

    def __init__(self, host: MemoryHost, book: Book, changes: list[Changed]) -> None:
        super().__init__(host, book)
        self.rests = False
        self._noted = changes
        self._repairing = Scheduler()

    def note(self, event: Event) -> None:
        """Note what others changed, and what was repaired for it."""
        if isinstance(event, Changed) and event.move.cause not in {Cause.BALANCE, Cause.RESTORED}:
            self._noted.append(event)

    def look(self) -> None:
        """Run a cycle that plans nothing, since no imbalance is ever confirmed."""
        rules = Rules(confirm=1_000_000, paused=self.rests)
        cycle = self._repairing.cycle(self, rules, on_event=self.note)
        if cycle.lost is not None:
            raise ConnectionLostError(cycle.lost)

    def put(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Pin a vCPU as the move of a plan."""
        self.intend([Move(vcpu, vcpu.uuid, CpuSet(), cpus, 0, "")])
        self.pin(vcpu, cpus)


def keeper(host: MemoryHost, directory: Path, changes: list[Changed] | None = None) -> Watched:
    """Give a reconciler as a process that starts has it."""
    return Watched(host, Book(LedgerFile(directory)), changes if changes is not None else [])


def run(kept: Reconciler, host: MemoryHost, scheduler: Scheduler, cycles: int = 1) -> Cycle:
    """Run cycles a second apart; gives the last."""
    for _ in range(cycles):
        if isinstance(kept, Watched):
            cycle = scheduler.cycle(kept, Rules(), on_event=kept.note)
        else:
            cycle = scheduler.cycle(kept, Rules())
        host.pass_time()
    return cycle


def reading(kept: Watched, host: MemoryHost, name: str) -> VcpuReading:
    """Give what is said of a guest after another period, and after what is then repaired."""
    host.pass_time()
    kept.look()
    (domain,) = (found for found in kept.sample().domains if found.name == name)
    return domain.vcpus[0]


def why(event: Event) -> str:
    """Say why an affinity was not restored; nothing where it was."""
    return event.why if isinstance(event, Failure) else ""


def vcpu(host: MemoryHost, name: str) -> VcpuId:
    """Give the id of a guest's vCPU."""
    return VcpuId(DomainUuid(name), host.domain_ids[name], 0)


def balanced(directory: Path) -> tuple[MemoryHost, Watched, Scheduler, str, list[Changed]]:
    """Give a host after two pins, one guest that was pinned, and the changes reported later."""
    host = crowded()
    changes: list[Changed] = []
    kept, scheduler = keeper(host, directory, changes), Scheduler()
    run(kept, host, scheduler, 4)
    assert len(host.pins) == 2
    return host, kept, scheduler, host.pins[0][0], changes
