"""What `status` shows of a state that a service left behind, as a person and a program see it."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import host
from program import vcpusched

from vcpusched.act.cycle import Cycle
from vcpusched.model import Cpu, CpuSet, Host, HostCpu
from vcpusched.plan.planner import Policy, plan
from vcpusched.report import messages
from vcpusched.report.draw import blocks
from vcpusched.report.messages import PastPin, Service
from vcpusched.report.tally import Recent
from vcpusched.service import run_directory

HOSTILE = "\x1b]0;owned\x07\nweb"


def machine(nodes: int, caches: int, cores: int) -> tuple[HostCpu, ...]:
    """Give two threads for each core, numbered as the kernel numbers them."""
    count = nodes * caches * cores
    return tuple(
        HostCpu(
            Cpu(
                number,
                node=number % count // (caches * cores),
                core=number % count,
                cache=number % count // cores,
            )
        )
        for number in range(2 * count)
    )


DRAWN = dataclasses.replace(host([50], [95], [0], [], [], [], [], []), cpus=machine(2, 1, 2))
FOUND = plan(DRAWN, Policy())
CROWDED = plan(host([50, 50], []), Policy())


def service(drawn: Host = DRAWN, **values: object) -> Service:
    """Give what a running service knows."""
    cycle = Cycle(
        41,
        3,
        host=drawn,
        plan=plan(drawn, Policy()),
        waits={vcpu.id: ppm for vcpu, ppm in zip(drawn.vcpus, (120_000, 4_999), strict=False)},
        left_alone={"isolated by the kernel": CpuSet.of([8, 9])},
    )
    made = Service(
        pid=os.getpid(),
        started_at_s=time.time() - 7200,
        uri="qemu:///system",
        period_s=3,
        threshold_ppm=100_000,
        connected=True,
        cycle=cycle,
        pins=7,
        pins_last_hour=1,
        pins_last_day=7,
        last_pins=(PastPin(time.time() - 9, CROWDED.moves[0]),),
    )
    return dataclasses.replace(made, **values)  # type: ignore[arg-type]  # as the test names them


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Give a run directory in which a service seems to run."""
    with run_directory.locked(tmp_path):
        yield tmp_path


