"""How the service ends when that is not easy, and what it survives: on a host in memory."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import served_host
from program import PROGRAM, environment

from vcpusched.service import daemon, state

LIMIT_S = 60.0
UNIT = Path(__file__).parents[2] / "packaging/vcpusched.service"


class Served:
    """One life of the service."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run_directory = directory / "run"
        self._variables = environment(
            {
                "RUNTIME_DIRECTORY": str(self.run_directory),
                "VCPUSCHED_URI": f"qemu:///system?socket={directory}/none",
            }
        )
        self._log = (directory / "log").open("w+")
        program = [sys.executable, served_host.__file__, str(directory)]
        self.process = subprocess.Popen(program, env=self._variables, stderr=self._log)

    @property
    def log(self) -> str:
        """All that it said."""
        return (self.directory / "log").read_text()

    @property
    def cycle(self) -> int:
        """The number of its last cycle."""
        state = json.loads((self.run_directory / "state.json").read_text())
        return int(state.get("cycle", 0))

    @property
    def pins(self) -> list[list[str]]:
        """All pins that were made, each a guest and a pCPU."""
        path = self.directory / "pins"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)

    def ask(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin another verb beside it."""
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            env=self._variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    """Give a service that has pinned two guests to pCPU 1."""
    started = Served(tmp_path)
    try:
        started.wait(lambda: len(started.pins) == 2)
        yield started
    finally:
        started.close()


def begin_request(service: Served) -> subprocess.Popen[str]:
    """Have the service hang in the middle of a restore that was asked for."""
    (service.directory / "hang").touch()
    asker = service.ask("restore")
    service.wait((service.directory / "hangs").exists)
    return asker


def originals(service: Served) -> dict[str, str]:
    """Give the original affinity of each guest that the ledger has one of."""
    kept = json.loads((service.run_directory / "affinity.json").read_text())
    return {
        domain["name"]: vcpu["original"]
        for domain in kept["domains"]
        for vcpu in domain["vcpus"]
        if "original" in vcpu
    }


def test_a_stop_during_a_request(service: Served) -> None:
    """Who asked is answered, everything is restored once, and the service ends by itself."""
    asker = begin_request(service)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert service.process.poll() is None
    (service.directory / "hang").unlink()
    out, err = asker.communicate(timeout=LIMIT_S)
    assert (asker.returncode, err) == (0, "")
    assert out.count("Restored vCPU 0 of ") == out.count(": pCPU 1 -> pCPU 0") == 2
    assert service.process.wait(LIMIT_S) == 0
    moved = [name for name, _cpu in service.pins[:2]]
    assert service.pins == [[name, "1"] for name in moved] + [[name, "0"] for name in sorted(moved)]
    assert originals(service) == {}
    assert "Pins are left" not in service.log


def test_a_pause_ends_the_plan_under_way(tmp_path: Path) -> None:
    """The first of its two pins hangs in libvirt meanwhile: that one is made, the other is not."""
    (tmp_path / "hang").touch()
    service = Served(tmp_path)
    try:
        service.wait((tmp_path / "hangs").exists)
        service.ask("pause").communicate(timeout=LIMIT_S)
        time.sleep(daemon.REQUESTS_S + 0.5)
        (tmp_path / "hang").unlink()
        service.wait(lambda: service.cycle > 4)
        assert len(service.pins) == 1
        service.ask("resume").communicate(timeout=LIMIT_S)
        service.wait(lambda: len(service.pins) == 2)
    finally:
        service.close()


def test_a_stop_that_would_never_end(service: Served) -> None:
    """The first affinity restored hangs in libvirt: the stop ends, and the ledger has it all."""
    before = originals(service)
    assert len(before) == 2
    (service.directory / "hang").touch()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(LIMIT_S) == 0
    assert 'Pins are left, because libvirt does not answer; "vcpusched restore"' in service.log
    assert len(service.pins) == 2
    assert originals(service) == before == dict.fromkeys(before, "0")


@pytest.mark.full
def test_a_stop_during_a_request_that_would_never_end(service: Served) -> None:
    """Who asked finds no service any more, and no libvirt either: one line, exit status 69."""
    asker = begin_request(service)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(LIMIT_S) == 0
    _out, err = asker.communicate(timeout=LIMIT_S)
    assert (asker.returncode, len(err.splitlines())) == (69, 1)
    assert len(originals(service)) == 2
    assert [path.name for path in service.run_directory.glob("*-*.json")] == []


def test_a_second_signal_ends_at_once(service: Served) -> None:
    """An administrator who does not wait; the ledger stays."""
    (service.directory / "hang").touch()
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(LIMIT_S) == 0
    assert "Pins are left, because a second signal ended the restore" in service.log
    assert len(originals(service)) == 2


def test_a_stop_while_libvirt_is_away(service: Served) -> None:
    """It answers again before the stop times out: everything is restored."""
    (service.directory / "away").touch()
    service.wait(lambda: "Lost libvirt" in service.log)
    service.process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    (service.directory / "away").unlink()
    assert service.process.wait(LIMIT_S) == 0
    assert len(service.pins) == 4
    assert originals(service) == {}


def test_libvirt_is_forbidden_and_allowed_again(service: Served) -> None:
    """The socket's permission goes with the connection: one warning, nothing lost."""
    before, pins = originals(service), list(service.pins)
    (service.directory / "denied").touch()
    (service.directory / "away").touch()
    service.wait(lambda: "Lost libvirt" in service.log)
    time.sleep(1)
    asker = service.ask("status")
    out, _err = asker.communicate(timeout=LIMIT_S)
    assert (asker.returncode, "Permission denied" in out) == (1, True)
    (service.directory / "away").unlink()
    (service.directory / "denied").unlink()
    service.wait(lambda: "Connected to libvirt" in service.log)
    cycle = service.cycle
    service.wait(lambda: service.cycle >= cycle + 3)
    assert (originals(service), service.pins) == (before, pins)
    assert "Someone else" not in service.log
    assert service.log.count("warning") == service.log.count("Lost libvirt") == 1


def test_a_machine_that_slept(service: Served) -> None:
    """The process stands still for several periods: no burst of late cycles, and no pin for it.

    It is harder than a suspend, in which the monotonic clock stands still, too.
    """
    before, pins = originals(service), list(service.pins)
    service.process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    cycle, began_s = service.cycle, time.monotonic()
    service.process.send_signal(signal.SIGCONT)
    service.wait(lambda: service.cycle >= cycle + 4)
    assert (service.cycle - cycle) <= (time.monotonic() - began_s) / 0.5 + 2
    assert (originals(service), service.pins) == (before, pins)
    assert "Someone else" not in service.log
    assert "warning" not in service.log


def test_the_unit_waits_for_as_long() -> None:
    """Or systemd would kill the service in the middle of it."""
    found = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    longest_s = max(daemon.RESTORE_TIMEOUT_S, state.STOP_CONNECT_TIMEOUT_S)
    assert longest_s + daemon.STOP_TIMEOUT_S < int(found[1])
