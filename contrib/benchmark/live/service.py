"""The daemon under test: the tests' `Service`, as packaged, on pCPUs as they are."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from program import PROGRAM, environment
from service import Service

IN_MEMORY: Final = "/dev/shm"  # noqa: S108  where files are memory


class LiveError(Exception):
    """A measurement cannot be made; the text says why in one sentence."""


class Daemon(Service):
    """A running daemon with settings of its own (TOML values by key), made by `running`."""

    def __init__(
        self, directory: Path, uri: str, settings: Mapping[str, str], tree: Path | None
    ) -> None:
        configuration = directory / "vcpusched.toml"
        # As packaged it has no variables, and to read one takes a library of 4 MiB.
        written = {**settings, "uri": json.dumps(uri)}
        configuration.write_text("".join(f"{key} = {value}\n" for key, value in written.items()))
        self._begin(
            directory,
            # It ends with us, however we end.
            ["setpriv", "--pdeathsig", "TERM", "--"],
            ["--config", str(configuration)],
            {"PYTHONPATH": str(tree)} if tree else {},
            cwd="/",  # or Python would prefer a package of that name in the present folder
        )

    def said(self, *arguments: str) -> str:
        """Run another verb beside it, and return what that printed on either output."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=environment({"RUNTIME_DIRECTORY": str(self.run_directory)}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def wait_past(self, cycle: int) -> Mapping[str, Any]:
        """Wait for a later cycle than that, and return the state."""
        self.wait(f"a cycle after {cycle}", lambda: self.cycle > cycle)
        return self.state


@contextlib.contextmanager
def running(uri: str, settings: Mapping[str, str], tree: Path | None = None) -> Iterator[Daemon]:
    """Run the daemon with these settings and no others, then end it.

    Neither the machine's configuration nor our environment has an effect. `tree` holds the package
    of another commit to run. Raises LiveError when the daemon does not end with status 0.
    """
    # In memory, as the run directory of a service is.
    with tempfile.TemporaryDirectory(prefix="vcpusched-live-", dir=IN_MEMORY) as name:
        daemon = Daemon(Path(name), uri, settings, tree)
        try:
            yield daemon
            daemon.terminate()
            if daemon.process.returncode:
                raise LiveError(f"vcpusched did not end with status 0: {daemon.log}")
        finally:
            daemon.close()
