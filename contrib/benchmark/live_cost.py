"""What the daemon costs: CPU time of it and of libvirtd per cycle, memory, the time to its start.

Rule: readings of /proc and their means; guests that all but idle, since what they do costs nobody.
"""

import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intervals import CONFIDENCE, mean_of
from lab import Lab
from lab_processes import cpu_s
from live_blocks import Timing
from live_scenarios import SETTINGS
from live_service import PATIENCE_S, LiveError, running
from tables import Table

GUESTS: Final = 10
SHARES: Final = (0.02, 0.02)
PERIOD_S: Final = 0.5
TITLE: Final = f"{GUESTS} idle guests of {len(SHARES)} vCPUs"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of the daemon cost.

    CPU time is per cycle, of which there were `cycles`; `ready_s` is from its start until it told
    systemd that it is ready.
    """

    cycles: int
    daemon_ms: float
    libvirtd_ms: float
    memory_mib: float
    ready_s: float


def measure(lab: Lab, timing: Timing) -> Iterator[Cost]:
    """Measure one run of the daemon after the other on an open lab, a cost for each pair."""
    for index in range(GUESTS):
        lab.add_guest(f"idle{index}", SHARES)
    for _ in range(timing.pairs):
        yield _cost(lab, timing)


def table(costs: Sequence[Cost], timing: Timing) -> Table:
    """Give the means of all runs."""
    columns: tuple[tuple[str, Callable[[Cost], float]], ...] = (
        ("CPU time of vcpusched per cycle, ms", lambda cost: cost.daemon_ms),
        ("CPU time of libvirtd per cycle, ms", lambda cost: cost.libvirtd_ms),
        ("resident memory of vcpusched, MiB", lambda cost: cost.memory_mib),
        ("start to ready, s", lambda cost: cost.ready_s),
    )
    rows = []
    for name, value in columns:
        mean = mean_of([value(cost) for cost in costs])
        rows.append((name, f"{mean.value:.2f}", f"{mean.low:.2f}", f"{mean.high:.2f}"))
    note = (
        f"{len(costs)} runs of {timing.measure_s:g} s, after {timing.rest_s:g} s each to come to"
        f" rest, of a cycle every {PERIOD_S:g} s: means with the limits of their {CONFIDENCE:.0%}"
        " confidence interval. The kernel tells CPU time in steps of 10 ms."
    )
    return Table(f"What {TITLE} cost", ("cost", "mean", "from", "to"), tuple(rows), (note,))


def _cost(lab: Lab, timing: Timing) -> Cost:
    settings = {**SETTINGS, "period": str(PERIOD_S), "floating": '"kernel"'}
    with (
        tempfile.TemporaryDirectory(prefix="vcpusched-live-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
    ):
        notify.bind(path := f"{directory}/notify")
        notify.settimeout(PATIENCE_S)
        began_s = time.monotonic()
        with running(lab.uri, settings, path) as service:
            try:
                while b"READY=1" not in notify.recv(65536):
                    pass
            except TimeoutError as error:
                raise service.failure("was not ready in time") from error
            ready_s = time.monotonic() - began_s
            notify.close()  # or it would wait for somebody who reads its status lines
            service.wait_past(0)
            time.sleep(timing.rest_s)
            first = service.wait_past(service.cycle())["cycle"]
            ours_s, theirs_s = cpu_s(service.pid), lab.daemon_cpu_s()
            time.sleep(timing.measure_s)
            cycles = service.wait_past(service.cycle())["cycle"] - first
            ours_s, theirs_s = cpu_s(service.pid) - ours_s, lab.daemon_cpu_s() - theirs_s
            memory_mib = _memory_mib(service.pid)
    return Cost(cycles, ours_s * 1000 / cycles, theirs_s * 1000 / cycles, memory_mib, ready_s)


def _memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LiveError(f"process {pid} has no memory")
