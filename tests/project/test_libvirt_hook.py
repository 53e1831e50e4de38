"""The hook that libvirt runs on incoming guests: XML in, XML out, and silence on any doubt."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET
from xml.parsers.expat import ExpatError

import pytest
from libvirt_hook import CPU_ID_MAX, host_cpus, rewritten

from vcpusched.host import libvirt_xml
from vcpusched.host.libvirt_xml import ORIGIN, origin_xml, read_definition
from vcpusched.model import ALL_CPUS, CpuSet
from vcpusched.sample import Origin

HOOK: Final = Path(__file__).parents[2] / "packaging/libvirt_hook.py"
HERE: Final = frozenset(range(4))
"""The pCPUs of the host that guests come to, in most cases."""

DOMAIN: Final = """<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>größer &gt; klein</name>
  <!-- <vcpupin vcpu='0' cpuset='1'/> -->
  <title><![CDATA[<cputune>]]></title>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:name>a</nova:name><cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
    </nova:instance>
    {mark}<kubevirt xmlns="http://kubevirt.io"><uid/></kubevirt>
  </metadata>
  <vcpu placement='static' cpuset='0-3'>4</vcpu>
  <cputune>
    <shares>512</shares>{pins}
    <emulatorpin cpuset='1'/><iothreadpin iothread='1' cpuset='1'/>
  </cputune>
  <devices><graphics type='vnc' passwd='"/>&apos;'/></devices>
  <qemu:commandline><qemu:arg value='-global'/><qemu:arg value='x=y'/></qemu:commandline>
</domain>
"""


def origin_of(original: str, *pins: str) -> Origin:
    """Give what the mark says of a vCPU."""
    cpus = ALL_CPUS if original == "all" else CpuSet.parse(original)
    return Origin(cpus, frozenset(map(CpuSet.parse, pins)))


def mark(origin: Mapping[int, Origin]) -> str:
    """Give the mark as libvirt has it in XML once it was set."""
    element = re.sub("(</?)", r"\1vcpusched-origin:", origin_xml(origin))
    return element.replace("origin>", f"origin xmlns:vcpusched-origin='{ORIGIN}'>", 1)


def domain(origin: Mapping[int, Origin], pins: Mapping[int, str]) -> bytes:
    """Give a domain's XML with a mark and pins."""
    elements = (f"<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>" for vcpu, cpus in pins.items())
    return DOMAIN.format(mark=mark(origin) if origin else "", pins="".join(elements)).encode()


def pins_in(xml: bytes) -> dict[int, str]:
    """Give the pins of vCPUs that libvirt would find."""
    found = ET.fromstring(xml).iterfind("cputune/vcpupin")  # noqa: S314  made here
    return {int(pin.get("vcpu", "")): pin.get("cpuset", "") for pin in found}


def rest_of(xml: bytes) -> str:
    """Give all but mark and pins, whatever stands between elements."""
    root = ET.fromstring(xml)  # noqa: S314  made here
    for path, name in (("metadata", f"{{{ORIGIN}}}origin"), ("cputune", "vcpupin")):
        parent = root.find(path)
        assert parent is not None
        for element in parent.findall(name):
            parent.remove(element)
    return ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True)


CASES: Final = {
    "the pin in force": ({0: origin_of("0-1", "2", "3")}, {0: "2"}, {0: "0-1"}),
    "the pin that was intended": ({0: origin_of("0-1", "2", "3")}, {0: "3"}, {0: "0-1"}),
    "a set, whatever it is written like": ({0: origin_of("0", "1-3")}, {0: "1,2-3"}, {0: "0"}),
    "one that libvirt has from a person": ({0: origin_of("0", "1-2")}, {0: "1-3,^3"}, {0: "0"}),
    "an original of all pCPUs": ({0: origin_of("all", "2")}, {0: "2"}, {}),
    "a person's pin": ({0: origin_of("0-1", "2", "3")}, {0: "1"}, {0: "1"}),
    "a vCPU that is not in the mark": (
        {0: origin_of("0", "2")},
        {0: "2", 1: "2"},
        {0: "0", 1: "2"},
    ),
    "a vCPU without a pin": ({0: origin_of("0", "2"), 1: origin_of("3", "2")}, {1: "2"}, {1: "3"}),
    "several": (
        {0: origin_of("all", "2"), 1: origin_of("0-1", "2"), 3: origin_of("3", "0", "1")},
        {0: "2", 1: "2", 2: "1", 3: "2"},
        {1: "0-1", 2: "1", 3: "2"},
    ),
    "neither pin nor original can be": ({0: origin_of("5", "9")}, {0: "9"}, {0: "5"}),
    "the original cannot be, nor the pin": ({0: origin_of("0-9", "9")}, {0: "9"}, {0: "0-9"}),
}
"""The mark, the pins in the XML that comes, and those in the XML that the guest runs by."""


