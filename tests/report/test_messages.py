"""What is said in the journal, the status line and the state file."""

import dataclasses
import io
import json
from functools import partial
from pathlib import Path

import pytest
from builders import host, of_caches
from test_metrics import reported

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Effect, Verdict
from vcpusched.act.ledger import Changed
from vcpusched.host.hypervisor import VanishedError
from vcpusched.model import DomainUuid
from vcpusched.plan.planner import Cause, Policy, plan
from vcpusched.report import messages, snapshot, state_file
from vcpusched.report.messages import Priority, Service
from vcpusched.report.plan_text import plan_text
from vcpusched.sample import Definition, DomainReading, Sample
from vcpusched.service.control import Answer
from vcpusched.service.reporter import Reporter
from vcpusched.service.state import Ending, State
from vcpusched.service.systemd import line_log
from vcpusched.service.worker import Cycled
from vcpusched.settings import Settings

DEFAULTS = Settings.model_validate({"pin_to": "cpu"})
DRY = Settings.model_validate({"dry_run": True})
SERVICE = Service(pid=1, started_at_s=0.0, settings=DEFAULTS, connected=True)
CROWDED = host([25, 25, 25, 25], [])
FOUND = plan(CROWDED, Policy())
ACTED = Cycle(
    7, 4, host=CROWDED, plan=FOUND, confirmed=2, confirm=2, executed=True, pinned=FOUND.moves
)


def test_a_pin_has_the_fields_that_the_design_fixes() -> None:
    """Loads with two decimals in pCPUs, FROM and TO as cpulists, a constant message ID."""
    entry = messages.changed_entry(Changed(FOUND.moves[0], 7))
    assert entry.priority is Priority.INFO
    assert entry.message == (
        f"Plan 7: pinned vCPU 0 of g0 (~25%), pCPU 0 -> pCPU 1: {FOUND.moves[0].reason}"
    )
    assert entry.fields == {
        "MESSAGE_ID": messages.MESSAGE_ID_PIN,
        "VCPUSCHED_DOMAIN": "g0",
        "VCPUSCHED_DOMAIN_UUID": "0000",
        "VCPUSCHED_VCPU": "0",
        "VCPUSCHED_FROM": "0",
        "VCPUSCHED_TO": "1",
        "VCPUSCHED_LOAD": "0.25",
        "VCPUSCHED_REASON": FOUND.moves[0].reason,
        "VCPUSCHED_CYCLE": "7",
    }


def test_what_the_check_of_service_refused_is_reported() -> None:
    """In the journal, the status line and the plan's JSON, where there is something to report."""
    why = "would take 40 points from vCPU 0 of g0, which has no more than its fair share"
    less = dataclasses.replace(FOUND, refused=why)
    entry = messages.plan_entry(dataclasses.replace(ACTED, plan=less), Policy())
    assert entry is not None
    assert entry.message.endswith(f"; more was planned, but that {why}")
    nothing = Cycle(7, 4, host=CROWDED, plan=dataclasses.replace(less, moves=()))
    line = messages.status_line(dataclasses.replace(SERVICE, cycle=nothing))
    assert line.startswith(f"Unbalanced (a plan was refused, since it {why}), gap 1")
    assert snapshot.plan_as_json(less)["refused"] == why
    assert "refused" not in snapshot.plan_as_json(FOUND)


def test_an_executed_plan_is_one_entry() -> None:
    """With the gap before and as planned; nothing is said when nothing changed."""
    entry = messages.plan_entry(ACTED, Policy())
    assert entry is not None
    assert entry.fields == {
        "MESSAGE_ID": messages.MESSAGE_ID_PLAN,
        "VCPUSCHED_GAP_BEFORE": "1.00",
        "VCPUSCHED_GAP_AFTER": "0.00",
        "VCPUSCHED_MOVES": "2",
        "VCPUSCHED_CYCLE": "7",
    }
    assert messages.plan_entry(dataclasses.replace(ACTED, pinned=()), Policy()) is None
    assert messages.plan_entry(Cycle(1, 0), Policy()) is None
    assert entry.message == ("Plan 7 done: 2 pins, gap 100 -> ~0 points; then balanced")
    nearly = dataclasses.replace(FOUND, gap_after_ppm=99_600)
    entry = messages.plan_entry(dataclasses.replace(ACTED, plan=nearly), Policy())
    assert entry is not None
    assert "~9 points" in entry.message
    assert entry.fields["VCPUSCHED_GAP_AFTER"] == "0.09"  # as the message, for the history
    half = dataclasses.replace(ACTED, pinned=FOUND.moves[:1])
    entry = messages.plan_entry(half, Policy())
    assert entry is not None
    assert entry.message == (
        "Plan 7 done in part: 1 of 2 pins; all of them were planned for gap 100 -> ~0 points"
    )


