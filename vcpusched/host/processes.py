r"""The QEMU processes of guests: which process in /proc is believed to be whose.

Rule: everybody can start a process that looks like a guest's QEMU, so a command line only names
candidates. Believed is the one that the kernel has in the cgroup of the guest's machine, where only
root can put it; and without such cgroups the one that runs as the guest's user and in the cgroup of
no other machine. Where more than one remains, none is believed.

Sources: proc(5) for `cmdline`, `cgroup`, `status` and `stat`. libvirt starts QEMU with the domain's
UUID on its command line and with threads that are named after their vCPU. It has systemd make a
scope `machine-qemu\x2dID\x2dNAME.scope` in a slice, ID being the number of the domain's run;
without systemd it makes a cgroup `/machine/qemu-ID-NAME.libvirt-qemu`; and puts each vCPU into a
cgroup `vcpuN` below. Of a name libvirt keeps ASCII letters and digits, dashes and dots: where that
is nothing, it leaves out the dash before it, too (virDomainMachineNameAppendValid).
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from vcpusched.host.definitions import Key
from vcpusched.host.files import read_bytes, read_text
from vcpusched.model import DomainUuid

# A user can make a scope of any name, but only below a service (`user@1000.service`).
_MACHINE: Final = re.compile(
    r"^\d+:[^:]*:"
    r"(?:(?:/[^/\n]+\.slice)+/machine-qemu\\x2d(\d+)(?:\\x2d[^/\n]*)?\.scope"
    r"|/machine/qemu-(\d+)(?:-[^/\n]*)?\.libvirt-qemu)(?:/|$)",
    re.MULTILINE,
)
_VCPU_THREAD: Final = re.compile(r"CPU (\d{1,5})/")
_VCPU_GROUP: Final = re.compile(r"/vcpu(\d+)$", re.MULTILINE)

HIDDEN: Final = "the processes of others are hidden in /proc (hidepid= or ProtectProc=)"
ABSENT: Final = "no process here has its UUID on the command line"
NOT_BELIEVED: Final = (
    "the process with its UUID is neither in the cgroup of its machine nor run by its user"
)
SEVERAL: Final = "several processes have its UUID, and it is not known which is its QEMU"
NO_THREADS: Final = "its vCPUs have no threads of their own"


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinguished from later ones of the same number by when it started."""

    pid: int
    started: bytes


@dataclass(frozen=True, slots=True)
class Thread:
    """The thread of a vCPU, where its files are, when it started, in ticks, and its cgroups."""

    tid: int
    path: str
    started: bytes
    groups: str


def find(proc: str, wanted: Mapping[Key, Collection[int]]) -> dict[Key, Process | str]:
    """Return the process of each guest, or why none is believed, in one pass over all processes.

    With each guest come the users that may run its QEMU where machines have no cgroups.
    """
    candidates: defaultdict[DomainUuid, list[Process]] = defaultdict(list)
    uuids = {uuid.encode(): uuid for uuid, _domain_id in wanted}
    for pid in _numbers(proc):
        started = started_at(proc, pid)
        command = read_bytes(f"{proc}/{pid}/cmdline") or b""
        named = command.partition(b"\0-uuid\0")[2].partition(b"\0")[0]
        if named in uuids and started is not None:
            candidates[uuids[named]].append(Process(pid, started))
    return {key: _believed(proc, key, candidates[key[0]], users) for key, users in wanted.items()}


def _believed(
    proc: str, key: Key, candidates: Sequence[Process], users: Collection[int]
) -> Process | str:
    if not candidates:
        return ABSENT if started_at(proc, 1) is not None else HIDDEN
    machines = {one: machine_of(groups_of(proc, one.pid) or "") for one in candidates}
    found = [one for one, machine in machines.items() if machine == key[1]]
    if not found:
        found = [
            one
            for one, machine in machines.items()
            if machine is None and _user(proc, one.pid) in users
        ]
    if not found:
        return NOT_BELIEVED
    found = [one for one in found if vcpu_threads(proc, one)]
    if len(found) > 1:
        return SEVERAL
    return found[0] if found else NO_THREADS


