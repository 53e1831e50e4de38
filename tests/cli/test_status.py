"""What `status` shows of a state that a service left behind, as a person and a program see it."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import host, of_caches, of_one_guest
from program import vcpusched

from vcpusched.act.cycle import Cycle
from vcpusched.model import Cpu, CpuSet, Granularity, Host, HostCpu
from vcpusched.plan.planner import Policy, plan
from vcpusched.report import state_file
from vcpusched.report.draw import blocks, draw_host
from vcpusched.report.messages import PastPin, Service
from vcpusched.report.state_file import Recent
from vcpusched.service import run_directory
from vcpusched.settings import Settings

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


def service(
    drawn: Host = DRAWN,
    granularity: Granularity = Granularity.CPU,
    *,
    dry_run: bool = False,
    **values: object,
) -> Service:
    """Give what a running service knows."""
    cycle = Cycle(
        41,
        3,
        host=drawn,
        plan=plan(drawn, Policy(pin_to=granularity)),
        waits={vcpu.id: ppm for vcpu, ppm in zip(drawn.vcpus, (120_000, 4_999), strict=False)},
        left_alone={"isolated by the kernel": CpuSet.of([8, 9])},
    )
    settings = Settings.model_validate({"pin_to": granularity.value, "dry_run": dry_run})
    made = Service(
        pid=os.getpid(),
        started_at_s=time.time() - 7200,
        settings=settings,
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
    run_directory.write_state(directory, state_file.state_as_json(of, time.time()))
    done = vcpusched("status", *options, RUNTIME_DIRECTORY=str(directory), **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("drawn", [DRAWN, (2, 4, 4), (4, 32, 2)])
@pytest.mark.parametrize("granularity", [Granularity.CPU, Granularity.AUTO])
def test_it_fits_a_small_terminal(
    directory: Path, drawn: Host | tuple[int, int, int], granularity: Granularity
) -> None:
    """80 columns and 24 lines, whatever the host, with who may not be moved as counts."""
    cpus = machine(*drawn) if isinstance(drawn, tuple) else DRAWN.cpus
    pins = tuple(PastPin(time.time() - 9, move) for move in CROWDED.moves * 10)
    held = (dataclasses.replace(vcpu, fixed=True, why="held") for vcpu in DRAWN.vcpus)
    of = dataclasses.replace(DRAWN, cpus=cpus, vcpus=tuple(held))
    text = shown(directory, service(of, granularity, last_pins=pins), COLUMNS="80")
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "3 vCPUs may not be moved: held" in lines
    assert "g1/0 95" in shown(directory, service(), COLUMNS="80")


def test_the_ends_of_a_large_host(directory: Path) -> None:
    """Of 32 pCPUs the five busiest and the five least loaded; with -v all, and the last pins."""
    rows = [[cpu * 7 % 32 + 1] for cpu in range(32)]
    of = service(dataclasses.replace(host(*rows), cpus=machine(2, 2, 4)))
    short = shown(directory, of, COLUMNS="80").splitlines()
    first, last = (
        next(at for at, line in enumerate(short) if line.split() == name.split())
        for name in ("busiest", "least loaded")
    )
    rows_of = (short[first + 1 : last], short[last + 1 : last + 6])
    busiest, least = ([int(row.split()[2][:-1]) for row in rows] for rows in rows_of)
    assert (busiest, least) == ([32, 31, 30, 29, 28], [5, 4, 3, 2, 1])
    assert len(short) <= 24
    whole = shown(directory, of, "-v", COLUMNS="80")
    assert "busiest" not in whole.partition("pCPU  load")[2]
    assert sum("%  g" in line for line in whole.splitlines()) == 32
    assert "last pins" in whole


def test_who_may_not_be_moved(directory: Path) -> None:
    """By the vCPU, since a guest's others may be; a reason is text, and one is no reasons."""
    reasons = [HOSTILE, HOSTILE, "pinned", "realtime", "held"]
    drawn = of_one_guest(host(*[[50]] * 6), "g0", "g1", "g2")
    held = (
        dataclasses.replace(vcpu, fixed=True, why=why)
        for vcpu, why in zip(drawn.vcpus, reasons, strict=False)
    )
    of = dataclasses.replace(drawn, vcpus=(*held, *drawn.vcpus[len(reasons) :]))
    made = service(of)
    assert made.cycle is not None
    cycle = dataclasses.replace(made.cycle, left_alone={"not in cpus": CpuSet.of([8])})
    text = shown(directory, dataclasses.replace(made, cycle=cycle))
    assert text.splitlines()[-8:-2] == [
        "pCPU 8 is not managed: not in cpus",
        "2 vCPUs may not be moved: ?]0;owned??web",
        "1 vCPU may not be moved: pinned",
        "1 vCPU may not be moved: realtime",
        "… and 1 more reason (status -v)",
        "",
    ]