def test_a_level_that_the_host_does_not_report() -> None:
    """It is in the state for as long as it lasts, and a warning in the journal."""
    by_cache = Settings.model_validate({"pin_to": "cache"})
    said = dataclasses.replace(SERVICE, settings=by_cache, cycle=ACTED)
    line = said.unreported
    assert line.startswith('pin_to = "cache": this host does not report which pCPUs share a cache')
    assert state_file.state_as_json(said, 5.0)["untold"] == line
    assert dataclasses.replace(SERVICE, cycle=ACTED).unreported == ""
    assert dataclasses.replace(said, cycle=Cycle(1, 4)).unreported == ""


def test_guests_that_libvirt_is_asked_about_are_reported_once(tmp_path: Path) -> None:
    """Once for each reason, whichever guests these are; of many not all are named."""
    log = io.StringIO()
    settings = Settings.model_validate({})
    names = tuple(f"g{index}" for index in range(7))
    samples = [
        Sample(by_libvirt=by_libvirt)
        for by_libvirt in (
            {"they are hidden": names},
            {"they are hidden": names[:2], "else": ("a\nb",)},
        )
    ]
    reported(
        Reporter(partial(line_log, log), tmp_path, settings),
        State(SERVICE),
        *(Cycled(Cycle(number, 7, sample=sample)) for number, sample in enumerate(samples)),
    )
    output = [line for line in log.getvalue().splitlines() if "through libvirt" in line]
    assert [line.partition("vCPUs of ")[2].partition(": ")[0] for line in output] == [
        "g0, g1, g2, g3, g4 and 2 more through libvirt, because they are hidden",
        "a?b through libvirt, because else",
    ]


def test_how_the_service_begins_and_goes_on(tmp_path: Path) -> None:
    """The settings that matter, what a reload changed, and that a pause ended."""
    written = io.StringIO()
    other = Settings.model_validate({"period": 2, "exclude_domains": ["db*"], "cpus": "all"})
    reporter = Reporter(partial(line_log, written), tmp_path, DRY)
    state = State(dataclasses.replace(SERVICE, settings=DRY))
    reporter.begin(state)
    reporter.reloaded(other)
    reporter.report(state.paused(messages.Pause()), None, state)
    begun, reloaded, resumed = written.getvalue().splitlines()
    assert begun.endswith(
        " started: qemu:///system, every 3s, threshold 10, pin_to auto (dry run: changes nothing)"
    )
    assert reloaded.endswith(
        'Reloaded: period 3.0 -> 2.0, cpus "all,^isolated" -> "all",'
        ' exclude_domains [] -> ["db*"], dry_run true -> false'
    )
    assert resumed.endswith("Balancing resumed")


def test_a_restore_that_fails_at_a_stop_is_one_line(tmp_path: Path) -> None:
    """The failure itself, though the answer lists it again; other problems have their own."""
    written = io.StringIO()
    settings = Settings.model_validate({"log_level": "warning"})
    move = dataclasses.replace(FOUND.moves[0], cause=Cause.RESTORED)
    failure = Failure(move, "the domain is busy")
    problems = (messages.failure_entry(failure).message, "g9: another")
    state = State(SERVICE, stop=Ending(restores=True, began=True))
    answer = Answer(1, problems=problems)
    reported(Reporter(partial(line_log, written), tmp_path, settings), state, failure, answer)
    first, second = written.getvalue().splitlines()
    assert first.endswith(
        f"Could not restore vCPU 0 of {move.domain} to pCPU 1: the domain is busy"
    )
    assert second.endswith("g9: another")


def test_a_level_that_is_not_reported_is_said_once(tmp_path: Path) -> None:
    """In the journal, and again when settings changed."""
    written = io.StringIO()
    settings = Settings.model_validate({"log_level": "warning"})
    by_node = Settings.model_validate({"log_level": "warning", "pin_to": "node"})
    reporter = Reporter(partial(line_log, written), tmp_path, settings)
    reporter.reloaded(by_node)
    state = State(SERVICE).configured(by_node, 0.0)
    resting = Cycled(dataclasses.replace(ACTED, executed=False, pinned=()))
    state = reported(reporter, state, *[resting] * 5)
    assert written.getvalue().count('pin_to = "node": this host does not report') == 1
    shown = json.loads((tmp_path / "state.json").read_text())
    assert shown["untold"] == state.service.unreported
    reporter.reloaded(settings)
    reported(reporter, state.configured(settings, 0.0), resting)
    assert len(written.getvalue().splitlines()) == 1
    assert json.loads((tmp_path / "state.json").read_text())["untold"] == ""


