"""What a cycle without a plan costs on a host in memory, for any commit of the package.

Rule: each side is measured in a process of its own, which runs this file as a program with the
package of its commit on the path, and imports nothing else that is large; no libvirt is asked.

Approach: the simulator's host goes through the service's own cycle, ledger and state file on disk,
    until nothing is left to do. Reading the threads of the guests is timed beside it, on files as
    the kernel has them in /proc and /sys/fs/cgroup: the simulator tells what they would say.
"""

import contextlib
import gc
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from drawn import known, of

CYCLES, SETTLED = 10, 5
"""How many cycles there are, and how many of the last count."""

MEAN_LOAD: Final = 0.5
PER_NODE, PER_CACHE, PER_CORE = 256, 16, 2
QEMU_USER: Final = 107
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

    side: str
    shape: Shape
    threads_ms: float
    cycle_ms: float
    state_ms: float
    memory_mib: float


def run(trees: Mapping[str, Path], shapes: Sequence[Shape] = SHAPES) -> Iterator[CycleCost]:
    """Measure all sides, by name with the folder that holds the package, on all shapes."""
    for shape in shapes:
        for side, tree in trees.items():
            sizes = (shape.guests, shape.vcpus, shape.cpus, int(shape.floating))
            done = subprocess.run(
                [sys.executable, __file__, *map(str, sizes)],
                env={**os.environ, "PYTHONPATH": str(tree)},
                check=True,
                stdout=subprocess.PIPE,
            )
            yield CycleCost(side, shape, **json.loads(done.stdout))


def measure(shape: Shape, directory: Path) -> dict[str, float]:
    """Measure the package on the path: medians of CPU time in ms, and memory in MiB."""
    announcer_of, stream_log = of("announcer", "Announcer"), of("systemd", "StreamLog")
    book_of, file_of = of("ledger_file", "Book"), of("run_directory", "LedgerFile")
    keeper_of, service_of = of("keeper", "Reconciler"), of("messages", "Service")
    settings = of("settings", "Settings")(**({} if shape.floating else {"pin_to": "cpu"}))
    scheduler, simulated = of("cycle", "Scheduler")(), of("simulator", "SimulatedHost")
    with contextlib.suppress(AttributeError):  # earlier commits leave that as Python ships it
        gc.set_threshold(importlib.import_module("vcpusched.service.daemon").GARBAGE_EVERY)
    alone_mib = _resident_mib()
    place = of("simulator", "Place")("floating" if shape.floating else "round-robin")
    host = simulated(_workload(shape), place)
    host.pass_period()
    world_mib = _resident_mib() - alone_mib
    keeper = keeper_of(host, book_of(file_of(directory), "memory"))
    service = service_of(os.getpid(), 0.0, "memory", 3.0, 100_000)
    took_ns: list[tuple[int, int]] = []
    with Path(os.devnull).open("w") as nowhere:
        announcer = announcer_of(stream_log(nowhere), directory, service, settings)
        for _ in range(CYCLES):
            began_ns = time.process_time_ns()
            cycle = scheduler.cycle(keeper, settings.rules())
            cycled_ns = time.process_time_ns()
            announcer.cycled(cycle, 0.0, 0.0)
            took_ns.append((cycled_ns - began_ns, time.process_time_ns() - cycled_ns))
            host.period += 1
            host.pass_period()
    memory_mib = _resident_mib() - world_mib
    if cycle.plan is None or cycle.plan.moves:
        raise SystemExit("there is a plan in the last cycle")
    cycle_ns, state_ns = map(statistics.median, zip(*took_ns[-SETTLED:], strict=True))
    return {
        "threads_ms": _threads_ns(shape, directory) / 1e6,
        "cycle_ms": cycle_ns / 1e6,
        "state_ms": state_ns / 1e6,
        "memory_mib": memory_mib,
    }


