"""How true the reported usage is, beside schedstat and beside a Linux guest's own view.

Rule: readings and their means; one guest runs at a time and all others are paused, so that no
reading is of a crowded pCPU unless other work crowds the machine.

An emulated guest sees no steal: what its vCPU waits for on the host is busy time to it, so usage
and wait together must be its own figure. Its scheduler moves a lone worker between its vCPUs, so
figures are those of all vCPUs of a guest together.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import libvirt
import linux_guest
from lab import Guest, Lab
from lab_guest import GuestPlan
from live.blocks import Timing, account
from live.scenarios import SETTINGS
from live.service import Daemon, running
from service import LIMIT_S, wait_for
from tables import Table

from vcpusched.report.confidence import CONFIDENCE, mean_of

TITLE: Final = "How true the reported usage is"
REPORTED: Final = {**SETTINGS, "half_life": "0.0", "floating": '"kernel"'}
"""So that the load of the state file is the demand since the cycle before: where pCPUs are not
saturated, the usage."""

SHARES: Final = (0.25, 0.5, 0.75, 1.0)
STRESS: Final = ((1, 1, 50), (1, 1, 100), (2, 1, 100), (2, 2, 100), (2, 3, 100))
"""Each Linux guest: vCPUs, workers of stress-ng, and the percent of a vCPU that each burns."""

GUESTS: Final = len(SHARES) + len(STRESS)
BOOT_LIMIT_S: Final = 300.0
REPORTS_TO_BEGIN: Final = 3
"""With so many reports of a Linux guest its workers are at work."""

Report = Callable[[], linux_guest.GuestStat]


@dataclass(frozen=True, slots=True)
class Reading:
    """A guest in one block, in pCPUs: usage as reported, and run and wait as the kernel says.

    `own` is the Linux guest's own view, None for another guest.
    """

    guest: str
    reported: float
    run: float
    wait: float
    own: float | None


def measure(lab: Lab, timing: Timing) -> Iterator[Reading]:
    """Measure all guests in turn on an open lab, again and again, a round for each pair."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-live-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the guests run as another user
        guests: list[tuple[Guest, Report | None]] = []
        for share in SHARES:
            guest = lab.add_guest(f"busy-{share * 100:.0f}", [share])
            guest.domain().suspend()
            guests.append((guest, None))
        image = linux_guest.build(directory)
        for stress in STRESS:
            guests.append(_add_linux(lab, image, *stress))
            guests[-1][0].domain().suspend()
        with running(lab.uri, REPORTED) as service:
            for _ in range(timing.pairs):
                for guest, report in guests:
                    guest.domain().resume()
                    yield _read(guest, report, service, timing)
                    guest.domain().suspend()


def table(readings: Sequence[Reading], timing: Timing) -> Table:
    """Return the means of all blocks of each guest."""
    rows = []
    for name in dict.fromkeys(reading.guest for reading in readings):
        found = [reading for reading in readings if reading.guest == name]
        known = [(one, one.own) for one in found if one.own is not None]
        usage, run = _percent([one.reported for one in found]), _percent([one.run for one in found])
        wait, own = _percent([one.wait for one in found]), _percent([own for _, own in known])
        off = _points([one.reported - one.run for one in found])
        own_off = _points([one.reported + one.wait - own for one, own in known])
        rows.append((name, usage, run, off, wait, own, own_off))
    note = (
        f"{timing.pairs} blocks of {timing.measure_s:g} s of each guest in turn, after"
        f" {timing.rest_s:g} s each to come to rest; all vCPUs of a guest together, in percent of a"
        f" pCPU. Differences in points, with their {CONFIDENCE:.0%} confidence interval: usage less"
        " what the kernel says that the threads ran, and usage and wait less the guest's own view."
        " busy-S wants S % of a pCPU; stress-WxL-on-V is a Linux guest of V vCPUs with W workers of"
        " stress-ng that burn L % each."
    )
    columns = ("guest", "usage", "schedstat", "difference", "wait", "own view", "difference")
    return Table(TITLE, columns, tuple(rows), (note,))


def _add_linux(
    lab: Lab, image: linux_guest.LinuxGuestImage, vcpus: int, workers: int, load: int
) -> tuple[Guest, Report]:
    """Boot a Linux guest, and return it with what waits for its next report, once it works."""
    name = f"stress-{workers}x{load}-on-{vcpus}"
    console = lab.directory / "temporary" / f"{name}.log"
    xml = linux_guest.domain_xml(name, image, vcpus, workers, console, load)
    domain = lab.connection().createXML(xml, libvirt.VIR_DOMAIN_START_AUTODESTROY)
    uuid, path = domain.UUIDString(), image.initramfs
    plan = GuestPlan(name, uuid, vcpus, vcpus, cpuset=None, persistent=False, image=path)

    def report(limit_s: float = LIMIT_S) -> linux_guest.GuestStat:
        known = len(_reports(console))
        wait_for(f"a report of guest {name}", lambda: len(_reports(console)) > known, limit_s)
        return _reports(console)[-1]

    for _ in range(REPORTS_TO_BEGIN):
        report(BOOT_LIMIT_S)
    return Guest(plan, xml, lab.connection), report


def _reports(console: Path) -> tuple[linux_guest.GuestStat, ...]:
    text = console.read_text(errors="replace") if console.exists() else ""
    return linux_guest.parse_console(text)


def _read(guest: Guest, report: Report | None, service: Daemon, timing: Timing) -> Reading:
    time.sleep(timing.rest_s)
    first = report() if report is not None else None
    cycle = service.wait_past(service.cycle)["cycle"]
    before, usages = account(guest), []
    ends_s = time.monotonic() + timing.measure_s
    while time.monotonic() < ends_s:
        state = service.wait_past(cycle)
        cycle = state["cycle"]
        vcpus = state["snapshot"]["vcpus"]
        usages.append(sum(vcpu["load"] for vcpu in vcpus if vcpu["domain"] == guest.name))
    run_ns, wait_ns, at_ns = (
        later - earlier for earlier, later in zip(before, account(guest), strict=True)
    )
    own = None
    if report is not None and first is not None:
        own = sum(linux_guest.usage_between(first, report()).values())
    return Reading(guest.name, sum(usages) / len(usages), run_ns / at_ns, wait_ns / at_ns, own)


def _percent(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values) * 100:.1f}" if values else "-"


def _points(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = mean_of([value * 100 for value in values])
    return f"{mean.value:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"