def test_a_wish_that_is_not_understood_is_a_warning(tmp_path: Path) -> None:
    """One that names the domain, and what is wrong; a name cannot forge a line."""
    entries: list[messages.JournalEntry] = []
    domain = DomainReading(DomainUuid("u"), 1, "a\nb", 0, (), Definition(wish="holdd"))
    cycled = Cycled(Cycle(1, 1, sample=Sample(domains=(domain,))))
    reporter = Reporter(entries.append, tmp_path, Settings.model_validate({}))
    reported(reporter, State(SERVICE), cycled, cycled)
    (entry,) = [entry for entry in entries if "is held" in entry.message]
    assert entry.priority is Priority.WARNING
    assert entry.message.startswith('Guest a?b is held, because its metadata says policy="holdd"')
    assert entry.fields == {"VCPUSCHED_DOMAIN": "a\nb", "VCPUSCHED_DOMAIN_UUID": "u"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"connected": False}, "Waiting for libvirt at qemu:///system; "),
        ({"connected": False, "trouble": "no socket"}, "Waiting for libvirt at qemu:///system: no"),
        ({}, "Measuring the first period; 0 pins so far; 0 guests"),
        (
            {"cycle": dataclasses.replace(ACTED, host=dataclasses.replace(CROWDED, cpus=()))},
            "No pCPU to balance: check the setting cpus; 0 pins",
        ),
        ({"cycle": Cycle(1, 0)}, "No guests; 0 pins so far; 0 guests"),
        ({"cycle": Cycle(1, 1)}, "Measuring the first period; 0 pins so far; 1 guest"),
        (
            {"cycle": dataclasses.replace(ACTED, executed=False, confirmed=1, pinned=())},
            "Rebalancing (1 of 2 periods), gap 100 points (threshold 10); 0 pins so far; 4 guests",
        ),
        (
            {
                "cycle": dataclasses.replace(ACTED, executed=False, confirmed=1, pinned=()),
                "settings": DRY,
            },
            "Dry run. Unbalanced (1 of 2 periods), gap 100 points (threshold 10); ",
        ),
        ({"cycle": ACTED, "pins": 2}, "Rebalancing, gap 0 points (threshold 10); 2 pins so far; "),
        (
            {"cycle": dataclasses.replace(ACTED, dry_run=True, pinned=()), "settings": DRY},
            "Dry run. Unbalanced, gap 100 points (threshold 10); ",
        ),
        (
            {"cycle": Cycle(3, 1, host=host([90], []), plan=plan(host([90], []), Policy()))},
            "Unbalanced, nothing worth a pin (vCPU 0 of g0 is alone on pCPU 0, the busiest), gap ",
        ),
        (
            {"cycle": Cycle(3, 2, host=CROWDED, plan=plan(host([9], [8]), Policy()))},
            "Balanced, gap 1 point (threshold 10); ",
        ),
        (
            {"pins_failing": ("x",), "cycle": Cycle(1, 1)},
            "Measuring the first period; 0 pins so far, 1 failing; 1 guest",
        ),
        (
            {"cycle": Cycle(1, 1, withheld=2)},
            "Measuring the first period; 0 pins so far, 2 no longer allowed but kept while",
        ),
        ({"trouble": "no\nway", "cycle": ACTED}, "Cannot read the host: no?way"),
        (
            {"cycle": dataclasses.replace(ACTED, pinned=())},
            "Unbalanced, gap 100 points (threshold 10); ",
        ),
    ],
)
def test_the_status_line(changes: dict[str, object], line: str) -> None:
    """One readable line with gap, pins so far and domains."""
    said = messages.status_line(dataclasses.replace(SERVICE, **changes))  # type: ignore[arg-type]
    assert (said + "; ").startswith(line), said
    assert "\n" not in said


def test_vcpus_let_into_their_set_are_worth_a_pin() -> None:
    """The host stays unbalanced, and not for want of anything worth a pin."""
    drawn = of_caches(host([50, 50], [], [10], [10]), 2)
    settings = Settings.model_validate({"pin_to": "cache"})
    found = plan(drawn, settings.policy())
    assert found.moves
    said = messages.status_line(
        dataclasses.replace(SERVICE, settings=settings, cycle=Cycle(2, 4, host=drawn, plan=found))
    )
    assert said.startswith("Unbalanced (pCPUs 0-1, the busiest, have a pCPU for each vCPU that")


