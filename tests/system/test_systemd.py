"""The service between systemd, libvirtd and its files: in a container, since that is quick."""

import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import Container
from image import Image
from unit import entries, said, shown, wait_for

from vcpusched.report.messages import MESSAGE_ID_OUTCOME, MESSAGE_ID_PIN, MESSAGE_ID_PLAN

DROP_IN = "/etc/vcpusched/conf.d/test.toml"


@pytest.fixture(scope="module")
def container(disk: Image) -> Iterator[Container]:
    """Boot a container with vcpusched installed, not started, and four guests on pCPU 0."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-", dir="/var/tmp") as directory:
        booted = Container(Path(directory))
        booted.build(disk)
        try:
            booted.boot()
            booted.say("/src/packaging/install")
            booted.write(DROP_IN, "period = 1.0\n")
            for index in range(4):
                booted.add_guest(f"g{index}", 0.25)
            yield booted
        finally:
            booted.power_off()


def test_installing_starts_nothing(container: Container) -> None:
    """Enabling it is the administrator's word; `plan` works before, and the guests stay."""
    assert shown(container, "ActiveState") == "inactive"
    output = container.say("vcpusched", "plan")  # whether a move pays is for the host's other work
    assert "(the service is not running here)" in output
    assert "May be moved: g0, g1, g2, g3" in output
    assert "0" in container.say("virsh", "vcpupin", "g0", "--live").split()[-1]


def test_enable_now(container: Container) -> None:
    """READY, its own user without capabilities, STATUS, guests balanced with two pins."""
    container.say("systemctl", "enable", "--now", "vcpusched")
    assert shown(container, "ActiveState") == "active"
    wait_for("two pins", lambda: len(entries(container, MESSAGE_ID_PIN)) == 2)
    status = container.say("systemctl", "status", "vcpusched", "--no-pager")
    wait_for("rest", lambda: shown(container, "StatusText").startswith("Balanced, gap "))
    assert "2 pins so far; 4 guests" in shown(container, "StatusText"), status
    pid = shown(container, "MainPID")
    process = container.say("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\s+0+$", process, re.MULTILINE)
    owner = re.search(r"^Uid:\s+(\d+)", process, re.MULTILINE)
    assert owner is not None
    assert owner[1] == container.say("id", "--user", "vcpusched").strip()


def test_the_journal(container: Container) -> None:
    """Structured entries as the design fixes them, and their explanation with -x."""
    pins = entries(container, MESSAGE_ID_PIN)
    for pin in pins:
        assert (pin["VCPUSCHED_FROM"], pin["VCPUSCHED_TO"], pin["PRIORITY"]) == ("0", "1", "6")
        assert pin["VCPUSCHED_DOMAIN"] in {"g0", "g1", "g2", "g3"}
        uuid = container.say("virsh", "domuuid", pin["VCPUSCHED_DOMAIN"]).strip()
        assert pin["VCPUSCHED_DOMAIN_UUID"] == uuid
        assert re.fullmatch(r"0\.\d\d", pin["VCPUSCHED_LOAD"])
        assert pin["SYSLOG_IDENTIFIER"] == "vcpusched"
    (plan,) = entries(container, MESSAGE_ID_PLAN)
    assert (plan["VCPUSCHED_MOVES"], plan["VCPUSCHED_CYCLE"]) == ("2", pins[0]["VCPUSCHED_CYCLE"])
    explained = container.say("journalctl", "--unit=vcpusched", "--no-pager", "--catalog")
    assert "The affinity of a virtual CPU was changed" in explained
    assert f"of domain {pins[0]['VCPUSCHED_DOMAIN']}" in explained


def test_exposure(container: Container) -> None:
    """At most 1.0 of 10, by systemd's own measure."""
    output = container.say("systemd-analyze", "security", "vcpusched", "--no-pager")
    exposure = re.search(r"Overall exposure level for vcpusched\.service: (\d+\.\d)", output)
    assert exposure is not None
    assert float(exposure[1]) <= 1.0


def test_status_needs_no_privilege(container: Container) -> None:
    """Any user sees how it is doing."""
    text = container.say("setpriv", "--reuid=nobody", "--clear-groups", "vcpusched", "status")
    assert text.startswith("vcpusched is healthy. Balanced, gap ")


def test_a_second_run_is_refused(container: Container) -> None:
    """Root's own `vcpusched run` beside the service says who holds the lock."""
    refusal = container.say("vcpusched", "run", check=False)
    assert f"as process {shown(container, 'MainPID')}" in refusal


