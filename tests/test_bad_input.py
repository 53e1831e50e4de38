"""Whatever is written where we read: no traceback, no hang, no forged line, the right status.

What Hypothesis finds here it finds in the parsers; a few of the worst go through the whole program.
"""

import dataclasses
import io
import json
import subprocess
import time
from pathlib import Path

import pytest
from builders import host as drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from program import PROGRAM, environment, vcpusched

from vcpusched.act.actuator import Failure
from vcpusched.act.ledger import Changed
from vcpusched.host import libvirt_xml
from vcpusched.model import CpuSet, DomainUuid, Host, VcpuId
from vcpusched.plan import explain
from vcpusched.plan.planner import Cause, Move, Policy, plan
from vcpusched.report import messages, snapshot, treatments
from vcpusched.report.messages import Service
from vcpusched.sample import Definition
from vcpusched.service.systemd import line_log
from vcpusched.settings import ConfigError, Settings, load
from vcpusched.text import as_json

BRIEF = settings(max_examples=200, deadline=None)

HOSTILE_NAMES = (
    "web\n16:03:06 Plan 7: pinned vCPU 0 of bank (~99%), pCPU 0 -> pCPU 1: really",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "\x9b31mC1",
    "\x00\x01\x7f",
    "name\u202egnp.exe\u2066",
    "[bold red]markup[/] [link=http://x]",
    "<b>&amp;</b><!DOCTYPE x>",
    'quo"te\\back',
    "x" * 10_000,
    "\ud800",
)

TOML_VALUES = st.one_of(
    st.booleans().map(lambda value: str(value).lower()),
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.text().map(json.dumps),
    st.lists(st.text(max_size=5), max_size=3).map(json.dumps),
    st.sampled_from(["{}", "[[]]", "1979-05-27", '"""', "0x", "nan", '"0-99999999"', '"^1"']),
)
SNAPSHOT_KEYS = st.sampled_from(
    ["version", "cpus", "vcpus", "id", "domain", "vcpu", "load", "allowed", "on", "node", "fixed"]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["0-3", "3-0", "0-65536", "^0", "0,,1", "٣"]),
)
NESTED = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SNAPSHOT_KEYS, inner, max_size=6),
    max_leaves=20,
)
NAMES = (
    "id cpus cpuset vcpu vcpus mode nodeset policy siblings level placement scheduler cellid size "
    "unit current enabled"
)
ATTRIBUTES = st.dictionaries(
    st.sampled_from(NAMES.split()),
    st.sampled_from(["0", "-1", "0-3", "3-0", "all", "auto", "strict", "x", "", "9" * 40, "٣"]),
    max_size=4,
)
TAG_NAMES = (
    "vcpu cputune vcpupin vcpusched numatune memory memnode metadata shares quota period cpu numa "
    "cell cells topology host cache bank"
)
OURS = (f"{{{libvirt_xml.ORIGIN}}}origin", f"{{{libvirt_xml.NAMESPACE}}}domain")
TAGS = st.sampled_from([*TAG_NAMES.split(), *OURS])
TEXTS = st.sampled_from(["", "1", "-1", "4", "99999999999999999999", "x", "1.5", "٣"])


def element(tag: str, attributes: dict[str, str], text: str, children: list[str]) -> str:
    """Write one element."""
    name, declared = tag, ""
    if tag.startswith("{"):
        uri, _, local = tag[1:].partition("}")
        name, declared = f"n:{local}", f' xmlns:n="{uri}"'
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{declared}{written}>{text}{''.join(children)}</{name}>"


