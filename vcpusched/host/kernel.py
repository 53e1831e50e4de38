"""What the Linux kernel itself tells of pCPUs and of vCPU threads, in /proc, /sys and cgroups.

Rule: reads files that everybody may read; asks neither libvirt nor QEMU, so it disturbs no guest
and waits for nobody. What cannot be read is None or absent: nothing here raises.

Sources: proc(5) for `stat` and `cmdline`; the kernel's Documentation/scheduler/sched-stats for
`/proc/PID/task/TID/schedstat` (time run, time waited in ns, also without `schedstats=enable`), from
which libvirt takes its `vcpu.N.delay`, too; Documentation/admin-guide/cgroup-v2 for `cpu.max` and
`cpu.stat`; Documentation/ABI/testing/sysfs-devices-system-cpu for `cpu_capacity`, and
arch/x86/events/intel/core.c for the lists of big and small cores. libvirt starts QEMU with the
domain's UUID on its command line and with threads that are named after their vCPU, and puts each
vCPU into a cgroup `vcpuN` where it manages cgroups.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vcpusched.model import PPM, Busy, CpuSet, DomainUuid, Waited

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_IDLE: Final = frozenset({3, 4, 8, 9})
"""Of the columns of /proc/stat idle and iowait, and guest and guest_nice, which are in user."""

_VCPU_THREAD: Final = re.compile(r"CPU (\d+)/")
_VCPU_GROUP: Final = re.compile(r"/vcpu(\d+)$")

SMALL_PER_CLOCK_PPM: Final = 800_000
"""What a small x86 core does in a clock cycle, relative to a big one.

The kernel's intel_pstate driver takes 100 MHz of a small core for as much as 78.7 MHz (Alder and
Raptor Lake), 80 MHz (Meteor Lake) or 87 MHz (Lunar Lake) of a big one.
"""

SMALL_PPM: Final = 600_000
"""What a small x86 core can do where frequencies are not told, relative to a big one.

That is 3.9 GHz beside 5.1 GHz, as on Alder Lake, by the same reckoning (0.61).
"""

SEARCH_PAUSE_NS: Final = 60 * 1_000_000_000
"""How long to wait before all processes are looked through again for a guest not found."""


def isolated(root: Path = Path("/")) -> CpuSet:
    """Give the pCPUs that the kernel keeps free of what is not pinned there (isolcpus=)."""
    return _cpulist(root / "sys/devices/system/cpu/isolated")


def tickless(root: Path = Path("/")) -> CpuSet:
    """Give the pCPUs without a scheduler tick (nohz_full=): each is meant for one thread."""
    return _cpulist(root / "sys/devices/system/cpu/nohz_full")


def capacities(cpus: CpuSet, root: Path = Path("/")) -> Mapping[int, int]:
    """Tell what each of these pCPUs can do, in ppm of the strongest among them: above 0, up to PPM.

    Empty where the kernel tells of no difference. What it reckons itself (`cpu_capacity`, from 0 to
    1024) comes first. On hybrid x86 that is one and the same for all before Linux 6.12 and wherever
    SMT is possible, and there the core type is told by which of its counters a pCPU has.
    """
    reckoned = _by_kernel(cpus, root / "sys/devices/system/cpu")
    if len(set(reckoned.values())) > 1:
        return reckoned
    return _by_core_type(cpus, root / "sys/devices")


def _by_kernel(cpus: CpuSet, directory: Path) -> dict[int, int]:
    """Give what the kernel reckons; nothing unless it does for all."""
    reckoned = {}
    for cpu in cpus:
        capacity = _number(directory / f"cpu{cpu}/cpu_capacity")
        if not capacity:
            return {}
        reckoned[cpu] = capacity
    strongest = max(reckoned.values(), default=0)
    return {cpu: max(capacity * PPM // strongest, 1) for cpu, capacity in reckoned.items()}


def _by_core_type(cpus: CpuSet, devices: Path) -> dict[int, int]:
    """Give PPM for big cores, and for small ones what follows from how fast both can be clocked."""
    big = _cpulist(devices / "cpu_core/cpus") & cpus
    small = _cpulist(devices / "cpu_atom/cpus") | _cpulist(devices / "cpu_lowpower/cpus")
    small = (small & cpus) - big
    if not big or not small:
        return {}
    clocked = {
        cpu: _number(devices / f"system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0
        for cpu in big | small
    }
    # Big cores differ by a step or two, which no load can be told by: they count as equals.
    fastest = max(clocked[cpu] for cpu in big)
    found = dict.fromkeys(cpus, PPM)
    for cpu in small:
        known = fastest and clocked[cpu]
        can_ppm = clocked[cpu] * SMALL_PER_CLOCK_PPM // fastest if known else SMALL_PPM
        found[cpu] = min(max(can_ppm, 1), PPM)
    return found


def busy(root: Path = Path("/")) -> Busy | None:
    """Tell how long each pCPU has not been idle since it came up, in steps of a clock tick."""
    at_ns = time.monotonic_ns()
    text = _text(root / "proc/stat")
    if text is None:
        return None
    by_cpu_ns = {}
    for line in text.splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = sum(int(ticks) for index, ticks in enumerate(columns) if index not in _IDLE)
            by_cpu_ns[int(name[3:])] = ticks * _TICK_NS
    return Busy(at_ns, by_cpu_ns)


@dataclass(slots=True)
class _Guest:
    """Where a guest's vCPU threads are, by vCPU number; none when it was not found."""

    threads: dict[int, Path] = field(default_factory=dict)
    searched_ns: int = 0


