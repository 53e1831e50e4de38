"""The service on a KVM host of eight pCPUs and two nodes, of which pCPU 7 is isolated.

Every scenario begins with the service stopped, and with all guests where the scenario wants them.
pCPUs are emulated and all share a few real ones: loads are not judged here beyond what a guest's
quota says, and waits are generous.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from guest_shape import GuestShape
from image import Image
from machine import Machine
from unit import entries, said, shown, wait_for

from vcpusched.host.libvirt_xml import read_topology
from vcpusched.model import CpuSet
from vcpusched.report.messages import MESSAGE_ID_PIN, MESSAGE_ID_PLAN

CAPTURED = Path(__file__).parents[1] / "data/capabilities"
THREADS = {"bookworm": 1, "trixie": 2}
"""How many threads of a core the release's Linux finds: it has two, by QEMU's account."""
DROP_IN = "/etc/vcpusched/conf.d/test.toml"
SETTINGS = {"period": "2.0", "half_life": "3.0", "settle": "0.0", "cooldown": "0.0"}
"""Beyond these, defaults: a host is watched for seconds here, not for days."""

USUAL = ("g0", "g1", "g2", "g3")
PATIENCE_S = 180.0

# Independent of libvirt: what the kernel lets the thread of each vCPU use.
AFFINITIES = """
for file in /run/libvirt/qemu/*.pid; do
  for task in /proc/"$(cat "$file")"/task/*; do
    read -r thread <"$task/comm"
    case $thread in 'CPU '*) echo "$file:$thread:$(grep Cpus_allowed_list "$task/status")" ;; esac
  done
done
"""
AFFINITY = re.compile(r"^.*/(\S+)\.pid:CPU (\d+)/KVM:Cpus_allowed_list:\s+(\S+)$", re.MULTILINE)


def busy(share: float, vcpus: int = 1) -> GuestShape:
    """Make a guest whose vCPUs use so much of a pCPU each.

    They would like more, but that is their quota: a guest that counts its own work by the clock
    makes too much or too little of it where clocks are emulated on a crowded machine.
    """
    return GuestShape([1.0] * vcpus, quota=share)


@pytest.fixture(autouse=True)
def _usual_guests(machine: Machine) -> None:
    """See to it that there are four guests; where they must be started, on pCPU 0."""
    there = machine.say("virsh", "list", "--name").split()
    for name in USUAL:
        if name not in there:
            machine.add_guest(name, replace(busy(0.15), pins=["0"]))


def places(machine: Machine) -> dict[str, list[str]]:
    """Give each guest's affinities, in the order of its vCPUs."""
    found = AFFINITY.findall(machine.say("bash", "-c", AFFINITIES))
    ordered = sorted(found, key=lambda entry: (entry[0], int(entry[1])))
    affinities: dict[str, list[str]] = {}
    for name, _, cpus in ordered:
        affinities.setdefault(name, []).append(cpus)
    return affinities


def configure(machine: Machine, **settings: str) -> None:
    """Write the service's settings, as TOML values."""
    written = {**SETTINGS, **settings}
    machine.write(DROP_IN, "".join(f"{key} = {value}\n" for key, value in written.items()))


def begin(machine: Machine, pins: Mapping[str, str], **settings: str) -> None:
    """Start the service with these settings and all usual guests, and those in `pins`, there."""
    machine.say("systemctl", "stop", "vcpusched")
    configure(machine, **settings)
    begins = {**dict.fromkeys(USUAL, "0"), **pins}
    machine.pin({name: [begins[name]] * len(cpus) for name, cpus in places(machine).items()})
    start(machine, "start")


def start(machine: Machine, *how: str) -> None:
    """Start the service, and wait for the first state that is its own."""
    machine.say("systemctl", *how, "vcpusched")
    assert shown(machine, "ActiveState") == "active"
    pid = int(shown(machine, "MainPID"))
    wait_for("its state", lambda: state(machine).get("pid") == pid, PATIENCE_S)


@contextlib.contextmanager
def guest(machine: Machine, name: str, shape: GuestShape) -> Iterator[None]:
    """Have another guest for a scenario; the service is stopped before it starts."""
    machine.say("systemctl", "stop", "vcpusched")
    machine.add_guest(name, shape)
    try:
        yield
    finally:
        machine.remove_guest(name)


@contextlib.contextmanager
def suspended(machine: Machine, names: Iterable[str]) -> Iterator[None]:
    """Have guests stand still for a scenario."""
    machine.say("virsh", "; ".join(f"suspend {name}" for name in names))
    try:
        yield
    finally:
        machine.say("virsh", "; ".join(f"resume {name}" for name in names))


def state(machine: Machine) -> dict[str, object]:
    """Read what the service, or the one before it, says of itself; empty where none ever ran."""
    text = machine.run("cat", "/run/vcpusched/state.json").out
    value: dict[str, object] = json.loads(text or "{}")
    return value