@pytest.mark.parametrize("case", CASES)
def test_originals_are_put_in_place_of_our_pins(case: str) -> None:
    """The mark goes, and nothing else changes, whatever other elements are called."""
    origin, before, after = CASES[case]
    xml = domain(origin, before)
    assert read_definition(xml.decode()).origin == origin
    made = rewritten(xml, HERE, HERE)
    assert pins_in(made) == after
    assert rest_of(made) == rest_of(xml)
    assert read_definition(made.decode()).origin == {}
    # What changes is as long as what changes: all other bytes are there, in their order.
    assert re.sub(rb"\s*<vcpupin[^>]*>", b"", made) in re.sub(
        rb"<vcpusched-origin:origin.*</vcpusched-origin:origin>|\s*<vcpupin[^>]*>", b"", xml
    )


UNTOUCHED: Final = {
    "no mark": ({}, {0: "2"}),
    "an original that this host cannot take, and a pin that it can": (
        {0: origin_of("0-9", "2")},
        {0: "2"},
    ),
    "an original on no pCPU that is online": ({0: origin_of("4", "2")}, {0: "2"}),
}


@pytest.mark.parametrize("case", UNTOUCHED)
def test_the_xml_stays_as_it_is(case: str) -> None:
    """Nothing is printed then."""
    assert rewritten(domain(*UNTOUCHED[case]), HERE, HERE) == b""


def test_an_original_that_is_partly_offline() -> None:
    """Control groups of version 2 take all of it; with version 1 the pin stays, and the mark."""
    xml = domain({0: origin_of("2-3", "2"), 1: origin_of("0", "2")}, {0: "2", 1: "2"})
    online = HERE - {3}
    assert pins_in(rewritten(xml, online, HERE)) == {0: "2-3", 1: "0"}
    made = rewritten(xml, online, online)
    assert pins_in(made) == {0: "2", 1: "0"}
    assert read_definition(made.decode()).origin.keys() == {0, 1}


