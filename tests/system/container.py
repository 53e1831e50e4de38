"""The machine's Debian booted in a container, which shares the kernel and the pCPUs with us.

systemd is process 1 there, libvirtd a service, the guests real emulated ones. It is as quick as the
machine is slow: the place for what is only between the service, systemd, libvirtd and its files.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from agent import ENVIRONMENT
from fresh import run
from guest_shape import GuestShape
from image import IGNORED, TOP, Image, unpack

# A systemd of Debian 13 refuses control groups of the old kind, which some hosts still have.
NSPAWN: Final = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}

# A container may not make control groups of the old kind, and cannot have security labels.
QEMU_CONF: Final = 'cgroup_controllers = [ ]\nsecurity_driver = "none"\nnamespaces = [ ]\n'


class Container:
    """The container, from `boot` to `power_off`; it lives in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "root"
        self._tools = directory / "tools"
        self._console = directory / "console.log"
        self._container: subprocess.Popen[bytes] | None = None
        self._init = 0
        # One at a time: without a systemd outside, nspawn gives all of them the same control group.
        self._turn = (Path(tempfile.gettempdir()) / "vcpusched-container.lock").open("w")

    def build(self, image: Image) -> None:
        """Lay out the root from a machine's disk, with this checkout in /src."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        # Taken out of its package, not installed: with it libvirt would look for a machined.
        self._tools.mkdir()
        with tempfile.TemporaryDirectory() as downloads:
            options = ["--option", "APT::Sandbox::User=root"]
            run("apt-get", *options, "download", "systemd-container", directory=Path(downloads))
            (package,) = Path(downloads).glob("*.deb")
            run("dpkg-deb", "--extract", str(package), str(self._tools))
        self._root.mkdir()
        unpack(image, self._root)
        with (self._root / "etc/libvirt/qemu.conf").open("a") as conf:
            conf.write(QEMU_CONF)
        ignored = shutil.ignore_patterns(*IGNORED)
        shutil.copytree(TOP, self._root / "src", ignore=ignored)

    def boot(self, until: str = "running") -> None:
        """Boot, and wait until systemd has started everything: "degraded" if something fails."""
        self._init = 0
        # Registered with the host's systemd where there is one.
        unit = [] if Path("/run/systemd/system").exists() else ["--keep-unit"]
        with self._console.open("wb") as console:
            self._container = subprocess.Popen(
                [
                    str(self._tools / "usr/bin/systemd-nspawn"),
                    *("--quiet", f"--directory={self._root}", "--register=no", *unit),
                    *("--private-network", "--boot"),
                ],
                env=os.environ | NSPAWN,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        deadline_s = time.monotonic() + 300
        while until not in self.say("systemctl", "is-system-running", check=False):
            self._init = 0  # nspawn has another child for a moment, before systemd
            if time.monotonic() > deadline_s or self._container.poll() is not None:
                raise AssertionError(f"did not boot:\n{self._console.read_text(errors='replace')}")
            time.sleep(0.5)

    def shut_down(self) -> None:
        """Have it end as a host does that will boot again."""
        assert self._container is not None
        self.say("systemctl", "poweroff", check=False)
        self._container.wait(timeout=180)

    def power_off(self) -> None:
        """End it, whatever state it is in."""
        if self._container is not None and self._container.poll() is None:
            for pid in (*self._children(), self._container.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._container.wait()
        self._turn.close()

    def say(self, *command: str, check: bool = True) -> str:
        """Run a command in the machine; gives what it printed."""
        if not self._init:
            self._init = next(iter(self._children()), 0)
            if not self._init:
                return ""
        done = subprocess.run(
            [
                *("nsenter", f"--target={self._init}"),
                *("--mount", "--uts", "--ipc", "--net", "--pid"),
                *("env", "--ignore-environment", "--chdir=/"),
                *(f"{name}={value}" for name, value in ENVIRONMENT.items()),
                *command,
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if check:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def _children(self) -> list[int]:
        """Name the processes that nspawn has begun: in the end one, systemd."""
        assert self._container is not None
        children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        (self._root / path.lstrip("/")).write_text(text)

    def add_guest(self, name: str, share: float) -> None:
        """Define and start a guest of one vCPU that uses this share of a pCPU, pinned to pCPU 0."""
        image = f"/var/lib/libvirt/images/{name}.img"
        shape = GuestShape([share])
        (self._root / image.lstrip("/")).write_bytes(shape.floppy())
        self.write(f"/root/{name}.xml", shape.xml("qemu", name, image))
        self.say("virsh", "define", f"/root/{name}.xml")
        self.say("virsh", "start", name)
        self.say("virsh", "vcpupin", name, "0", "0", "--live")