def test_reload(container: Container) -> None:
    """A good file is in force at once; with a bad one the old settings stay, and it goes on."""
    container.write(DROP_IN, "period = 1.0\nbalance_threshold = 15\n")
    container.say("systemctl", "reload", "vcpusched")
    assert "Reloaded: balance_threshold 10.0 -> 15.0" in said(container)
    container.write(DROP_IN, "perod = 1.0\n")
    container.say("systemctl", "reload", "vcpusched")
    assert f"Not reloaded, the old settings stay: {DROP_IN}: perod: no such" in said(container)
    assert shown(container, "ActiveState") == "active"


def test_a_settings_file_that_leads_nowhere_means_no_defaults(container: Container) -> None:
    """A link whose target is gone: it is named, as what cannot be read."""
    path = "/etc/vcpusched/vcpusched.toml"
    container.say("mv", path, f"{path}.kept")
    container.say("ln", "--symbolic", "/nowhere", path)
    refusal = container.say("vcpusched", "check-config", check=False)
    container.say("mv", "--force", f"{path}.kept", path)
    assert f"{path}: cannot be read: No such file or directory" in refusal


def test_history(container: Container) -> None:
    """What the real journal says of the plan, and that nobody else can put words into it."""
    container.say(
        *("setpriv", "--reuid=1234", "--clear-groups", "sh", "-c"),
        f"printf 'MESSAGE_ID={MESSAGE_ID_PIN}\\nVCPUSCHED_VCPU=0\\nVCPUSCHED_DOMAIN=forged\\n"
        "VCPUSCHED_CYCLE=1\\n' | logger --journald",
    )
    wait_for("the forged entry", lambda: len(entries(container, MESSAGE_ID_PIN, unit="")) == 3)
    wait_for("the outcome", lambda: len(entries(container, MESSAGE_ID_OUTCOME)) == 1)
    (plan,) = json.loads(container.say("vcpusched", "history", "--json"))["events"]
    pins = entries(container, MESSAGE_ID_PIN)
    assert [move["domain"] for move in plan["moves"]] == [pin["VCPUSCHED_DOMAIN"] for pin in pins]
    (outcome,) = entries(container, MESSAGE_ID_OUTCOME)
    assert plan["outcome"]["verdict"] == outcome["VCPUSCHED_VERDICT"]
    text = container.say("vcpusched", "history", "--since=1h")
    assert " done: 2 pins, gap " in text
    assert "forged" not in text
    refusal = container.say(
        *("setpriv", "--reuid=1235", "--clear-groups", "vcpusched", "history"), check=False
    )
    assert "it takes root or the group systemd-journal" in refusal


def test_metrics(container: Container) -> None:
    """The service in its sandbox gets into node_exporter's directory, as documented."""
    directory = "/var/lib/prometheus/node-exporter"
    container.say("mkdir", "--parents", directory)
    container.say("chgrp", "vcpusched", directory)
    container.say("chmod", "g+w", directory)
    container.write(DROP_IN, f'period = 1.0\nmetrics_file = "{directory}/vcpusched.prom"\n')
    container.say("systemctl", "restart", "vcpusched")
    read = ("cat", f"{directory}/vcpusched.prom")
    wait_for("metrics", lambda: "vcpusched_gap_ratio" in container.say(*read, check=False))
    assert "vcpusched_domains 4.0" in container.say(*read)
    container.write(DROP_IN, "period = 1.0\n")
    container.say("systemctl", "reload", "vcpusched")
    assert not container.say("ls", "--almost-all", directory).strip()


def test_a_bad_configuration_fails_once(container: Container) -> None:
    """Exit status 78, one readable line, no restart loop."""
    container.write(DROP_IN, "period = 0.1\n")
    container.say("systemctl", "restart", "vcpusched", check=False)
    # One that is to be started again is "activating" while RestartSec passes.
    wait_for("the end", lambda: shown(container, "ActiveState") == "failed")
    assert shown(container, "NRestarts") == "0"
    assert shown(container, "ExecMainStatus") == "78"
    assert "period: 0.1 is not allowed: must be a number from 0.5 to 3600" in said(container)
    container.write(DROP_IN, "period = 1.0\n")
    container.say("systemctl", "start", "vcpusched")


def test_the_environment_outranks_the_file(container: Container) -> None:
    """`systemctl edit` with Environment=VCPUSCHED_PERIOD=2 is in force after a restart."""
    container.say("mkdir", "--parents", "/etc/systemd/system/vcpusched.service.d")
    container.write(
        "/etc/systemd/system/vcpusched.service.d/override.conf",
        "[Service]\nEnvironment=VCPUSCHED_PERIOD=2\n",
    )
    container.say("systemctl", "daemon-reload")
    container.say("systemctl", "restart", "vcpusched")
    wait_for("state", lambda: "every 2s" in container.say("vcpusched", "status", check=False))