@pytest.mark.parametrize("count", [9, 10])
def test_no_pcpu_is_at_both_ends(count: int) -> None:
    """Of few with many caches each is a row, the busiest first, and is not bound to its sibling."""
    drawn = host(*[[cpu + 1] for cpu in range(count)])
    cpus = (HostCpu(Cpu(cpu.id, core=cpu.id // 2, cache=cpu.id // 2)) for cpu in drawn.cpus)
    loads_ppm = {cpu.id: cpu.id for cpu in drawn.cpus}
    table = draw_host(dataclasses.replace(drawn, cpus=tuple(cpus)), loads_ppm, room=13, ends=5)
    numbers = [str(cell) for cell in table.columns[0].cells if str(cell)]
    assert numbers == [str(cpu) for cpu in reversed(range(count))]


def test_long_names_leave_room(directory: Path) -> None:
    """On 80 columns for when a pin was made, of which vCPU, from where to where, and why."""
    move = dataclasses.replace(CROWDED.moves[0], domain="a" * 64)
    text = shown(directory, service(last_pins=(PastPin(time.time(), move),)), COLUMNS="80")
    (pin,) = [line for line in text.splitlines() if " → " in line]
    assert re.match(r"\d\d-\d\d \d\d:\d\d:\d\d  a+…/0  0 → 1  pCPU 0 was at ", pin)
    assert len(pin) == 80


def test_names_are_no_markup(directory: Path) -> None:
    """What looks like markup of the library that draws is shown as it is, and breaks nothing."""
    name = "[/x][link=http://evil]:smile:"
    pin = PastPin(time.time() - 9, dataclasses.replace(CROWDED.moves[0], domain=name))
    assert f"{name}/" in shown(directory, service(last_pins=(pin,)))


def test_piped(directory: Path) -> None:
    """Health, gap against threshold, pCPUs as they are built, what is left alone, the last pins."""
    text = shown(directory, service(), "-v")
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0].startswith(
        "vcpusched is healthy. Unbalanced, nothing worth a pin (vCPU 0 of g1 is alone on pCPU 1,"
        " the busiest), gap 95 points (threshold 10); "
    )
    assert any(line.startswith("last cycle  number 41, ") for line in lines)
    assert "pins        1 in the last hour, 7 in the last day, 7 since it started" in lines
    gap = next(line for line in lines if line.startswith("gap"))
    assert gap.endswith("95 points (threshold 10)")
    assert "pCPUs 8-9 are not managed: isolated by the kernel" in lines
    assert "May be moved: g0, g1, g2" in lines
    assert lines[-1].endswith("g0/0  0 → 1  " + CROWDED.moves[0].reason)
    drawn = lines[lines.index("      node 0, cache 0") :]
    assert [line.split()[:2] for line in drawn[1:5]] == [
        ["┌", "0"],
        ["└", "4"],
        ["┌", "1"],
        ["└", "5"],
    ]
    assert "95%!  g1/0 95" in text


def test_on_a_terminal(directory: Path) -> None:
    """As wide as it is, with colours, but none where NO_COLOR says so."""
    coloured = shown(directory, service(), FORCE_COLOR="1", COLUMNS="70", TERM="xterm-256color")
    assert "\x1b[" in coloured
    plain = shown(directory, service(), FORCE_COLOR="1", COLUMNS="70", NO_COLOR="1")
    assert "\x1b[3" not in plain.replace("\x1b[3m", "")  # italic is no colour
    assert max(len(line) for line in plain.splitlines() if "\x1b" not in line) <= 70


def test_where_there_are_no_blocks(directory: Path) -> None:
    """A terminal of another encoding gets letters that it has, no question marks."""
    text = shown(directory, service(), "-v", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert re.search(r" #{19} +95%!  g1/0 95\n", text)
    assert "?" not in text


def test_states_that_need_a_word(directory: Path) -> None:
    """A dry run, pins that fail, an old state."""
    text = shown(directory, service(dry_run=True))
    assert "dry run     nothing is changed" in text
    run_directory.write_state(
        directory, state_file.state_as_json(service(pins_failing=(HOSTILE,)), time.time() - 60)
    )
    done = vcpusched("status", RUNTIME_DIRECTORY=str(directory))
    assert done.returncode == 1
    assert done.stdout.startswith("vcpusched is degraded. ")
    assert "it hangs, or is suspended" in done.stdout
    assert "failing     ?]0;owned??web" in done.stdout
    assert not set("\x1b\x07") & set(done.stdout)


def test_as_json(directory: Path) -> None:
    """What the manual says of version 1."""
    found = json.loads(shown(directory, service(), "--json"))
    assert (found["version"], found["health"], found["gap"]) == (1, "healthy", 0.95)
    assert (found["pins_last_hour"], found["pins_last_day"]) == (1, 7)
    assert found["left_alone"] == [{"cpus": "8-9", "why": "isolated by the kernel"}]
    assert found["waits"] == [{"uuid": "0000", "id": 1, "vcpu": 0, "wait": 0.12}]
    (pin,) = found["last_pins"]
    assert (pin["uuid"], pin["reason"]) == ("0000", CROWDED.moves[0].reason)


def test_a_state_of_an_older_service(directory: Path) -> None:
    """One that lacks what is new is read all the same: status may be upgraded first."""
    state = state_file.state_as_json(service(), time.time())
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
    lines = shown(directory, service(large), "-v").splitlines()
    rows = [line for line in lines if line.startswith("node ")]
    assert len(rows) == 64
    assert rows[0].startswith("node 0, cache 0  0-3,256-259 ")
    assert len(lines) < 90


SETS = of_caches(host([50, 40], [], [], [], [40], [40], [], []), 2)


def test_sets_are_shown_as_such(directory: Path) -> None:
    """One row a set, the gap between sets, and apart from it that inside them."""
    drawn = service(SETS, Granularity.AUTO)
    lines = shown(directory, drawn, "-v", COLUMNS="80").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("pCPUs"))
    assert [line.split()[0] for line in lines[first + 1 : first + 3]] == ["0-3", "4-7"]
    assert lines[first + 1].endswith("22%  g0/0 50 on 0, g1/0 40 on 0")
    assert lines[first + 3] == ""
    gap = next(number for number, line in enumerate(lines) if line.startswith("gap"))
    assert lines[gap].endswith(" 2 points between sets (threshold 10)")
    assert lines[gap + 1].strip() == "Largest gap inside a set: ~90 points (pCPUs 0-3)"
    alone = shown(directory, service(SETS), "-v")
    assert "inside a set" not in alone
    assert "between sets" not in alone
    assert json.loads(shown(directory, drawn, "--json"))["pin_to"] == "auto"


def test_long_lists_of_pcpus_are_cut(directory: Path) -> None:
    """Where every other pCPU is on the other node, what is beside them must keep its room."""
    cpus = tuple(HostCpu(Cpu(number, node=number % 2)) for number in range(32))
    text = shown(directory, service(dataclasses.replace(SETS, cpus=cpus), Granularity.NODE), "-v")
    assert re.search(r"^0,2,4,6,8,10,12… +\S* +[0-9]+%  g0/0 50 on 0, ", text, re.MULTILINE)


def test_a_set_of_many_vcpus_is_still_a_row(directory: Path) -> None:
    """The largest are named and the others counted."""
    crowded = of_caches(host([1] * 30, *[[]] * 3, [30], [], [], []), 2)
    text = shown(directory, service(crowded, Granularity.AUTO), "-v")
    assert "g4/0 1 on 0, 25 more\n" in text
    assert "g29/0 1 on 0" not in text


def test_128_sets_of_512_pcpus(directory: Path) -> None:
    """A letter a set, one row a node, and no line wider than a terminal."""
    large = dataclasses.replace(DRAWN, cpus=machine(4, 32, 2))
    lines = shown(directory, service(large, Granularity.AUTO), "-v").splitlines()
    rows = [line for line in lines if line.startswith("node ")]
    assert [row.split()[2] for row in rows] == [
        "0-63,256-319",
        "64-127,320-383",
        "128-191,384-447",
        "192-255,448-511",
    ]
    assert all(len(row.split()[-1]) == 32 for row in rows)


def test_blocks_keep_siblings_together() -> None:
    """By node, then cache, then core; what a host does not report makes one block."""
    built = blocks(DRAWN)
    assert {name: [*map(str, units)] for name, units in built.items()} == {
        "node 0, cache 0": ["0", "4", "1", "5"],
        "node 1, cache 1": ["2", "6", "3", "7"],
    }
    assert list(blocks(DRAWN, levels=1)) == ["node 0", "node 1"]
    assert {name: len(units) for name, units in blocks(host([], [], [])).items()} == {"": 3}


def test_pins_of_the_last_hour_and_day() -> None:
    """To the minute; what is older than a day is forgotten."""
    recent, day_s = Recent(), 86_400.0
    for at_s in (0, day_s - 3700, day_s - 3500, day_s - 10):
        recent.add(at_s)
    assert recent.counts(day_s - 1) == (2, 4)
    assert recent.counts(day_s + 60) == (1, 3)
    assert recent.counts(3 * day_s) == (0, 0)


def test_a_restore_without_a_service_is_no_service(directory: Path) -> None:
    """It holds the lock for as long as it works, and the state is of a process that has ended."""
    run_directory.write_state(directory, state_file.state_as_json(service(), time.time() - 3600))
    (directory / run_directory.LOCK).write_text("1\n")
    done = vcpusched("status", RUNTIME_DIRECTORY=str(directory))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"is of process {os.getpid()}, and process 1 holds the lock" in done.stderr
