"""Libvirt absent, restarted, killed, hanging: a state of the service, not its end."""

import time

import libvirt
from lab import Lab
from service import rests, running, wait_for

PERIOD_S = 1.0


def test_absent_at_start(lab: Lab) -> None:
    """The service is ready without libvirt, says what it waits for once, and begins by itself."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.3], pin=0)
    lab.stop_daemon()
    with running(lab, str(PERIOD_S)) as service:
        service.wait_ready()
        service.wait("told", lambda: service.status.startswith("Waiting for libvirt at qemu:///"))
        time.sleep(4)
        assert len(service.lines("warning", "Waiting for libvirt")) == 1
        assert service.ask("status").returncode == 1  # degraded
        lab.start_daemon()
        took_s = service.wait("connected", lambda: service.state["connected"])
        assert took_s <= PERIOD_S + 1
        service.wait("balanced", lambda: service.state["pins"] == 1)
        assert len(service.lines("Connected to libvirt")) == 1
        assert service.ask("status").returncode == 0


def test_restarted(lab: Lab) -> None:
    """Restarts and a kill -9 of libvirtd: told once each, back within a period, no pin for it."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.3], pin=index)
    with running(lab, str(PERIOD_S)) as service:
        for number, kill in enumerate((False, True), 1):
            service.wait_cycles(3)
            lab.stop_daemon(kill=kill)
            service.wait("lost", lambda: not service.state["connected"], 5)
            time.sleep(3)
            lab.start_daemon()
            took_s = service.wait("back", lambda: service.state["connected"])
            assert took_s <= PERIOD_S + 1
            assert len(service.lines("warning", "Lost libvirt")) == number
            assert len(service.lines("Connected to libvirt")) == number
        service.wait_cycles(4)
        assert rests(service.state)
        assert service.state["pins"] == 0
        assert not service.lines("Traceback")


def test_hanging(lab: Lab) -> None:
    """A stopped libvirtd is noticed within 10 s, in and between cycles; SIGTERM is served."""
    lab.add_guest("g", [0.2])
    for period in ("1", "3600"):
        with running(lab, period, WATCHDOG_USEC="2000000") as service:
            service.wait("first cycle", lambda: service.cycle >= 1)
            time.sleep(1.5)
            lab.freeze_daemon()
            try:
                took_s = service.wait("noticed", lambda: not service.state["connected"], 15)
                assert took_s <= 10
                assert service.status.startswith("Waiting for libvirt")
                pings = service.notified.count("WATCHDOG=1")
                time.sleep(3)
                assert service.notified.count("WATCHDOG=1") >= pings + 2
            finally:
                lab.thaw_daemon()
            service.wait("back", lambda: service.state["connected"], PERIOD_S + 2)
            lab.freeze_daemon()
            try:
                time.sleep(1.5)
                assert service.terminate() < 1
                assert service.process.returncode == 0
            finally:
                lab.thaw_daemon()


def test_hanging_for_a_minute(lab: Lab) -> None:
    """With pins in place: they stay ours, none is made again, and a stop gives them back."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.2], pin=0)
    with running(lab, str(PERIOD_S)) as service:
        service.wait("pins", lambda: service.state.get("pins", 0) >= 2)
        service.wait_cycles(2)
        before = {name: guest.affinity(0) for name, guest in lab.guests.items()}
        lab.freeze_daemon()
        try:
            time.sleep(60)
            assert service.process.poll() is None
        finally:
            lab.thaw_daemon()
        service.wait("back", lambda: service.state["connected"])
        service.wait_cycles(4)
        assert {name: guest.affinity(0) for name, guest in lab.guests.items()} == before
        assert len(service.lines("warning", "Lost libvirt")) == 1
        assert not service.lines("Another hand")
        assert not service.lines("Traceback")
        service.terminate()
        assert all(guest.affinity(0) == {0} for guest in lab.guests.values())


def test_hanging_at_start(lab: Lab) -> None:
    """Opening a connection to a stopped libvirtd blocks: told within 10 s, and ended within 1."""
    lab.freeze_daemon()
    try:
        with running(lab, "1") as service:
            service.wait_ready()
            service.wait("told", lambda: "does not answer" in service.status, 10)
            assert service.terminate() < 1
        with running(lab, "1", "--once") as service:
            assert service.process.wait(15) == 69
            assert (
                service.ask("plan", VCPUSCHED_URI=lab.uri, VCPUSCHED_PERIOD="0.5").returncode == 69
            )
    finally:
        lab.thaw_daemon()


def test_restarted_while_pinning(lab: Lab) -> None:
    """Killed at the moment of the first pin: the plan is finished after its return."""
    for index in range(8):
        lab.add_guest(f"g{index}", [0.1], pin=0)
    with running(lab, "0.5") as service:
        wait_for("the first pin", lambda: bool(service.lines("Pinned vCPU")))
        lab.restart_daemon(kill=True)
        service.wait("balanced", lambda: service.status.startswith("Balanced"))
        on_one = sum(guest.affinity(0) == {1} for guest in lab.guests.values())
        assert on_one == len(service.lines("Pinned vCPU"))  # every pin that was made is told
        assert not service.lines("Traceback")


def test_guests_keep_their_definitions(lab: Lab) -> None:
    """Whatever happens to libvirtd meanwhile, no persistent definition changes."""
    for index in range(3):
        lab.add_guest(f"g{index}", [0.2], pin=0)

    def definitions() -> list[str]:
        inactive = libvirt.VIR_DOMAIN_XML_INACTIVE
        domains = lab.connection().listAllDomains()
        return sorted(domain.XMLDesc(inactive) for domain in domains)

    before = definitions()
    with running(lab, "0.5") as service:
        service.wait("pinned", lambda: service.state.get("pins", 0) > 0)
        lab.restart_daemon()
        service.wait_cycles(2)
    assert definitions() == before
