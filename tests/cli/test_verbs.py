"""The verbs that need no libvirt: plan and its formats, status, usage."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from builders import host
from hypothesis import given, settings
from hypothesis import strategies as st
from program import environment, vcpusched, without_the_lock

import vcpusched as package
from vcpusched.cli.parser import EXAMPLES, GROUPS, make_parser
from vcpusched.model import Cpu, DomainUuid, Host, HostCpu
from vcpusched.plan.planner import Policy, plan
from vcpusched.report import snapshot
from vcpusched.service import run_directory

CROWDED = {
    "version": 1,
    "cpus": [{"id": 0, "node": 0, "core": 0, "cache": 0, "host_load": 0.03}, {"id": 1}],
    "vcpus": [
        {"domain": "web1", "vcpu": 0, "load": 0.53, "cpus": "0", "allowed": "0-1"},
        {"domain": "web2", "vcpu": 0, "load": 0.5, "cpus": "0", "colour": "ignored"},
    ],
}

ONE = '{"version": 1, "cpus": [{"id": 0}], "vcpus": [{"domain": "a", "vcpu": 0, %s}]}'

FAR = '{"version": 1, "cpus": [{"id": 0}], "vcpus": [], "node_distances": %s}'


def test_plan_from_standard_input_as_json() -> None:
    """The format that the design fixes, from a snapshot with optional and unknown keys."""
    done = vcpusched("plan", "--from", "-", "--json", stdin=json.dumps(CROWDED))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "version": 1,
        "balanced": False,
        "stop": "balanced",
        "gap_before": 1.06,
        "gap_after": 0.0,
        "moves": [
            {
                "domain": "web1",
                "vcpu": 0,
                "from": "0",
                "to": "1",
                "load": 0.53,
                "reason": found["moves"][0]["reason"],
            }
        ],
        "treatment": [
            {"domain": name, "uuid": name, "vcpus": "0", "movable": True, "why": ""}
            for name in ("web1", "web2")
        ],
    }
    assert "pCPU 0 was at 106%" in found["moves"][0]["reason"]


def test_plan_for_a_person(tmp_path: Path) -> None:
    """Says whose host it is, draws it before and after, and gives each move its reason."""
    file = tmp_path / "host.json"
    file.write_text(json.dumps(CROWDED))
    done = vcpusched("plan", "--from", str(file))
    assert done.returncode == 0
    assert f"As saved in {file}" in done.stdout
    assert "1. vCPU 0 of web1, pCPU 0 -> pCPU 1: pCPU 0 was at 106%" in done.stdout
    assert "Plan: 1 pin, gap 106 -> ~0 points (threshold 10); then balanced" in done.stdout
    assert "\x1b" not in done.stdout  # plain when piped


def test_plan_for_sets_of_pcpus() -> None:
    """One row a set; who comes, who leaves, who is let in; the gap inside sets shown apart."""
    cpus = [{"id": cpu, "cache": cpu // 4} for cpu in range(8)]
    where = {"web": (0.9, "0"), "db": (0.8, "1"), "api": (0.7, "2"), "job": (0.6, "2")}
    where |= {"mail": (0.5, "0-3"), "log": (0.4, "3"), "idle": (0.1, "4-7")}
    vcpus = [
        {"domain": name, "vcpu": 0, "load": load, "cpus": on} for name, (load, on) in where.items()
    ]
    drawn = {"version": 1, "cpus": cpus, "vcpus": vcpus}
    text = vcpusched("plan", "--from", "-", stdin=json.dumps(drawn)).stdout
    rows = [line for line in text.splitlines() if line.startswith(("0-3 ", "4-7 "))]
    assert len(rows) == 2
    assert "-web/0 90" in rows[0]
    assert "+web/0 90" in rows[1]
    assert "api/0 70 on 2 → all, " in rows[0]
    assert "\nLargest gap inside a set: ~" in text
    assert "gap between sets 95 -> ~" in text


def test_a_setting_that_changes_no_plan_is_refused() -> None:
    """A person who tries one must not think that it makes no difference."""
    done = vcpusched("plan", "--from", "-", "--set", "half_life=5", stdin=json.dumps(CROWDED))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vcpusched: --set half_life: no plan depends on it, but on bala")


def test_one_of_each_is_simulated() -> None:
    """Numbers of one are worded as such."""
    sizes = ("--cpus", "1", "--vcpus", "1", "--periods", "1")
    first = vcpusched("simulate", "--generate", *sizes).stdout.splitlines()[0]
    assert first.startswith("made-up guests: 1 vCPU on 1 pCPU, mean load ")
    assert ", 1 period of 3s, " in first


def test_commands_are_no_json() -> None:
    """What is piped into jq must not be shell."""
    done = vcpusched("plan", "--from", "-", "--json", "--commands", stdin=json.dumps(CROWDED))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vcpusched: --commands: goes without --json\n"


HELD = json.loads(json.dumps(CROWDED))
HELD["vcpus"][0] |= {"fixed": True, "why": "held by its metadata", "uuid": "u1"}


def test_plan_says_who_may_be_moved() -> None:
    """In words and as JSON, with the reason of each that may not."""
    done = vcpusched("plan", "--from", "-", stdin=json.dumps(HELD))
    assert "\nweb1 stays: held by its metadata\nMay be moved: web2\n" in done.stdout
    done = vcpusched("plan", "--from", "-", "--json", stdin=json.dumps(HELD))
    assert json.loads(done.stdout)["treatment"][0] == {
        "domain": "web1",
        "uuid": "u1",
        "vcpus": "0",
        "movable": False,
        "why": "held by its metadata",
    }


def test_plan_with_other_settings() -> None:
    """Each one, lists too; what is wrong with one is said as of any other source."""
    text = json.dumps(CROWDED)
    done = vcpusched(
        "plan", "--from", "-", "--set", "max_moves=0", "--set", "min_gain=90", stdin=text
    )
    assert "Unbalanced, nothing worth a pin: gap 106 points" in done.stdout
    wishes = ("--set", "max_moves=1", "--set", "exclude_domains=a,b*")
    done = vcpusched("plan", "--from", "-", *wishes, stdin=text)
    line = "--set exclude_domains: goes without --from: a saved host is as it was read then"
    assert (done.returncode, done.stderr) == (2, f"vcpusched: {line}\n")
    for wish, line in {
        "pin_to=core": "",
        "pin_to": '--set: "pin_to" is not allowed: must be KEY=VALUE',
        "max_moves=-1": 'command line: max_moves: "-1" is not allowed: must be a whole number from'
        " 0 to 100000",
        "pinto=cpu": "command line: pinto: no such setting; did you mean pin_to?",
    }.items():
        done = vcpusched("plan", "--from", "-", "--set", wish, stdin=text)
        assert done.returncode == (2 if line else 0)
        assert done.stderr.startswith(f"vcpusched: {line}" if line else "")


def test_plan_compares_single_pcpus_caches_and_nodes() -> None:
    """A row each; for a program, too."""
    cpus = [{"id": cpu, "cache": cpu // 2 * 2, "node": cpu // 4} for cpu in range(8)]
    vcpus = [{"domain": name, "vcpu": 0, "load": 0.8, "cpus": "0"} for name in ("a", "b", "c")]
    text = json.dumps({"version": 1, "cpus": cpus, "vcpus": vcpus})
    done = vcpusched("plan", "--from", "-", "--compare", stdin=text)
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows[2:6] == [
        "pinned to sets pins gap worst served",
        "single pCPUs - 2 240 -> ~80 42% -> ~100%",
        "caches 4 2 120 -> ~80 42% -> ~100%",
        "nodes 2 2 60 42% -> ~100%",
    ]
    done = vcpusched("plan", "--from", "-", "--compare", "--json", stdin=text)
    assert [(one["pin_to"], one["sets"], one["pins"]) for one in json.loads(done.stdout)] == [
        ("cpu", 0, 2),
        ("cache", 4, 2),
        ("node", 2, 2),
    ]


def test_plan_as_commands() -> None:
    """A shell carries them out, whatever guests are called; the rest are comments."""
    named = json.loads(json.dumps(CROWDED))
    named["vcpus"][0]["domain"] = "it's; reboot"
    done = vcpusched("plan", "--from", "-", "--commands", stdin=json.dumps(named))
    echoed = subprocess.run(
        ["sh"],
        input='virsh() { printf "<%s>" "$@"; }\n' + done.stdout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert echoed.stdout == (
        "<--connect><qemu:///system><vcpupin><--domain><it's; reboot><--vcpu><0><--cpulist><1>"
        "<--live>"
    )
    assert [line[0] for line in done.stdout.splitlines()] == ["#", "#", "v"]


def test_a_snapshot_without_names() -> None:
    """Neither a name nor a UUID is left, and the same vCPUs move."""
    crowded = host([30, 30, 20], [10], [])
    secret = dataclasses.replace(
        crowded,
        vcpus=tuple(
            dataclasses.replace(
                one,
                id=one.id._replace(uuid=DomainUuid(f"uuid-{9 - at}")),
                domain=f"secret{at}",
                why=f'for secret{at} and secret{at}0, "vcpusched release secret{at}", by "sec*"',
            )
            for at, one in enumerate(crowded.vcpus)
        ),
    )
    masked = snapshot.anonymized(secret)
    text = json.dumps(snapshot.host_as_json(masked))
    assert not any(vcpu.id.uuid in text for vcpu in secret.vcpus)
    assert "secret0 " not in text
    assert sorted(vcpu.domain for vcpu in masked.vcpus) == ["guest1", "guest2", "guest3", "guest4"]
    new = masked.vcpus[0].domain
    assert masked.vcpus[0].why == f'for {new} and secret00, "vcpusched release {new}", by "…"'
    before, after = (plan(one, Policy()) for one in (secret, masked))
    at = {vcpu.id: number for one in (secret, masked) for number, vcpu in enumerate(one.vcpus)}
    assert [(at[one.vcpu], one.to_cpus) for one in before.moves] == [
        (at[one.vcpu], one.to_cpus) for one in after.moves
    ]
    assert before.moves


def test_plan_says_which_level_the_host_does_not_report() -> None:
    """The line is there with sets of pCPUs that are not reported, and only then."""
    line = 'pin_to = "node": this host does not report for pCPU 1 which pCPUs are on one'
    for options in ((), ("--explain", "web1")):
        done = vcpusched(
            "plan", "--from", "-", *options, stdin=json.dumps(CROWDED), VCPUSCHED_PIN_TO="node"
        )
        assert line in done.stdout.replace("\n", " ")
    done = vcpusched(
        "plan", "--from", "-", "--json", stdin=json.dumps(CROWDED), VCPUSCHED_PIN_TO="node"
    )
    assert json.loads(done.stdout)["untold"].startswith(line)
    assert (
        "untold" not in vcpusched("plan", "--from", "-", "--json", stdin=json.dumps(CROWDED)).stdout
    )


def test_plan_explains_a_domain() -> None:
    """Given by name or UUID; one that is not there is a mistake on the command line."""
    for name in ("web1", "u1"):
        done = vcpusched("plan", "--from", "-", "--explain", name, stdin=json.dumps(HELD))
        assert done.returncode == 0
        why = "vCPU 0 (53%) stays on pCPU 0 and may not be moved: held by its metadata"
        assert f"  {why}\n" in done.stdout
    done = vcpusched("plan", "--from", "-", "--json", "--explain", "u1", stdin=json.dumps(HELD))
    (explanation,) = json.loads(done.stdout)["explanation"]
    assert explanation == {"vcpu": 0, "movable": False, "moved": False, "text": why}
    done = vcpusched("plan", "--from", "-", "--explain", "web3\n", stdin=json.dumps(HELD))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith('vcpusched: --explain: "web3\\n": no guest of this name')


def test_plan_from_needs_neither_libvirt_nor_systemd() -> None:
    """With both bindings impossible to import it works the same."""
    code = (
        "import sys; sys.modules['libvirt'] = sys.modules['systemd'] = None;"
        "from vcpusched.cli.main import main; sys.exit(main(['plan', '--from', '-', '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CROWDED),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["moves"]) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not "),
        ("[]", "snapshot: must be an object in braces"),
        (
            '{"version": 2, "cpus": [{"id": 0}], "vcpus": []}',
            "version: 2 is not allowed: mu",
        ),
        ('{"version": 1, "cpus": [], "vcpus": []}', "cpus: must not be empty"),
        ('{"version": 1, "cpus": [{"id": -1}], "vcpus": []}', "cpus.0.id: "),
        ('{"version": 1, "cpus": [{"id": 99999999}], "vcpus": []}', "cpus.0.id: "),
        ('{"version": 1, "cpus": [{"id": 0}, {"id": 0}], "vcpus": []}', "cpus: a pCPU is listed"),
        ('{"version": 1, "cpus": [{"id": 0, "capacity": 0}], "vcpus": []}', "cpus.0.capacity: "),
        ('{"version": 1, "cpus": [{"id": 0, "capacity": 1.5}], "vcpus": []}', "cpus.0.capacity: "),
        *((FAR % distances, "node_distances") for distances in ("[]", '{"x": {}}', '{"0": 1}')),
        (FAR % '{"0": {"1": 0}}', "node_distances.0.1: "),
        (FAR % '{"x\\nforged\\u001b": {}}', "node_distances.x?forged?.[key]: must be a number of"),
        (
            (ONE % '"load": 1, "cpus": "0"').replace('"vcpu": 0', '"vcpu": 65536'),
            "vcpus.0.vcpu: 65536 is not allowed: must be at most 65535",
        ),
        (FAR % '{"0": {"1": 1e400}}', "node_distances.0.1: "),
        ('{"version": 1, "cpus": [{"id": 0, "socket": "0"}], "vcpus": []}', "cpus.0.socket: "),
        (ONE % '"load": NaN, "cpus": "0"', "vcpus.0.load: must be a number (in pCPUs"),
        (
            (ONE % '"load": 1, "cpus": "0"').replace('"a"', '""'),
            "vcpus.0.domain: must not be empty",
        ),
        (ONE % '"load": 1, "cpus": "0", "allowed": "y"', "vcpus.0.allowed: 'y' is no list of pCPU"),
        (
            ONE % '"load": 1, "cpus": "0", "wait": 2',
            "vcpus.0.wait: 2 is not allowed: must be at mos",
        ),
        (
            ONE % '"load": 53, "cpus": "0"',
            "vcpus.0.load: 53 is not allowed: must be at most 2 (in p",
        ),
        (ONE % '"load": "x", "cpus": "0"', "vcpus.0.load: must be a number (in pCPUs: 0.53 is 53%"),
        (ONE % '"cpus": "0"', "vcpus.0.load: is missing"),
        (ONE % '"load": 1, "cpus": "x"', "vcpus.0.cpus: 'x' is no list of pCPUs"),
        (ONE % '"load": 1, "cpus": ""', "vcpus.0.cpus: must name at least one pCPU"),
    ],
)
def test_a_bad_snapshot_is_one_line(text: str, line: str) -> None:
    """Where and why, exit status 65, no traceback."""
    done = vcpusched("plan", "--from", "-", stdin=text)
    assert done.returncode == 65, done.stderr
    assert done.stderr.startswith(f"vcpusched: standard input: {line}")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_snapshot() -> None:
    """A named file that is not there is reported as such."""
    done = vcpusched("plan", "--from", "/nonexistent/host.json")
    assert (done.returncode, done.stderr) == (
        65,
        "vcpusched: /nonexistent/host.json: cannot be read: No such file or directory\n",
    )
    done = redirected("</dev/zero", "plan", "--from", "-")
    assert (done.returncode, done.stderr) == (
        65,
        "vcpusched: standard input: larger than 256 MiB\n",
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "cpus", "vcpus", "id", "domain", "vcpu", "load", "on"])
            | st.text(max_size=3),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(json_values | st.builds(lambda value: {**CROWDED, "vcpus": value}, json_values))
def test_any_json_is_read_or_refused(value: object) -> None:
    """Nothing but a SnapshotError comes of whatever is fed in."""
    refusal = ""
    try:
        plan(snapshot.parse(json.dumps(value)), Policy())
    except snapshot.SnapshotError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_a_snapshot_says_all_that_the_planner_needs() -> None:
    """Written and read back, a host gets the same plan."""
    particular = host([60, 10], [5])
    said = {"why": "why", "memory_node": 1, "shares": 512, "quota_ppm": 250_000, "spread": True}
    said |= {"wait_ppm": 60_000}
    vcpus = tuple(dataclasses.replace(vcpu, **said) for vcpu in particular.vcpus)  # type: ignore[arg-type]
    for drawn in (
        host([25, 25, 25, 25], []),
        host([30, 20], [10], [], floating=True),
        host([60, 10], [5], allowed="0"),
        dataclasses.replace(particular, vcpus=vcpus),
    ):
        again = snapshot.parse(json.dumps(snapshot.host_as_json(drawn)))
        assert snapshot.host_as_json(again) == snapshot.host_as_json(drawn)
        assert plan(again, Policy()) == plan(drawn, Policy())
    again = snapshot.parse(json.dumps(snapshot.host_as_json(drawn)))
    assert [getattr(again.vcpus[0], key) for key in said] == list(said.values())


def test_a_snapshot_says_where_pcpus_sit_and_what_they_can_do() -> None:
    """All of it is optional, and a capacity of 1 is left out; of what rounds to 0 a millionth."""
    cpus = (
        Cpu(0, node=0, core=0, cache=0, socket=0),
        Cpu(1),
        Cpu(2, node=1, capacity_ppm=600_000),
        Cpu(3, capacity_ppm=1, isolated=True),
    )
    distances = {(0, 0): 10, (0, 1): 32}
    written = snapshot.host_as_json(Host(tuple(map(HostCpu, cpus)), (), node_distances=distances))
    assert written["node_distances"] == {"0": {"0": 10, "1": 32}}
    assert snapshot.parse(json.dumps(written)).node_distances == distances
    assert written["cpus"] == [
        {"id": 0, "node": 0, "core": 0, "cache": 0, "socket": 0, "host_load": 0.0},
        {"id": 1, "host_load": 0.0},
        {"id": 2, "node": 1, "capacity": 0.6, "host_load": 0.0},
        {"id": 3, "capacity": 0.000001, "isolated": True, "host_load": 0.0},
    ]
    assert tuple(cpu.cpu for cpu in snapshot.parse(json.dumps(written)).cpus) == cpus
    written["cpus"][3]["capacity"] = 1e-9
    assert snapshot.parse(json.dumps(written)).cpus[3].cpu.capacity_ppm == 1


def test_hostile_names_stay_text() -> None:
    """A guest's name cannot put an escape sequence or a line of its own on the terminal."""
    evil = json.loads(json.dumps(CROWDED))
    evil["vcpus"][0]["domain"] = "\x1b[31mred\x1b]0;t\x07\nvcpusched: forged [bold]x[/bold]"
    done = vcpusched("plan", "--from", "-", stdin=json.dumps(evil))
    assert done.returncode == 0
    assert not set(done.stdout) & {"\x1b", "\x07"}
    assert "?[31mred?]0;t??vcpusched: forged [bold]x[/bold]" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith("vcpusched: forged")]
    for uuid, named in (("0123", "0123"), ("; x\n", "'; x?'"), (None, "'?[31mred?]0;t??vcpusched")):
        evil["vcpus"][0]["uuid"] = uuid
        done = vcpusched("plan", "--commands", "--from", "-", stdin=json.dumps(evil))
        assert f"vcpupin --domain {named}" in done.stdout
        assert not set(done.stdout) & {"\x1b", "\x07"}


