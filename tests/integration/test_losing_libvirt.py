"""Libvirt absent, restarted, killed, hanging: a state of the service, not its end."""

import time

import libvirt
import pytest
from lab import Lab
from service import running, wait_for

PERIOD_S = 0.5
GIVEN_UP_S = 10.0


def test_absent_at_start(lab: Lab) -> None:
    """The service is ready without libvirt, says what it waits for once, and begins by itself."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=0)
    lab.stop_daemon()
    with running(lab, str(PERIOD_S)) as service:
        service.wait_ready()
        service.wait(
            "reported", lambda: service.status.startswith("Waiting for libvirt at qemu:///")
        )
        time.sleep(3)
        assert len(service.lines("warning", "Waiting for libvirt")) == 1
        assert service.ask("status").returncode == 1  # degraded
        lab.start_daemon()
        service.wait("connected", lambda: service.state["connected"])
        service.wait("balanced", lambda: service.pins == 1)
        assert len(service.lines("Connected to libvirt")) == 1
        assert service.ask("status").returncode == 0


def test_restarted(lab: Lab) -> None:
    """Restarts and a kill -9 of libvirtd: one report each, back within a period, no pin for it."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=index)
    with running(lab, str(PERIOD_S)) as service:
        for number, kill in enumerate((False, True), 1):
            service.wait_cycles(3)
            lab.stop_daemon(kill=kill)
            service.wait("lost", lambda: not service.state["connected"])
            time.sleep(1)
            lab.start_daemon()
            service.wait("back", lambda: service.state["connected"])
            assert len(service.lines("warning", "Lost libvirt")) == number
            assert len(service.lines("Connected to libvirt")) == number
        service.wait_cycles(4)
        assert service.is_balanced()
        assert service.pins == 0
        assert not service.lines("Traceback")


@pytest.mark.parametrize("period", ["0.5", "3600"])
def test_hanging(lab: Lab, period: str) -> None:
    """A stopped libvirtd is noticed, in and between cycles; SIGTERM is served."""
    lab.add_guest("g", [0.05])
    with running(lab, period, WATCHDOG_USEC="2000000") as service:
        service.wait("first cycle", lambda: service.cycle >= 1)
        lab.freeze_daemon()
        try:
            service.wait("noticed", lambda: service.status.startswith("Waiting for libvirt"))
            pings = service.notified.count("WATCHDOG=1")
            service.wait("pings", lambda: service.notified.count("WATCHDOG=1") >= pings + 2)
        finally:
            lab.thaw_daemon()
        service.wait("back", lambda: service.state["connected"])
        lab.freeze_daemon()
        try:
            time.sleep(1)
            # The call that hangs would take the ten seconds after which a daemon is given up.
            assert service.terminate() < GIVEN_UP_S
            assert service.process.returncode == 0
        finally:
            lab.thaw_daemon()


def test_hanging_with_pins(lab: Lab) -> None:
    """They stay ours, none is made again, and a stop restores them."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, str(PERIOD_S)) as service:
        service.wait("pins", lambda: service.pins >= 2)
        service.wait_cycles(2)
        before = {name: guest.affinity(0) for name, guest in lab.guests.items()}
        lab.freeze_daemon()
        try:
            service.wait("noticed", lambda: not service.state["connected"])
            time.sleep(5)  # for several tries to connect
            assert service.process.poll() is None
        finally:
            lab.thaw_daemon()
        service.wait("back", lambda: service.state["connected"])
        service.wait_cycles(4)
        assert {name: guest.affinity(0) for name, guest in lab.guests.items()} == before
        assert len(service.lines("warning", "Lost libvirt")) == 1
        assert not service.lines("Someone else")
        assert not service.lines("Traceback")
        service.terminate()
        assert all(guest.affinity(0) == {0} for guest in lab.guests.values())


def test_hanging_at_start(lab: Lab) -> None:
    """Opening a connection to a stopped libvirtd blocks: that is reported, and a stop served."""
    lab.freeze_daemon()
    try:
        with running(lab, "1") as service:
            service.wait_ready()
            service.wait("reported", lambda: "does not answer" in service.status)
            assert service.terminate() < GIVEN_UP_S
        with running(lab, "1", "--once") as service:
            assert service.process.wait(60) == 69
            assert (
                service.ask("plan", VCPUSCHED_URI=lab.uri, VCPUSCHED_PERIOD="0.5").returncode == 69
            )
    finally:
        lab.thaw_daemon()


def test_restarted_while_pinning(lab: Lab) -> None:
    """Killed at the moment of the first pin: the plan is finished after its return."""
    for index in range(8):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    with running(lab, "0.5") as service:
        wait_for("the first pin", lambda: bool(service.lines("pinned vCPU")))
        lab.restart_daemon(kill=True)
        service.wait("balanced", lambda: service.status.startswith("Balanced"))
        on_one = sum(guest.affinity(0) == {1} for guest in lab.guests.values())
        assert on_one == len(service.lines("pinned vCPU"))  # every pin that was made is reported
        assert not service.lines("Traceback")


def test_guests_keep_their_definitions(lab: Lab) -> None:
    """Whatever happens to libvirtd meanwhile, no persistent definition changes."""
    for index in range(3):
        lab.add_guest(f"g{index}", [0.06], pin=0)

    def definitions() -> list[str]:
        inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
        domains = lab.connection().listAllDomains()
        return sorted(domain.XMLDesc(inactive) for domain in domains)

    before = definitions()
    with running(lab, "0.5") as service:
        service.wait("pinned", lambda: service.pins > 0)
        lab.restart_daemon()
        service.wait_cycles(2)
    assert definitions() == before
