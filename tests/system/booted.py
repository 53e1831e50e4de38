"""What the tests on booted systems share: the disk, and what the machine says when one fails."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
from fresh import run
from guest_shape import GuestShape
from image import TOP, Image, image
from machine import Machine, MachineError

from vcpusched import __version__

DEB: Final = "/root/vcpusched.deb"
LAST_WORDS: Final = {
    "journal": ("journalctl", "--no-pager", "--lines=60"),
    "guests": ("bash", "-c", "for guest in $(virsh list --name); do virsh vcpupin $guest; done"),
    "state of vcpusched": ("cat", "/run/vcpusched/state.json"),
}
"""What tells why a test failed, by title: commands in the machine."""


@pytest.fixture(scope="session")
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a function that tells what is waited for, whatever pytest captures."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def tell(text: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            sys.stdout.write(f"\n  {text} ")
            sys.stdout.flush()

    return tell


@pytest.fixture(scope="session")
def disk(request: pytest.FixtureRequest, progress: Callable[[str], None]) -> Image:
    """Give a disk with the release that was asked for, built unless it is kept."""
    return image(request.config.getoption("--release"), progress)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, progress: Callable[[str], None]) -> Path:
    """Give a directory with all that a release is made of."""
    progress("building the packages")
    directory = tmp_path_factory.mktemp("packages")
    run(str(TOP / "packaging" / "release"), str(directory))
    return directory


@pytest.fixture(scope="session")
def deb(built: Path) -> Path:
    """Give the .deb."""
    return built / f"vcpusched_{__version__}_amd64.deb"


class Machines:
    """One machine at a time, and another one in place of one that was lost.

    QEMU's emulation of processors that execute what others rewrite is not perfect: now and then
    such a machine stands still (see image.FILES) or QEMU ends, whoever runs in it.
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

        def boot() -> Machine:
            directory = tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp")
            return _boot(disk, deb, Path(directories.enter_context(directory)), progress)

        booted = Machines(boot)
        try:
            yield booted
        finally:
            booted.power_off()


@pytest.fixture
def machine(machines: Machines) -> Machine:
    """Give a machine that works: the one that the test before had, unless that was lost."""
    return machines.living()


def _boot(disk: Image, deb: Path, directory: Path, progress: Callable[[str], None]) -> Machine:
    """Boot, and see a guest run before vcpusched is installed. Raises MachineError."""
    progress(f"booting a machine of eight pCPUs with Debian {disk.release}")
    booted = Machine(disk, directory, "isolcpus=7", files={DEB: deb})
    try:
        booted.boot()
        progress(f"it is up after {booted.boot_s:.0f} s; starting a guest there")
        booted.add_guest("first", GuestShape([0.1]))
        booted.remove_guest("first")
        progress("installing vcpusched there")
        booted.say("dpkg", "--install", DEB, limit_s=600)
    except BaseException:  # an interrupt must not leave it running either
        booted.power_off()
        raise
    return booted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the machine's last words to the report of a test that failed."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(machine, Machine) and not machine.is_lost:
        report.sections.append(("the machine's console", machine.console()))
        for title, command in LAST_WORDS.items():
            try:
                told = machine.say(*command, check=False, limit_s=30)
            except MachineError as error:
                told = str(error)
            report.sections.append((f"the machine's {title}", told))
    return report