def _workload(shape: Shape) -> Any:  # noqa: ANN401  the side's Workload
    load_ppm = int(1e6 * MEAN_LOAD * shape.cpus / (shape.guests * shape.vcpus))
    loads_ppm = ((load_ppm,) * (CYCLES + 1),) * shape.vcpus
    cpus = (
        known(
            of("model", "Cpu"),
            id=cpu,
            node=cpu // PER_NODE,
            core=cpu // PER_CORE,
            cache=cpu // PER_CACHE,
        )
        for cpu in range(shape.cpus)
    )
    guest = of("workload", "Guest")
    return of("workload", "Workload")(
        "cost",
        shape.cpus,
        CYCLES + 1,
        tuple(guest(f"guest{number}", loads_ppm) for number in range(shape.guests)),
        burst_ms=3000,
        topology=of("model", "Topology")(tuple(cpus)),
    )


def _threads_ns(shape: Shape, root: Path) -> float:
    """Return the median CPU time of reading all threads of the guests, once they are known."""
    _lay_out(shape, root)
    keys = [(_uuid(number), number + 1) for number in range(shape.guests)]
    cpus = set(range(shape.cpus))
    threads_of, quotas_of = of("threads", "Threads"), of("cgroups", "Quotas")
    if hasattr(threads_of, "read"):
        threads = threads_of(root, lambda _tid: cpus)
        threads.find({key: [QEMU_USER] for key in keys}, 0)
    else:  # of earlier commits, which read the rest through libvirt
        threads = threads_of(root)
        threads.find(dict.fromkeys(keys, range(shape.vcpus)))
    took_ns = []
    for _ in range(SETTLED):
        began_ns, quotas = time.process_time_ns(), quotas_of(root)
        if hasattr(threads, "read"):
            found = [len(threads.read(key, quotas).vcpus) for key in keys]
        else:
            found = [len(threads.waited(key, range(shape.vcpus), quotas)) for key in keys]
        took_ns.append(time.process_time_ns() - began_ns)
        if set(found) != {shape.vcpus}:
            raise SystemExit("not all threads are read")
    return statistics.median(took_ns)


def _lay_out(shape: Shape, root: Path) -> None:
    """Write what the kernel says of the guests' processes and cgroups where libvirt made them."""
    numbers = itertools.count(1000)
    columns = {20: str(shape.vcpus + 1), 22: "500", 39: "2"}
    stat = " ".join(columns.get(number, "7") for number in range(4, 53))
    for guest in range(shape.guests):
        scope = f"machine.slice/machine-qemu\\x2d{guest + 1}\\x2dguest{guest}.scope/libvirt"
        pid = next(numbers)
        process = root / f"proc/{pid}"
        tasks = {pid: ("qemu", "emulator")}
        tasks |= {next(numbers): (f"CPU {vcpu}/KVM", f"vcpu{vcpu}") for vcpu in range(shape.vcpus)}
        for task, (name, group) in tasks.items():
            _write(root / f"sys/fs/cgroup/{scope}/{group}", {"cpu.max": "max 100000"})
            files = {
                "comm": name,
                "cgroup": f"0::/{scope}/{group}",
                "schedstat": "123456789 23456789 3456",
                "stat": f"{task} ({name}) S {stat}",
            }
            _write(process / f"task/{task}", files)
        command = f"qemu\0-name\0guest=guest{guest}\0-uuid\0{_uuid(guest)}\0"
        _write(
            process,
            {
                "cmdline": command,
                "cgroup": f"0::/{scope}/emulator",
                "stat": f"{pid} (qemu) S {stat}",
                "status": f"Name:\tqemu\nUid:\t{QEMU_USER}\t{QEMU_USER}\t{QEMU_USER}\t{QEMU_USER}",
            },
        )


def _write(directory: Path, files: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def main() -> None:
    """Measure the shape that the command line names."""
    guests, vcpus, cpus, floating = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="vcpusched-cost-", dir=IN_MEMORY) as directory:
        shape = Shape(guests, vcpus, cpus, bool(floating))
        print(json.dumps(measure(shape, Path(directory))))


if __name__ == "__main__":
    main()
