"""A small Linux guest that loads its vCPUs on demand and reports its own CPU accounting.

Built from Debian's kernel, busybox and stress-ng packages, none of which is installed. What the
guest writes to its console is a second opinion on what the host says its vCPUs use.
"""

import dataclasses
import gzip
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from lab_image import LabError

MEMORY_MIB = 256
"""What the kernel, the unpacked initramfs and some workers need, in MiB."""

_INIT_SCRIPT = Path(__file__).with_name("linux_init.sh")
_DIRECTORIES = ("bin", "dev", "lib", "lib64", "proc", "sys", "tmp")
_LOADER = "lib64/ld-linux-x86-64.so.2"
_DEPENDENCY_LEVELS = 4  # stress-ng's libraries lie within two or three.

# Left alone on purpose: the tickless idle of Debian's kernel, which times idle to the microsecond.
# With nohz=off ticks sample it, and were off by 4 points of 77. With highres=off sleeps are rounded
# up to ticks, and a load of 75 % came out as 62 %. The idle loop halts as it is: idle=halt and
# cpuidle.off=1 gained nothing.
_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet",  # Each character on the serial port is a trip out of the emulated CPU.
    "panic=-1",  # With on_reboot destroy, a guest that fails stops instead of hanging.
    "mitigations=off",  # Emulated CPUs have nothing to mitigate; every system call is cheaper.
    "no_timer_check",  # On a busy host the check can miss its ticks, which ends the boot.
    "tsc=reliable",  # Else a vCPU held back by the host may lose this clock for a slow one.
    "nowatchdog",  # Likewise it would be reported as a lockup, in the middle of a line.
    "rcupdate.rcu_cpu_stall_suppress=1",  # Likewise as a stall.
)

_STAT_LINE = re.compile(r"^STAT (\d+\.\d+)((?: cpu\d+(?: \d+){8,})+)\r?\n", re.MULTILINE)
_VCPU_COUNTERS = re.compile(r" cpu(\d+)((?: \d+)+)")
_TICKS_PER_S = 100  # USER_HZ, the unit of /proc/stat on every x86 kernel.
_IDLE, _IOWAIT = 3, 4  # Places in a line of /proc/stat.


@dataclasses.dataclass(frozen=True, slots=True)
class LinuxGuestImage:
    """The two files a direct kernel boot needs."""

    kernel: Path
    initramfs: Path


@dataclasses.dataclass(frozen=True, slots=True)
class GuestStat:
    """One report of the guest, in seconds since it booted; `busy_s` by vCPU number.

    Busy is the uptime less the idle time. The sum of the kernel's counters will not do: ticks are
    lost while the host holds a vCPU back, and the busy counters count ticks.
    """

    uptime_s: float
    busy_s: dict[int, float]


def build(directory: Path) -> LinuxGuestImage:
    """Build the guest's files in a directory, and return them.

    Needs Debian 12 or later on amd64 with its package lists (`apt-get update`), and 500 MiB of
    disk while it builds, 30 MiB after. Raises LabError when a package cannot be had or used.
    """
    image = LinuxGuestImage(directory / "vmlinuz", directory / "initramfs.cpio.gz")
    with tempfile.TemporaryDirectory(prefix="build-", dir=directory) as scratch:
        root = Path(scratch) / "root"
        _unpack([_real_kernel_package(), "busybox-static", "stress-ng"], root)
        stress = root / "usr/bin/stress-ng"
        files = {
            "init": _INIT_SCRIPT,
            "bin/busybox": _only(root, "**/bin/busybox"),
            "bin/stress-ng": stress,
            **_libraries(root, stress),
        }
        image.initramfs.write_bytes(gzip.compress(b"".join(_newc(files))))
        _only(root, "boot/vmlinuz-*").replace(image.kernel)
    return image


def domain_xml(  # noqa: PLR0913, PLR0917 - each is one plain property of the guest
    name: str,
    image: LinuxGuestImage,
    vcpus: int,
    workers: int,
    console_log: Path,
    load: int,
) -> str:
    """Describe an emulated guest to libvirt, its console written to `console_log`.

    `workers` is the number of stress-ng workers, and `load` what each burns, 1 to 100 percent of a
    vCPU. QEMU's user reads the image and writes the log: both paths are to be absolute and within
    its reach.
    """
    stress = (f"stress_workers={workers}", f"stress_load={load}")
    return f"""<domain type='qemu'>
  <name>{escape(name)}</name>
  <memory unit='MiB'>{MEMORY_MIB}</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{escape(str(image.kernel))}</kernel>
    <initrd>{escape(str(image.initramfs))}</initrd>
    <cmdline>{" ".join((*_KERNEL_ARGUMENTS, *stress))}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path="{escape(str(console_log), {'"': "&quot;"})}"/></serial>
  </devices>
</domain>
"""


def parse_console(text: str) -> tuple[GuestStat, ...]:
    """Return the reports in a console log, oldest first; a line not yet complete is left out."""
    return tuple(_guest_stat(*match.groups()) for match in _STAT_LINE.finditer(text))


