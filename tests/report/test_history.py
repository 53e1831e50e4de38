"""What `history` makes of the journal: entries as values, and real journal files."""

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from builders import host
from program import vcpusched

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Effect, Verdict
from vcpusched.act.ledger import Changed
from vcpusched.model import CpuSet
from vcpusched.plan.planner import Cause, Move, Policy, plan
from vcpusched.report import display, history, messages
from vcpusched.report.history import History, JournalRecord, Kind
from vcpusched.report.messages import JournalEntry
from vcpusched.service import systemd
from vcpusched.text import as_json

DAY_S = 86_400.0
NOON_S = 1_790_000_000.0
HOSTILE = "x\x1b]0;owned\x07\nweb\u202e9"

CROWDED = host([25, 25, 25, 25], [])
FOUND = plan(CROWDED, Policy())
CYCLE = Cycle(7, 4, host=CROWDED, plan=FOUND, executed=True, pinned=FOUND.moves)
EFFECT = Effect(7, Verdict.HELPED, 1_000_000, 0, 60_000, 4, 560_000, 10_000, 20_000)


def as_record(entry: JournalEntry | None, at_s: float, **trusted: str) -> JournalRecord:
    """Give an entry as the journal would."""
    assert entry is not None
    from_journald = {"_UID": "0", "_PID": "10", "_BOOT_ID": "b", **trusted}
    return JournalRecord(at_s, {**entry.fields, "MESSAGE": entry.message, **from_journald})


def pin_entry(move: Move) -> JournalEntry:
    """Give what the service writes about a pin of its cycle 7."""
    return messages.changed_entry(Changed(move, 7))


def a_plan(at_s: float = NOON_S, *, proven: bool = True, **trusted: str) -> list[JournalRecord]:
    """Give what the service writes about a plan of two pins, and what came of it."""
    entries = [
        as_record(messages.changed_entry(Changed(move, 7)), at_s, **trusted) for move in FOUND.moves
    ]
    entries.append(as_record(messages.plan_entry(CYCLE, Policy()), at_s + 0.1, **trusted))
    if proven:
        entries.append(as_record(messages.outcome_entry(EFFECT), at_s + 3, **trusted))
    return entries


def past(entries: Iterable[JournalRecord], domain: str = "", own_uid: int = 0) -> History:
    """Give the history of the day before noon and the minute after."""
    return history.history(entries, NOON_S - DAY_S, NOON_S + 60, domain=domain, own_uid=own_uid)


def drawn(found: History, capsys: pytest.CaptureFixture[str]) -> str:
    """Give what is shown when it is piped."""
    display.show(display.draw_history(found))
    return capsys.readouterr().out


def test_a_plan_and_what_came_of_it() -> None:
    """In the words of the journal: what was done, what it brought, each move with its reason."""
    (event,) = past(a_plan()).episodes
    assert (event.kind, event.cycle, event.at_s) == (Kind.PLAN, 7, NOON_S)
    assert [moved.text("DOMAIN") for moved in event.moves] == [move.domain for move in FOUND.moves]
    assert event.moves[0].text("REASON") == FOUND.moves[0].reason
    assert history.headline(event) == "Plan 7 done: 2 pins, gap 100 -> ~0 points; then balanced"
    assert history.outcome(event, NOON_S + 60) == messages.outcome_entry(EFFECT).message
    assert history.summary(past(a_plan())) == (
        "2 pins in 1 plan, 1 helped; vCPUs that waited: 56% of the time before, 2% after"
    )


def test_who_waited_longest_when_a_plan_was_last_judged() -> None:
    """One whose name is hostile is fit to be shown; an earlier plan says nothing of now."""
    hostile = dataclasses.replace(CROWDED.vcpus[1], domain=HOSTILE)
    worse = dataclasses.replace(EFFECT, longest=(hostile, 340_000))
    entries = [*a_plan(proven=False), as_record(messages.outcome_entry(worse), NOON_S + 3)]
    said = history.summary(past(entries))
    assert said.endswith("/0 waited longest after the last plan, 34% of the time")
    assert said.isprintable()
    outcome = history.as_json(past(entries))["events"][0]["outcome"]
    assert (outcome["longest"], outcome["wait_longest"]) == (f"{HOSTILE}/0", 0.34)
    later = a_plan(NOON_S + 30, _PID="11")
    assert "longest" not in history.summary(past([*entries, *later]))
    pending = a_plan(NOON_S + 30, proven=False, _PID="11")
    assert "longest" not in history.summary(past([*entries, *pending]))


def test_an_effect_that_is_not_known() -> None:
    """A plan without its outcome: it may still come, or never will."""
    (event,) = past(a_plan(proven=False)).episodes
    assert history.outcome(event, NOON_S + 5) == "Its effect is not measured yet"
    assert "was never measured" in history.outcome(event, NOON_S + 600)


