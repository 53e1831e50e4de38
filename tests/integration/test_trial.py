"""A trial on real guests: what it does to them, and what it leaves behind."""

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from lab import Lab
from program import PROGRAM, environment
from service import Service, running

from vcpusched.service.control import LEASE_S

SETTINGS = {"VCPUSCHED_HALF_LIFE": "1", "VCPUSCHED_COOLDOWN": "1"}
"""Blocks of ten seconds are long enough for them, with a period of half a second."""

TRIAL = ("trial", "--for", "40s", "--block", "10s")


@pytest.fixture
def service(lab: Lab) -> Iterator[Service]:
    """Run the service on four guests that were bound to pCPU 0, of which it has moved two."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5", **SETTINGS) as found:
        found.wait("two pins", lambda: found.pins >= 2)
        yield found


def begun(service: Service) -> subprocess.Popen[str]:
    """Begin a trial."""
    return subprocess.Popen(
        [*PROGRAM, *TRIAL],
        env=environment({"RUNTIME_DIRECTORY": str(service.run_directory), **SETTINGS}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def moved(lab: Lab) -> int:
    """Return how many guests are not where they began."""
    return sum(guest.affinity(0) != {0} for guest in lab.guests.values())


def is_paused(service: Service) -> bool:
    """Return whether there is a pause."""
    return (service.run_directory / "pause").exists()


def test_without_with_with_without(lab: Lab, service: Service) -> None:
    """All pins are away in a block without, and come back; in the end all is as without a trial."""
    done = service.ask(*TRIAL, **SETTINGS)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"Trial of 40s on {lab.uri}: 2 pairs of blocks, 4 guests, ")
    assert last == "Verdict: undecided: 2 pairs of blocks; a verdict takes 6."
    assert len(service.lines('Paused for a block of "vcpusched trial"')) == 2
    assert len(service.lines("Restored vCPU 0")) == 4
    assert not is_paused(service)
    service.wait("the pins are made again", lambda: moved(lab) == 2)
    assert len(service.lines("Balancing resumed")) == 2
    assert "held" not in service.ask("status", "-v").stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_in_a_block_without(lab: Lab, service: Service, number: signal.Signals) -> None:
    """Killed, the pause ends by itself; otherwise at once."""
    trial = begun(service)
    service.wait("the pins are away", lambda: is_paused(service) and not moved(lab))
    trial.send_signal(number)
    if number is signal.SIGINT:
        time.sleep(0.1)
        trial.send_signal(number)  # as who is impatient does
    _out, said = trial.communicate(timeout=60)
    if number is signal.SIGKILL:
        assert is_paused(service)
        service.wait("the pause ends", lambda: not is_paused(service), LEASE_S + 30)
    else:
        assert trial.returncode == 1
        assert f"the trial was broken off: by {number.name}" in said
        assert not is_paused(service)
    service.wait("the pins are made again", lambda: moved(lab) == 2)


def test_killed_in_a_block_with(lab: Lab, service: Service) -> None:
    """Nothing is left."""
    trial = begun(service)
    service.wait("the pins are away", lambda: is_paused(service) and not moved(lab))
    service.wait("the next block", lambda: not is_paused(service))
    trial.kill()
    trial.communicate()
    service.wait("the pins are made again", lambda: moved(lab) == 2)
    assert not is_paused(service)


def test_a_persons_pause_and_pin_are_respected(lab: Lab, service: Service) -> None:
    """The pin is held; the pause ends the trial, and lasts.

    What changes within ten seconds of its first sample may be libvirt's own doing, and is not held.
    """
    service.wait("ten seconds", lambda: service.cycle > 22)
    trial = begun(service)
    service.wait("the pins are away", lambda: is_paused(service) and not moved(lab))
    lab.guests["g0"].pin(1)
    service.wait("held", lambda: bool(service.lines("Someone else pinned", "g0")))
    assert service.ask("pause").returncode == 0
    _out, said = trial.communicate(timeout=60)
    assert trial.returncode == 1
    assert "broken off: someone else paused or resumed the service" in said
    service.wait_cycles(3)
    assert is_paused(service)
    assert moved(lab) == 1
    again = service.ask(*TRIAL, **SETTINGS)
    assert (again.returncode, "it is paused" in again.stderr) == (1, True)


def test_the_service_ends(lab: Lab, service: Service) -> None:
    """The trial ends, too, and no pause is left."""
    trial = begun(service)
    service.wait("the pins are away", lambda: is_paused(service) and not moved(lab))
    service.terminate()
    _out, said = trial.communicate(timeout=60)
    assert trial.returncode == 1
    assert "broken off: the service ended" in said
    assert not is_paused(service)
    late = service.ask(*TRIAL, **SETTINGS)
    assert (late.returncode, "is not running" in late.stderr) == (3, True)


def test_too_short(service: Service) -> None:
    """One line says what is enough."""
    for options, says in (
        (("--for", "20m", "--block", "9s"), "--block: 9s is too short: must be at least 10s"),
        (("--for", "30s", "--block", "10s"), "--for: 30s has fewer than 2 pairs"),
        (("--for", "soon"), "--for: 'soon' is not allowed"),
    ):
        done = service.ask("trial", *options, **SETTINGS)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"vcpusched: {says}")
        assert done.stderr.count("\n") == 1
