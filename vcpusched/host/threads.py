"""The threads of guests' vCPUs: how long they ran and waited, where, and where they may.

Rule: reads /proc and asks for affinities; asks neither libvirt nor QEMU, so it disturbs no guest
and waits for nobody. What cannot be read is None: `Threads` raises nothing.

Sources: the kernel's Documentation/scheduler/sched-stats for `/proc/PID/task/TID/schedstat` (time
run and time waited, both in ns, also without `schedstats=enable`), proc(5) for `stat`, and
fs/proc/base.c for `/proc/PID/task`, which has two links and one for each thread.
sched_getaffinity(2) needs no privilege. The counters are kept open: that takes 5 KiB of the
kernel's memory for each vCPU, and saves a third of the time. Quotas change seldom, so which groups
have one is read when threads are listed; of those that have, one more file says how long they held
back.
"""

import ctypes
import functools
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vcpusched.host import processes
from vcpusched.host.cgroups import quota_counters, throttled_ns
from vcpusched.host.definitions import Key
from vcpusched.host.files import TICK_NS, OpenFile, read_bytes
from vcpusched.model import CpuSet
from vcpusched.sample import VcpuReading, Waited

SETTLING_NS: Final = 10 * 1_000_000_000
"""While a guest starts its threads appear one by one and are put into cgroups; so are vCPUs that
are plugged in. For so long they are searched for in every sample."""

PAUSE_NS: Final = 60 * 1_000_000_000
"""How long threads are remembered, and how long to wait before all processes are searched again for
a guest that was not found."""

UNREADABLE: Final = "the counters or affinities of its threads cannot be read"

_SCHEDSTAT_COLUMNS: Final = 3

_sched_getaffinity: Final = ctypes.CDLL(None).sched_getaffinity
_Mask: Final = ctypes.c_char * 1024
"""8192 pCPUs, as many as Linux can have (NR_CPUS)."""


_Seen = tuple[bytes | None, CpuSet | None, int | None]
"""A thread's `schedstat`, where it may run, and for how many ns its quota held it back."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One guest's vCPUs, read from `at_ns` on."""

    at_ns: int
    vcpus: tuple[VcpuReading, ...]


@dataclass(slots=True)
class _VcpuThread:
    """A vCPU's thread, its counters, and the file that counts how long its quota held it back.

    What was last `seen` of it, and what was made of that.
    """

    thread: processes.Thread
    counters: OpenFile
    quota: str | None
    seen: _Seen | None = None
    reading: VcpuReading | None = None


@dataclass(slots=True)
class _Guest:
    """What is remembered of a guest; `process` is None while none is believed, `why` says why.

    `tids` are the threads that its process had when they were listed, `began_ns` is when the guest,
    or the last of its vCPUs, came.
    """

    began_ns: int
    searched_ns: int
    why: str = ""
    process: processes.Process | None = None
    tids: set[int] = field(default_factory=set)
    vcpus: dict[int, _VcpuThread] = field(default_factory=dict)

    def is_settling(self, now_ns: int) -> bool:
        """Return whether it, or one of its vCPUs, has come just now."""
        return now_ns - self.began_ns < SETTLING_NS


def affinity_of(tid: int) -> CpuSet | None:
    """Return where a thread may run, that of the caller for 0; None where that cannot be read.

    os.sched_getaffinity builds a number and an entry of a set for each pCPU, which on hosts of
    hundreds takes longer than all else that is read of a thread.
    """
    mask = _Mask()
    if _sched_getaffinity(tid, ctypes.sizeof(mask), mask):
        return None
    return cpus_of(mask.raw)


@functools.lru_cache(maxsize=4096)
def cpus_of(mask: bytes) -> CpuSet:
    """Return the pCPUs of a mask as the kernel has it: words of the machine, the lowest first."""
    words = memoryview(mask).cast("L")
    return CpuSet(sum(word << words.itemsize * 8 * index for index, word in enumerate(words)))


