"""The lab itself: its guests demand what they were told to, and nothing of it is left behind.

Loads are read from the kernel's accounts of the vCPU threads. Something else may be running on the
machine, so each load is taken from the quietest of a few windows.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import lab as lab_module
import libvirt
import pytest
from lab import Guest, Lab, LabError, boot_image
from lab_guest import WORK_COUNTS
from lab_processes import lab_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WINDOW_S = 3.0
QUIET_WAIT = 0.01  # of a window
WINDOWS_MOST = 5
SETTLE_S = 1.5  # a guest's boot
TOLERANCE = 0.02

OWNER = """
import time
from lab import Lab
with Lab() as lab:
    lab.add_guest("abandoned", [0.2])
    lab.freeze_daemon()
    print(lab.directory, flush=True)
    time.sleep(600)
"""


@dataclass(frozen=True, slots=True)
class Window:
    """The parts of a window that each vCPU ran and waited."""

    shares: list[float]
    waits: list[float]


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[Lab]:
    """Open a lab for all tests that leave it as it was."""
    with Lab() as opened:
        yield opened


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """Hand out the shared lab, and end what guests a test leaves in it, however it ended."""
    yield shared_lab
    for domain in shared_lab.connection().listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        domain.destroy()


@pytest.fixture
def cpus() -> list[int]:
    """List the CPUs that tests may pin to."""
    return sorted(os.sched_getaffinity(0))


def measure(guest: Guest, window_s: float = WINDOW_S) -> Window:
    """Measure all vCPUs of a guest in one window."""
    vcpus = guest.vcpu_threads()
    before = [guest.schedstat(vcpu) for vcpu in vcpus]
    time.sleep(window_s)
    after = [guest.schedstat(vcpu) for vcpu in vcpus]
    pairs = list(zip(before, after, strict=True))
    return Window(
        shares=[(new.run_ns - old.run_ns) / (new.at_ns - old.at_ns) for old, new in pairs],
        waits=[(new.wait_ns - old.wait_ns) / (new.at_ns - old.at_ns) for old, new in pairs],
    )


def demands(guest: Guest, shares: list[float], windows_most: int = WINDOWS_MOST) -> bool:
    """Tell whether each vCPU demands its share, in the quietest of a few windows.

    It never runs more than its share, and what it does not get it waits for; where nothing
    disturbs it, both together mean that it runs just its share.
    """
    time.sleep(SETTLE_S)
    windows: list[Window] = []
    while len(windows) < windows_most and all(max(window.waits) > QUIET_WAIT for window in windows):
        windows.append(measure(guest))
    quietest = min(windows, key=lambda window: max(window.waits))
    return all(
        ran <= share + TOLERANCE and ran + wait >= share - TOLERANCE
        for share, ran, wait in zip(shares, quietest.shares, quietest.waits, strict=True)
    )


def wait_until(condition: Callable[[], bool], limit_s: float = 15.0) -> bool:
    """Wait for a condition, and tell whether it came true."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_load_is_what_was_asked_for(lab: Lab, share: float) -> None:
    """A lone vCPU demands its share of a CPU, to 2 percentage points."""
    guest = lab.add_guest(f"share-{share}", [share])
    assert demands(guest, [share])


def test_each_vcpu_has_its_own_load(lab: Lab) -> None:
    """Two vCPUs of one guest demand different shares."""
    guest = lab.add_guest("uneven", [0.2, 0.6])
    assert demands(guest, [0.2, 0.6])


def test_work_is_counted(lab: Lab) -> None:
    """The guest's own count of its work grows with the time that the kernel gave each vCPU."""
    guest = lab.add_guest("counting", [0.0, 0.2, 0.6])
    time.sleep(SETTLE_S)
    before = [(guest.work(vcpu), guest.schedstat(vcpu).run_ns) for vcpu in range(3)]
    time.sleep(WINDOW_S)
    after = [(guest.work(vcpu), guest.schedstat(vcpu).run_ns) for vcpu in range(3)]
    idle, light, heavy = (
        ((now - then) % WORK_COUNTS, ran - had)
        for (then, had), (now, ran) in zip(before, after, strict=True)
    )
    assert idle[0] == 0
    # How fast a CPU is depends on what its neighbours run.
    assert light[0] / light[1] == pytest.approx(heavy[0] / heavy[1], rel=0.3)


def test_confined_guests(lab: Lab, cpus: list[int]) -> None:
    """A guest is let run on several CPUs after it was pinned to one."""
    guest = lab.add_guest("pooled", [0.1, 0.1], pin=cpus[0])
    guest.confine(cpus)
    assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [set(cpus)] * 2


def test_load_steps(lab: Lab) -> None:
    """A load changes at the time it was told to."""
    guest = lab.add_guest("step", [0.2], later=[0.7], step_after_s=8.0)
    started_s = time.monotonic()
    assert demands(guest, [0.2], 1)
    time.sleep(max(0.0, started_s + 8.0 - time.monotonic()))
    assert demands(guest, [0.7])


def test_demand_stays_true_under_contention(lab: Lab, cpus: list[int]) -> None:
    """Two guests that share a CPU and fit on it both get what they demand."""
    shares = [0.3, 0.5]
    guests = [lab.add_guest(f"fits-{share}", [share], pin=cpus[0]) for share in shares]
    time.sleep(SETTLE_S)
    before = [guest.schedstat(0) for guest in guests]
    time.sleep(WINDOW_S)
    after = [guest.schedstat(0) for guest in guests]
    for share, old, new in zip(shares, before, after, strict=True):
        interval_ns = new.at_ns - old.at_ns
        ran, wait = (
            (new.run_ns - old.run_ns) / interval_ns,
            (new.wait_ns - old.wait_ns) / interval_ns,
        )
        assert ran <= share + 0.04
        # They fit, so waiting delays the work and takes none away; only a stranger's load can.
        assert ran >= share - 0.04 or wait > 1 - share


