"""The disk that the machine boots from: built once from Debian's packages, and kept.

It lies below ${XDG_CACHE_HOME:-~/.cache}/vcpusched, named by a hash of all that it is made of, so a
changed package list makes another one. What is under test is not on it.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]

RELEASES: Final = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian's releases that can be tried, with their Python."""

PACKAGES: Final = (
    "systemd-sysv",
    "dbus",
    "polkitd",
    "udev",
    "kmod",
    "linux-image-amd64",
    "initramfs-tools",
    "zstd",
    "libvirt-daemon-system",
    "libvirt-clients",
    "qemu-system-x86",
    "python3-venv",
    "python3-libvirt",
    "python3-systemd",
    # These and the bindings are what the .deb depends on: there is no network to bring them later.
    "python3-prometheus-client",
    "python3-rich",
    "binutils",  # for contrib/benchmark, which puts its guests together there
)
HERE_ALREADY: Final = ("libvirt-python", "systemd-python")
"""What the service needs and these packages bring: the distribution's bindings."""

DPKG_OPTIONS: Final = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "force-unsafe-io",
)
"""Also for packages that are installed later: what a power cut would undo is thrown away anyway."""

DISK_MIB: Final = 3072
WHEELS: Final = "usr/local/share/wheels"
AGE_MAX_S: Final = 30 * 86400
"""A disk older than this is built anew, since Debian's packages have changed meanwhile."""

IGNORED: Final = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "build", "dist")
"""What is no part of a checkout, as globs of names."""

LIMIT_S: Final = 900
"""For each of the programs that build it."""

# Only what mounts the disk; a whole initramfs takes an emulated machine 10 s longer to unpack.
INITRAMFS: Final = """mkdir -p "$1/etc/initramfs-tools/conf.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/machine"
printf '%s\\n' virtio_pci virtio_blk ext4 >"$1/etc/initramfs-tools/modules"
"""

FIRST_QUOTA: Final = "/sys/fs/cgroup/system.slice/cpu.max"
FILES: Final = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n",
    # Linux rewrites parts of its scheduler (static keys) with the first quota and the first KVM
    # guest, and with the last. An emulated processor that is just executing such a part may find
    # the breakpoint there for ever, which froze three machines. So these are made, to stay, while
    # there is one processor only; the others come then, before anything else runs.
    "etc/systemd/system/system.slice.d/quota.conf": "[Slice]\nCPUQuota=10000%\n",
    "etc/systemd/system/processors.service": """[Unit]
DefaultDependencies=no
Before=sysinit.target
ConditionKernelCommandLine=maxcpus=1

[Service]
Type=notify
ExecStart=/usr/bin/python3 /usr/local/lib/processors.py
""",
    "usr/local/lib/processors.py": """import fcntl, pathlib, signal, subprocess, time
from systemd import daemon

KVM_CREATE_VM = 0xAE01

subprocess.run(["modprobe", "kvm_amd"], check=True)
guest = fcntl.ioctl(open("/dev/kvm", "rb"), KVM_CREATE_VM, 0)
for processor in sorted(pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*/online")):
    while processor.read_text() != "1\\n":
        try:
            processor.write_text("1")
        except OSError:  # now and then the kernel has no time for it
            time.sleep(0.05)
daemon.notify("READY=1")
signal.pause()
""",
    # The checkout under test is a tar archive on the second disk.
    "etc/systemd/system/source.service": """[Unit]
ConditionPathExists=!/src/README.md

[Service]
Type=oneshot
ExecStart=/bin/tar --extract --file=/dev/vdb --directory=/ --no-same-owner
""",
    # Not in a container, which has neither.
    "etc/systemd/system/agent.service": """[Unit]
Wants=source.service
After=source.service
ConditionPathExists=/dev/virtio-ports/agent

[Service]
ExecStart=/usr/bin/python3 /src/tests/system/agent.py /dev/virtio-ports/agent

[Install]
WantedBy=multi-user.target
""",
}
LINKS: Final = {
    "etc/systemd/system/sysinit.target.wants/processors.service": "../processors.service",
    "etc/systemd/system/multi-user.target.wants/agent.service": "../agent.service",
    **{
        f"etc/systemd/system/{unit}": "/dev/null"
        for unit in (
            "getty.target",
            "apt-daily.timer",
            "apt-daily-upgrade.timer",
            "e2scrub_all.timer",
            "e2scrub_reap.service",
            "fstrim.timer",
            # It waits 300 s for guests without ACPI handlers when the machine goes down.
            "libvirt-guests.service",
        )
    },
}


class ImageError(Exception):
    """The disk cannot be built; the text says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots from."""

    release: str
    disk: Path
    kernel: Path
    initrd: Path


def image(release: str, say: Callable[[str], None]) -> Image:
    """Give the disk of a release, built first unless it is kept. Takes a minute or two then.

    Needs root, mmdebstrap, e2fsprogs, and Debian's and Python's package indexes, reached as apt
    and pip do here. `say` gets what is being waited for. Raises ImageError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vcpusched"
    kept = cache / f"machine-{release}-{_recipe(release)}"
    made = Image(release, kept / "disk", kept / "vmlinuz", kept / "initrd.img")
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "lock"):
        _prune(cache)
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as directory:
                began_s = time.monotonic()
                built = Path(directory) / "image"
                built.mkdir()
                _build(release, Path(directory) / "root", built, say)
                built.rename(kept)
                say(f"built the disk of a Debian {release} in {time.monotonic() - began_s:.0f} s")
    return made


def unpack(image: Image, directory: Path) -> None:
    """Lay out what is on the disk below an empty directory, without set-user-id bits."""
    _run("debugfs", "-R", f"rdump / {directory}", str(image.disk))


def _recipe(release: str) -> str:
    """Hash all that a disk is made of."""
    parts = [release, PACKAGES, DPKG_OPTIONS, _wanted(), DISK_MIB, INITRAMFS, FILES, LINKS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _wanted() -> list[str]:
    """Name what pip needs to install the package under test, as requirements."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    return [text for text in needed if not text.startswith(HERE_ALREADY)]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Wait for our turn: two runs must not build the same disk."""
    with path.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _prune(cache: Path) -> None:
    """Remove disks that are too old, and what builds left behind that were killed."""
    for old in [*cache.glob("machine-*"), *cache.glob("building-*")]:
        if old.name.startswith("building-") or time.time() - old.stat().st_mtime > AGE_MAX_S:
            shutil.rmtree(old)


def _build(release: str, root: Path, built: Path, say: Callable[[str], None]) -> None:
    """Lay out a Debian below `root`, and make a disk, a kernel and an initramfs of it."""
    if os.geteuid() != 0:
        raise ImageError("only root can lay out a Debian")
    say(f"installing Debian {release} with {len(PACKAGES)} packages and what they need")
    _run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
        f"--essential-hook={INITRAMFS}",
        *(release, str(root)),
    )
    say("downloading the Python packages that the service needs")
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={RELEASES[release]}"),
        *("--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64"),
        *(f"--dest={root / WHEELS}", *_wanted()),
    )
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in LINKS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)
    say("making a disk of it")
    for name in ("vmlinuz", "initrd.img"):
        (found,) = (root / "boot").glob(f"{name}-*")
        shutil.move(found, built / name)
    _run(
        *("mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d", str(root)),
        *(str(built / "disk"), f"{DISK_MIB}M"),
    )


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise ImageError(f"{command[0]}: {(done.stderr or done.stdout)[-2000:]}")
