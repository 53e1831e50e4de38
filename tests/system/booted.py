"""What the tests on booted systems share: the disk, and what the machine says when one fails."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from fresh import run
from image import Image, image, unpack
from machine import Machine, MachineError

from vcpusched import __version__

DEB: Final = "/root/vcpusched.deb"
PROGRAMS: Final = "usr/lib/vcpusched"
LAST_WORDS: Final = {
    "service": ("journalctl", "--no-pager", "--unit=vcpusched", "--lines=30"),
    "guests": ("bash", "-c", "for guest in $(virsh list --name); do virsh vcpupin $guest; done"),
    "load": ("bash", "-c", "uptime; head -n 1 /proc/stat; head -c 600 /run/vcpusched/state.json"),
    "journal": ("journalctl", "--no-pager", "--lines=60"),
}
"""What shows why a test failed, by title: commands in the machine, the most telling first."""


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a function that shows what is waited for, whatever pytest captures."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def show(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            # Not to stdout, which a worker of pytest-xdist has none of.
            sys.stderr.write(f"\n  {text} ")

    return show


@pytest.fixture(scope="session")
def disk(request: pytest.FixtureRequest, progress: Callable[[str], None]) -> Image:
    """Give a disk with the release that was asked for, built unless it is kept."""
    return image(request.config.getoption("--release"), progress)


@pytest.fixture(scope="session")
def built() -> Path:
    """Give the directory with all that a release is made of: tests/run has built it."""
    return Path(os.environ["PACKAGES"])


@pytest.fixture(scope="session")
def deb(built: Path) -> Path:
    """Give the .deb."""
    return built / f"vcpusched_{__version__}_amd64.deb"


class Machines:
    """One machine at a time, and another one in place of one that was lost.

    QEMU's emulation of processors that execute what others rewrite is not perfect: now and then
    such a machine stands still (see image.FILES), resets itself or QEMU ends, whatever runs in it.
    """

    def __init__(self, boot: Callable[[], Machine]) -> None:
        self._boot = boot
        self._machine: Machine | None = None

    def living(self) -> Machine:
        """Give the machine, booted where there is none. Raises MachineError."""
        if self._machine is not None and self._machine.is_lost:
            self.power_off()
        if self._machine is None:
            self._machine = self._boot()
        return self._machine

    def power_off(self) -> None:
        """End the machine."""
        if self._machine is not None:
            self._machine.power_off()
            self._machine = None


@pytest.fixture(scope="module")
def machines(disk: Image, deb: Path, progress: Callable[[str], None]) -> Iterator[Machines]:
    """Give machines whose pCPU 7 is isolated, with the .deb installed, nothing started."""
    with contextlib.ExitStack() as directories:
        root = tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp")
        programs = _compiled(disk, deb, Path(directories.enter_context(root)))
        files = {DEB: deb, f"/{PROGRAMS}": programs}

        def boot() -> Machine:
            directory = tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp")
            return _boot(disk, files, Path(directories.enter_context(directory)), progress)

        booted = Machines(boot)
        try:
            yield booted
        finally:
            booted.power_off()


@pytest.fixture
def machine(machines: Machines) -> Machine:
    """Give a machine that works: the one that the test before had, unless that was lost."""
    return machines.living()


def _compiled(disk: Image, deb: Path, root: Path) -> Path:
    """Give what Python compiles of the .deb, made here: it takes an emulated processor a minute.

    Where that lies already, installing the .deb compiles nothing.
    """
    unpack(disk, root)
    run("dpkg-deb", "--extract", str(deb), str(root))
    run("chroot", str(root), "python3", "-m", "compileall", "-q", f"/{PROGRAMS}")
    return root / PROGRAMS


def _boot(
    disk: Image, files: Mapping[str, Path], directory: Path, progress: Callable[[str], None]
) -> Machine:
    """Boot, and install vcpusched. Raises MachineError."""
    progress(f"booting a machine of eight pCPUs with Debian {disk.release}")
    booted = Machine(disk, directory, "isolcpus=7", files=files)
    try:
        booted.boot()
        progress(f"it is up after {booted.boot_s:.0f} s; installing vcpusched there")
        booted.say("dpkg", "--install", DEB, limit_s=600)
    except BaseException:  # an interrupt must not leave it running either
        booted.power_off()
        raise
    return booted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Try a test once more, in another machine, that lost the emulated machine."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["MachineLostError"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show which tests lost their emulated machine."""
    lost = terminalreporter.getreports("rerun")
    if lost:
        terminalreporter.section("EMULATED MACHINES THAT WERE LOST", red=True)
        for report in lost:
            why = report.longrepr.reprcrash.message
            terminalreporter.write_line(f"{report.nodeid}, tried again in another one: {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the machine's last words to the report of a test that failed."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(machine, Machine) and not machine.is_lost:
        for title, command in LAST_WORDS.items():
            try:
                said = machine.say(*command, check=False, limit_s=30)
            except (MachineError, OSError) as error:  # it may have been powered off
                said = str(error)
            report.sections.append((f"the machine's {title}", said))
        report.sections.append(("the machine's console", machine.console()))
    return report
