"""Who may be moved, on real libvirt and guests: metadata, lists, definitions, managed pCPUs."""

import json

import libvirt
from lab import Guest, Lab
from program import vcpusched
from service import LIGHT, running

URI = "urn:vcpusched:domain:1"
LIVE, CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG


def ask_for(guest: Guest, policy: str, flags: int) -> None:
    """Write a guest's metadata as an administrator does."""
    element = f"<domain policy='{policy}'/>"
    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    guest.domain().setMetadata(kind, element, "vcpusched", URI, flags)


def test_who_is_held_stays(lab: Lab) -> None:
    """Eight guests on pCPU 0 of 2, of which three may go; the others have five reasons to stay.

    What a running guest says outranks what its definition does; a pinned emulator pins no vCPU.
    pCPU 0 is then dedicated to those whose definition names nothing else: nobody may come back.
    """
    for name in ("held", "typo", "excluded", "free", "outranked", "emulator"):
        lab.add_guest(name, [0.05], pin=0)
    lab.add_guest("fenced", [0.05], pin=0, cpuset="0")
    lab.add_guest("transient", [0.05], pin=0, persistent=False)
    ask_for(lab.guests["held"], "hold", LIVE)
    ask_for(lab.guests["typo"], "holdd", CONFIG)
    ask_for(lab.guests["outranked"], "hold", CONFIG)
    ask_for(lab.guests["outranked"], "balance", LIVE)
    lab.guests["emulator"].domain().pinEmulator((True, False), LIVE | CONFIG)
    held = {
        "held": "held by its metadata",
        "typo": 'its metadata says policy="holdd", which is none of balance, hold, spread',
        "excluded": 'excluded by "ex*ed" in exclude_domains',
        "fenced": "its definition allows no other managed pCPU",
        "transient": "its definition allows no other managed pCPU",
    }
    with running(
        lab,
        "0.5",
        VCPUSCHED_HALF_LIFE="2",
        VCPUSCHED_EXCLUDE_DOMAINS="ex*ed, outranked",
    ) as service:
        service.wait("three pins", lambda: service.pins >= 3)
        service.wait_cycles(5)
        places = {name: guest.affinity(0) for name, guest in lab.guests.items()}
        assert {name for name, cpus in places.items() if cpus == {1}} == {
            "free",
            "outranked",
            "emulator",
        }
        assert all(places[name] == {0} for name in held)
        assert len(service.lines("Guest typo is held, because its metadata says policy=")) == 1
        said = service.ask("status", "-v").stdout
        for name, why in held.items():
            assert f"\n{name} stays: {why}\n" in said
        treatment = json.loads(service.ask("plan", "--json", "--uri", lab.uri).stdout)["treatment"]
        assert {entry["domain"]: entry["why"] for entry in treatment if not entry["movable"]} == {
            **held,
            **dict.fromkeys(("free", "outranked", "emulator"), "all other pCPUs are reserved"),
        }
        explained = service.ask("plan", "--explain", "held", "--uri", lab.uri)
        assert "stays on pCPU 0 and may not be moved: held by its metadata" in explained.stdout
        assert service.ask("plan", "--explain", "nobody", "--uri", lab.uri).returncode == 2


def edit(guest: Guest, old: str, new: str) -> None:
    """Change a guest's persistent definition, as `virsh edit` does: for its next start."""
    domain = guest.domain()
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert old in xml
    domain.connect().defineXML(xml.replace(old, new, 1))


def test_definitions_that_are_edited_while_guests_run(lab: Lab) -> None:
    """Six guests on pCPU 0 of 2; three may go, the others stay for what is stated since then.

    A <vcpupin> holds like a cpuset. A realtime vCPU is never moved, though it is none yet. With
    placement='auto' a cpuset says nothing. Who is in no list of domains stays, too.
    """
    for name in ("pinned", "realtime", "outsider", "auto", "in1", "in2"):
        lab.add_guest(name, [0.05], pin=0)
    first, both = (True, False), (True, True)
    lab.guests["pinned"].domain().pinVcpuFlags(0, first, CONFIG)
    lab.guests["in1"].domain().pinVcpuFlags(0, both, CONFIG)
    scheduler = "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='1'/></cputune>"
    edit(lab.guests["realtime"], "<os>", f"{scheduler}<os>")
    edit(lab.guests["auto"], "<vcpu placement='static'", "<vcpu placement='auto' cpuset='0'")
    held = {
        "pinned": "its definition allows no other managed pCPU",
        "realtime": "a realtime vCPU",
        "outsider": "not in include_domains",
    }
    with running(
        lab,
        "0.5",
        VCPUSCHED_HALF_LIFE="2",
        VCPUSCHED_INCLUDE_DOMAINS="in*, pinned, realtime, auto",
    ) as service:
        service.wait("three pins", lambda: service.pins >= 3)
        service.wait_cycles(5)
        places = {name: guest.affinity(0) for name, guest in lab.guests.items()}
        assert {name for name, cpus in places.items() if cpus == {0}} == set(held)
        said = service.ask("status", "-v").stdout
        for name, why in held.items():
            assert f"\n{name} stays: {why}\n" in said


def test_pcpus_that_are_not_managed_are_left_alone(lab: Lab) -> None:
    """Three guests on pCPU 0 of 2; with one pCPU of ours there is nothing to balance."""
    for name in ("a", "b", "c"):
        lab.add_guest(name, [0.06], pin=0)
    lab.add_guest("there", [0.05], pin=1)
    expected = {
        ("VCPUSCHED_CPUS", "0-1"): ([0, 1], True, ""),
        ("VCPUSCHED_CPUS", "0"): ([0], False, "it is on pCPU 1, which is not managed"),
        ("VCPUSCHED_CPUS", "all,^0"): ([1], False, ""),
    }
    for (variable, value), (cpus, moves, why) in expected.items():
        asked = {variable: value, "VCPUSCHED_PERIOD": "0.5", "VCPUSCHED_URI": lab.uri}
        asked["RUNTIME_DIRECTORY"] = str(lab.directory / "none")
        seen = vcpusched("snapshot", **asked)
        host = json.loads(seen.stdout)
        assert [cpu["id"] for cpu in host["cpus"]] == cpus
        (there,) = (vcpu for vcpu in host["vcpus"] if vcpu["domain"] == "there")
        assert there.get("why", "") == why or (cpus == [1] and there["fixed"])
        # What else runs on this machine is not the matter here.
        host["cpus"] = [{"id": cpu["id"]} for cpu in host["cpus"]]
        quiet = json.dumps(host)
        plan = json.loads(vcpusched("plan", "--from", "-", "--json", stdin=quiet, **LIGHT).stdout)
        assert bool(plan["moves"]) == moves
