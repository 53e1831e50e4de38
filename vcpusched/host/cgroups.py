"""The CPU limits of cgroups, of version 2 and 1.

Rule: what cannot be read is None: nothing here raises.

Source: the kernel's Documentation/admin-guide/cgroup-v2 for `cpu.max` and `cpu.stat`.
"""

from dataclasses import dataclass
from pathlib import Path

from vcpusched.host.files import read_text
from vcpusched.model import PPM


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a cgroup may run, and how long it was held back because of it."""

    most_ppm: int | None
    throttled_ns: int


class Quotas:
    """The quotas of cgroups as they are at one moment: that of a parent is read once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._mounted = root / "sys/fs/cgroup"
        self._free: dict[Path, bool] = {}

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
        return _quota(group) if self._is_free(group.parent, top) else None

    def _is_free(self, group: Path, top: Path) -> bool:
        """Return whether neither a cgroup nor one above it has a quota."""
        if group == top:
            return True
        if group not in self._free:
            quota = _quota(group)
            free = quota is not None and quota.most_ppm is None
            self._free[group] = free and self._is_free(group.parent, top)
        return self._free[group]


def _quota(group: Path) -> Quota | None:
    limit = read_text(group / "cpu.max")
    if limit is None:
        runs, every = read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us")
        if runs is None or every is None:
            # A group without the controller has no quota of its own; one that is gone, nothing.
            return Quota(None, 0) if group.is_dir() else None
        limit = f"{runs.strip()} {every.strip()}"
    runs, _, every = limit.strip().partition(" ")
    if runs in {"max", "-1"}:
        return Quota(None, 0)
    for line in (read_text(group / "cpu.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in {"throttled_usec", "throttled_time"}:
            scale = 1000 if name == "throttled_usec" else 1
            return Quota(int(runs) * PPM // int(every), int(value) * scale)
    return None