def test_vcpus_can_be_plugged_in(lab: Lab) -> None:
    """A vCPU that is added to a running guest carries the last share."""
    guest = lab.add_guest("growing", [0.3], vcpus_max=2)
    time.sleep(SETTLE_S)
    guest.domain().setVcpus(2)
    assert demands(guest, [0.3, 0.3])


def test_pins_are_live_only(lab: Lab, cpus: list[int]) -> None:
    """A pinned guest runs where it was pinned, and its persistent definition says nothing of it."""
    first, last = cpus[0], cpus[-1]
    guest = lab.add_guest("pinned", [0.1, 0.1], pin=[first, last])
    assert [guest.affinity(vcpu) for vcpu in (0, 1)] == [{first}, {last}]
    definition = guest.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert ET.fromstring(definition).find("cputune") is None  # noqa: S314 - libvirt's own
    guest.restart()
    assert len(guest.affinity(0)) == len(cpus)


def test_cpuset_is_in_the_definition(lab: Lab, cpus: list[int]) -> None:
    """A guest with a cpuset starts inside it and says so in its definition."""
    guest = lab.add_guest("confined", [0.1], cpuset=str(cpus[-1]))
    assert guest.affinity(0) == {cpus[-1]}
    definition = guest.domain().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    vcpu = ET.fromstring(definition).find("vcpu")  # noqa: S314 - libvirt's own
    assert vcpu is not None
    assert vcpu.get("cpuset") == str(cpus[-1])


def test_transient_guest_vanishes(lab: Lab) -> None:
    """A transient guest is unknown to the daemon once destroyed."""
    guest = lab.add_guest("transient", [0.1], persistent=False)
    guest.destroy()
    assert "transient" not in {domain.name() for domain in lab.connection().listAllDomains()}
    with pytest.raises(LabError, match="not running"):
        _ = guest.pid


def test_guests_outlive_their_daemon(lab: Lab) -> None:
    """Freezing, restarting and killing the daemon leaves guests running and known."""
    guest = lab.add_guest("survivor", [0.1])
    pid = guest.pid
    lab.freeze_daemon()
    before_s = guest.cpu_time_s()
    assert wait_until(lambda: guest.cpu_time_s() > before_s)
    lab.thaw_daemon()
    for kill in (False, True):
        daemon = lab.daemon_pid
        lab.restart_daemon(kill=kill)
        assert lab.daemon_pid != daemon
        assert guest.domain().isActive()
        assert guest.pid == pid
    assert lab.daemon_cpu_s() >= 0
    guest.destroy()  # the daemon that was started last is in charge of it


def test_client_programs_reach_the_daemon(lab: Lab) -> None:
    """A client reaches the daemon by its URI, as the lab's user and as us."""
    client = "import libvirt, sys; print(libvirt.open(sys.argv[1]).getURI())"
    arguments = [sys.executable, "-c", client, lab.uri]
    as_user = subprocess.run(
        lab.command(arguments),
        env=lab.environment,
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    as_us = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert as_user.stdout == as_us.stdout == f"{lab.uri}\n"


@pytest.mark.parametrize("state", ["running", "frozen", "killed"])
def test_close_leaves_nothing(state: str) -> None:
    """Closing ends every process and removes the directory, whatever state the daemon is in."""
    with Lab() as lab:
        directory = lab.directory
        lab.add_guest("left", [0.1])
        assert len(lab_processes(directory)) >= 2
        if state == "frozen":
            lab.freeze_daemon()
        elif state == "killed":
            lab.stop_daemon(kill=True)
    assert not lab_processes(directory)
    assert not directory.exists()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_owner_leaves_nothing(by: signal.Signals) -> None:
    """A lab whose owner is killed cleans up by itself."""
    search = str(Path(lab_module.__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        assert len(lab_processes(directory)) >= 2
        owner.send_signal(by)
    assert wait_until(lambda: not lab_processes(directory) and not directory.exists())


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.3, 0.5, 1.0])
def test_owner_interrupted_on_its_way_leaves_nothing(delay_s: float) -> None:
    """A lab whose owner is interrupted while it opens or starts a guest leaves nothing."""
    directory = Path("/dev/shm") / f"lab-{os.getpid()}"  # noqa: S108 - the owner makes it
    program = OWNER.replace("Lab()", f"Lab(__import__('pathlib').Path({str(directory)!r}))")
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(lab_module.__file__).parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as owner:
        time.sleep(delay_s)
        owner.send_signal(signal.SIGINT)
    assert wait_until(lambda: not lab_processes(directory) and not directory.exists())


@pytest.mark.parametrize(
    ("shares", "later", "step_after_s", "says"),
    [
        ([], None, 0.0, "vCPUs"),
        ([1.5], None, 0.0, "0 to 1"),
        ([0.5], [0.5], 0.0, "go together"),
        ([0.5], [0.5, 0.5], 1.0, "later ones"),
        ([0.5], [0.6], float("inf"), "cannot step"),
    ],
)
def test_impossible_loads_are_refused(
    shares: list[float], later: list[float] | None, step_after_s: float, says: str
) -> None:
    """Loads that no guest can carry are refused in words."""
    with pytest.raises(LabError, match=says):
        boot_image(shares, later, step_after_s)


def test_unusable_directories_are_refused(tmp_path: Path) -> None:
    """A directory that is too deep for sockets, or that is used, is refused and left alone."""
    deep = tmp_path / ("d" * 60)
    with pytest.raises(LabError, match="too long"):
        Lab(deep).open()
    assert not deep.exists()
    with pytest.raises(LabError, match="not empty"):
        Lab(Path("/usr")).open()
