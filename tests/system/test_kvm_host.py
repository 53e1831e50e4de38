"""The service on a KVM host of eight pCPUs and two nodes, of which pCPU 7 is isolated.

Here is only what takes such a host: many pCPUs, nodes, KVM, control groups, pCPUs that go offline,
real-time guests. What is between the service, systemd and libvirtd is tried in the container.

Every scenario begins with the service stopped, and with all guests where the scenario wants them.
pCPUs are emulated and all share a few real ones: what a guest gets is not judged, and waits are for
conditions, with generous limits.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from guest_shape import GuestShape
from image import Image
from machine import Machine
from unit import entries, shown, wait_for

from vcpusched.host.libvirt_xml import ORIGIN
from vcpusched.model import CpuSet
from vcpusched.report.messages import MESSAGE_ID_PIN, MESSAGE_ID_PLAN

THREADS = {"bookworm": 1, "trixie": 2}
"""How many threads of a core the release's Linux finds: it has two, by QEMU's account."""
DROP_IN = "/etc/vcpusched/conf.d/test.toml"
SETTINGS = {"period": "2.0", "half_life": "3.0", "cooldown": "0.0", "pin_to": '"cpu"'}
"""Beyond these, defaults: a host is watched for seconds here, not for days, and pCPUs come and go,
which "auto" would answer with other sets."""

USUAL = ("g0", "g1", "g2", "g3")
USUAL_QUOTA = 0.15
LIMIT_S = 180.0

# Independent of libvirt: what the kernel lets the thread of each vCPU use. It starts no process:
# asked again and again, it would be the busiest thing on the machine, and in the way of plans.
# Other threads of QEMU may end meanwhile.
AFFINITIES = """
for file in /run/libvirt/qemu/*.pid; do
  read -r pid <"$file" || [ "$pid" ] || continue
  for task in /proc/"$pid"/task/*; do
    read -r thread <"$task/comm" || continue
    case $thread in 'CPU '*) ;; *) continue ;; esac
    while read -r key cpus; do
      case $key in Cpus_allowed_list:) echo "$file:$thread:$cpus"; break ;; esac
    done <"$task/status" || continue
  done
done
"""
AFFINITY = re.compile(r"^.*/(\S+)\.pid:CPU (\d+)/KVM:(\S+)$", re.MULTILINE)


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
    shape = replace(busy(USUAL_QUOTA), pins=["0"])
    machine.add_guests({name: shape for name in USUAL if name not in there})


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
    wait_for("its state", lambda: state(machine).get("pid") == pid, LIMIT_S)


@contextlib.contextmanager
def guests(machine: Machine, shapes: Mapping[str, GuestShape]) -> Iterator[None]:
    """Have further guests for a scenario; the service is stopped before they start."""
    machine.say("systemctl", "stop", "vcpusched")
    machine.add_guests(shapes)
    try:
        yield
    finally:
        machine.remove_guests(shapes)


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


def snapshot(machine: Machine) -> dict[str, list[dict[str, Any]]]:
    """Read how the service sees host and guests: empty until it has looked twice."""
    seen: dict[str, list[dict[str, Any]]] = json.loads(
        machine.say("cat", "/run/vcpusched/state.json")
    )["snapshot"]
    return seen or {"cpus": [], "vcpus": []}


def wait_cycles(machine: Machine, count: int) -> None:
    """Wait until the service has looked so many times more."""
    until = int(str(state(machine)["cycle"])) + count
    wait_for("cycles", lambda: int(str(state(machine)["cycle"])) >= until, LIMIT_S)


def loads(machine: Machine) -> list[float]:
    """Give what the service takes the loads of the usual guests to be, in pCPUs."""
    vcpus = snapshot(machine)["vcpus"]
    return [vcpu["load"] for vcpu in vcpus if vcpu["domain"] in USUAL]