def test_cycles_of_different_processes_are_different() -> None:
    """Each process counts from 1: what came of cycle 7 belongs to its own cycle 7."""
    entries = a_plan(NOON_S - 100, proven=False, _PID="9") + a_plan()
    first, second = past(entries).episodes
    assert (first.outcome, second.outcome is not None) == (None, True)


def test_pins_without_a_plan_and_what_was_restored() -> None:
    """The way back of a vCPU that was worse off; affinities restored are one event."""
    move = FOUND.moves[0]
    given = dataclasses.replace(
        move, from_cpus=move.to_cpus, to_cpus=move.from_cpus, cause=Cause.RESTORED
    )
    entries = [
        as_record(messages.changed_entry(Changed(move, 8)), NOON_S),
        *(
            as_record(messages.changed_entry(Changed(given)), NOON_S + after_s)
            for after_s in (5, 6, 50)
        ),
    ]
    assert "MESSAGE_ID" not in messages.failure_entry(Failure(given, "it is busy")).fields
    events = past(entries).episodes
    assert [(event.kind, len(event.moves)) for event in events] == [
        (Kind.PINS, 1),
        (Kind.GIVEN_BACK, 2),
        (Kind.GIVEN_BACK, 1),
    ]
    assert [history.headline(event) for event in events] == [
        "1 pin without a plan",
        "2 affinities restored",
        "1 affinity restored",
    ]
    assert events[1].moves[0].message.startswith("Restored vCPU 0 of g0: pCPU 1 -> pCPU 0")


def test_what_the_kernel_reset() -> None:
    """Pins made again are such events, from where the kernel had put the vCPU; others are not."""
    vcpu, one, all_cpus = FOUND.moves[0].vcpu, CpuSet.of([1]), CpuSet.parse("0-3")
    undone = Changed(Move(vcpu, "g0", all_cpus, one, 0, "", cause=Cause.RESET), 9)
    left = Changed(dataclasses.replace(undone.move, cause=Cause.LEFT))
    assert "MESSAGE_ID" not in messages.changed_entry(left).fields
    found = past(
        [as_record(messages.changed_entry(undone), NOON_S + after_s) for after_s in (0, 3)]
    )
    assert [(event.kind, len(event.moves)) for event in found.episodes] == [(Kind.RESET, 2)]
    assert (
        found.episodes[0]
        .moves[0]
        .message.startswith("The kernel reset the affinity of vCPU 0 of g0: pCPU 1 -> pCPUs 0-3 ")
    )
    assert history.headline(found.episodes[0]) == "2 pins made again after a reset by the kernel"
    assert history.summary(found) == "0 pins in 0 plans, 2 made again after a reset by the kernel"


def test_one_domain_only() -> None:
    """By name or UUID; how many others moved with it is reported."""
    first, second = FOUND.moves
    for asked in (second.domain, second.vcpu.uuid):
        (event,) = past(a_plan(), domain=asked).episodes
        assert [moved.text("DOMAIN") for moved in event.moves] == [second.domain]
        assert history.headline(event).endswith("; then balanced (1 more of other guests)")
    assert first.domain != second.domain
    assert not past(a_plan(), domain="web*").episodes


def test_what_began_before_is_not_reported() -> None:
    """A plan is reported whole or not at all."""
    assert not past(a_plan(NOON_S - DAY_S - 0.05)).episodes


def test_others_cannot_forge_it() -> None:
    """Anybody can write to the journal, but not say to journald that he is someone else."""
    forged = past(a_plan(_UID="1000"))
    assert not forged.episodes
    assert history.summary(forged) == "no pin changed; 4 entries by other users left out"
    assert not past(a_plan(_UID="")).episodes
    assert past(a_plan(_UID="1000"), own_uid=1000).episodes
    assert past(a_plan(_UID="998")).episodes