def shown(directory: Path, of: Service, *options: str, **variables: str) -> str:
    """Give what `status` prints of a service; its exit status must be that of a healthy one."""
    run_directory.write_state(directory, messages.state_as_json(of, time.time()))
    done = vcpusched("status", *options, RUNTIME_DIRECTORY=str(directory), **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_names_are_no_markup(directory: Path) -> None:
    """What looks like markup of the library that draws is shown as it is, and breaks nothing."""
    name = "[/x][link=http://evil]:smile:"
    pin = PastPin(time.time() - 9, dataclasses.replace(CROWDED.moves[0], domain=name))
    assert f"{name}/" in shown(directory, service(last_pins=(pin,)))


def test_piped(directory: Path) -> None:
    """Health, gap against threshold, pCPUs as they are built, what is left alone, the last pins."""
    text = shown(directory, service())
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith("vcpusched is healthy: Unbalanced at rest (no move pays), gap 95")
    assert any(line.startswith("last cycle  number 41, ") for line in lines)
    assert "pins        1 in the last hour, 7 in the last day, 7 since it started" in lines
    gap = next(line for line in lines if line.startswith("gap"))
    assert gap.endswith("95 points, threshold 10")
    assert "pCPUs 8-9 are left alone: isolated by the kernel" in lines
    assert "May be moved: g0, g1, g2" in lines
    assert lines[-1].endswith("g0/0  0 → 1  " + CROWDED.moves[0].reason)
    drawn = lines[lines.index("      node 0, cache 0") :]
    assert [line.split()[:2] for line in drawn[1:5]] == [
        ["┌", "0"],
        ["└", "4"],
        ["┌", "1"],
        ["└", "5"],
    ]
    assert "95 %!  g1/0 95" in text


def test_on_a_terminal(directory: Path) -> None:
    """As wide as it is, with colours, but none where NO_COLOR says so."""
    coloured = shown(directory, service(), FORCE_COLOR="1", COLUMNS="70", TERM="xterm-256color")
    assert "\x1b[" in coloured
    plain = shown(directory, service(), FORCE_COLOR="1", COLUMNS="70", NO_COLOR="1")
    assert "\x1b[3" not in plain.replace("\x1b[3m", "")  # italic is no colour
    assert max(len(line) for line in plain.splitlines() if "\x1b" not in line) <= 70


def test_where_there_are_no_blocks(directory: Path) -> None:
    """A terminal of another encoding gets letters that it has, no question marks."""
    text = shown(directory, service(), PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert re.search(r" #{19} +95 %!  g1/0 95\n", text)
    assert "?" not in text


def test_states_that_need_a_word(directory: Path) -> None:
    """A dry run, pins that fail, an old state."""
    text = shown(directory, service(dry_run=True))
    assert "dry run     nothing is changed" in text
    run_directory.write_state(
        directory, messages.state_as_json(service(pins_failing=(HOSTILE,)), time.time() - 60)
    )
    done = vcpusched("status", RUNTIME_DIRECTORY=str(directory))
    assert done.returncode == 1
    assert done.stdout.startswith("vcpusched is degraded: ")
    assert "it hangs, or was stopped" in done.stdout
    assert "failing     ?]0;owned??web" in done.stdout
    assert not set("\x1b\x07") & set(done.stdout)


def test_as_json(directory: Path) -> None:
    """What the manual tells of version 1."""
    found = json.loads(shown(directory, service(), "--json"))
    assert (found["version"], found["health"], found["gap"]) == (1, "healthy", 0.95)
    assert (found["pins_last_hour"], found["pins_last_day"]) == (1, 7)
    assert found["left_alone"] == [{"cpus": "8-9", "why": "isolated by the kernel"}]
    assert found["waits"] == [{"uuid": "0000", "id": 1, "vcpu": 0, "wait": 0.12}]
    (pin,) = found["last_pins"]
    assert (pin["uuid"], pin["reason"]) == ("0000", CROWDED.moves[0].reason)


def test_a_state_of_an_older_service(directory: Path) -> None:
    """One that lacks what is new is read all the same: status may be upgraded first."""
    state = messages.state_as_json(service(), time.time())
    for key in ("gap", "waits", "left_alone", "pins_last_hour", "pins_last_day"):
        del state[key]
    for pin in state["last_pins"]:
        del pin["uuid"], pin["reason"]
    run_directory.write_state(directory, state)
    done = vcpusched("status", RUNTIME_DIRECTORY=str(directory))
    assert (done.returncode, done.stderr) == (0, "")


def test_512_pcpus_by_node_and_cache(directory: Path) -> None:
    """One row for each cache, on no more lines than there are caches and a few."""
    large = dataclasses.replace(DRAWN, cpus=machine(4, 16, 4))
    lines = shown(directory, service(large)).splitlines()
    rows = [line for line in lines if line.startswith("node ")]
    assert len(rows) == 64
    assert rows[0].startswith("node 0, cache 0  0-3,256-259 ")
    assert len(lines) < 90


def test_blocks_keep_siblings_together() -> None:
    """By node, then cache, then core; what a host does not tell makes one block."""
    built = blocks(DRAWN)
    assert [(block.name, [cpu.id for cpu in block.cpus]) for block in built] == [
        ("node 0, cache 0", [0, 4, 1, 5]),
        ("node 1, cache 1", [2, 6, 3, 7]),
    ]
    (plain,) = blocks(host([], [], []))
    assert (plain.name, str(plain.numbers)) == ("", "0-2")


def test_pins_of_the_last_hour_and_day() -> None:
    """To the minute; what is older than a day is forgotten."""
    recent, day_s = Recent(), 86_400.0
    for at_s in (0, day_s - 3700, day_s - 3500, day_s - 10):
        recent.add(at_s)
    assert recent.counts(day_s - 1) == (2, 4)
    assert recent.counts(day_s + 60) == (1, 3)
    assert recent.counts(3 * day_s) == (0, 0)
