"""The classic stress test: stress-ng in a Linux guest, its own view beside what vcpusched reports.

The guest's own /proc/stat is what `htop` in it shows. An emulated guest sees no steal: what its
vCPU waits for on the host is busy time to it. So usage plus run-queue wait must be its figure.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import linux_guest
import pytest
from lab import Lab
from lab_guest import VCPU_THREAD
from lab_processes import arguments, processes
from service import running, wait_for

Figure = Callable[[str], None]
MEASURE_S = 14.0


@pytest.fixture(scope="module")
def image() -> Iterator[linux_guest.LinuxGuestImage]:
    """Put a Linux guest together from Debian's packages."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        path = Path(directory)
        path.chmod(0o755)  # the guests run as another user
        yield linux_guest.build(path)


def vcpu_threads(name: str) -> list[Path]:
    """Give the /proc directories of a guest's vCPU threads, in the order of the vCPUs."""
    for pid in processes():
        if any(argument.startswith(f"guest={name},") for argument in arguments(pid)):
            tasks = {}
            for task in Path(f"/proc/{pid}/task").iterdir():
                if found := VCPU_THREAD.fullmatch((task / "comm").read_text()):
                    tasks[int(found[1])] = task
            return [tasks[vcpu] for vcpu in sorted(tasks)]
    raise AssertionError(f"guest {name} is not running")


def waited_ns(threads: list[Path]) -> list[int]:
    """Give how long each thread has waited for a pCPU."""
    return [int((thread / "schedstat").read_text().split()[1]) for thread in threads]


def stress(
    lab: Lab, image: linux_guest.LinuxGuestImage, vcpus: int, workers: int, load: int
) -> tuple[list[float], list[float], list[float]]:
    """Run stress-ng; gives usage as reported, run-queue wait, the guest's own view, in percent."""
    name = f"stress-{vcpus}-{workers}-{load}"
    console = lab.directory / "temporary" / f"{name}.log"
    xml = linux_guest.domain_xml(name, image, vcpus, workers, console, load)
    domain = lab.connection().createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)

    def stats() -> tuple[linux_guest.GuestStat, ...]:
        text = console.read_text(errors="replace") if console.exists() else ""
        return linux_guest.parse_console(text)

    try:
        wait_for("the guest's first figures", lambda: len(stats()) >= 3, 120)
        with running(lab, "1", VCPUSCHED_FLOATING="kernel") as service:
            service.wait("loads", lambda: bool((service.state.get("snapshot") or {}).get("vcpus")))
            threads = vcpu_threads(name)
            count = len(stats())
            wait_for("a figure", lambda: len(stats()) > count)
            first, waited, began_s = stats()[-1], waited_ns(threads), time.monotonic()
            cycle, seen = service.cycle, []
            while time.monotonic() - began_s < MEASURE_S:
                service.wait("a cycle", lambda cycle=cycle: service.cycle > cycle)  # type: ignore[misc]
                state = service.state
                cycle = state["cycle"]
                seen.append([vcpu["load"] for vcpu in state["snapshot"]["vcpus"]])
            count = len(stats())
            wait_for("a figure", lambda: len(stats()) > count)
            took_ns = (time.monotonic() - began_s) * 1e9
            wait = [
                (later - before) / took_ns * 100
                for before, later in zip(waited, waited_ns(threads), strict=True)
            ]
            guest = linux_guest.usage_between(first, stats()[-1])
    finally:
        domain.destroy()
    usage = [statistics.fmean(column) * 100 for column in zip(*seen, strict=True)]
    return usage, wait, [guest[vcpu] * 100 for vcpu in sorted(guest)]


def side_by_side(*columns: list[float]) -> str:
    """Give usage, wait and the guest's view of each vCPU."""
    words = ("usage", "wait", "guest")
    return "; ".join(
        f"{word} {' + '.join(f'{value:.1f}' for value in column)} %"
        for word, column in zip(words, columns, strict=True)
    )


@pytest.mark.parametrize("load", [50, 100])
def test_one_vcpu(lab: Lab, image: linux_guest.LinuxGuestImage, load: int, figure: Figure) -> None:
    """On one vCPU, usage plus wait is within 3 points of what the guest shows."""
    usage, wait, guest = stress(lab, image, 1, 1, load)
    figure(f"stress-ng, 1 worker of {load} % on 1 vCPU: {side_by_side(usage, wait, guest)}")
    assert usage[0] + wait[0] == pytest.approx(guest[0], abs=3)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_vcpus(
    lab: Lab, image: linux_guest.LinuxGuestImage, workers: int, figure: Figure
) -> None:
    """On two vCPUs, for workers below, at and above their number, the sums agree.

    The guest's scheduler moves a lone worker between the vCPUs, so one by one they need not.
    """
    usage, wait, guest = stress(lab, image, 2, workers, 100)
    figure(f"stress-ng, {workers} worker(s) on 2 vCPUs: {side_by_side(usage, wait, guest)}")
    assert sum(usage) + sum(wait) == pytest.approx(sum(guest), abs=6)
    assert sum(guest) == pytest.approx(min(workers, 2) * 100, abs=10)