def user_of_daemon(uri: str) -> int | None:
    """Return which user runs the libvirtd at a URI, None where that cannot be known."""
    parts = urlsplit(uri)
    socket = parse_qs(parts.query).get("socket")
    if socket:
        with contextlib.suppress(OSError):
            return Path(socket[0]).stat().st_uid
        return None
    return 0 if parts.path == "/system" else os.geteuid()


def groups_of(proc: str, pid: int) -> str | None:
    """Return the cgroups of a process, a line for each hierarchy."""
    return read_text(f"{proc}/{pid}/cgroup")


def machine_of(groups: str) -> int | None:
    """Return the number of the domain in the cgroup of whose machine a process is."""
    found = _MACHINE.search(groups)
    return int(found[1] or found[2]) if found is not None else None


def started_at(proc: str, pid: int) -> bytes | None:
    """Return when a process started, in the kernel's words; None where there is none."""
    # Of the process as a whole the kernel would add up what all its threads ran.
    columns = columns_of(read_bytes(f"{proc}/{pid}/task/{pid}/stat"))
    return columns[STARTED] if columns is not None else None


# Of the columns of a thread's `stat`, from the third on.
STARTED: Final = 22 - 3
LAST_CPU: Final = 39 - 3


def columns_of(stat: bytes | None) -> list[bytes] | None:
    """Return the columns of a thread's `stat` from the third on; the second may hold anything."""
    columns = (stat or b"").rpartition(b") ")[2].split(None, LAST_CPU + 1)
    return columns if len(columns) > LAST_CPU else None


def vcpu_threads(proc: str, process: Process) -> dict[int, Thread]:
    """Return the thread of each vCPU of a guest by the vCPU's number.

    Nothing where the process has ended.
    """
    found: dict[int, Thread] = {}
    for tid in tids(proc, process.pid):
        vcpu, path = vcpu_named(proc, process.pid, tid), f"{proc}/{process.pid}/task/{tid}"
        columns = columns_of(read_bytes(f"{path}/stat")) if vcpu is not None else None
        if vcpu is None or columns is None:
            continue
        groups = read_text(f"{path}/cgroup") or ""
        # QEMU may count otherwise after hotplug; the cgroup has libvirt's own number.
        grouped = _VCPU_GROUP.search(groups)
        vcpu = vcpu if grouped is None else int(grouped[1])
        thread = Thread(tid, path, columns[STARTED], groups)
        # One that a vCPU's thread made has its name and its cgroup, at least at first.
        known = found.get(vcpu, thread)
        found[vcpu] = min(thread, known, key=lambda one: (int(one.started), one.tid))
    if started_at(proc, process.pid) != process.started:
        return {}
    return dict(sorted(found.items()))


def tids(proc: str, pid: int) -> set[int]:
    """Return the numbers of a process's threads."""
    return set(_numbers(f"{proc}/{pid}/task"))


def vcpu_named(proc: str, pid: int, tid: int) -> int | None:
    """Return the number of the vCPU that a thread is named after, None where it is no vCPU's."""
    named = _VCPU_THREAD.match(read_text(f"{proc}/{pid}/task/{tid}/comm") or "")
    return int(named[1]) if named is not None else None


def _numbers(directory: str) -> list[int]:
    try:
        return [int(name) for name in os.listdir(directory) if name.isdigit()]  # noqa: PTH208  paths of thousands take too long
    except OSError:
        return []


def _user(proc: str, pid: int) -> int | None:
    """Return the user whose process this is, None where it has the rights of more than one."""
    for line in (read_text(f"{proc}/{pid}/status") or "").splitlines():
        if line.startswith("Uid:"):
            users = set(line.split()[1:])
            return int(users.pop()) if len(users) == 1 else None
    return None
