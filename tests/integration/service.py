"""The service under test: the real program as a process, heard through what it reports to systemd.

It is shown a /proc/stat that stands still, so that pCPUs have no load but the guests'. What else
runs on this machine then decides no test, and several run beside each other. The guests' own loads
are so small that they get what they want on a busy machine, too, and the settings are as small.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab import Lab
from program import PROGRAM, environment, vcpusched

LIMIT_S = 120.0

LIGHT = {"VCPUSCHED_BALANCE_THRESHOLD": "5", "VCPUSCHED_MIN_GAIN": "1"}
"""For guests that want a few points each."""


def wait_for(what: str, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
    """Wait until a condition holds; gives how long that took, in seconds."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > limit_s:
            raise TimeoutError(f"after {limit_s:g} s still not: {what}")
        time.sleep(0.03)
    return time.monotonic() - began_s


class Service:
    """One `vcpusched run`, from its start to its end."""

    def __init__(self, directory: Path, uri: str, *arguments: str, **variables: str) -> None:
        variables = {"VCPUSCHED_URI": uri, **LIGHT, **variables}
        self._begin(directory, alone(directory), arguments, variables)

    def _begin(
        self,
        directory: Path,
        prefix: Sequence[str],
        arguments: Sequence[str],
        variables: Mapping[str, str],
        cwd: str | None = None,
    ) -> None:
        """Start it, with `prefix` before the program."""
        self.directory = directory
        self.run_directory = Path(variables.get("RUNTIME_DIRECTORY", directory / "run"))
        self._log = directory / "stderr"
        self._prefix = prefix
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify_path = directory / "notify"
        self._notify.bind(str(notify_path))
        self.notified: list[str] = []
        # Read at once, as systemd does: its socket holds few messages, and then a sender waits.
        threading.Thread(target=self._listen, daemon=True).start()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._prefix, *PROGRAM, "run", *arguments],
                env=environment(
                    {
                        "RUNTIME_DIRECTORY": str(self.run_directory),
                        "NOTIFY_SOCKET": str(notify_path),
                        "LIBVIRT_AUTOSTART": "0",
                        **variables,
                    }
                ),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @contextlib.contextmanager
    def crowded(self, cpu: int) -> Iterator[None]:
        """Show it this pCPU as busy all the time for a while, and the others as idle."""
        ended = threading.Event()

        def show() -> None:
            with (self.directory / "stat").open("r+b", buffering=0) as stat:
                while not ended.wait(0.1):
                    stat.seek(0)
                    stat.write(busy(cpu))

        showing = threading.Thread(target=show, daemon=True)
        showing.start()
        try:
            yield
        finally:
            ended.set()
            showing.join()

    @contextlib.contextmanager
    def succeeded(self, uri: str, *arguments: str, **variables: str) -> Iterator["Service"]:
        """Run another one for a while, in the same run directory, once this one has ended."""
        directory = self.directory / "next"
        directory.mkdir()
        shared = {"RUNTIME_DIRECTORY": str(self.run_directory), **variables}
        service = Service(directory, uri, *arguments, **shared)
        try:
            yield service
        finally:
            service.close()

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.process.kill()
        self.process.wait()
        self._notify.shutdown(socket.SHUT_RDWR)
        self._notify.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All that it has written to stderr."""
        return self._log.read_text(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """Give the lines of the log that hold all these words."""
        return [line for line in self.log.splitlines() if all(word in line for word in words)]

    def warnings(self) -> list[str]:
        """Give the warnings, but for that of a numad: a test beside this one may run one."""
        return [line for line in self.lines("warning") if "numad is running" not in line]

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._notify.recv(65536):
                self.notified += message.decode().splitlines()

    @property
    def status(self) -> str:
        """The last status line that it sent to systemd."""
        said = [line for line in self.notified if line.startswith("STATUS=")]
        return said[-1].removeprefix("STATUS=") if said else ""

    @property
    def state(self) -> dict[str, Any]:
        """Its state file; empty before there is one of its own."""
        try:
            state: dict[str, Any] = json.loads((self.run_directory / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return state if state["pid"] == self.pid else {}

    @property
    def pins(self) -> int:
        """How many pins it says it has made."""
        return int(self.state.get("pins", 0))

    def is_balanced(self) -> bool:
        """Return whether it says so."""
        return self.status.startswith("Balanced, gap ")

    @property
    def cycle(self) -> int:
        """The number of its last cycle."""
        return int(self.state.get("cycle", 0))

    def wait_ready(self) -> float:
        """Wait for READY=1."""
        return self.wait("ready", lambda: "READY=1" in self.notified)

    def wait_cycles(self, count: int) -> None:
        """Wait for so many further cycles."""
        goal = self.cycle + count
        self.wait(f"cycle {goal}", lambda: self.cycle >= goal, LIMIT_S + 4 * count)

    def wait(self, what: str, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        """Wait until a condition holds; fails at once when the process has ended."""

        def holds() -> bool:
            if condition():
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log}")
            return False

        try:
            return wait_for(what, holds, limit_s)
        except TimeoutError as error:
            loads = json.dumps(self.state.get("snapshot"))
            raise AssertionError(
                f"{error}; status {self.status!r}; log:\n{self.log}\nlast looked at: {loads}"
            ) from None

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Ask it to end; return how long that took, in seconds."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=LIMIT_S)
        return time.monotonic() - began_s

    def ask(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run another verb beside it."""
        variables = {"RUNTIME_DIRECTORY": str(self.run_directory), **variables}
        return vcpusched(*arguments, prefix=self._prefix, **variables)


@contextlib.contextmanager
def running(lab: Lab | str, *arguments: str, **variables: str) -> Iterator[Service]:
    """Run the service on a lab (or a URI) for a while, once all its guests have booted.

    While they do, they use all they get.
    """
    uri = lab if isinstance(lab, str) else lab.uri
    for guest in () if isinstance(lab, str) else lab.guests.values():
        before = [guest.work(vcpu) for vcpu in range(guest.plan.vcpus)]
        for vcpu, count in enumerate(before):
            wait_for(f"work of {guest.name}", lambda: guest.work(vcpu) != count)  # noqa: B023  now
    # A Unix socket's path is short, so this is no pytest directory.
    with tempfile.TemporaryDirectory(prefix="vcpusched-") as directory:
        service = Service(Path(directory), uri, *arguments, **variables)
        try:
            yield service
        finally:
            service.close()


def busy(cpu: int | None = None) -> bytes:
    """Give a /proc/stat by which this pCPU has been busy since the machine started, and no other.

    In ticks of 10 ms, as long each time, so that it can be written over the one before.
    """
    ticks = {cpu: int(time.monotonic() * os.sysconf("SC_CLK_TCK"))}
    count = range(os.cpu_count() or 1)
    return "".join(f"cpu{each} {ticks.get(each, 0):020} 0 0 0 0 0 0\n" for each in count).encode()


def alone(directory: Path) -> list[str]:
    """Give what is put before a program that is to see no load of the host's own.

    The file `stat` in the directory is mounted over /proc/stat, for this program alone.
    """
    stat = directory / "stat"
    stat.write_bytes(busy())
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    # Only /proc is made private, not all as usual: in a chroot the root is no mount.
    unshare = ["unshare", "--mount", "--propagation=unchanged", *user]
    mounted = 'mount --make-private /proc && mount --bind "$0" /proc/stat && exec "$@"'
    return [*unshare, "sh", "-c", mounted, str(stat)]
