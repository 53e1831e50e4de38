"""What a cycle without a plan costs on a host in memory.

Rule: each shape is measured in a process of its own, which imports nothing else that is large; no
libvirt is asked.

Approach: the simulator's host goes through the service's own cycle, ledger and state file on disk,
    until nothing is left to do. Reading the threads of the guests is timed beside it, on files as
    the kernel has them in /proc and /sys/fs/cgroup: the simulator says what they would hold.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from lab_processes import resident_mib
from proc_files import QEMU_USER, ProcFiles
from tables import Table

from vcpusched.act.cycle import Scheduler
from vcpusched.act.ledger_file import Book
from vcpusched.act.reconciler import Reconciler
from vcpusched.host.threads import Threads, affinity_of
from vcpusched.model import Cpu, CpuSet, DomainUuid, Topology
from vcpusched.report.messages import Service
from vcpusched.service.daemon import GARBAGE_EVERY
from vcpusched.service.reporter import Reporter
from vcpusched.service.run_directory import LedgerFile
from vcpusched.service.state import State, after
from vcpusched.service.systemd import line_log
from vcpusched.service.worker import Cycled
from vcpusched.settings import Settings
from vcpusched.simulate.simulator import Place, SimulatedHost
from vcpusched.simulate.workload import Guest, Workload

CYCLES, SETTLED = 10, 5
"""How many cycles there are, and how many of the last count."""

MEAN_LOAD_PPM: Final = 500_000
PER_NODE, PER_CACHE, PER_CORE = 256, 16, 2
IN_MEMORY: Final = "/dev/shm"  # noqa: S108  where files are memory


@dataclass(frozen=True, slots=True)
class Shape:
    """A host: guests of so many vCPUs on pCPUs, each bound to one of them, or floating."""

    guests: int
    vcpus: int
    cpus: int
    floating: bool = False


SHAPES: Final = (Shape(500, 2, 64), Shape(1000, 8, 512), Shape(1000, 8, 512, floating=True))


@dataclass(frozen=True, slots=True)
class CycleCost:
    """CPU time of one cycle, and resident memory without what the simulator takes."""

    shape: Shape
    threads_ms: float
    cycle_ms: float
    state_ms: float
    memory_mib: float


def run(shapes: Sequence[Shape] = SHAPES) -> Iterator[CycleCost]:
    """Measure all shapes."""
    for shape in shapes:
        sizes = (shape.guests, shape.vcpus, shape.cpus, int(shape.floating))
        command = [sys.executable, "-m", "live.cycle_cost", *map(str, sizes)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        yield CycleCost(shape, **json.loads(done.stdout))


def table(costs: Sequence[CycleCost]) -> Table:
    """Return what cycles in memory cost, a row for each shape."""
    rows = []
    for cost in costs:
        shape, all_ms = cost.shape, cost.threads_ms + cost.cycle_ms + cost.state_ms
        times_ms = (cost.threads_ms, cost.cycle_ms, cost.state_ms, all_ms)
        rows.append(
            (
                f"{shape.guests:,} x {shape.vcpus} on {shape.cpus}",
                "floating" if shape.floating else "bound",
                *(f"{ms:.1f}" for ms in times_ms),
                f"{cost.memory_mib:.0f}",
            )
        )
    note = (
        f"CPU time in ms, medians of the last {SETTLED} of {CYCLES} cycles, when there is nothing"
        " left to do. Threads: reading what the kernel says of them, from files in memory. Cycle:"
        " what the simulator says, compared with the ledger, observed and planned. State file: made"
        " and written, in memory. Memory is resident, in MiB, without what the simulator takes and"
        " without libvirt's library."
    )
    columns = ("guests", "vCPUs", "threads", "cycle", "state file", "all", "memory")
    return Table("What a cycle without a plan costs, in memory", columns, tuple(rows), (note,))


def measure(shape: Shape, directory: Path) -> dict[str, float]:
    """Return medians of CPU time in ms, and memory in MiB."""
    settings = Settings.model_validate({} if shape.floating else {"pin_to": "cpu"})
    scheduler = Scheduler()
    gc.set_threshold(GARBAGE_EVERY)
    alone_mib = resident_mib(os.getpid())
    host = SimulatedHost(_workload(shape), Place.FLOATING if shape.floating else Place.ROUND_ROBIN)
    host.pass_period()
    simulator_mib = resident_mib(os.getpid()) - alone_mib
    reconciler = Reconciler(host, Book(LedgerFile(directory), "memory"))
    state = State(Service(os.getpid(), 0.0, settings))
    took_ns: list[tuple[int, int]] = []
    with Path(os.devnull).open("w") as nowhere:
        reporter = Reporter(partial(line_log, nowhere), directory, settings)
        for _ in range(CYCLES):
            began_ns = time.process_time_ns()
            cycled = Cycled(scheduler.cycle(reconciler, settings.rules()))
            cycled_ns = time.process_time_ns()
            before, state = state, after(state, cycled, 0.0, 0.0)
            reporter.report(before, cycled, state)
            took_ns.append((cycled_ns - began_ns, time.process_time_ns() - cycled_ns))
            host.period += 1
            host.pass_period()
    memory_mib = resident_mib(os.getpid()) - simulator_mib
    plan = cycled.cycle.plan
    if plan is None or plan.moves:
        raise SystemExit("there is a plan in the last cycle")
    cycle_ns, state_ns = map(statistics.median, zip(*took_ns[-SETTLED:], strict=True))
    return {
        "threads_ms": _threads_ns(shape, directory) / 1e6,
        "cycle_ms": cycle_ns / 1e6,
        "state_ms": state_ns / 1e6,
        "memory_mib": memory_mib,
    }


def _workload(shape: Shape) -> Workload:
    load_ppm = MEAN_LOAD_PPM * shape.cpus // (shape.guests * shape.vcpus)
    loads_ppm = ((load_ppm,) * (CYCLES + 1),) * shape.vcpus
    cpus = (
        Cpu(cpu, node=cpu // PER_NODE, core=cpu // PER_CORE, cache=cpu // PER_CACHE)
        for cpu in range(shape.cpus)
    )
    guests = tuple(Guest(f"guest{number}", loads_ppm) for number in range(shape.guests))
    topology = Topology(tuple(cpus))
    return Workload("cost", shape.cpus, CYCLES + 1, guests, burst_ms=3000, topology=topology)


def _threads_ns(shape: Shape, root: Path) -> float:
    """Return the median CPU time of reading all threads once they are known, if all have run."""
    _lay_out(shape, root)
    keys = [(DomainUuid(_uuid(number)), number + 1) for number in range(shape.guests)]
    cpus = CpuSet.of(range(shape.cpus))
    # The kernel is asked for one that is there, so that this is paid for, too.
    threads = Threads(root, lambda _tid: affinity_of(0) and cpus)
    threads.find({key: [QEMU_USER] for key in keys}, 0)
    took_ns = []
    counters = list(root.glob("proc/*/task/*/schedstat"))
    for number in range(SETTLED):
        for path in counters:
            path.write_text(f"{500 + number} 1000 3\n")
        began_ns = time.process_time_ns()
        sweeps = [threads.read(key) for key in keys]
        took_ns.append(time.process_time_ns() - began_ns)
        if any(sweep is None or len(sweep.vcpus) != shape.vcpus for sweep in sweeps):
            raise SystemExit("not all threads are read")
    return statistics.median(took_ns)


def _lay_out(shape: Shape, root: Path) -> None:
    """Write what the kernel says of the guests' processes and cgroups where libvirt made them."""
    files = ProcFiles(root, {})
    for guest in range(shape.guests):
        scope = f"machine.slice/machine-qemu\\x2d{guest + 1}\\x2dguest{guest}.scope/libvirt"
        pid = 1000 + guest * (shape.vcpus + 1)
        files.process(pid, _uuid(guest), {}, groups=f"0::/{scope}/emulator\n")
        for vcpu in range(shape.vcpus):
            group = root / f"sys/fs/cgroup/{scope}/vcpu{vcpu}"
            group.mkdir(parents=True)
            (group / "cpu.max").write_text("max 100000\n")
            groups = f"0::/{scope}/vcpu{vcpu}\n"
            files.thread(pid, pid + 1 + vcpu, f"CPU {vcpu}/KVM", groups=groups)


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def main() -> None:
    """Measure the shape that the command line names."""
    guests, vcpus, cpus, floating = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="vcpusched-cost-", dir=IN_MEMORY) as directory:
        shape = Shape(guests, vcpus, cpus, bool(floating))
        print(json.dumps(measure(shape, Path(directory))))


if __name__ == "__main__":
    main()