@pytest.mark.parametrize(
    ("files", "after"),
    [
        ({}, {0: "0-1", 1: "1-3", 2: "0-1"}),
        ({"cgroup.controllers": "cpuset\n"}, {0: "0-1", 1: "1-3", 2: "0-1"}),
        (
            {"cgroup.controllers": "cpuset\n", "machine.slice/cpuset.cpus.effective": "2-3\n"},
            {0: "2", 1: "1-3", 2: "0-1"},
        ),
    ],
)
def test_an_original_that_guests_are_kept_off(
    tmp_path: Path, files: Mapping[str, str], after: Mapping[int, str]
) -> None:
    """The kernel would refuse it, and that the migration: so our pin stays where that is taken."""
    cpus = {f"devices/system/cpu/{which}": "0-3\n" for which in ("online", "possible")}
    for name, text in {
        **cpus,
        **{f"fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    origin = {0: origin_of("0-1", "2"), 1: origin_of("1-3", "2"), 2: origin_of("0-1", "1")}
    made = rewritten(domain(origin, {0: "2", 1: "2", 2: "1"}), *host_cpus(str(tmp_path)))
    assert pins_in(made) == after


@pytest.mark.parametrize(
    "pin",
    [
        "<vcpupin\n vcpu='0'\tcpuset='2'\n/>",
        "<vcpupin vcpu='0' cpuset='2'></vcpupin>",
        "<vcpupin cpuset='2' vcpu='0'><x a='/>'/></vcpupin>",
        "<vcpupin vcpu='0' cpuset='2' a='/>' b=\"'>\"   ></vcpupin >",
    ],
)
def test_a_pin_however_it_is_written(pin: str) -> None:
    """Where its element ends is known by XML's rules, not by how libvirt writes it today."""
    xml = DOMAIN.format(mark=mark({0: origin_of("0", "2")}), pins=pin).encode()
    made = rewritten(xml, HERE, HERE)
    assert pins_in(made) == {0: "0"}
    assert rest_of(made) == rest_of(xml)


def test_a_mark_with_a_default_namespace() -> None:
    """As others may write the XML that libvirt gave them."""
    element = origin_xml({0: origin_of("all", "2")}).replace(
        "<origin>", f"<origin xmlns='{ORIGIN}'>"
    )
    xml = DOMAIN.format(mark=element, pins="<vcpupin vcpu='0' cpuset='2'/>").encode()
    made = rewritten(xml, HERE, HERE)
    assert pins_in(made) == {}
    assert rest_of(made) == rest_of(xml)


GOOD: Final = domain({0: origin_of("0", "2")}, {0: "2"})
DOUBTFUL: Final = {
    "nothing": b"",
    "no XML": b"not XML",
    "an end that is missing": GOOD[:-12],
    "an entity": b"<!DOCTYPE domain [<!ENTITY a 'b'>]>" + GOOD.replace(b"512", b"&a;"),
    "another encoding": GOOD.decode().encode("latin-1"),
    "a vCPU without a number": GOOD.replace(b'id="0"', b'id="x"'),
    "a vCPU without an original": GOOD.replace(b'cpus="0"', b""),
    "an original that is no list": GOOD.replace(b'cpus="0"', b'cpus="0-"'),
    "an original of nothing": GOOD.replace(b'cpus="0"', b'cpus=""'),
    "a list of too much": GOOD.replace(b'cpus="0"', b'cpus="0-%d"' % (CPU_ID_MAX + 1)),
    "a pin that is no list": GOOD.replace(b"cpuset='2'", b"cpuset='two'"),
    "no pin of ours": GOOD.replace(b' pins="2"', b""),
    "one of our pins that is no list": GOOD.replace(b'pins="2"', b'pins="2 x"'),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_doubt_is_silent(case: str) -> None:
    """What is not understood is an error within, and nothing outside: status 0, no output."""
    with pytest.raises((ValueError, KeyError, ExpatError)):
        rewritten(DOUBTFUL[case], HERE, HERE)
    assert ran("migrate", "begin", DOUBTFUL[case]) == b""


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_it_reads_what_libvirt_gives_and_prints_what_libvirt_takes(operation: str) -> None:
    """As a program, by the pCPUs of this machine, which has pCPU 0 wherever this runs."""
    assert pins_in(ran(operation, "begin", GOOD)) == {0: "0"}


@pytest.mark.parametrize(
    ("operation", "moment"), [("prepare", "begin"), ("start", "begin"), ("migrate", "end")]
)
def test_it_has_no_part_in_other_operations(operation: str, moment: str) -> None:
    """Whatever the XML says; nobody would read what it prints."""
    assert ran(operation, moment, GOOD) == b""


def ran(operation: str, moment: str, xml: bytes) -> bytes:
    """Run the hook as libvirt does, which it must survive; gives what it printed."""
    done = subprocess.run(
        [str(HOOK), "größer", operation, moment, "-"], input=xml, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_it_says_the_same_as_the_program() -> None:
    """It imports nothing of it, so that what both know is written twice."""
    text = HOOK.read_text()
    assert f'"{ORIGIN}"' in text
    assert f'"{libvirt_xml.ANYWHERE}"' in text
    assert not re.search(r"^(import|from) vcpusched", text, re.MULTILINE)