def test_libvirtd_restarts_and_goes(container: Container) -> None:
    """The service outlives libvirtd, and is back by itself; pins stay, and none is made."""
    pid, pinned = shown(container, "MainPID"), places(container)
    pins = len(entries(container, MESSAGE_ID_PIN))
    container.say("systemctl", "restart", "libvirtd")
    wait_for("back", lambda: "4 guests" in shown(container, "StatusText"))
    container.say(
        "systemctl", "stop", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"
    )
    container.say("systemctl", "stop", "libvirtd.service")
    wait_for("reported", lambda: shown(container, "StatusText").startswith("Waiting for libvirt"))
    container.say("systemctl", "start", "libvirtd.socket", "libvirtd.service")
    wait_for("back", lambda: "4 guests" in shown(container, "StatusText"))
    assert (shown(container, "MainPID"), places(container)) == (pid, pinned)
    assert len(entries(container, MESSAGE_ID_PIN)) == pins


def test_the_socket_of_the_modular_virtqemud(container: Container) -> None:
    """The same URI finds it where libvirtd's is not.

    Neither Debian 12 nor 13 packages virtqemud. libvirtd has the same driver and protocol, so it
    is reached at the other's socket here; what virtqemud does beyond that is not tried.
    """
    missing = container.say("sh", "-c", "ls /usr/sbin/virtqemud", check=False)
    assert "No such file" in missing, "now it is packaged: boot with it instead"
    ours, other = "/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"
    container.say("mv", ours, other)
    try:
        container.say("systemctl", "restart", "vcpusched")
        wait_for("connected", lambda: "4 guests" in shown(container, "StatusText"))
    finally:
        container.say("mv", other, ours)
    # Systemd starts no unit more than five times in ten seconds, which quick tests come to.
    container.say("systemctl", "reset-failed", "vcpusched")
    container.say("systemctl", "restart", "vcpusched")
    wait_for("back", lambda: "4 guests" in shown(container, "StatusText"))


def places(container: Container) -> list[str]:
    """Give where each guest's vCPU is pinned, in rising order."""
    tables = (container.say("virsh", "vcpupin", f"g{index}", "--live") for index in range(4))
    return sorted(table.split()[-1] for table in tables)


def test_a_restart_leaves_pins_and_a_stop_gives_them_back(container: Container) -> None:
    """{g g} {g g} stays over a restart, without a pin; a stop makes it {g g g g} {} again."""
    wait_for("balanced", lambda: places(container) == ["0", "0", "1", "1"])
    pins = len(entries(container, MESSAGE_ID_PIN))
    container.say("systemctl", "restart", "vcpusched")
    wait_for("cycles", lambda: "4 guests" in shown(container, "StatusText"))
    assert places(container) == ["0", "0", "1", "1"]
    assert len(entries(container, MESSAGE_ID_PIN)) == pins
    container.say("systemctl", "stop", "vcpusched")
    assert places(container) == ["0", "0", "0", "0"]
    assert "No vCPU is pinned by vcpusched" in container.say("vcpusched", "restore")
    container.say("systemctl", "start", "vcpusched")
    wait_for("balanced", lambda: places(container) == ["0", "0", "1", "1"])


def test_kill_and_hang_are_mended(container: Container) -> None:
    """A process that is killed or hangs is replaced; the pins stay, and a stop restores them."""
    wait_for("balanced", lambda: places(container) == ["0", "0", "1", "1"])
    container.say("systemctl", "kill", "--signal=KILL", "vcpusched")
    wait_for("restart", lambda: shown(container, "NRestarts") == "1")
    wait_for("active", lambda: shown(container, "ActiveState") == "active")
    wait_for("cycles", lambda: "4 guests" in shown(container, "StatusText"))
    assert places(container) == ["0", "0", "1", "1"]
    override = "/etc/systemd/system/vcpusched.service.d/override.conf"
    container.write(override, "[Service]\nWatchdogSec=5\n")
    container.say("systemctl", "daemon-reload")
    container.say("systemctl", "stop", "vcpusched")
    assert places(container) == ["0", "0", "0", "0"]
    container.say("systemctl", "start", "vcpusched")
    pid = shown(container, "MainPID")
    time.sleep(7)
    assert shown(container, "MainPID") == pid  # pinged in time
    container.say("systemctl", "kill", "--signal=STOP", "vcpusched")
    wait_for("watchdog", lambda: shown(container, "NRestarts") == "1")


