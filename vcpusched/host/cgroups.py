"""What cgroups, of version 2 and 1, let guests and their threads have.

Rule: what cannot be read is None, or no limit: nothing here raises.

Sources: the kernel's Documentation/admin-guide/cgroup-v2 and cgroup-v1/cpusets. Where libvirt makes
cgroups a guest has one of its own, the machine's scope, and in that `emulator`, `vcpuN` and
`iothreadN`, on version 2 below one more, `libvirt`. Pins are written into these, weight and
cpuset of the guest hold in the scope.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vcpusched.host.files import read_bytes, read_cpus, read_number
from vcpusched.model import ALL_CPUS, PPM, CpuSet

_IN_SCOPE: Final = re.compile(r"(?:/libvirt)?/(?:emulator|vcpu\d+|iothread\d+)$")

_CPUSETS: Final = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
"""The files of version 2 and 1, the effective ones first: a group may ask for more than it has."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a guest may have, by its groups.

    `cpuset` are the pCPUs that its threads may use, `ALL_CPUS` where that is every online one;
    `shares` its weight, None where it has no group of its own that tells; `quota_ppm` the most
    that one vCPU may run, since it cannot run more than all of the guest may.
    """

    cpuset: CpuSet = ALL_CPUS
    shares: int | None = None
    quota_ppm: int = PPM


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a cgroup may run, and how long it was held back because of it."""

    most_ppm: int | None
    throttled_ns: int


UNBOUNDED: Final = Quota(None, 0)


def limits(groups: str, root: Path = Path("/")) -> Limits:
    """Return what the guest may have whose process has this `/proc/PID/cgroup`.

    Where the machine's scope says nothing of a cpuset, the nearest group above it does.
    """
    path, top = map(Path, _placed(groups, "cpuset", root))
    cpuset = next(
        (
            cpus
            for group in _upwards(_scope(path), top)
            for name in _CPUSETS
            if (cpus := read_cpus(group / name))
        ),
        ALL_CPUS,
    )
    online = read_cpus(root / "sys/devices/system/cpu/online")
    # One that leaves out only what is offline bounds nothing, and must not when that comes back.
    if online and online.is_within(cpuset):
        cpuset = ALL_CPUS
    path, top = map(Path, _placed(groups, "cpu", root))
    scope = _scope(path)
    shares = None
    if scope != path:
        version_2 = read_number(scope / "cpu.weight")
        told = read_number(scope / "cpu.shares") if version_2 is None else version_2
        shares = told if told is None else max(1, told)  # an idle group (cpu.idle) says 0
    quotas = map(_quota, map(str, (scope / "libvirt", *_upwards(scope, top))))
    bounds = [quota.most_ppm for quota in quotas if quota and quota.most_ppm is not None]
    return Limits(cpuset, shares, min([PPM, *bounds]))


def usual_shares(root: Path = Path("/")) -> int:
    """Return the weight of a group to which nobody gave one."""
    return 100 if (root / "sys/fs/cgroup/cgroup.controllers").exists() else 1024


class Quotas:
    """The quotas of cgroups as they are at one moment: that of a parent is read once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._free: dict[str, bool] = {}

    def of_thread(self, groups: str) -> Quota | None:
        """Return the quota of a thread from its `/proc/…/cgroup`; None where that cannot be told.

        It can when only the thread's own cgroup has a quota: of one further up nobody tells which
        thread was held back by it.
        """
        group, top = _placed(groups, "cpu", self._root)
        if group == top:
            return UNBOUNDED
        return _quota(group) if self._is_free(group.rpartition("/")[0], top) else None

    def _is_free(self, group: str, top: str) -> bool:
        """Return whether neither a cgroup nor one above it has a quota."""
        if len(group) <= len(top):
            return True
        if group not in self._free:
            quota = _quota(group)
            free = quota is not None and quota.most_ppm is None
            self._free[group] = free and self._is_free(group.rpartition("/")[0], top)
        return self._free[group]


# As paths, since thousands of threads are placed in each cycle, and stay where they are.
@functools.lru_cache(maxsize=32_768)
def _placed(groups: str, controller: str, root: Path) -> tuple[str, str]:
    """Return the group that a controller has a thread in, and the top of its hierarchy."""
    mounted = root / "sys/fs/cgroup"
    by_controller = {
        name: path
        # A group's name may hold anything but a line end.
        for _number, names, path in (
            line.split(":", 2) for line in groups.split("\n") if line.count(":") > 1
        )
        for name in names.split(",")
    }
    if controller in by_controller:
        top, path = mounted / controller, by_controller[controller]
    else:
        top, path = mounted, by_controller.get("", "/")
    return str(top / path.lstrip("/")), str(top)


def _scope(group: Path) -> Path:
    """Return the group of the whole guest; that of the process where libvirt made none."""
    return Path(_IN_SCOPE.sub("", str(group)))


def _upwards(group: Path, top: Path) -> Iterator[Path]:
    yield group
    while group not in {top, group.parent}:
        group = group.parent
        yield group


def _quota(group: str) -> Quota | None:
    limit = read_bytes(f"{group}/cpu.max")
    if limit is None:
        runs = read_bytes(f"{group}/cpu.cfs_quota_us")
        every = read_bytes(f"{group}/cpu.cfs_period_us")
        if runs is None or every is None:
            # A group without the controller has no quota of its own; one that is gone, nothing.
            return UNBOUNDED if Path(group).is_dir() else None
        limit = runs.strip() + b" " + every
    if limit.startswith((b"max", b"-1")):
        return UNBOUNDED
    runs, every = limit.split()
    for line in (read_bytes(f"{group}/cpu.stat") or b"").splitlines():
        name, _, value = line.partition(b" ")
        if name in {b"throttled_usec", b"throttled_time"}:
            scale = 1000 if name == b"throttled_usec" else 1
            return Quota(int(runs) * PPM // int(every), int(value) * scale)
    return None