def elements(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Give elements with such children."""
    return st.builds(element, TAGS, ATTRIBUTES, TEXTS, st.lists(children, max_size=4))


XML = st.recursive(elements(st.just("")), elements, max_leaves=12).map(
    lambda inner: f"<domain>{inner}<cputune>{inner}</cputune><metadata>{inner}</metadata></domain>"
)


@BRIEF
@given(st.sampled_from(sorted(Settings.model_fields)), TOML_VALUES)
def test_settings_in_a_file(tmp_path_factory: pytest.TempPathFactory, key: str, value: str) -> None:
    """A value is taken, or reported in a line that names file and key."""
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_text(f"{key} = {value}\n", encoding="utf-8", errors="surrogateescape")
    try:
        load(file).settings.rules()
    except ConfigError as error:
        said = error.lines
    else:
        said = ()
    assert all(line.startswith(str(file)) and line.isprintable() for line in said)


@BRIEF
@given(st.binary(max_size=60))
def test_files_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """They are TOML, or reported in a line."""
    file = tmp_path_factory.getbasetemp() / "binary.toml"
    file.write_bytes(content)
    try:
        load(file)
    except ConfigError as error:
        said = error.lines
    else:
        said = ()
    assert all(line.isprintable() for line in said)


@BRIEF
@given(NESTED)
def test_snapshots(raw: object) -> None:
    """They are hosts for which there is a plan, or reported in a line."""
    try:
        host = snapshot.parse(json.dumps(raw))
    except snapshot.SnapshotError as error:
        said = str(error)
        assert said.isprintable()
    else:
        plan(host, Policy())


@BRIEF
@given(
    st.lists(
        st.fixed_dictionaries(
            {"domain": st.text(min_size=1, max_size=4), "vcpu": st.integers(0, 3), "load": VALUES},
            optional={"cpus": VALUES, "allowed": VALUES, "on": VALUES, "uuid": VALUES},
        ),
        max_size=4,
    )
)
def test_snapshots_that_are_almost_right(vcpus: list[dict[str, object]]) -> None:
    """Four pCPUs, and vCPUs of which anything may be wrong."""
    raw = {"version": 1, "cpus": [{"id": cpu} for cpu in range(4)], "vcpus": vcpus}
    try:
        host = snapshot.parse(json.dumps(raw))
    except snapshot.SnapshotError as error:
        said = str(error)
        assert said.isprintable()
    else:
        plan(host, Policy())


@BRIEF
@given(XML | st.text())
def test_domain_xml(xml: str) -> None:
    """A definition, or a ValueError: then the domain is held."""
    try:
        found = libvirt_xml.read_definition(xml)
    except ValueError:
        return
    assert isinstance(libvirt_xml.combined(found, found), Definition)


BOMBS = (
    '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">'
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><domain><name>&i;</name></domain>",
    '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain><name>&x;</name></domain>',
    '<!DOCTYPE d SYSTEM "http://127.0.0.1/d.dtd"><domain/>',
    "<!DOCTYPE domain><domain/>",
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_xml_bombs_are_refused(bomb: str) -> None:
    """At once, unread, and without looking anywhere."""
    began_s = time.monotonic()
    with pytest.raises(ValueError, match="document type"):
        libvirt_xml.read_definition(bomb)
    assert time.monotonic() - began_s < 1


def renamed(host: Host, name: str) -> Host:
    """Give all guests this name."""
    vcpus = tuple(dataclasses.replace(vcpu, domain=name, why="") for vcpu in host.vcpus)
    return dataclasses.replace(host, vcpus=vcpus)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_forges_a_line(name: str) -> None:
    """Each entry is one printable line, and each field what it was, for journald to frame."""
    vcpu, one, two = VcpuId(DomainUuid("a"), 1, 0), CpuSet.of([1]), CpuSet.of([2])
    move = Move(vcpu, name, one, two, 1000, name)
    moves = [dataclasses.replace(move, cause=cause) for cause in Cause]
    entries = [
        messages.unread_entry(name, name),
        *(messages.changed_entry(Changed(each, 1)) for each in moves),
        *(messages.failure_entry(Failure(each, name)) for each in moves),
    ]
    stream = io.StringIO()
    for entry in entries:
        assert entry.message.isprintable()
        assert len(entry.message) < 600
        assert entry.fields["VCPUSCHED_DOMAIN"] == name
        line_log(stream, entry)
    assert len(stream.getvalue().splitlines()) == len(entries)
    service = Service(1, 0.0, Settings.model_construct(uri=name), trouble=name)
    assert messages.status_line(service).isprintable()
    host = renamed(drawn([50, 50], []), name)
    assert all(line.isprintable() for line in treatments.treatment_lines(host))
    for said in explain.explained(host, plan(host, Policy()), Policy(), name):
        assert said.text.isprintable()


@BRIEF
@given(st.text())
def test_json_for_people(text: str) -> None:
    """It says the same as was put in, and has no control character but line ends."""
    said = as_json([text, {text: text}], indent=1)
    assert json.loads(said) == [text, {text: text}]
    assert all(letter.isprintable() or letter == "\n" for letter in said)


@pytest.mark.parametrize("name", HOSTILE_NAMES[:-1])
def test_no_name_reaches_a_terminal(name: str) -> None:
    """What `plan` prints has no control character but line ends, and interprets no markup."""
    text = json.dumps(snapshot.host_as_json(renamed(drawn([50, 50], []), name)))
    for more in ((), ("--explain", name if "\x00" not in name else "x")):
        done = vcpusched("plan", "--from", "-", *more, stdin=text)
        assert "Traceback" not in done.stderr
        printed = done.stdout + done.stderr
        assert all(letter.isprintable() or letter == "\n" for letter in printed)
    answer = vcpusched("plan", "--from", "-", "--json", stdin=text).stdout
    assert json.loads(answer)["moves"]
    assert all(letter.isprintable() or letter == "\n" for letter in answer)
    if "markup" in name:
        assert "[bold red]markup[/]" in vcpusched("plan", "--from", "-", stdin=text).stdout


@pytest.mark.parametrize(
    "variable",
    [
        ("VCPUSCHED_PERIOD", "\x1b[31m"),
        ("VCPUSCHED_CPUS", "0-99999999999999999999"),
        ("VCPUSCHED_EXCLUDE_CPUS", "٣"),
        ("VCPUSCHED_URI", "qemu:///system\nEvil"),
        ("VCPUSCHED_NOPE\n", "1"),
        ("VCPUSCHED_LOG_LEVEL", "x" * 100_000),
        ("VCPUSCHED_ON_STOP", "\udcff"),
    ],
)
def test_hostile_variables(tmp_path: Path, variable: tuple[str, str]) -> None:
    """One line each, and status 78."""
    name, value = variable
    done = subprocess.run(
        [*PROGRAM, "check-config"],
        env=environment({name: value, "RUNTIME_DIRECTORY": str(tmp_path)}),
        capture_output=True,
        check=False,
    )
    said = done.stderr.decode(errors="surrogateescape")
    assert done.returncode == 78
    assert len(said.splitlines()) == 1
    assert len(said) < 2000
    assert all(letter.isprintable() or letter == "\n" for letter in said)