@pytest.mark.parametrize(
    "fields",
    [
        {"VCPUSCHED_VCPU": "-1"},
        {"VCPUSCHED_VCPU": "9" * 400},
        {"VCPUSCHED_CYCLE": "seven"},
        {"VCPUSCHED_LOAD": "nan", "VCPUSCHED_FROM": "", "VCPUSCHED_REASON": ""},
        {"VCPUSCHED_LOAD": "0.5.5"},
        {"VCPUSCHED_GAP_BEFORE": "1e9", "VCPUSCHED_GAP_MEASURED": "-3"},
        {"VCPUSCHED_VERDICT": "\x1b[2J", "VCPUSCHED_WAITING": "many"},
    ],
)
def test_nonsense_is_left_out(
    fields: Mapping[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read is unknown, and nothing breaks."""
    entries = [JournalRecord(one.at_s, {**one.fields, **fields}) for one in a_plan()]
    shown = drawn(past(entries), capsys)
    assert "\x1b" not in shown
    json.dumps(history.as_json(past(entries)), allow_nan=False)


def test_hostile_names_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither an escape sequence nor a line of its own, in text and in JSON."""
    hostile = {f"VCPUSCHED_{key}": HOSTILE for key in ("DOMAIN", "FROM", "TO", "REASON")}
    hostile["MESSAGE"] = HOSTILE
    found = past([JournalRecord(one.at_s, {**one.fields, **hostile}) for one in a_plan()])
    shown = drawn(found, capsys)
    assert "x?]0;owned??web?9" in shown
    assert not set("\x1b\x07\u202e") & set(shown)
    assert not [line for line in shown.splitlines() if line.startswith("web")]
    text = as_json(history.as_json(found), indent=2)
    assert not set("\x1b\x07\u202e") & set(text)
    assert json.loads(text)["events"][0]["moves"][0]["domain"] == HOSTILE


def test_as_json() -> None:
    """Version 1, as the manual has it: seconds since the epoch, loads and gaps in pCPUs."""
    found = history.as_json(past(a_plan()))
    (event,) = found.pop("events")
    assert found == {"version": 1, "since": NOON_S - DAY_S, "until": NOON_S + 60}
    moves = event.pop("moves")
    assert event == {
        "kind": "plan",
        "at": NOON_S,
        "cycle": 7,
        "gap_before": 1.0,
        "gap_planned": 0.0,
        "outcome": {
            "at": NOON_S + 3,
            "verdict": "helped",
            "gap": 0.06,
            "waiting": 4,
            "wait_before": 0.56,
            "wait_planned": 0.01,
            "wait": 0.02,
            "longest": None,
            "wait_longest": None,
        },
        "others": 0,
    }
    assert moves[0] == {
        "at": NOON_S,
        "domain": "g0",
        "uuid": "0000",
        "vcpu": 0,
        "from": "0",
        "to": "1",
        "load": 0.25,
        "reason": FOUND.moves[0].reason,
    }


def test_piped(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain text: the plan, its effect, its moves; a line when no pin changed."""
    lines = drawn(past(a_plan()), capsys).splitlines()
    assert lines[0].endswith("  Plan 7 done: 2 pins, gap 100 -> ~0 points; then balanced")
    assert lines[1].startswith("  → Plan 7 helped: the 4 waiting vCPUs wait 2% of the time now (")
    assert lines[2].startswith("  · Plan 7: pinned vCPU 0 of g0 (~25%), pCPU 0 -> pCPU 1: pCPU 0")
    assert drawn(past([]), capsys).endswith(": no pin changed\n")


def journal_file(directory: Path, entries: Iterable[JournalRecord]) -> None:
    """Write entries as journald does, by systemd's own tool for that."""
    export = b""
    for index, one in enumerate(entries):
        at_us = round(one.at_s * 1e6)
        export += f"__REALTIME_TIMESTAMP={at_us}\n__MONOTONIC_TIMESTAMP={index}\n".encode()
        for key, text in {**one.fields, "_BOOT_ID": "0" * 31 + "1"}.items():
            value = text.encode(errors="surrogateescape")
            export += key.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        export += b"\n"
    program = "/usr/lib/systemd/systemd-journal-remote"
    subprocess.run(
        [program, f"--output={directory / 'test.journal'}", "-"],
        input=export,
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.full
def test_a_real_journal(tmp_path: Path) -> None:
    """What is not ours and what is older is not read; fields come as they were written."""
    odd = [
        JournalRecord(one.at_s, {**one.fields, "VCPUSCHED_DOMAIN": "\udcff" + HOSTILE})
        for one in a_plan()
    ]
    other = JournalRecord(
        NOON_S, {"MESSAGE": "something else", "MESSAGE_ID": "0" * 32, "_UID": "0"}
    )
    old = [JournalRecord(one.at_s, {**one.fields}) for one in a_plan(NOON_S - 2 * DAY_S)]
    journal_file(tmp_path, [*old, other, *odd])
    entries = list(systemd.past(history.MESSAGE_IDS, NOON_S - DAY_S, tmp_path))
    assert len(entries) == len(odd)
    assert [round(one.at_s - NOON_S, 3) for one in entries] == [0.0, 0.0, 0.1, 3.0]
    (event,) = past(entries).episodes
    assert event.moves[0].text("DOMAIN") == "\ufffd" + HOSTILE
    assert history.outcome(event, NOON_S).startswith("Plan 7 helped: ")


@pytest.mark.full
def test_no_journal_and_a_damaged_one(tmp_path: Path) -> None:
    """An empty directory holds no entries; a file cut short is read as far as it goes."""
    assert list(systemd.past(history.MESSAGE_IDS, 0.0, tmp_path)) == []
    journal_file(tmp_path, a_plan())
    file = tmp_path / "test.journal"
    file.write_bytes(file.read_bytes()[:4096])
    assert list(systemd.past(history.MESSAGE_IDS, 0.0, tmp_path)) == []


@pytest.mark.parametrize("time", ["", "1w", "yesterday", "0s", "-1h", "400d"])
def test_a_time_that_is_none(time: str) -> None:
    """Exit status 2 and what is allowed."""
    done = vcpusched("history", f"--since={time}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vcpusched: --since: ")
    assert "must be a time such as" in done.stderr
