"""What cgroups, of version 2 and 1, let guests and their threads have.

Rule: what cannot be read is None, or no limit: nothing here raises.

Sources: the kernel's Documentation/admin-guide/cgroup-v2 and cgroup-v1/cpusets. Where libvirt makes
cgroups a guest has one of its own, the machine's scope, and in that `emulator`, `vcpuN` and
`iothreadN`, on version 2 below one more, `libvirt`. Pins are written into these, weight and
cpuset of the guest hold in the scope.
"""

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
    `shares` its weight, None where it has no group of its own that says it; `quota_ppm` the most
    that one vCPU may run, since it cannot run more than all of the guest may.
    """

    cpuset: CpuSet = ALL_CPUS
    shares: int | None = None
    quota_ppm: int = PPM


_THROTTLED: Final = {b"throttled_usec": 1000, b"throttled_time": 1}
"""The counter in version 2 and 1, and how many ns it counts in."""


def limits(groups: str, root: Path = Path("/")) -> Limits:
    """Return what the guest may have whose process has this `/proc/PID/cgroup`.

    Where the machine's scope says nothing of a cpuset, the nearest group above it does.
    """
    path, top = _placed(groups, "cpuset", root)
    cpuset = next(
        (
            cpus
            for group in _upwards(_scope(path), top)
            for name in _CPUSETS
            if (cpus := read_cpus(f"{group}/{name}"))
        ),
        ALL_CPUS,
    )
    online = read_cpus(root / "sys/devices/system/cpu/online")
    # One that leaves out only what is offline bounds nothing, and must not when that comes back.
    if online and online.is_within(cpuset):
        cpuset = ALL_CPUS
    path, top = _placed(groups, "cpu", root)
    scope = _scope(path)
    shares = None
    if scope != path:
        version_2 = read_number(f"{scope}/cpu.weight")
        weight = read_number(f"{scope}/cpu.shares") if version_2 is None else version_2
        shares = weight if weight is None else max(1, weight)  # an idle group (cpu.idle) says 0
    bounds = map(_most_ppm, (f"{scope}/libvirt", *_upwards(scope, top)))
    return Limits(cpuset, shares, min(bound for bound in (PPM, *bounds) if bound is not None))


def usual_shares(root: Path = Path("/")) -> int:
    """Return the weight of a group to which nobody gave one."""
    return 100 if (root / "sys/fs/cgroup/cgroup.controllers").exists() else 1024


def quota_counters(groups: str, root: Path = Path("/")) -> str | None:
    """Return the file that counts how long a quota held a thread back, by its `/proc/…/cgroup`.

    Empty without a quota. None where a group further up has one: nobody knows which thread was
    held back by that.
    """
    group, top = _placed(groups, "cpu", root)
    if group == top:
        return ""
    bounds = map(_most_ppm, _upwards(_above(group), top))
    if not Path(group).is_dir() or any(bound is not None for bound in bounds):
        return None
    return "" if _most_ppm(group) is None else f"{group}/cpu.stat"


def throttled_ns(counters: str | None) -> int | None:
    """Return how long a thread was held back, by its `quota_counters`; None where not known."""
    if not counters:
        return None if counters is None else 0
    for line in (read_bytes(counters) or b"").splitlines():
        name, _, value = line.partition(b" ")
        if name in _THROTTLED:
            return int(value) * _THROTTLED[name]
    return None


def _placed(groups: str, controller: str, root: Path) -> tuple[str, str]:
    """Return the group that a controller has a thread in, and the top of its hierarchy.

    As text: to go up a hierarchy with pathlib takes longer than to read its files.
    """
    mounted = str(root / "sys/fs/cgroup")
    by_controller = {
        name: path
        # A group's name may hold anything but a line end.
        for _number, names, path in (
            line.split(":", 2) for line in groups.split("\n") if line.count(":") > 1
        )
        for name in names.split(",")
    }
    if controller in by_controller:
        top, path = f"{mounted}/{controller}", by_controller[controller]
    else:
        top, path = mounted, by_controller.get("", "/")
    return f"{top}/{path.strip('/')}".rstrip("/"), top


def _scope(group: str) -> str:
    """Return the group of the whole guest; that of the process where libvirt made none."""
    return _IN_SCOPE.sub("", group)


def _above(group: str) -> str:
    return group.rpartition("/")[0]


def _upwards(group: str, top: str) -> Iterator[str]:
    yield group
    while group != top:
        group = _above(group)
        yield group


def _most_ppm(group: str) -> int | None:
    """Return the most that a group may run by its own quota, None without one."""
    limit = read_bytes(f"{group}/cpu.max")
    if limit is None:
        runs = read_bytes(f"{group}/cpu.cfs_quota_us")
        every = read_bytes(f"{group}/cpu.cfs_period_us")
        limit = runs + b" " + every if runs and every else b"max"
    if limit.startswith((b"max", b"-1")):
        return None
    runs, every = limit.split()
    return int(runs) * PPM // int(every)
