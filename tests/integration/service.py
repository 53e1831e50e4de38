"""The service under test: the real program as a process, heard through what it tells systemd."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab import Lab
from program import PROGRAM, environment, vcpusched

PATIENCE_S = 60.0

APART_FROM = 0.08
LOADED_FROM = 0.25
"""Where the pCPUs' own loads (shares of one) are so far apart, or one is so high, a test that
counts pins on two pCPUs tests the rest of the machine: emulators alone take less."""


class DisturbedError(AssertionError):
    """A test failed, and something else than its guests had loaded this machine."""


def wait_for(what: str, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait until a condition holds; gives how long that took, in seconds."""
    began_s = time.monotonic()
    while not condition():
        if time.monotonic() - began_s > patience_s:
            raise TimeoutError(f"after {patience_s:g} s still not: {what}")
        time.sleep(0.01)
    return time.monotonic() - began_s


class Service:
    """One `vcpusched run`, from its start to its end."""

    def __init__(self, directory: Path, uri: str, *arguments: str, **variables: str) -> None:
        self.directory = directory
        self.run_directory = Path(variables.get("RUNTIME_DIRECTORY", directory / "run"))
        self._log = directory / "stderr"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify_path = directory / "notify"
        self._notify.bind(str(notify_path))
        self.notified: list[str] = []
        self.disturbed: list[float] = []  # the pCPUs' own loads, when they were so at a look
        # Read at once, as systemd does: its socket holds few messages, and then a sender waits.
        threading.Thread(target=self._listen, daemon=True).start()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "run", *arguments],
                env=environment(
                    {
                        "RUNTIME_DIRECTORY": str(self.run_directory),
                        "NOTIFY_SOCKET": str(notify_path),
                        "VCPUSCHED_URI": uri,
                        "LIBVIRT_AUTOSTART": "0",
                        **variables,
                    }
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

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
        return self._log.read_text()

    def lines(self, *words: str) -> list[str]:
        """Give the lines of the log that hold all these words."""
        return [line for line in self.log.splitlines() if all(word in line for word in words)]

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._notify.recv(65536):
                self.notified += message.decode().splitlines()

    @property
    def status(self) -> str:
        """The last status line that it told systemd."""
        told = [line for line in self.notified if line.startswith("STATUS=")]
        return told[-1].removeprefix("STATUS=") if told else ""

    @property
    def state(self) -> dict[str, Any]:
        """Its state file; empty before there is one."""
        try:
            state: dict[str, Any] = json.loads((self.run_directory / "state.json").read_text())
        except FileNotFoundError:
            return {}
        host = state.get("snapshot") or {"cpus": []}  # none before the second look
        own = [cpu.get("host_load", 0.0) for cpu in host["cpus"]]
        highest, lowest = max(own, default=0.0), min(own, default=0.0)
        if highest - lowest >= APART_FROM or highest >= LOADED_FROM:
            self.disturbed = own
        return state

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
        self.wait(f"cycle {goal}", lambda: self.cycle >= goal, PATIENCE_S + 4 * count)

    def wait(
        self, what: str, condition: Callable[[], bool], patience_s: float = PATIENCE_S
    ) -> float:
        """Wait until a condition holds; fails at once when the process has ended."""

        def holds() -> bool:
            if condition():
                return True
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log}")
            return False

        try:
            return wait_for(what, holds, patience_s)
        except TimeoutError as error:
            loads = json.dumps(self.state.get("snapshot"))
            raise AssertionError(
                f"{error}; status {self.status!r}; log:\n{self.log}\nlast looked at: {loads}"
            ) from None

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Tell it to end; gives how long that took, in seconds."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=PATIENCE_S)
        return time.monotonic() - began_s

    def ask(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run another verb beside it."""
        return vcpusched(*arguments, RUNTIME_DIRECTORY=str(self.run_directory), **variables)


@contextlib.contextmanager
def running(lab: Lab | str, *arguments: str, **variables: str) -> Iterator[Service]:
    """Run the service on a lab (or a URI) for a while.

    Raises DisturbedError for what fails meanwhile on a disturbed machine: such a test is repeated
    (conftest.py).
    """
    uri = lab if isinstance(lab, str) else lab.uri
    # A Unix socket's path is short, so this is no pytest directory.
    with tempfile.TemporaryDirectory(prefix="vcpusched-") as directory:
        service = Service(Path(directory), uri, *arguments, **variables)
        try:
            yield service
        except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as error:
            if not service.state or not service.disturbed:
                raise
            raise DisturbedError(f"pCPUs had own loads of {service.disturbed}. {error}") from error
        finally:
            service.close()


def rests(state: dict[str, Any], threshold: float = 0.1) -> bool:
    """Tell whether a state of the service is that of a host at rest whose guests are balanced.

    Whatever else runs on this machine counts as the host's own load. That alone may unbalance it,
    and no move of a guest may pay, or be allowed: then the status says so.
    """
    host = state["snapshot"]
    own = {str(cpu["id"]): cpu.get("host_load", 0.0) for cpu in host["cpus"]}
    guests = dict.fromkeys(own, 0.0)
    for vcpu in host["vcpus"]:
        guests[vcpu["cpus"]] += vcpu["load"]
    if max(guests.values()) - min(guests.values()) >= threshold:
        return False
    status = str(state["status"])
    if status.startswith("Balanced, gap "):
        return True
    return status.startswith("Unbalanced at rest (") and max(own.values()) > min(own.values())


def cpu_s(pid: int) -> float:
    """Give the CPU time of a process, user and system, in seconds (steps of 10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