def usage_between(first: GuestStat, last: GuestStat) -> dict[int, float]:
    """Return each vCPU's share of time not idle between two reports, 0 to 1.

    What the host owes is included: a vCPU that wants to run but waits on the host is busy. The
    counters' steps of 10 ms blur a share by up to 1 % / (seconds between the reports). Raises
    LabError when `last` is not a later report of the same guest.
    """
    if last.uptime_s <= first.uptime_s or last.busy_s.keys() != first.busy_s.keys():
        raise LabError("The reports are not an earlier and a later one of the same guest.")
    passed_s = last.uptime_s - first.uptime_s
    usage = {vcpu: (last.busy_s[vcpu] - first.busy_s[vcpu]) / passed_s for vcpu in last.busy_s}
    return {vcpu: min(max(share, 0.0), 1.0) for vcpu, share in usage.items()}


def _guest_stat(uptime: str, vcpus: str) -> GuestStat:
    uptime_s = float(uptime)
    busy_s: dict[int, float] = {}
    for vcpu, counters in _VCPU_COUNTERS.findall(vcpus):
        ticks = [int(counter) for counter in counters.split()]
        idle_s = (ticks[_IDLE] + ticks[_IOWAIT]) / _TICKS_PER_S
        busy_s[int(vcpu)] = round(uptime_s - idle_s, 2)
    return GuestStat(uptime_s, busy_s)


def _run(*command: str, directory: Path | None = None) -> str:
    try:
        return subprocess.run(
            command,
            cwd=directory,
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError as error:
        raise LabError(f"The program {command[0]} is not installed.") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())
        raise LabError(f"`{' '.join(command)}` failed: {reason}") from error


def _only(root: Path, pattern: str) -> Path:
    found = next(root.glob(pattern), None)
    if found is None:
        raise LabError(f"No package unpacked holds {pattern}.")
    return found


def _real_kernel_package() -> str:
    # The release's own, which suits the QEMU of the release: Debian 13's kernel with two vCPUs
    # crashed in one boot of eight on Debian 12's QEMU, and in none of 24 on its own.
    for package in _dependencies("linux-image-cloud-amd64"):
        if package.startswith("linux-image-"):
            return package
    raise LabError("linux-image-cloud-amd64 names no kernel; try `apt-get update`.")


def _dependencies(package: str) -> list[str]:
    """Name the packages that `package` depends on, virtual ones (in <>) left out."""
    listing = _run("apt-cache", "depends", "--important", package)
    return re.findall(r"^ *\|?(?:Pre)?Depends: ([^<\s]+)$", listing, re.MULTILINE)


def _unpack(packages: Sequence[str], root: Path) -> None:
    """Download `packages` and lay out their files below `root`."""
    with tempfile.TemporaryDirectory(prefix="packages-", dir=root.parent) as downloads:
        # As root, apt would hand the download to a user that cannot write here, and complain.
        sandbox = ("--option", "APT::Sandbox::User=root") if os.geteuid() == 0 else ()
        _run("apt-get", *sandbox, "download", *packages, directory=Path(downloads))
        for package in sorted(Path(downloads).glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(root))


def _libraries(root: Path, program: Path) -> dict[str, Path]:
    """Find the libraries of `program`, by the path each gets in the guest.

    The dependencies of its package are fetched level by level until the loader finds everything:
    all of them would include graphics drivers and a compiler. A library that is missing below
    `root` but installed here is as good, being of the same release.
    """
    fetched: set[str] = set()
    level = {program.name}
    for _ in range(_DEPENDENCY_LEVELS):
        level = {name for package in level for name in _dependencies(package)} - fetched
        fetched |= level
        _unpack(sorted(level), root)
        loader = _only(root, "**/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        folders = ":".join(str(root / parent / "x86_64-linux-gnu") for parent in ("lib", "usr/lib"))
        # What ldd does; the loader's own --list would stop at the first library missing.
        trace = ("env", "LD_TRACE_LOADED_OBJECTS=1", str(loader), "--library-path", folders)
        listing = _run(*trace, str(program))
        if "not found" not in listing:
            found = re.findall(r"^\s*([^/\s]+) => (/.+) \(0x", listing, re.MULTILINE)
            return {_LOADER: loader} | {f"lib/{name}": Path(path) for name, path in found}
    raise LabError(f"The packages {program.name} depends on lack some of its libraries.")


def _newc(files: dict[str, Path]) -> Iterator[bytes]:
    """Yield a cpio archive in the format the kernel unpacks, owned by root and without dates."""
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in _DIRECTORIES]
    entries += [(name, stat.S_IFREG | 0o755, path.read_bytes()) for name, path in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for inode, (name, mode, content) in enumerate(entries, start=1):
        # Inode, mode, user, group, links, date, size, two devices, length of the name, checksum.
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = "070701" + "".join(f"{field:08x}" for field in fields) + name + "\0"
        for part in (header.encode(), content):
            yield part + bytes(-len(part) % 4)
