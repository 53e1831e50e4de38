"""The service as an administrator meets it: systemctl and journalctl on a booted systemd."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machine import Machine

from vcpusched.report import MESSAGE_ID_PIN, MESSAGE_ID_PLAN

DROP_IN = "/etc/vcpusched/conf.d/test.toml"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Boot a machine with vcpusched installed, not started, and four guests on pCPU 0."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        booted = Machine(Path(directory))
        booted.build()
        try:
            booted.boot()
            booted.say("/src/packaging/install")
            booted.write(DROP_IN, "period = 1.0\n")
            for index in range(4):
                booted.add_guest(f"g{index}", 0.35)
            yield booted
        finally:
            booted.power_off()


def wait_for(what: str, condition: Callable[[], bool], patience_s: float = 40) -> float:
    """Wait until a condition holds; gives how long that took, in seconds."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < patience_s, what
        time.sleep(0.3)
    return time.monotonic() - began_s


def shown(machine: Machine, key: str) -> str:
    """Give a property of the unit."""
    line = machine.say("systemctl", "show", "vcpusched", f"--property={key}")
    return line.strip().partition("=")[2]


def entries(machine: Machine, message_id: str) -> list[dict[str, str]]:
    """Give the journal's entries with a message ID."""
    text = machine.say(
        *("journalctl", "--unit=vcpusched", "--output=json", "--no-pager"),
        f"MESSAGE_ID={message_id}",
    )
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def said(machine: Machine) -> str:
    """Give all that the service has said."""
    return machine.say("journalctl", "--unit=vcpusched", "--no-pager", "--output=cat")


def test_installing_starts_nothing(machine: Machine) -> None:
    """Enabling it is the administrator's word; `plan` works before, and the guests stay."""
    assert shown(machine, "ActiveState") == "inactive"
    assert "pin changes" in machine.say("vcpusched", "plan")
    assert "0" in machine.say("virsh", "vcpupin", "g0", "--live").split()[-1]


def test_enable_now(machine: Machine) -> None:
    """READY, its own user without capabilities, STATUS, guests balanced with two pins."""
    machine.say("systemctl", "enable", "--now", "vcpusched")
    assert shown(machine, "ActiveState") == "active"
    wait_for("two pins", lambda: len(entries(machine, MESSAGE_ID_PIN)) == 2)
    status = machine.say("systemctl", "status", "vcpusched", "--no-pager")
    wait_for("rest", lambda: shown(machine, "StatusText").startswith("Balanced, gap "))
    assert "2 pins so far; 4 domains" in shown(machine, "StatusText"), status
    pid = shown(machine, "MainPID")
    process = machine.say("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\s+0+$", process, re.MULTILINE)
    owner = re.search(r"^Uid:\s+(\d+)", process, re.MULTILINE)
    assert owner is not None
    assert owner[1] == machine.say("id", "--user", "vcpusched").strip()


def test_the_journal(machine: Machine) -> None:
    """Structured entries as the design fixes them, and their explanation with -x."""
    pins = entries(machine, MESSAGE_ID_PIN)
    for pin in pins:
        assert (pin["VCPUSCHED_FROM"], pin["VCPUSCHED_TO"], pin["PRIORITY"]) == ("0", "1", "6")
        assert pin["VCPUSCHED_DOMAIN"] in {"g0", "g1", "g2", "g3"}
        uuid = machine.say("virsh", "domuuid", pin["VCPUSCHED_DOMAIN"]).strip()
        assert pin["VCPUSCHED_DOMAIN_UUID"] == uuid
        assert re.fullmatch(r"0\.\d\d", pin["VCPUSCHED_LOAD"])
        assert pin["SYSLOG_IDENTIFIER"] == "vcpusched"
    (plan,) = entries(machine, MESSAGE_ID_PLAN)
    assert (plan["VCPUSCHED_MOVES"], plan["VCPUSCHED_CYCLE"]) == ("2", pins[0]["VCPUSCHED_CYCLE"])
    explained = machine.say("journalctl", "--unit=vcpusched", "--no-pager", "--catalog")
    assert "A virtual CPU was pinned to another pCPU" in explained
    assert f"of domain {pins[0]['VCPUSCHED_DOMAIN']}" in explained


def test_status_needs_no_privilege(machine: Machine) -> None:
    """Any user sees how it is doing."""
    text = machine.say("setpriv", "--reuid=nobody", "--clear-groups", "vcpusched", "status")
    assert text.startswith("vcpusched is healthy: Balanced, gap ")


def test_a_second_run_is_refused(machine: Machine) -> None:
    """Root's own `vcpusched run` beside the service says who holds the lock."""
    refusal = machine.say("vcpusched", "run", check=False)
    assert f"as process {shown(machine, 'MainPID')}" in refusal


