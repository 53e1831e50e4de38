"""A booted Debian with a real systemd, in a container that shares only the kernel with us.

systemd is process 1 there, libvirtd a service, the guests real emulated ones. What a container
cannot show (other pCPUs and nodes, pCPUs going offline, KVM) needs a virtual machine.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from lab import boot_image

TOP: Final = Path(__file__).parent.parent.parent
FLOPPY_BYTES: Final = 1_474_560
PACKAGES: Final = (
    "systemd-sysv",
    "dbus",
    "polkitd",
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "python3-venv",
    "python3-libvirt",
    "python3-systemd",
    "ca-certificates",
)

# A container may not make control groups of the old kind, and cannot have security labels.
QEMU_CONF: Final = 'cgroup_controllers = [ ]\nsecurity_driver = "none"\nnamespaces = [ ]\n'

DOMAIN: Final = """<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os><features><acpi/></features>
  <devices>
    <disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/><source file='{image}'/>
      <target dev='fda' bus='fdc'/><readonly/>
    </disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>"""


class Machine:
    """The container, from `boot` to `power_off`; it lives in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "root"
        self._tools = directory / "tools"
        self._console = directory / "console.log"
        self._container: subprocess.Popen[bytes] | None = None
        self._init = 0

    def build(self, release: str = "bookworm") -> None:
        """Lay out the root, with this checkout in /src."""
        # Taken out of its package, not installed: with it libvirt would look for a machined.
        self._tools.mkdir()
        with tempfile.TemporaryDirectory() as downloads:
            options = ["--option", "APT::Sandbox::User=root"]
            _run("apt-get", *options, "download", "systemd-container", directory=Path(downloads))
            (package,) = Path(downloads).glob("*.deb")
            _run("dpkg-deb", "--extract", str(package), str(self._tools))
        include = f"--include={','.join(PACKAGES)}"
        _run("mmdebstrap", "--quiet", "--variant=minbase", include, release, str(self._root))
        for name in ("libvirt-guests.service", "getty.target", "console-getty.service"):
            (self._root / "etc/systemd/system" / name).symlink_to("/dev/null")
        with (self._root / "etc/libvirt/qemu.conf").open("a") as conf:
            conf.write(QEMU_CONF)
        # Where the machine reaches its package index through a certificate of its own.
        certificates = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
        if certificates.exists():
            shutil.copy(certificates, self._root / "etc/ssl/certs/ca-certificates.crt")
        ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", ".hypothesis")
        shutil.copytree(TOP, self._root / "src", ignore=ignored)

    def boot(self) -> None:
        """Boot, and wait until systemd is up."""
        # Registered with the host's systemd where there is one.
        unit = [] if Path("/run/systemd/system").exists() else ["--keep-unit"]
        with self._console.open("wb") as console:
            self._container = subprocess.Popen(
                [
                    str(self._tools / "usr/bin/systemd-nspawn"),
                    *("--quiet", f"--directory={self._root}", "--register=no", *unit),
                    *("--resolv-conf=copy-host", "--boot"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        deadline_s = time.monotonic() + 60
        while "running" not in self.say("systemctl", "is-system-running", check=False):
            if time.monotonic() > deadline_s or self._container.poll() is not None:
                raise AssertionError(f"did not boot:\n{self._console.read_text(errors='replace')}")
            time.sleep(0.5)

    def power_off(self) -> None:
        """End it, whatever state it is in."""
        if self._container is None:
            return
        with contextlib.suppress(subprocess.SubprocessError):
            self.say("systemctl", "poweroff", check=False)
            self._container.wait(timeout=30)
        self._container.kill()
        self._container.wait()

    def say(self, *command: str, check: bool = True) -> str:
        """Run a command in the machine; gives what it printed."""
        if not self._init:
            assert self._container is not None
            children = Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children")
            self._init = int((children.read_text().split() or ["0"])[0])
            if not self._init:
                return ""
        done = subprocess.run(
            [
                *("nsenter", f"--target={self._init}"),
                *("--mount", "--uts", "--ipc", "--net", "--pid"),
                *("env", "--ignore-environment", "--chdir=/", "TERM=dumb", "HOME=/root"),
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PIP_CERT=/etc/ssl/certs/ca-certificates.crt",
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

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        (self._root / path.lstrip("/")).write_text(text)

    def add_guest(self, name: str, share: float) -> None:
        """Define and start a guest of one vCPU that uses this share of a pCPU, pinned to pCPU 0."""
        image = f"/var/lib/libvirt/images/{name}.img"
        inside = self._root / image.lstrip("/")
        inside.write_bytes(boot_image([share]))
        os.truncate(inside, FLOPPY_BYTES)
        inside.chmod(0o644)
        self.write(f"/root/{name}.xml", DOMAIN.format(name=name, image=image))
        self.say("virsh", "define", f"/root/{name}.xml")
        self.say("virsh", "start", name)
        self.say("virsh", "vcpupin", name, "0", "0", "--live")


def _run(*command: str, directory: Path | None = None) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr[-2000:])
