"""What the daemon costs beside a small C program that asks libvirt: CPU time per cycle, and memory.

Rule: readings of the kernel and their means; guests that halt, so that they take no time.

Approach: the C program (`libvirt_reader.c`), the daemon of a commit and the daemon of this tree
    run one after the other on the same guests, round after round, every second round from the last
    to the first, so that what else the machine does hits all alike.
"""

import contextlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import Lab
from lab_processes import cpu_s, resident_mib
from live.blocks import Timing
from live.scenarios import SETTINGS
from live.service import LiveError, running
from ratios import ratio_of_pairs
from service import wait_for
from tables import Table

from vcpusched.report.confidence import CONFIDENCE, mean_of

SIZES: Final = ((10, 2), (40, 2), (100, 4))
"""How many guests, of how many vCPUs each."""

PERIOD_S: Final = 0.5
READER: Final = "C program"
SOURCE: Final = Path(__file__).with_name("libvirt_reader.c")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of one side cost, per cycle, of which there were `cycles`.

    Memory, and the time until it was ready, are only known of the daemon.
    """

    side: str
    guests: int
    vcpus: int
    cycles: int
    own_ms: float
    libvirtd_ms: float
    memory_mib: float | None = None
    ready_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Process:
    """A side that runs."""

    pid: int
    cycle: Callable[[], int]
    ready_s: float | None = None


Side = Callable[[Lab], AbstractContextManager[_Process]]


@contextlib.contextmanager
def sides(tree: Path | None, commit: str) -> Iterator[Mapping[str, Side]]:
    """Return all sides by name, in their order; `tree` holds the package of the commit, if any."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-live-") as directory:
        program = Path(directory, "libvirt_reader")
        _build(program)
        found: dict[str, Side] = {READER: lambda lab: _reader(lab, program)}
        if tree is not None:
            found[commit] = lambda lab: _daemon(lab, tree)
        found["now"] = lambda lab: _daemon(lab, None)
        yield found


def measure(
    lab: Lab, size: tuple[int, int], asked: Mapping[str, Side], timing: Timing
) -> Iterator[Cost]:
    """Measure each side once for each pair, on an open lab without guests."""
    guests, vcpus = size
    for index in range(guests):
        lab.add_guest(f"idle{index}", [0.0] * vcpus)
    for pair in range(timing.pairs):
        for name in asked if pair % 2 == 0 else reversed(list(asked)):
            with asked[name](lab) as process:
                yield _cost(lab, process, timing, name, size)


def table(costs: Sequence[Cost], timing: Timing) -> Table:
    """Return the means of all runs."""
    by_side: dict[tuple[int, int, str], list[Cost]] = {}
    for cost in sorted(costs, key=lambda cost: (cost.guests, cost.vcpus)):
        by_side.setdefault((cost.guests, cost.vcpus, cost.side), []).append(cost)
    rows = []
    for (guests, vcpus, side), its in by_side.items():
        beside = ratio_of_pairs(_together(by_side[guests, vcpus, READER]), _together(its))
        rows.append(
            (
                f"{guests} x {vcpus}",
                side,
                _mean([cost.own_ms for cost in its]),
                _mean([cost.libvirtd_ms for cost in its]),
                str(mean_of(_together(its))),
                str(beside),
                _mean([cost.memory_mib for cost in its]),
                _mean([cost.ready_s for cost in its]),
            )
        )
    note = (
        f"CPU time in ms a cycle of {PERIOD_S:g} s, guests times vCPUs that halt. Each side"
        f" {timing.pairs} times for {timing.measure_s:g} s, after {timing.rest_s:g} s to come to"
        f" rest: means, and ratios, with the limits of their {CONFIDENCE:.0%} confidence interval."
        " The C program asks for the list of guests, and of each for info, vCPUs and CPU"
        " statistics; the last is refused to it here, where there are no cgroups. Memory is"
        " resident, in MiB; ready in seconds from the start."
    )
    columns = ("guests", "who asks", "own", "libvirtd", "together", f"of the {READER}")
    title = "What it costs to watch idle guests"
    return Table(title, (*columns, "memory", "ready"), tuple(rows), (note,))


def _together(costs: Sequence[Cost]) -> list[float]:
    return [cost.own_ms + cost.libvirtd_ms for cost in costs]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean_of(known).value:.2f}" if known else "-"


def _cost(lab: Lab, process: _Process, timing: Timing, side: str, size: tuple[int, int]) -> Cost:
    time.sleep(timing.rest_s)
    first, ours_s, theirs_s = _read(lab, process)
    time.sleep(timing.measure_s)
    last, ours_end_s, theirs_end_s = _read(lab, process)
    cycles = last - first
    return Cost(
        side,
        *size,
        cycles=cycles,
        own_ms=(ours_end_s - ours_s) * 1000 / cycles,
        libvirtd_ms=(theirs_end_s - theirs_s) * 1000 / cycles,
        memory_mib=None if process.ready_s is None else resident_mib(process.pid),
        ready_s=process.ready_s,
    )


def _read(lab: Lab, process: _Process) -> tuple[int, float, float]:
    """Return the number of the cycle that ends next, and the CPU time of it and of libvirtd."""
    before = process.cycle()
    wait_for(f"a cycle after {before}", lambda: process.cycle() > before)
    return process.cycle(), cpu_s(process.pid), cpu_s(lab.daemon_pid)


@contextlib.contextmanager
def _reader(lab: Lab, program: Path) -> Iterator[_Process]:
    dots = program.with_name("dots")
    with dots.open("wb") as out:
        asked = [str(program), lab.uri, str(round(PERIOD_S * 1000))]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *asked], stdout=out, stdin=subprocess.DEVNULL
        )
    try:
        yield _Process(process.pid, lambda: dots.stat().st_size)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _daemon(lab: Lab, tree: Path | None) -> Iterator[_Process]:
    settings = {**SETTINGS, "period": str(PERIOD_S), "floating": '"kernel"'}
    with running(lab.uri, settings, tree) as daemon:
        ready_s = daemon.wait_ready()
        daemon.wait_past(0)

        def cycle() -> int:
            if daemon.process.poll() is not None:
                raise LiveError(f"vcpusched ended: {daemon.log}")
            return daemon.cycle

        yield _Process(daemon.pid, cycle, ready_s)


def _build(program: Path) -> None:
    """Compile the C program. Raises LiveError."""
    asked = ["pkg-config", "--cflags", "--libs", "libvirt"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, check=True)
        compiler = ["cc", "-O2", "-o", str(program), str(SOURCE), *shlex.split(found.stdout)]
        subprocess.run(compiler, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise LiveError(f"cost compiles a program, and there is no {error.filename}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip()
        raise LiveError(f"{SOURCE.name} could not be compiled: {said}") from error
