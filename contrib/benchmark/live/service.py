"""The daemon under test: the real `vcpusched run` as a process, read through its state file."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

LIMIT_S: Final = 30.0
POLL_S: Final = 0.02
LOG_LINES: Final = 5
IN_MEMORY: Final = "/dev/shm"  # noqa: S108  where files are memory


class LiveError(Exception):
    """A measurement cannot be made; the text says why in one sentence."""


class Service:
    """A running daemon; made by `running`."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self.run_directory = directory / "run"
        self._state = self.run_directory / "state.json"
        self._log = directory / "log"

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def log(self) -> str:
        """Return its log so far."""
        return self._log.read_text(errors="replace")

    def stop(self) -> int | None:
        """End it, and return the exit status, None when it had to be killed."""
        return self._process.returncode if _end(self._process) else None

    def ask(self, *arguments: str) -> str:
        """Run another verb beside it, and return what that printed on either output."""
        done = subprocess.run(
            [sys.executable, "-m", "vcpusched.cli.main", *arguments],
            env={**_environment(), "RUNTIME_DIRECTORY": str(self.run_directory)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def state(self) -> Mapping[str, Any]:
        """Return its state file, empty before there is one. Raises LiveError when it has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended with status {self._process.returncode}")
        try:
            state: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {}
        return state

    def cycle(self) -> int:
        """Return the number of its last cycle, 0 before the first."""
        return int(self.state().get("cycle", 0))

    def wait_past(self, cycle: int) -> Mapping[str, Any]:
        """Wait for a later cycle than that, and return the state. Raises LiveError."""
        self._wait(lambda: self.cycle() > cycle, f"made no cycle after {cycle}")
        return self.state()

    def failure(self, what: str) -> LiveError:
        """Return an error of what the daemon did, with the end of its log."""
        said = " / ".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return LiveError(f"vcpusched {what}; it said last: {said!r}")

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise self.failure(f"{otherwise} in {LIMIT_S:g} s")
            time.sleep(POLL_S)


@contextlib.contextmanager
def running(
    uri: str, settings: Mapping[str, str], notify: str | None = None, tree: Path | None = None
) -> Iterator[Service]:
    """Run the daemon with these settings (TOML values by key) and no others, then end it.

    Neither the machine's configuration nor our environment has an effect. `notify` is the socket on
    which it says that it is ready, as to systemd; `tree` holds the package of another commit to
    run. Raises LiveError when the daemon does not end, or not with status 0.
    """
    # In memory, as the run directory of a service is.
    with tempfile.TemporaryDirectory(prefix="vcpusched-live-", dir=IN_MEMORY) as name:
        directory = Path(name)
        configuration = directory / "vcpusched.toml"
        # As packaged it has no variables, and to read one takes a library of 4 MiB.
        written = {**settings, "uri": json.dumps(uri)}
        configuration.write_text("".join(f"{key} = {value}\n" for key, value in written.items()))
        program = [sys.executable, "-m", "vcpusched.cli.main", "run"]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                # It ends with us, however we end.
                ["setpriv", "--pdeathsig", "TERM", "--", *program, "--config", str(configuration)],
                env={
                    **_environment(),
                    "RUNTIME_DIRECTORY": str(directory / "run"),
                    "LIBVIRT_AUTOSTART": "0",
                    **({"NOTIFY_SOCKET": notify} if notify else {}),
                    **({"PYTHONPATH": str(tree)} if tree else {}),
                },
                cwd="/",  # or Python would prefer a package of that name in the present folder
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        service = Service(process, directory)
        try:
            yield service
        finally:
            ended = _end(process)
        if not ended:
            raise service.failure("did not end with status 0")


def _environment() -> dict[str, str]:
    foreign = ("VCPUSCHED_", "NOTIFY_SOCKET", "WATCHDOG_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End it, and return whether it ended by itself and with status 0."""
    process.terminate()
    try:
        return process.wait(LIMIT_S) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