def test_hostile_names_cannot_forge_a_line() -> None:
    """Control characters are shown as "?", and a name of 10 kB is cut; fields keep the name."""
    evil = "web\nPRIORITY=0\x1b[2J" + "x" * 10_000
    move = dataclasses.replace(FOUND.moves[0], domain=evil)
    for entry in (
        messages.changed_entry(Changed(move, 1)),
        messages.failure_entry(Failure(move, "no\nway")),
        messages.unread_entry(evil, "no\nway"),
    ):
        assert entry.message.isprintable()
        assert len(entry.message) < 500
        assert entry.fields["VCPUSCHED_DOMAIN"] == evil


def test_failures_are_warnings_only_if_a_person_can_act() -> None:
    """A guest that ended is no news; a refused pin is."""
    move = FOUND.moves[0]
    assert messages.failure_entry(Failure(move, "gone", VanishedError)).priority is Priority.DEBUG
    assert messages.failure_entry(Failure(move, "refused")).priority is Priority.WARNING


def test_a_state_without_a_pcpu_can_be_read_back(tmp_path: Path) -> None:
    """As where the setting cpus names none that there is: `status` and the journal say so."""
    bare = dataclasses.replace(CROWDED, cpus=())
    plan_of_none = plan(bare, Policy())
    cycle = dataclasses.replace(ACTED, host=bare, plan=plan_of_none, executed=False, pinned=())
    service = dataclasses.replace(SERVICE, cycle=cycle)
    state = state_file.parse_state(json.dumps(state_file.state_as_json(service, 1.0)))
    assert state.status.startswith("No pCPU to balance: check the setting cpus")
    read = state_file.saved_host(state)
    assert read is not None
    assert read.cpus == ()
    assert plan_text(plan_of_none, bare, Policy()) == "No pCPU to balance: check the setting cpus"
    written = io.StringIO()
    reporter = Reporter(partial(line_log, written), tmp_path, DEFAULTS)
    reported(reporter, State(SERVICE), *[Cycled(cycle)] * 3)
    assert written.getvalue().count("warning: No pCPU to balance: check the setting cpus") == 1


def test_the_state_file_can_be_read_back() -> None:
    """What the daemon writes is what `status` and `plan` read."""
    service = dataclasses.replace(
        SERVICE, cycle=ACTED, pins=2, last_pins=(messages.PastPin(5.0, FOUND.moves[0]),)
    )
    text = json.dumps(state_file.state_as_json(service, 12.5))
    state = state_file.parse_state(text)
    assert (state.at, state.is_healthy(3), state.last_pins[0].to_cpus) == (12.5, True, "1")
    assert not state.is_healthy(16)  # no word for longer than it can take: it hangs
    read = state_file.saved_host(state)
    assert read is not None
    assert plan(read, Policy()) == FOUND


@pytest.mark.parametrize("verdict", Verdict)
def test_what_came_of_a_plan(verdict: Verdict) -> None:
    """One entry, whose text says what its fields do."""
    effect = Effect(7, verdict, 950_000, 20_000, 30_000, 3, 480_000, 10_000, 240_000)
    entry = messages.outcome_entry(effect)
    assert entry.message.startswith("Plan 7 ")
    assert "; gap 3 points (95 before, ~2 expected)" in entry.message
    waits = "the 3 waiting vCPUs wait 24% of the time now (48% before"
    assert (waits in entry.message) == (verdict in {Verdict.HELPED, Verdict.NO_HELP})
    assert "because" not in entry.message  # there are several causes, and which it was is not known
    assert dict(entry.fields) == {
        "MESSAGE_ID": messages.MESSAGE_ID_OUTCOME,
        "VCPUSCHED_VERDICT": verdict.value,
        "VCPUSCHED_GAP_BEFORE": "0.95",
        "VCPUSCHED_GAP_AFTER": "0.02",
        "VCPUSCHED_GAP_MEASURED": "0.03",
        "VCPUSCHED_WAITING": "3",
        "VCPUSCHED_WAIT_BEFORE": "0.48",
        "VCPUSCHED_WAIT_AFTER": "0.01",
        "VCPUSCHED_WAIT_MEASURED": "0.24",
        "VCPUSCHED_CYCLE": "7",
    }