class Threads:
    """The vCPU threads of guests, found once and remembered."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._guests: dict[tuple[DomainUuid, int], _Guest] = {}

    def forget_all_but(self, running: Iterable[tuple[DomainUuid, int]]) -> None:
        """Forget guests that are not among those running."""
        keys = set(running)
        self._guests = {key: guest for key, guest in self._guests.items() if key in keys}

    def find(self, wanted: Mapping[tuple[DomainUuid, int], Iterable[int]]) -> None:
        """Look for the threads of these vCPUs of guests, where they are not known yet."""
        now_ns = time.monotonic_ns()
        missing = {}
        for key, vcpus in wanted.items():
            guest = self._guests.setdefault(key, _Guest(searched_ns=now_ns - SEARCH_PAUSE_NS))
            unknown = set(vcpus) - set(guest.threads)
            if unknown and now_ns - guest.searched_ns >= SEARCH_PAUSE_NS:
                missing[key[0]] = guest
                guest.searched_ns = now_ns
        if not missing:
            return
        for process in self._processes():
            command = _text(process / "cmdline") or ""
            after = command.partition("\0-uuid\0")[2].partition("\0")[0]
            if guest_found := missing.pop(DomainUuid(after), None):
                guest_found.threads = _vcpu_threads(process)
            if not missing:
                break

    def waited(
        self, key: tuple[DomainUuid, int], vcpus: Iterable[int], quotas: "Quotas"
    ) -> Mapping[int, Waited]:
        """Tell how long vCPUs have waited; one of which it cannot be told is absent."""
        guest = self._guests.get(key, _Guest())
        found = {}
        for vcpu in vcpus:
            thread = guest.threads.get(vcpu)
            waited = _waited(thread, quotas) if thread is not None else None
            if waited is not None:
                found[vcpu] = waited
            elif thread is not None:
                del guest.threads[vcpu]  # ended: another may come in its place
        return found

    def _processes(self) -> Iterable[Path]:
        try:
            return [path for path in (self._root / "proc").iterdir() if path.name.isdigit()]
        except OSError:
            return []


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a cgroup may run, and how long it was held back because of it."""

    most_ppm: int | None
    throttled_ns: int


class Quotas:
    """The quotas of cgroups as they are at one moment: each is read once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._mounted = root / "sys/fs/cgroup"
        self._known: dict[Path, Quota | None] = {}

    def of_thread(self, groups: str) -> Quota | None:
        """Give the quota of a thread from its `/proc/…/cgroup`; None where that cannot be told.

        It can when only the thread's own cgroup has a quota: of one further up nobody tells which
        thread was held back by it.
        """
        by_controller = {
            controller: path
            for _number, controllers, path in (line.split(":", 2) for line in groups.splitlines())
            for controller in controllers.split(",")
        }
        if "cpu" in by_controller:
            path, top = by_controller["cpu"], self._mounted / "cpu"
        else:
            path, top = by_controller.get("", "/"), self._mounted
        group = top / path.lstrip("/")
        if group == top:
            return Quota(None, 0)
        for above in group.parents:
            if above == top:
                break
            outer = self._read(above)
            if outer is None or outer.most_ppm is not None:
                return None
        return self._read(group)

    def _read(self, group: Path) -> Quota | None:
        if group not in self._known:
            self._known[group] = _quota(group)
        return self._known[group]


def _quota(group: Path) -> Quota | None:
    limit = _text(group / "cpu.max")
    if limit is None:
        runs, every = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if runs is None or every is None:
            # A group without the controller has no quota of its own; one that is gone, nothing.
            return Quota(None, 0) if group.is_dir() else None
        limit = f"{runs.strip()} {every.strip()}"
    runs, _, every = limit.strip().partition(" ")
    if runs in {"max", "-1"}:
        return Quota(None, 0)
    for line in (_text(group / "cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in {"throttled_usec", "throttled_time"}:
            scale = 1000 if name == "throttled_usec" else 1
            return Quota(int(runs) * PPM // int(every), int(value) * scale)
    return None


def _vcpu_threads(process: Path) -> dict[int, Path]:
    threads = {}
    try:
        tasks = list((process / "task").iterdir())
    except OSError:
        return {}
    for task in tasks:
        named = _VCPU_THREAD.match(_text(task / "comm") or "")
        if named is None:
            continue
        # Where libvirt made a cgroup for it that tells libvirt's own number of the vCPU.
        groups = _text(task / "cgroup") or ""
        grouped = next(filter(None, map(_VCPU_GROUP.search, groups.splitlines())), named)
        threads[int(grouped[1])] = task
    return threads


def _waited(thread: Path, quotas: Quotas) -> Waited | None:
    at_ns = time.monotonic_ns()
    columns = (_text(thread / "schedstat") or "").split()
    groups = _text(thread / "cgroup")
    if len(columns) < 2 or groups is None:  # noqa: PLR2004  time run, time waited
        return None
    quota = quotas.of_thread(groups)
    if quota is None:
        return None
    return Waited(at_ns, int(columns[1]), quota.throttled_ns, quota.most_ppm)


def _cpulist(path: Path) -> CpuSet:
    return CpuSet.read((_text(path) or "").replace("(null)", "").strip())


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    # As many digits as 64 bits have at most: int() refuses thousands of them.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