def wait_cycles(machine: Machine, count: int) -> None:
    """Wait until the service has looked so many times more."""
    until = int(str(state(machine)["cycle"])) + count
    wait_for("cycles", lambda: int(str(state(machine)["cycle"])) >= until, PATIENCE_S)


def loads(machine: Machine) -> dict[str, float]:
    """Give what the service takes the load of each guest to be, in pCPUs."""
    snapshot = state(machine)["snapshot"]
    assert isinstance(snapshot, dict)
    return {vcpu["domain"]: vcpu["load"] for vcpu in snapshot["vcpus"]}


def test_topology(machine: Machine, disk: Image) -> None:
    """As captured: each L3 bank is listed with all pCPUs of its node, four times over."""
    capabilities = machine.say("virsh", "capabilities")
    assert len(re.findall("<bank .*level='3'", capabilities)) == 8
    everywhere = CpuSet.parse("0-7")
    captured = (CAPTURED / f"emulated-epyc-{disk.release}.xml").read_text()
    assert read_topology(capabilities, everywhere) == read_topology(captured, everywhere)
    snapshot = json.loads(machine.run("vcpusched", "snapshot").out)
    threads = THREADS[disk.release]
    assert [(cpu["id"], cpu["node"], cpu["cache"], cpu["core"]) for cpu in snapshot["cpus"]] == [
        (cpu, cpu // 4, cpu // 4 * 4, cpu // threads * threads) for cpu in range(7)
    ]


def test_enable_now_balances(machine: Machine) -> None:
    """READY; four guests on pCPU 0 end on four pCPUs, none of them isolated, with three pins.

    The journal has each pin as fields, and explains it.
    """
    assert places(machine) == {name: ["0"] for name in USUAL}
    configure(machine)
    start(machine, "enable", "--now")
    wait_for("three pins", lambda: len(entries(machine, MESSAGE_ID_PIN)) >= 3, PATIENCE_S)
    wait_cycles(machine, 4)
    pins = entries(machine, MESSAGE_ID_PIN)
    assert len(pins) == 3
    ended = places(machine)
    assert len({cpus for (cpus,) in ended.values()}) == 4
    assert ["7"] not in ended.values()
    for pin in pins:
        assert pin["VCPUSCHED_FROM"] == "0"
        assert ended[pin["VCPUSCHED_DOMAIN"]] == [pin["VCPUSCHED_TO"]]
    plans = entries(machine, MESSAGE_ID_PLAN)
    assert sum(int(plan["VCPUSCHED_MOVES"]) for plan in plans) == 3
    told = machine.say("journalctl", "--unit=vcpusched", "--catalog", "--no-pager")
    assert "A virtual CPU was pinned to another pCPU" in told
    assert f"of domain {pins[0]['VCPUSCHED_DOMAIN']}" in told


def test_killed_it_knows_what_a_stop_gives_back(machine: Machine) -> None:
    """After kill -9 another process leaves the pins; stopped, it makes the affinities of before."""
    begin(machine, {})
    wait_for("rest", lambda: len({*map(tuple, places(machine).values())}) == 4, PATIENCE_S)
    pid, balanced = shown(machine, "MainPID"), places(machine)
    machine.say("systemctl", "kill", "--signal=KILL", "vcpusched")
    wait_for("a restart", lambda: shown(machine, "NRestarts") == "1", PATIENCE_S)
    wait_for("its state", lambda: state(machine)["pid"] != int(pid), PATIENCE_S)
    assert state(machine)["pid"] == int(shown(machine, "MainPID"))
    assert places(machine) == balanced
    machine.say("systemctl", "stop", "vcpusched")
    assert places(machine) == {name: ["0"] for name in USUAL}


def test_exposure(machine: Machine) -> None:
    """At most 1.0 of 10, by systemd's own measure."""
    told = machine.say("systemd-analyze", "security", "vcpusched", "--no-pager")
    exposure = re.search(r"Overall exposure level for vcpusched\.service: (\d+\.\d)", told)
    assert exposure is not None
    assert float(exposure[1]) <= 1.0


def test_isolated_pcpu(machine: Machine) -> None:
    """Balanced when it is named, but only for the guest whose own definition names it."""
    with guest(machine, "named", replace(busy(0.3), cpuset="0,7")):
        begin(machine, {"named": "0"}, cpus='"0,7"')
        wait_for("the pin", lambda: places(machine)["named"] == ["7"], PATIENCE_S)
        wait_cycles(machine, 4)
        assert places(machine) == {**{name: ["0"] for name in USUAL}, "named": ["7"]}


def test_cpuset(machine: Machine) -> None:
    """Three vCPUs stay within the two pCPUs of their definition, though others are idle."""
    with guest(machine, "fenced", replace(busy(0.2, 3), cpuset="2-3")):
        begin(machine, {"fenced": "2"})
        wait_for("two pCPUs", lambda: set(places(machine)["fenced"]) == {"2", "3"}, PATIENCE_S)
        wait_cycles(machine, 4)
        assert set(places(machine)["fenced"]) == {"2", "3"}


def test_strict_memory(machine: Machine) -> None:
    """Four vCPUs whose memory is bound to node 1 share its three pCPUs; node 0 is idle."""
    bound = replace(busy(0.2, 4), numatune="<memory mode='strict' nodeset='1'/>")
    with guest(machine, "local", bound), suspended(machine, USUAL):
        begin(machine, {"local": "4"})
        node = {"4", "5", "6"}
        wait_for("all of node 1", lambda: set(places(machine)["local"]) == node, PATIENCE_S)
        wait_cycles(machine, 4)
        assert set(places(machine)["local"]) == node


def test_quota(machine: Machine) -> None:
    """Alone or beside a hog, a guest capped at a quarter of a pCPU wants a quarter."""
    with (
        guest(machine, "capped", GuestShape([1.0])),
        guest(machine, "hog", GuestShape([1.0])),
    ):
        machine.say("virsh", "schedinfo", "capped", "--live", "--set", "vcpu_quota=25000")
        begin(machine, {"capped": "5", "hog": "6"}, dry_run="true")
        wait_cycles(machine, 4)
        assert 0.15 <= loads(machine)["capped"] <= 0.35
        begin(machine, {"capped": "5", "hog": "5"}, dry_run="true")
        wait_cycles(machine, 6)
        beside = loads(machine)
        assert 0.15 <= beside["capped"] <= 0.35
        assert beside["hog"] >= 0.6
        assert places(machine)["hog"] == ["5"]  # a dry run


def test_realtime_guest(machine: Machine) -> None:
    """It stays on its pCPU, which nobody else is given until it is gone."""
    rule = "<vcpusched vcpus='0' scheduler='fifo' priority='1'/>"
    with guest(machine, "timely", GuestShape([0.0], cputune=rule)):
        pid = machine.say("cat", "/run/libvirt/qemu/timely.pid").strip()
        assert "SCHED_FIFO" in machine.say("chrt", "--all-tasks", "--pid", pid)
        begin(machine, {"timely": "3"}, cpus='"0,3"')
        wait_cycles(machine, 5)
        assert places(machine) == {**{name: ["0"] for name in USUAL}, "timely": ["3"]}
    wait_for("two pins", lambda: list(places(machine).values()).count(["3"]) == 2, PATIENCE_S)


def test_contention(machine: Machine) -> None:
    """Nothing is moved while nobody waits; when a hog comes to the same pCPU something is."""
    begin(machine, {}, act_on='"contention"')
    wait_cycles(machine, 5)
    assert places(machine) == {name: ["0"] for name in USUAL}
    machine.add_guest("hog", GuestShape([1.0], pins=["0"]))
    try:
        wait_for("moves", lambda: len({*map(tuple, places(machine).values())}) > 1, PATIENCE_S)
    finally:
        machine.remove_guest("hog")


def test_pcpu_goes_offline_and_comes_back(machine: Machine) -> None:
    """Guests that were on it run on, the service goes on, and all eight are known again."""
    begin(machine, {"g0": "5", "g1": "4", "g2": "2", "g3": "1"})
    wait_cycles(machine, 3)
    try:
        machine.say("bash", "-c", "echo 0 >/sys/devices/system/cpu/cpu5/online")
        wait_cycles(machine, 4)
        assert set(places(machine)) == set(USUAL)
        snapshot = state(machine)["snapshot"]
        assert isinstance(snapshot, dict)
        assert [cpu["id"] for cpu in snapshot["cpus"]] == [0, 1, 2, 3, 4, 6]
    finally:
        machine.say("bash", "-c", "echo 1 >/sys/devices/system/cpu/cpu5/online")
    wait_cycles(machine, 4)
    assert set(places(machine)) == set(USUAL)
    snapshot = state(machine)["snapshot"]
    assert isinstance(snapshot, dict)
    assert [(cpu["id"], cpu["node"], cpu["cache"]) for cpu in snapshot["cpus"]] == [
        (cpu, cpu // 4, cpu // 4 * 4) for cpu in range(7)
    ]


def test_libvirtd_restarts(machine: Machine) -> None:
    """The same process goes on with the same guests, and their pins stay."""
    begin(machine, {})
    wait_for("rest", lambda: len({*map(tuple, places(machine).values())}) == 4, PATIENCE_S)
    pid, before = shown(machine, "MainPID"), places(machine)
    machine.say("systemctl", "restart", "libvirtd")
    wait_cycles(machine, 3)
    wait_for("back", lambda: "4 domains" in shown(machine, "StatusText"), PATIENCE_S)
    assert (shown(machine, "MainPID"), places(machine)) == (pid, before)


def test_bad_configuration(machine: Machine) -> None:
    """Exit status 78, one readable line."""
    machine.write(DROP_IN, 'act_on = "never"\n')
    machine.say("systemctl", "restart", "vcpusched", check=False)
    wait_for("the end", lambda: shown(machine, "ActiveState") == "failed", PATIENCE_S)
    assert shown(machine, "ExecMainStatus") == "78"
    assert 'act_on: "never" is not allowed' in said(machine)