class Threads:
    """The vCPU threads of all guests that run, found once and remembered.

    `affinity_of` returns where a thread may run, by its number.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        affinity_of: Callable[[int], CpuSet | None] = affinity_of,
    ) -> None:
        self._root = root
        self._proc = str(root / "proc")
        self._affinity_of = affinity_of
        self._guests: dict[Key, _Guest] = {}
        self._now_ns = 0

    def find(self, running: Mapping[Key, Collection[int]], now_ns: int) -> None:
        """Find the threads of guests where they are not known; forget guests that do not run.

        With each guest come the users that may run its QEMU where machines have no cgroups. The
        time is that since the machine started, as threads say when they did.
        """
        is_first = not self._guests
        self._now_ns = now_ns
        self._guests = {key: self._guests.get(key) or _Guest(now_ns, now_ns) for key in running}
        unknown = {}
        for key, guest in self._guests.items():
            if guest.is_settling(now_ns) or now_ns - guest.searched_ns >= PAUSE_NS:
                guest.searched_ns = now_ns
                # What was found before the guest's QEMU was there may be another process.
                known = None if guest.is_settling(now_ns) else guest.process
                if known is None or not self._list(guest, known):
                    unknown[key] = running[key]
        if not unknown:
            return
        for key, found in processes.find(self._proc, unknown).items():
            guest = self._guests[key]
            if isinstance(found, str):
                guest.process, guest.vcpus, guest.why = None, {}, found
            else:
                if is_first:
                    guest.began_ns = 0  # it was here before us, and as old as its threads
                self._list(guest, found)

    def read(self, key: Key) -> Sweep | None:
        """Read all vCPUs of a guest; None where they cannot be read here."""
        guest = self._guests.get(key)
        if guest is None or guest.process is None:
            return None
        process = guest.process
        sweep = self._sweep(guest)
        count = _count(f"{self._proc}/{process.pid}/task")
        if sweep is None or (count != len(guest.tids) and self._has_more(guest, process)):
            sweep = self._sweep(guest) if self._list(guest, process) else None
        guest.why = "" if sweep is not None else guest.why or UNREADABLE
        return sweep

    def affinity(self, key: Key, vcpu: int) -> CpuSet | None:
        """Return where a vCPU may run right now; None where that cannot be read here."""
        guest = self._guests.get(key)
        known = guest.vcpus.get(vcpu) if guest is not None else None
        if known is None:
            return None
        thread = known.thread
        affinity = self._affinity_of(thread.tid)
        columns = processes.columns_of(read_bytes(f"{thread.path}/stat"))
        is_same = columns is not None and columns[processes.STARTED] == thread.started
        return affinity if is_same else None

    def group(self, key: Key) -> str | None:
        """Return the cgroups of a guest's process, the text of its `/proc/PID/cgroup`.

        That is the cgroup of the machine, or one in it (`emulator`). None where it is not known.
        """
        guest = self._guests.get(key)
        if guest is None or guest.process is None:
            return None
        return processes.groups_of(self._proc, guest.process.pid)

    def why_not(self, key: Key) -> str:
        """Return why a guest's threads cannot be read, once it does not just start."""
        guest = self._guests.get(key)
        return guest.why if guest is not None and not guest.is_settling(self._now_ns) else ""

    def _has_more(self, guest: _Guest, process: processes.Process) -> bool:
        """Return whether one of a guest's threads is that of a vCPU which came since.

        Disks make the number of threads change all the time, so only the new ones are read.
        """
        pid, before = process.pid, guest.tids
        guest.tids = processes.tids(self._proc, pid)
        came = guest.tids - before
        return any(processes.vcpu_named(self._proc, pid, tid) is not None for tid in came)

    def _list(self, guest: _Guest, process: processes.Process) -> bool:
        """Find the vCPU threads of a guest's process; return whether there are any."""
        guest.process = process
        # First, so that a thread that comes while they are listed shows in the next sweep.
        guest.tids = processes.tids(self._proc, process.pid)
        guest.vcpus = {
            vcpu: _VcpuThread(
                thread,
                OpenFile(f"{thread.path}/schedstat"),
                quota_counters(thread.groups, self._root),
            )
            for vcpu, thread in processes.vcpu_threads(self._proc, process).items()
        }
        began_ns = [int(vcpu.thread.started) * TICK_NS for vcpu in guest.vcpus.values()]
        guest.began_ns = max([guest.began_ns, *began_ns])
        if not guest.vcpus:
            guest.process, guest.why = None, processes.NO_THREADS
        return bool(guest.vcpus)

    def _sweep(self, guest: _Guest) -> Sweep | None:
        """Read all vCPUs; None where a thread is not the one that was found."""
        at_ns = time.monotonic_ns()
        readings = []
        for number, vcpu in guest.vcpus.items():
            held_back_ns = throttled_ns(vcpu.quota)
            # The counters last, so that what was read before is of the same thread.
            affinity = self._affinity_of(vcpu.thread.tid)
            seen = vcpu.counters.read(), affinity, held_back_ns
            # Of a thread that did not run since, to the ns, nothing else can be other than it was.
            if vcpu.reading is None or vcpu.seen != seen:
                vcpu.seen, vcpu.reading = seen, _read_anew(number, vcpu.thread, seen)
                if vcpu.reading is None:
                    return None
            readings.append(vcpu.reading)
        return Sweep(at_ns, tuple(readings))


def _read_anew(vcpu: int, thread: processes.Thread, seen: _Seen) -> VcpuReading | None:
    """Return what was seen of a vCPU; None where its thread is not the one that was found."""
    line, affinity, held_back_ns = seen
    counters = (line or b"").split()
    # After the counters, which are of the same thread then.
    columns = processes.columns_of(read_bytes(f"{thread.path}/stat", is_line=True))
    if (
        columns is None
        or columns[processes.STARTED] != thread.started
        or len(counters) != _SCHEDSTAT_COLUMNS
        or affinity is None
    ):
        return None
    run_ns, wait_ns = int(counters[0]), int(counters[1])
    if not run_ns:
        return None  # a kernel that keeps no account writes zeros
    waited = Waited(wait_ns, held_back_ns) if held_back_ns is not None else None
    return VcpuReading(vcpu, run_ns, affinity, int(columns[processes.LAST_CPU]), waited)


def _count(directory: str) -> int | None:
    """Return how many threads there are in a process's directory of them."""
    try:
        return os.stat(directory).st_nlink - 2  # noqa: PTH116  paths of hundreds take too long
    except OSError:
        return None
