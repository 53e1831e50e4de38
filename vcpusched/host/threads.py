"""The threads of guests' vCPUs: where they are in /proc, and how long they waited.

Rule: asks neither libvirt nor QEMU, so it disturbs no guest and waits for nobody. What cannot be
read is None or absent: nothing here raises.

Sources: proc(5) for `cmdline`; the kernel's Documentation/scheduler/sched-stats for
`/proc/PID/task/TID/schedstat` (time run, time waited in ns, also without `schedstats=enable`), from
which libvirt takes its `vcpu.N.delay`, too. libvirt starts QEMU with the domain's UUID on its
command line and with threads that are named after their vCPU, and puts each vCPU into a cgroup
`vcpuN` where it manages cgroups.
"""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vcpusched.host.cgroups import Quotas
from vcpusched.host.files import read_text
from vcpusched.model import DomainUuid, Waited

_VCPU_THREAD: Final = re.compile(r"CPU (\d+)/")
_VCPU_GROUP: Final = re.compile(r"/vcpu(\d+)$")

SEARCH_PAUSE_NS: Final = 60 * 1_000_000_000
"""How long to wait before all processes are looked through again for a guest not found."""


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
            command = read_text(process / "cmdline") or ""
            after = command.partition("\0-uuid\0")[2].partition("\0")[0]
            if guest_found := missing.pop(DomainUuid(after), None):
                guest_found.threads = _vcpu_threads(process)
            if not missing:
                break

    def waited(
        self, key: tuple[DomainUuid, int], vcpus: Iterable[int], quotas: Quotas
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


def _vcpu_threads(process: Path) -> dict[int, Path]:
    threads = {}
    try:
        tasks = list((process / "task").iterdir())
    except OSError:
        return {}
    for task in tasks:
        named = _VCPU_THREAD.match(read_text(task / "comm") or "")
        if named is None:
            continue
        # Where libvirt made a cgroup for it that tells libvirt's own number of the vCPU.
        groups = read_text(task / "cgroup") or ""
        grouped = next(filter(None, map(_VCPU_GROUP.search, groups.splitlines())), named)
        threads[int(grouped[1])] = task
    return threads


def _waited(thread: Path, quotas: Quotas) -> Waited | None:
    at_ns = time.monotonic_ns()
    columns = (read_text(thread / "schedstat") or "").split()
    groups = read_text(thread / "cgroup")
    if len(columns) < 2 or groups is None:  # noqa: PLR2004  time run, time waited
        return None
    quota = quotas.of_thread(groups)
    if quota is None:
        return None
    return Waited(at_ns, int(columns[1]), quota.throttled_ns, quota.most_ppm)
