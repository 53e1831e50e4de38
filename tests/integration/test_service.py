"""The service on real libvirt and real guests: what it moves, what it says, how it ends."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import libvirt
from lab import Guest, Lab
from service import Service, running, wait_for

JOB_LIMIT_S = 30
"""For so long libvirt waits for a domain's job."""


def definitions(lab: Lab) -> dict[str, str]:
    """Give the persistent definition of each guest."""
    return {
        domain.name(): domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        for domain in lab.connection().listAllDomains()
    }


def places(lab: Lab) -> dict[str, frozenset[int]]:
    """Give the real affinity of each guest's vCPU 0."""
    return {name: guest.affinity(0) for name, guest in lab.guests.items()}


def test_all_on_one_pcpu(lab: Lab) -> None:
    """Four equal guests bound to pCPU 0 of 2: one plan, exactly two pins, then stillness."""
    for index in range(4):
        lab.add_guest(f"g{index}", [0.06], pin=0)
    before = definitions(lab)
    with running(lab, "0.5") as service:
        service.wait("balanced", lambda: service.pins > 0)
        service.wait_cycles(2)
        assert service.pins == 2
        assert len(service.lines("pinned vCPU 0 of g")) == 2
        (plan,) = service.lines(" done: 2 pins, ")
        assert re.search(r" -> ~[0-9]+ points?; ", plan)
        service.wait_cycles(10)
        assert service.pins == 2
        assert service.is_balanced()
        assert sorted(map(sorted, places(lab).values())) == [[0], [0], [1], [1]]
    assert definitions(lab) == before


def test_a_lone_hog_stays(lab: Lab) -> None:
    """One busy guest bound to pCPU 0 of 2: the gap is whole, and moving it would be for nothing."""
    lab.add_guest("hog", [0.3], pin=0)
    with running(lab, "0.5") as service:
        service.wait_cycles(8)
        assert service.pins == 0
        assert service.state["plan"]["stop"] == "no_gain"
        assert service.status.startswith("Unbalanced, nothing worth a pin (")


def test_the_definition_is_never_left(lab: Lab) -> None:
    """Guests whose definition allows only pCPU 0 stay there; the free one goes."""
    for index in range(2):
        lab.add_guest(f"held{index}", [0.06], pin=0, cpuset="0")
    lab.add_guest("free", [0.1], pin=0)
    with running(lab, "0.5") as service:
        service.wait("balanced", lambda: service.pins > 0)
        service.wait_cycles(6)
        assert service.pins == 1
    assert places(lab) == {"held0": {0}, "held1": {0}, "free": {1}}


def test_a_transient_guest(lab: Lab) -> None:
    """Without a persistent definition the live one, as first seen, stands in."""
    lab.add_guest("stays", [0.08], pin=0)
    lab.add_guest("transient", [0.08], persistent=False)
    lab.guests["transient"].pin(0)
    with running(lab, "0.5") as service:
        # Its live definition, read when it is first seen, has the pin to pCPU 0 in it: that is all
        # that is known of where it may go, so the other one moves.
        service.wait("balanced", lambda: service.pins > 0)
        service.wait_cycles(4)
    assert places(lab) == {"stays": {1}, "transient": {0}}


def test_a_dry_run_changes_nothing(lab: Lab) -> None:
    """It reports what it would do, once, over a read-only connection, and pins nothing."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=0)
    with running(lab, "0.5", "--dry-run") as service:
        service.wait("a plan", lambda: bool(service.lines("Dry run: would make 1 pin")))
        service.wait_cycles(6)
        assert service.pins == 0
        assert not service.lines(": pinned ")
        assert len(service.lines("Dry run: would make 1 pin")) == 1
        assert service.status.startswith("Dry run. Unbalanced")
    assert set(places(lab).values()) == {frozenset({0})}


def test_one_decision(lab: Lab) -> None:
    """`run --once` confirms, acts, and ends; on the balanced host it ends without a pin."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=0)
    with running(lab, "0.5", "--once") as service:
        assert service.process.wait(30) == 0
        assert len(service.lines(": pinned ")) == 1
    with running(lab, "0.5", "--once") as service:
        assert service.process.wait(30) == 0
        assert not service.lines(": pinned ")
        assert service.lines("Balanced, gap ")