def test_topology(machine: Machine, disk: Image) -> None:
    """Two nodes, each one L3; libvirt, which reads the same files, says so, too."""
    sampled = json.loads(machine.run("vcpusched", "snapshot").out)
    threads = THREADS[disk.release]
    assert [(cpu["id"], cpu["node"], cpu["cache"], cpu["core"]) for cpu in sampled["cpus"]] == [
        (cpu, cpu // 4, cpu // 4 * 4, cpu // threads * threads) for cpu in range(7)
    ]
    root = ET.fromstring(machine.say("virsh", "capabilities"))  # noqa: S314  libvirtd made it
    cells = root.iterfind("host/topology/cells/cell")
    said = {cpu.get("id"): (cell.get("id"), cpu) for cell in cells for cpu in cell.iter("cpu")}
    for cpu in sampled["cpus"]:
        node, listed = said[str(cpu["id"])]
        siblings = CpuSet.parse(listed.get("siblings", ""))
        assert (str(cpu["node"]), str(cpu["socket"])) == (node, listed.get("socket_id"))
        assert cpu["core"] == min(siblings)


PROBE = """
import json
from vcpusched.host.libvirt_host import LibvirtHost
host = LibvirtHost("qemu:///system", read_only=True)
found = {
    domain.name: [[str(vcpu.affinity), vcpu.waited is not None] for vcpu in domain.vcpus]
    for domain in host.sample().domains
}
print(json.dumps(found))
"""
LOOKS_LIKE = 'echo "CPU 0/KVM" >/proc/self/comm; sleep 600; exit'


def test_threads_in_the_cgroups_of_their_machines_are_read(machine: Machine) -> None:
    """By the service's user; libvirt would not say how long a vCPU waited.

    A process of QEMU's user that looks like a guest, but is not in the cgroup of its machine, is
    not taken for it.
    """
    uuid = machine.say("virsh", "domuuid", USUAL[0]).strip()
    program = ["sh", "-c", LOOKS_LIKE, "sh", "-uuid", uuid]
    machine.say("systemd-run", "--unit=impostor", "--property=User=libvirt-qemu", *program)
    try:
        pid = machine.say("systemctl", "show", "impostor", "--property=MainPID", "--value").strip()
        named = ["grep", "-qx", "CPU 0/KVM", f"/proc/{pid}/comm"]
        wait_for("the impostor", lambda: machine.run(*named).status == 0, LIMIT_S)
        probe = ["env", "PYTHONPATH=/usr/lib/vcpusched", "python3", "-c", PROBE]
        said = json.loads(machine.say("runuser", "-u", "vcpusched", "--", *probe))
    finally:
        machine.say("systemctl", "stop", "impostor")
    assert said == {name: [[cpus, True] for cpus in its] for name, its in places(machine).items()}


def test_enable_now_balances(machine: Machine) -> None:
    """READY; four guests on pCPU 0 end on four pCPUs, none of them isolated, with three pins.

    The journal has each pin as fields, and explains it.
    """
    assert places(machine) == {name: ["0"] for name in USUAL}
    configure(machine)
    start(machine, "enable", "--now")
    wait_for("three pins", lambda: len(entries(machine, MESSAGE_ID_PIN)) >= 3, LIMIT_S)
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
    said = machine.say("journalctl", "--unit=vcpusched", "--catalog", "--no-pager")
    assert "The affinity of a virtual CPU was changed" in said
    assert f"of domain {pins[0]['VCPUSCHED_DOMAIN']}" in said


def test_definitions_are_kept(machine: Machine) -> None:
    """Seven vCPUs stay within their definitions, though the other pCPUs are idler.

    Three share the two pCPUs that theirs names; four, whose memory is bound to node 1, the three
    that are ours there.
    """
    shapes = {
        "fenced": replace(busy(0.25, 3), cpuset="2-3"),
        "local": replace(busy(0.2, 4), numatune="<memory mode='strict' nodeset='1'/>"),
    }
    allowed = {"fenced": {"2", "3"}, "local": {"4", "5", "6"}}

    def used() -> dict[str, set[str]]:
        return {name: set(cpus) for name, cpus in places(machine).items() if name in shapes}

    with suspended(machine, USUAL), guests(machine, shapes):
        begin(machine, {"fenced": "2", "local": "4"})
        wait_for("all that they may use", lambda: used() == allowed, LIMIT_S)
        wait_cycles(machine, 4)
        assert used() == allowed


def test_isolated_and_realtime(machine: Machine) -> None:
    """Of pCPUs that are named, an isolated one is only for the guest whose definition names it.

    A real-time guest stays on its pCPU, which nobody else is given until it is gone. So all others
    are left on pCPU 0 with a hog, and not taken to want more than their quotas. The isolated one is
    in another node, so the guest must use more than 20% of a pCPU to be worth the pin: it gets its
    quota also beside the hog.
    """
    rule = "<vcpusched vcpus='0' scheduler='fifo' priority='1'/>"
    shapes = {
        "hog": replace(GuestShape([1.0]), cpuset="0"),
        "named": replace(busy(0.3), cpuset="0,7", cputune="<shares>300</shares>"),
        "timely": GuestShape([0.0], cputune=rule),
    }
    with guests(machine, shapes):
        pid = machine.say("cat", "/run/libvirt/qemu/timely.pid").strip()
        assert "SCHED_FIFO" in machine.say("chrt", "--all-tasks", "--pid", pid)
        begin(machine, {"hog": "0", "named": "0", "timely": "3"}, cpus='"0,3,7"')
        wait_for("the pin", lambda: places(machine)["named"] == ["7"], LIMIT_S)
        wait_cycles(machine, 4)
        left = {name: ["0"] for name in (*USUAL, "hog")}
        assert places(machine) == {**left, "named": ["7"], "timely": ["3"]}
        # Of a processor that stands still for a while, a counter shows a jump beyond the quota.
        wait_for("no more than quotas", lambda: max(loads(machine)) <= USUAL_QUOTA + 0.02, 60)
    wait_for("a pin to it", lambda: ["3"] in places(machine).values(), LIMIT_S)


def test_a_realtime_guests_other_threads(machine: Machine) -> None:
    """Its emulator and its I/O thread have a pCPU each, which nobody else is given until it ends.

    So all others are left on pCPU 0 till then.
    """
    pins = (
        "<vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='2'/>"
        "<iothreadpin iothread='1' cpuset='3'/>"
        "<vcpusched vcpus='0' scheduler='fifo' priority='1'/>"
    )
    with guests(machine, {"timely": GuestShape([0.0], cputune=pins, iothreads=1)}):
        begin(machine, {"timely": "1"}, cpus='"0-3"')
        wait_for("loads", lambda: len(loads(machine)) == len(USUAL), LIMIT_S)
        wait_cycles(machine, 6)
        assert places(machine) == {**{name: ["0"] for name in USUAL}, "timely": ["1"]}
        stays = {vcpu["why"] for vcpu in snapshot(machine)["vcpus"] if vcpu["domain"] in USUAL}
        assert stays == {"all other pCPUs are reserved"}
    wait_for("a pin", lambda: any(cpus != ["0"] for cpus in places(machine).values()), LIMIT_S)


def test_the_cpuset_and_the_weights_of_guests(machine: Machine) -> None:
    """Five guests on pCPU 1 of the three that machine.slice has end on all of these.

    The others are reported as no guest's, and no pin was refused. Each guest weighs what its group
    does: one has what its definition says, the others what the kernel gives.
    """
    heavy = {"heavy": replace(busy(USUAL_QUOTA), cputune="<shares>300</shares>")}
    allow = ("systemctl", "set-property", "--runtime", "machine.slice")
    cpuset = {"1", "2", "3"}

    def used() -> set[str]:
        return {cpus for (cpus,) in places(machine).values()}

    with guests(machine, heavy):
        machine.say(*allow, "AllowedCPUs=1-3")
        try:
            begin(machine, dict.fromkeys((*USUAL, *heavy), "1"))
            wait_for("all of the cpuset", lambda: used() == cpuset, LIMIT_S)
            wait_cycles(machine, 4)
            assert used() <= cpuset
            said = state(machine)
            assert said["left_alone"] == [{"cpus": "0,4-7", "why": "outside the guests' cpuset"}]
            assert said["pins_failing"] == []
            assert [cpu["id"] for cpu in snapshot(machine)["cpus"]] == [1, 2, 3]
            weights = {vcpu["domain"]: vcpu["shares"] for vcpu in snapshot(machine)["vcpus"]}
            assert weights == {**dict.fromkeys(USUAL, 100), "heavy": 300}
        finally:
            machine.say(*allow, "AllowedCPUs=0-7")  # an empty one would leave the group as it is


def test_pcpu_goes_offline_and_comes_back(machine: Machine) -> None:
    """Guests that were on it run on, the service goes on, and all eight are known again."""

    def seen() -> list[tuple[int, int | None, int | None]]:
        cpus = snapshot(machine)["cpus"]
        return [(cpu["id"], cpu.get("node"), cpu.get("cache")) for cpu in cpus]

    all_of_them = [(cpu, cpu // 4, cpu // 4 * 4) for cpu in range(7)]
    begin(machine, {"g0": "5", "g1": "4", "g2": "2", "g3": "1"})
    pid = shown(machine, "MainPID")
    wait_for("all pCPUs", lambda: seen() == all_of_them, LIMIT_S)
    online = "/sys/devices/system/cpu/cpu5/online"
    try:
        machine.say("bash", "-c", f"echo 0 >{online}")
        others = [place for place in all_of_them if place[0] != 5]
        wait_for("the others", lambda: seen() == others, LIMIT_S)
        wait_cycles(machine, 2)
        assert set(places(machine)) == set(USUAL)
    finally:
        machine.say("bash", "-c", f"echo 1 >{online}")
    wait_for("all pCPUs again", lambda: seen() == all_of_them, LIMIT_S)
    wait_cycles(machine, 2)
    assert set(places(machine)) == set(USUAL)
    assert shown(machine, "MainPID") == pid


def test_guests_wake_while_a_pcpu_of_their_originals_is_offline(machine: Machine) -> None:
    """All of an original is put in place by the hook, and in force when the pCPU is back.

    Where nothing of it is online the guest wakes all the same, with the pin and the mark.
    """
    originals = {"partly": "4-5", "wholly": "5"}
    # It runs for longer than the hook is there.
    machine.say("systemctl", "kill", "--kill-who=main", "--signal=HUP", "libvirtd")
    shapes = dict.fromkeys(originals, replace(busy(0.1), pins=["4"]))
    with suspended(machine, USUAL), guests(machine, shapes):
        for name, original in originals.items():
            mark = f'<origin><vcpu id="0" cpus="{original}" pins="4"/></origin>'
            key = ("--key", "vcpusched-origin", "--live")
            machine.say("virsh", "metadata", name, "--uri", ORIGIN, *key, "--set", mark)
        online = "/sys/devices/system/cpu/cpu5/online"
        try:
            machine.say("bash", "-c", f"echo 0 >{online}")
            for name in originals:
                machine.say("virsh", "managedsave", name)
                machine.say("virsh", "start", name)
            woken = places(machine)
            assert (woken["partly"], woken["wholly"]) == (["4"], ["4"])
            pins = {name: machine.say("virsh", "vcpupin", name, "--live") for name in originals}
            assert {name: pin.split()[-1] for name, pin in pins.items()} == {
                "partly": "4-5",
                "wholly": "4",
            }
            marked = {name for name in originals if ORIGIN in machine.say("virsh", "dumpxml", name)}
            assert marked == {"wholly"}
        finally:
            machine.say("bash", "-c", f"echo 1 >{online}")
        wait_for("all of it", lambda: places(machine)["partly"] == ["4-5"], LIMIT_S)