def test_reload(machine: Machine) -> None:
    """A good file is in force at once; with a bad one the old settings stay, and it goes on."""
    machine.write(DROP_IN, "period = 1.0\nbalance_threshold = 15\n")
    machine.say("systemctl", "reload", "vcpusched")
    assert "Reloaded: balance_threshold = 15.0" in said(machine)
    machine.write(DROP_IN, "perod = 1.0\n")
    machine.say("systemctl", "reload", "vcpusched")
    assert f"Not reloaded, the old settings stay: {DROP_IN}: perod: no such" in said(machine)
    assert shown(machine, "ActiveState") == "active"


def test_a_bad_configuration_fails_once(machine: Machine) -> None:
    """Exit status 78, one readable line, no restart loop."""
    machine.write(DROP_IN, "period = 0.1\n")
    machine.say("systemctl", "restart", "vcpusched", check=False)
    time.sleep(7)  # RestartSec is 5
    assert (shown(machine, "ActiveState"), shown(machine, "NRestarts")) == ("failed", "0")
    assert shown(machine, "ExecMainStatus") == "78"
    assert "period: 0.1 is not allowed: must be a number from 0.5 to 3600" in said(machine)
    machine.write(DROP_IN, "period = 1.0\n")
    machine.say("systemctl", "start", "vcpusched")


def test_the_environment_outranks_the_file(machine: Machine) -> None:
    """`systemctl edit` with Environment=VCPUSCHED_PERIOD=2 is in force after a restart."""
    machine.say("mkdir", "--parents", "/etc/systemd/system/vcpusched.service.d")
    machine.write(
        "/etc/systemd/system/vcpusched.service.d/override.conf",
        "[Service]\nEnvironment=VCPUSCHED_PERIOD=2\n",
    )
    machine.say("systemctl", "daemon-reload")
    machine.say("systemctl", "restart", "vcpusched")
    wait_for("state", lambda: "every 2 s" in machine.say("vcpusched", "status", check=False))


def test_libvirtd_restarts_and_goes(machine: Machine) -> None:
    """The service outlives libvirtd, and is back by itself within its period."""
    pid = shown(machine, "MainPID")
    machine.say("systemctl", "restart", "libvirtd")
    wait_for("back", lambda: "4 domains" in shown(machine, "StatusText"), 5)
    machine.say(
        "systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"
    )
    machine.say("systemctl", "stop", "libvirtd.service")
    wait_for("told", lambda: shown(machine, "StatusText").startswith("Waiting for libvirt"), 5)
    time.sleep(2)
    machine.say("systemctl", "start", "libvirtd.socket", "libvirtd.service")
    wait_for("back", lambda: "4 domains" in shown(machine, "StatusText"), 5)
    assert shown(machine, "MainPID") == pid


def test_kill_and_hang_are_mended(machine: Machine) -> None:
    """A kill -9 is restarted; a process that hangs is caught by the watchdog and restarted."""
    machine.say("systemctl", "kill", "--signal=KILL", "vcpusched")
    wait_for("restart", lambda: shown(machine, "NRestarts") == "1")
    wait_for("active", lambda: shown(machine, "ActiveState") == "active")
    override = "/etc/systemd/system/vcpusched.service.d/override.conf"
    machine.write(override, "[Service]\nWatchdogSec=3\n")
    machine.say("systemctl", "daemon-reload")
    machine.say("systemctl", "restart", "vcpusched")
    time.sleep(7)
    assert shown(machine, "NRestarts") == "0"  # pinged in time
    machine.say("systemctl", "kill", "--signal=STOP", "vcpusched")
    wait_for("watchdog", lambda: shown(machine, "NRestarts") == "1")


def test_stop_beside_a_hanging_libvirtd(machine: Machine) -> None:
    """Stopping takes no longer because libvirtd hangs."""
    wait_for("connected", lambda: "4 domains" in shown(machine, "StatusText"))
    pid = machine.say("systemctl", "show", "--property=MainPID", "--value", "libvirtd").strip()
    machine.say("sh", "-c", f"kill -STOP {pid}")
    try:
        began_s = time.monotonic()
        machine.say("systemctl", "stop", "vcpusched")
        assert time.monotonic() - began_s < 3  # the process within 1 s, and systemctl around it
        assert shown(machine, "Result") == "success"
    finally:
        machine.say("sh", "-c", f"kill -CONT {pid}")


def test_uninstalling(machine: Machine) -> None:
    """Nothing of it is left but the user; the guests run on."""
    machine.say("/src/packaging/install", "--uninstall")
    left = machine.say("find", "/usr/local", "/etc", "/run", "-name", "*vcpusched*")
    kept = {"/etc/vcpusched", "/etc/systemd/system/vcpusched.service.d"}
    assert {line for line in left.splitlines() if line.startswith("/")} <= kept
    assert machine.say("virsh", "list", "--name").split() == ["g0", "g1", "g2", "g3"]
