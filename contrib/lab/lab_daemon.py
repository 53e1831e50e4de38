"""The lab's libvirt daemon as a process, and the directory where it fits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lab_image import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET_PATH_MOST = 107  # bytes, what a Unix socket's address holds
LONGEST_SOCKET = "/config/libvirt/qemu/lib/domain-999-twenty-characters-of/monitor.sock"
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
POLL_S = 0.02


class Daemon:
    """A daemon that runs or not; it is a child of this process, so its id cannot be mistaken."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, if it runs."""
        return self._running().pid

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        listens: Path,
    ) -> None:
        """Start the daemon in `directory` and wait until it takes connections at `listens`."""
        if self._process is not None and self._process.poll() is None:
            raise LabError("The lab's daemon is running already.")
        log = directory / "daemon.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # an interrupt from the terminal is for us alone
            )
        deadline_s = time.monotonic() + START_LIMIT_S
        while not _listening(listens):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                said = log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise LabError(f"{command[-1]} did not start; it said last: {said!r}.")
            time.sleep(POLL_S)

    def stop(self, by: signal.Signals) -> None:
        """End the daemon by a signal, thawing it so that it can act on it."""
        process = self._running()
        process.send_signal(by)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"The daemon did not end within {STOP_LIMIT_S:.0f} s.") from error

    def kill(self) -> None:
        """End the daemon at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        self._running().send_signal(number)

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, if it runs."""
        if self._process is None or self._process.poll() is not None:
            raise LabError("The lab's daemon is not running.")
        return self._process


def make_directory(wanted: Path | None) -> Path:
    """Return a directory, empty, where a daemon's sockets fit: the wanted one or one in memory."""
    if wanted is None:
        memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes it safe
        base = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        return make_directory(Path(tempfile.mkdtemp(prefix="lab-", dir=base)))
    directory = wanted.absolute()
    if len(os.fsencode(directory)) + len(LONGEST_SOCKET) > SOCKET_PATH_MOST:
        raise LabError(f"{directory} is too long a path for the sockets below it.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        empty = not any(directory.iterdir())
    except OSError as error:
        raise LabError(f"{directory} cannot be the lab's directory: {error}.") from error
    if not empty:
        raise LabError(f"{directory} is not empty.")
    return directory


def _listening(path: Path) -> bool:
    """Return whether connections are taken there, without the complaints libvirt prints if not."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