def redirected(how: str, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the program with files as a shell makes them.

    Buffered, as it is: where it is not argparse itself passes over what cannot be written.
    """
    prefix = ("sh", "-c", f'exec "$@" {how}', "sh")
    return vcpusched(*arguments, stdin=stdin, prefix=prefix, PYTHONUNBUFFERED="")


def test_closed_and_full_files() -> None:
    """What belongs on a closed stderr goes nowhere; a full disk is one line, also for help."""
    crowded = json.dumps(CROWDED)
    done = redirected("2>&-", "plan", "--json", "--from", "-", stdin=crowded)
    assert json.loads(done.stdout)["moves"]
    assert redirected("2>&-", "plan", "--from", "/nonexistent").stdout == ""
    assert redirected("2>/dev/full", "plan", "--from", "/nonexistent").returncode == 65
    done = redirected("2>/dev/full", "plan", "--json", "--from", "-", stdin=crowded)
    assert json.loads(done.stdout)["moves"]
    for arguments in (("--help",), ("plan", "--from", "-")):
        done = redirected(">/dev/full", *arguments, stdin=crowded)
        line = "vcpusched: standard output: cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, line)
    done = redirected("<&-", "top")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_status_where_nothing_runs(tmp_path: Path) -> None:
    """Exit status 3, in words and as JSON."""
    done = vcpusched("status", RUNTIME_DIRECTORY=str(tmp_path))
    assert done.returncode == 3
    assert "not running" in done.stdout
    done = vcpusched("status", "--json", RUNTIME_DIRECTORY=str(tmp_path))
    assert done.returncode == 3
    assert json.loads(done.stdout)["health"] == "not running"


def test_status_of_a_damaged_state_file(tmp_path: Path) -> None:
    """A truncated, foreign or empty state is one line, not a traceback."""
    with run_directory.locked(tmp_path):
        for text in ("", "{", "[]", "{}", '{"version": 1, "snapshot": 5}', '{"at": "x"}'):
            (tmp_path / run_directory.STATE).write_text(text)
            done = vcpusched("status", RUNTIME_DIRECTORY=str(tmp_path))
            assert done.returncode == 1, (text, done)
            assert len(done.stderr.splitlines()) == 1, (text, done.stderr)


def test_a_lock_that_is_a_pipe(tmp_path: Path) -> None:
    """Who may write into the run directory cannot make commands wait for ever."""
    os.mkfifo(tmp_path / run_directory.LOCK)
    assert vcpusched("status", RUNTIME_DIRECTORY=str(tmp_path)).returncode == 3


def test_the_lock_is_for_one(tmp_path: Path) -> None:
    """A second holder learns who the first is; a check from outside changes nothing."""
    assert not run_directory.lives(tmp_path)
    with run_directory.locked(tmp_path):
        assert run_directory.lives(tmp_path)
        with (
            pytest.raises(run_directory.AlreadyRunningError, match=f"process {os.getpid()}"),
            run_directory.locked(tmp_path),
        ):
            pass
    assert not run_directory.lives(tmp_path)


def test_the_lock_is_nobody_elses(tmp_path: Path) -> None:
    """Another user who could open it could lock it for ever; that of an older version is closed."""
    lock = tmp_path / run_directory.LOCK
    lock.touch()
    lock.chmod(0o644)
    with run_directory.locked(tmp_path):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def lives(directory: Path) -> bool:
    """Return whether a user sees a service live who may not open its lock."""
    return without_the_lock(directory, lambda: run_directory.lives(directory))


def test_who_lives_is_seen_without_the_lock() -> None:
    """By the process that wrote the state, not by its number alone, which another may have."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        with run_directory.locked(directory):
            assert not lives(directory)
            run_directory.write_state(directory, {"version": 1})
            assert lives(directory)
            output = json.loads((directory / run_directory.STATE).read_text())
            others = ({"process_start": output["process_start"] + 1}, {"pid": ended.pid})
            odd = ({"pid": 0}, {"pid": -1}, {"pid": "1"}, {"pid": 1 << 70}, {"process_start": None})
            for changed in (*others, *odd):
                run_directory.replace_file(
                    directory / run_directory.STATE, json.dumps({**output, **changed})
                )
                assert not lives(directory), changed


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Where it cannot be written, the old one stays and nothing is left beside it."""
    target = tmp_path / "state"
    run_directory.replace_file(target, "old")
    with pytest.raises(UnicodeEncodeError):
        run_directory.replace_file(target, "new \ud800")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_killed_namesake_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """Nor is a link in its place followed."""
    target, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / f".state.{os.getpid()}").symlink_to(elsewhere)
    run_directory.replace_file(target, "new")
    assert (target.read_text(), elsewhere.read_text()) == ("new", "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"state", "elsewhere"}


def test_version_and_help() -> None:
    """The version is the package's; the help shows every command, on one small terminal."""
    assert vcpusched("--version").stdout == f"vcpusched {package.__version__}\n"
    lines = vcpusched("--help").stdout.splitlines()
    commands = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {verb for group in GROUPS.values() for verb in group} <= set(commands)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_examples_are_command_lines() -> None:
    """Each can be parsed, and those of a command are in its help."""
    for name, lines in EXAMPLES.items():
        parse = make_parser().parse_args
        shown = vcpusched(name, "--help").stdout
        for line in lines:
            assert parse(line.split()[1:]).name == name
            assert f"\n  {line} " in shown


@pytest.mark.full
def test_libvirt_that_is_not_there(tmp_path: Path) -> None:
    """One-shot verbs say so in one line, with exit status 69."""
    uri = f"qemu:///system?socket={tmp_path}/none"
    for verb in ("plan", "snapshot"):
        done = vcpusched(verb, "--uri", uri, RUNTIME_DIRECTORY=str(tmp_path))
        assert done.returncode == 69, done
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.full
def test_restore_without_a_ledger_looks_for_marks(tmp_path: Path) -> None:
    """So it must have a libvirt; who is held only the ledger knows."""
    uri = f"qemu:///system?socket={tmp_path}/none"
    done = vcpusched("restore", "--uri", uri, RUNTIME_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (69, "", 1)
    done = vcpusched("release", "--uri", uri, RUNTIME_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "No vCPU is held.\n")


@pytest.mark.full
def test_a_run_directory_that_cannot_be_made() -> None:
    """One line that says what to do."""
    done = vcpusched("run", RUNTIME_DIRECTORY="/proc/vcpusched")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "RUNTIME_DIRECTORY" in done.stderr
