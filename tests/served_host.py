"""The service on a host in memory, as a process of its own: `served.py DIRECTORY`.

Every pin is a line of DIRECTORY/pins. While there is a DIRECTORY/hang a pin takes for ever; while
there is a DIRECTORY/away nothing can be asked, as with a libvirtd that is stopped; and while there
is a DIRECTORY/denied no connection is allowed.
"""

import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

from builders import MemoryHost

from vcpusched.host.hypervisor import ConnectionLostError, PermissionDeniedError
from vcpusched.model import CpuSet, VcpuId
from vcpusched.sample import Sample
from vcpusched.service import daemon, run_directory, systemd
from vcpusched.settings import load

GUESTS = ("g0", "g1", "g2", "g3")
LIMIT_S = 2.0


class ServedHost(MemoryHost):
    """Two pCPUs, four guests bound to the first, real time, and faults from outside."""

    def __init__(self, directory: Path) -> None:
        super().__init__(2, dict.fromkeys(GUESTS, 0.25), dict.fromkeys(GUESTS, "0"))
        self.directory = directory
        self._looked_s = time.monotonic()

    def sample(self) -> Sample:
        """Read the host."""
        if (self.directory / "away").exists():
            raise ConnectionLostError("gone")
        now_s = time.monotonic()
        self.pass_time(now_s - self._looked_s)
        self._looked_s = now_s
        return super().sample()

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Pin a guest, sooner or later."""
        while (self.directory / "hang").exists():
            (self.directory / "hangs").touch()
            time.sleep(0.02)
        super().pin(vcpu, cpus)
        with (self.directory / "pins").open("a") as file:
            file.write(json.dumps(self.pins[-1]) + "\n")

    def is_alive(self) -> bool:
        """Return whether it can be asked."""
        return not (self.directory / "away").exists()

    def close(self) -> None:
        """Let go of nothing."""


def main() -> int:
    """Serve until asked to end."""
    host = ServedHost(Path(sys.argv[1]))
    settings = load(None, {"period": 0.5}).settings

    def session(_uri: str, _read_only: bool) -> ServedHost:  # noqa: FBT001  as Orders has it
        if (host.directory / "denied").exists():
            raise PermissionDeniedError("Permission denied")
        if not host.is_alive():
            raise ConnectionLostError("gone")
        return host

    orders = daemon.Orders(
        settings=settings,
        reload=lambda: settings,
        open_session=session,
        directory=run_directory.locate(),
    )
    with patch.object(daemon, "RESTORE_TIMEOUT_S", LIMIT_S):
        return daemon.serve(orders, systemd.choose_log())


if __name__ == "__main__":
    sys.exit(main())