def test_exit_when_idle(lab: Lab) -> None:
    """It ends with status 0 and a word at the first look without guests, not before."""
    guest = lab.add_guest("only", [0.1])
    with running(lab, "0.5", "--exit-when-idle") as service:
        service.wait_cycles(3)
        guest.destroy()
        assert service.process.wait(10) == 0
        assert service.lines("No running guests; exiting")


def test_waits_for_guests(lab: Lab) -> None:
    """Without guests the service waits; a guest that starts is seen."""
    with running(lab, "0.5") as service:
        service.wait("idle", lambda: service.status.startswith("No guests"))
        lab.add_guest("new", [0.05])
        service.wait("seen", lambda: service.state["domains"] == 1)


def test_one_daemon_per_host(lab: Lab) -> None:
    """A second run says who holds the lock, and ends; the first goes on."""
    with running(lab, "0.5") as service:
        service.wait_cycles(1)
        second = service.ask("run", VCPUSCHED_URI=lab.uri)
        assert second.returncode == 1
        assert f"as process {service.pid}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
        service.wait_cycles(1)


def test_status_plan_and_snapshot_beside_the_service(lab: Lab) -> None:
    """They use the running daemon's state and say so; without one they sample a period."""
    for index in range(2):
        lab.add_guest(f"g{index}", [0.08], pin=index)
    with running(lab, "0.5") as service:
        service.wait("loads", lambda: service.state.get("snapshot") is not None)
        status = service.ask("status", "-v")
        assert status.returncode == 0
        assert status.stdout.startswith("vcpusched is healthy. ")
        assert re.search(r"g0/0 \d+", status.stdout)
        state = json.loads(service.ask("status", "--json").stdout)
        assert (state["health"], state["connected"], state["version"]) == ("healthy", True, 1)
        assert service.is_balanced()
        plan = service.ask("plan", VCPUSCHED_URI=lab.uri)
        assert plan.stdout.startswith("As the service saw it ")
        assert f" ago (process {service.pid})\n" in plan.stdout
        tried = service.ask("plan", "--set", "period=0.5", VCPUSCHED_URI=lab.uri)
        assert tried.stdout.startswith(f"Sampled {lab.uri} for 0.5s\n")
        snapshot = service.ask("snapshot", VCPUSCHED_URI=lab.uri)
        assert {vcpu["domain"] for vcpu in json.loads(snapshot.stdout)["vcpus"]} == {"g0", "g1"}
        service.terminate()
        assert service.ask("status").returncode == 3
        sampled = service.ask("plan", VCPUSCHED_URI=lab.uri, VCPUSCHED_PERIOD="0.5")
        assert sampled.returncode == 0
        assert "for 0.5s (the service is not running here)" in sampled.stdout
        file = service.directory / "saved.json"
        saved = service.ask("snapshot", "-o", str(file), VCPUSCHED_URI=lab.uri)
        assert saved.returncode == 0
        again = service.ask("plan", "--from", str(file), "--json")
        assert json.loads(again.stdout)["moves"] == []


def test_what_systemd_is_reported(lab: Lab) -> None:
    """READY, a STATUS that names gap, pins and domains, WATCHDOG between cycles, STOPPING."""
    lab.add_guest("g", [0.05])
    with running(lab, "3600", WATCHDOG_USEC="600000") as service:
        service.wait_ready()
        service.wait("first cycle", lambda: service.cycle == 1)
        # Every 0.3 s although the period is an hour.
        service.wait("pings", lambda: service.notified.count("WATCHDOG=1") >= 5)
        service.terminate()
        assert "STOPPING=1" in service.notified
    with running(lab, "0.5") as service:
        service.wait("a gap", lambda: "gap" in service.status)
        assert re.fullmatch(
            r"\w.*, gap \d+ points? \(threshold 5\); 0 pins so far; 1 guest", service.status
        )


