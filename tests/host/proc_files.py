"""Processes as files in a directory, like those of the kernel in /proc."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcpusched.model import CpuSet

QEMU_USER = 107


@dataclass(frozen=True)
class ProcFiles:
    """A directory of processes; `affinities` is where their threads may run, by number."""

    root: Path
    affinities: dict[int, set[int]]

    def __post_init__(self) -> None:
        # The first process is there and seen by everybody, unless others are hidden.
        self.process(1, "", {1: "init"}, user=0)

    def affinity_of(self, tid: int) -> CpuSet | None:
        """Return where a thread may run; None where there is none."""
        return CpuSet.of(self.affinities[tid]) if tid in self.affinities else None

    def process(  # noqa: PLR0913  what a process has
        self,
        pid: int,
        uuid: str,
        threads: Mapping[int, str],
        *,
        groups: str = "0::/\n",
        user: int = QEMU_USER,
        effective: int | None = None,
        started: int = 1000,
    ) -> None:
        """Lay out a process with threads that bear names."""
        path = self.root / "proc" / str(pid)
        path.mkdir(parents=True)
        (path / "cmdline").write_text(f"qemu\0-name\0guest=web\0-uuid\0{uuid}\0-m\0size=1\0")
        (path / "cgroup").write_text(groups)
        users = f"{user}\t{user if effective is None else effective}\t{user}\t{user}"
        (path / "status").write_text(f"Name:\tqemu\nUid:\t{users}\nGid:\t0\t0\t0\t0\n")
        for tid, name in {pid: "qemu", **threads}.items():
            self.thread(pid, tid, name, groups=groups, started=started)

    def thread(  # noqa: PLR0913  what a thread has
        self,
        pid: int,
        tid: int,
        name: str,
        *,
        groups: str = "0::/\n",
        started: int = 1000,
        counters: str = "500 1000 3\n",
        on: int = 2,
    ) -> None:
        """Lay out a thread, or another one of that number; its process has one more then."""
        task = self.root / f"proc/{pid}/task/{tid}"
        task.mkdir(parents=True, exist_ok=True)
        (task / "comm").write_text(f"{name}\n")
        (task / "cgroup").write_text(groups)
        (task / "schedstat").write_text(counters)
        self._stat(task, name, started, on)
        self._count(pid)
        self.affinities.setdefault(tid, {0, 1})

    def end_thread(self, pid: int, tid: int) -> None:
        """Take a thread away."""
        task = self.root / f"proc/{pid}/task/{tid}"
        (task / "schedstat").write_text("")  # nothing more, wherever it is still open
        shutil.rmtree(task)
        del self.affinities[tid]
        self._count(pid)

    def end(self, pid: int) -> None:
        """Take a process away."""
        for counters in (self.root / f"proc/{pid}").glob("task/*/schedstat"):
            counters.write_text("")
        shutil.rmtree(self.root / f"proc/{pid}")

    def _stat(self, task: Path, name: str, started: int, on: int) -> None:
        # Columns are counted from 1; the second is a name, which may hold anything.
        columns = {3: "S", 20: "0", 22: str(started), 39: str(on)}
        rest = " ".join(columns.get(number, "7") for number in range(3, 53))
        (task / "stat").write_text(f"{task.name} ({name}) {rest}\n")

    def _count(self, pid: int) -> None:
        tasks = list((self.root / f"proc/{pid}/task").iterdir())
        for task in tasks:
            head, end, tail = (task / "stat").read_text().rpartition(") ")
            columns = tail.split()
            columns[20 - 3] = str(len(tasks))
            (task / "stat").write_text(f"{head}{end}{' '.join(columns)}\n")
