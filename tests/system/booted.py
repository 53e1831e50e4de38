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
from machine import Machine, MachineError, MachineFrozenError

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


@pytest.fixture(scope="module")
def machine(disk: Image, deb: Path, progress: Callable[[str], None]) -> Iterator[Machine]:
    """Boot a machine whose pCPU 7 is isolated, with the .deb installed, nothing started."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        try:
            booted = _boot(disk, deb, Path(directory), progress)
        except MachineFrozenError as error:
            # Emulated processors that execute what others rewrite: now and then such a machine
            # stands still (see image.FILES). Before anything of ours is there, loudly, once.
            progress(f"ATTENTION: {error}\n  This machine is given up for another one.")
            booted = _boot(disk, deb, Path(directory), progress)
        try:
            yield booted
        finally:
            booted.power_off()


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
    if report.failed and isinstance(machine, Machine):
        report.sections.append(("the machine's console", machine.console()))
        for title, command in LAST_WORDS.items():
            try:
                told = machine.say(*command, check=False, limit_s=30)
            except MachineError as error:
                told = str(error)
            report.sections.append((f"the machine's {title}", told))
    return report