def test_reload(lab: Lab) -> None:
    """SIGHUP puts a changed file in force; a wrong one is reported and the old settings stay."""
    lab.add_guest("g", [0.05])
    with running(lab, VCPUSCHED_LOG_LEVEL="info") as unconfigured:
        file = unconfigured.directory / "my.toml"
        file.write_text("period = 3600\n")
        with running(lab, "--config", str(file)) as service:
            service.wait("first cycle", lambda: service.cycle == 1)
            file.write_text("period = 0.5\ncooldown = 25\n")
            service.process.send_signal(signal.SIGHUP)
            service.wait_cycles(3)
            assert service.lines("Reloaded: period 3600.0 -> 0.5, cooldown 60.0 -> 25.0")
            file.write_text("perod = 1\n")
            service.process.send_signal(signal.SIGHUP)
            service.wait("reported", lambda: bool(service.lines("Not reloaded", "perod")))
            service.wait_cycles(2)
            assert service.state["period"] == 0.5
            said = [line.partition("=")[0] for line in service.notified]
            assert said.count("RELOADING") == said.count("MONOTONIC_USEC") == 2
            assert said.count("READY") == 3


def test_guests_that_come_go_and_crash(lab: Lab) -> None:
    """Starts, stops, crashes, restarts, added vCPUs at full speed: no crash, no wrong load."""
    steady = lab.add_guest("steady", [0.08], pin=1)
    grows = lab.add_guest("grows", [0.02], vcpus_max=5)
    with running(lab, "0.5", VCPUSCHED_LOG_LEVEL="debug") as service:
        service.wait_cycles(2)
        for number in range(4):
            guest = lab.add_guest(f"brief{number}", [0.08], pin=0)
            service.wait_cycles(1)
            if number % 4 == 0:
                os.kill(guest.pid, signal.SIGKILL)
            elif number % 4 == 1:
                guest.restart()
            elif number % 4 == 2:
                guest.destroy()
            grows.domain().setVcpus(2 + number)  # (taking one away needs the guest's help)
            service.wait_cycles(1)
            for vcpu in service.state["snapshot"]["vcpus"]:
                # No more than it can run, whatever comes and goes beside it.
                assert 0 <= vcpu["load"] <= (0.2 if vcpu["domain"] == "steady" else 1)
        assert not service.lines("Traceback")
        assert not service.warnings()
        assert service.process.poll() is None
    assert steady.affinity(0)


def test_another_pinner_is_named(lab: Lab, tmp_path: Path) -> None:
    """A process called numad runs: one warning, and the work goes on."""
    numad = tmp_path / "numad"
    shutil.copy(shutil.which("sleep") or "sleep", numad)
    rival = subprocess.Popen([numad, "60"])
    try:
        with running(lab, "0.5") as service:
            service.wait_cycles(4)
            assert len(service.lines("warning", "numad is running")) == 1
    finally:
        rival.kill()
        rival.wait()


def pin_count(service: Service) -> int:
    """Give how many pins the log has."""
    return len(service.lines("pinned vCPU"))


def test_no_pin_after_sigterm(lab: Lab) -> None:
    """SIGTERM as soon as the first pin of a plan is reported: what comes after stays."""
    guests: list[Guest] = [lab.add_guest(f"g{index}", [0.04], pin=0) for index in range(10)]
    with running(lab, "1", VCPUSCHED_ON_STOP="leave") as service:
        service.wait("the first pin", lambda: pin_count(service) > 0)
        service.terminate()
        assert service.process.returncode == 0
        moved = sum(guest.affinity(0) == {1} for guest in guests)
        assert moved == pin_count(service)  # each pin that was made is reported
        time.sleep(1.5)
        assert sum(guest.affinity(0) == {1} for guest in guests) == moved


def test_a_pin_that_blocks(lab: Lab) -> None:
    """While QEMU hangs, the domain's next operations block; the service stays quick to stop.

    A frozen QEMU answers no monitor command; a call that waits for it keeps the domain's job, so
    that a pin would wait 30 s for it. The service must notice without asking for that job.
    """
    guests = [lab.add_guest(f"g{index}", [0.08], pin=0) for index in range(2)]
    with running(lab, "0.5") as service:
        service.wait_cycles(1)
        for guest in guests:
            os.kill(guest.pid, signal.SIGSTOP)
        try:
            service.wait_cycles(4)
            assert service.terminate() < JOB_LIMIT_S / 2
            assert service.process.returncode == 0
        finally:
            for guest in guests:
                os.kill(guest.pid, signal.SIGCONT)
    wait_for("guests answer again", lambda: guests[0].domain().isActive() == 1)