def test_a_boot_beside_libvirtd(container: Container) -> None:
    """Enabled, it starts after libvirtd, and sees the guests that libvirt starts."""
    container.say("rm", "/etc/systemd/system/vcpusched.service.d/override.conf")
    container.say("virsh", "; ".join(f"autostart g{index}" for index in range(4)))
    container.shut_down()
    container.boot()
    wait_for("connected", lambda: "4 guests" in shown(container, "StatusText"))
    assert (shown(container, "ActiveState"), shown(container, "NRestarts")) == ("active", "0")
    libvirtd = container.say(
        "systemctl", "show", "libvirtd", "--property=ActiveEnterTimestampMonotonic", "--value"
    )
    assert int(shown(container, "ExecMainStartTimestampMonotonic")) >= int(libvirtd) > 0


def test_a_boot_without_libvirtd(container: Container) -> None:
    """Libvirtd fails at boot: it waits. When libvirtd comes, the same process balances."""
    container.say("mkdir", "--parents", "/etc/systemd/system/libvirtd.service.d")
    drop_in, allowed = "/etc/systemd/system/libvirtd.service.d/fail.conf", "/run/may-start"
    container.write(drop_in, f"[Service]\nExecStartPre=/usr/bin/test -e {allowed}\n")
    container.shut_down()
    container.boot(until="degraded")
    assert container.say("systemctl", "is-failed", "libvirtd.service") == "failed\n"
    wait_for("reported", lambda: shown(container, "StatusText").startswith("Waiting for libvirt"))
    pid = shown(container, "MainPID")
    # A pin that it finds may be changed, one that comes later is someone's choice: so it must not
    # look until all are there.
    container.say("systemctl", "kill", "--signal=STOP", "vcpusched")
    container.say("touch", allowed)
    container.say("systemctl", "reset-failed")
    container.say("systemctl", "start", "libvirtd.socket", "libvirtd.service")
    wait_for("guests", lambda: len(container.say("virsh", "list", "--name").split()) == 4)
    container.say("virsh", "; ".join(f"vcpupin g{index} 0 0 --live" for index in range(4)))
    container.say("systemctl", "kill", "--signal=CONT", "vcpusched")
    wait_for("balanced", lambda: places(container) == ["0", "0", "1", "1"])
    assert (shown(container, "MainPID"), shown(container, "NRestarts")) == (pid, "0")
    container.say("rm", drop_in)
    container.say("systemctl", "daemon-reload")


def test_stop_beside_a_hanging_libvirtd(container: Container) -> None:
    """Stopping waits for libvirtd, to restore pins; then it ends, and says they are left."""
    wait_for("connected", lambda: "4 guests" in shown(container, "StatusText"))
    pid = container.say("systemctl", "show", "--property=MainPID", "--value", "libvirtd").strip()
    container.say("sh", "-c", f"kill -STOP {pid}")
    try:
        container.say("systemctl", "stop", "vcpusched")
        assert shown(container, "Result") == "success"
        assert "Pins are left, because libvirt does not answer" in said(container)
    finally:
        container.say("sh", "-c", f"kill -CONT {pid}")


def test_uninstalling(container: Container) -> None:
    """With Python broken: it prints how to restore by hand, which works; the guests run on.

    Nothing of it is left but the user, and the ledger that the pins are in.
    """
    assert places(container) == ["0", "0", "1", "1"]
    assert "vcpusched" in container.say("ls", "/etc/libvirt/hooks/qemu.d")
    container.say("bash", "-c", "ln -sf /bin/false /usr/local/lib/vcpusched/bin/python3")
    output = container.say("/src/packaging/install", "--uninstall")
    assert places(container) == ["0", "0", "1", "1"]
    commands = [line for line in output.splitlines() if line.startswith("virsh")]
    assert len(commands) == 2
    container.say("bash", "-c", "; ".join(commands))
    assert places(container) == ["0", "0", "0", "0"]
    left = container.say("find", "/usr/local", "/etc", "/run", "-name", "*vcpusched*")
    kept = {"/etc/vcpusched", "/etc/systemd/system/vcpusched.service.d", "/run/vcpusched"}
    assert {line for line in left.splitlines() if line.startswith("/")} <= kept
    guests = container.say("virsh", "list", "--name").split()
    assert sorted(guests) == ["g0", "g1", "g2", "g3"]
