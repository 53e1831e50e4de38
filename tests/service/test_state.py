"""What each outcome makes of the daemon's state: values in, values out."""

from dataclasses import replace

import pytest
from builders import host

from vcpusched.act.actuator import Failure
from vcpusched.act.cycle import Cycle
from vcpusched.act.ledger import Changed
from vcpusched.model import CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move, Policy, plan
from vcpusched.report.messages import Service
from vcpusched.service import exits
from vcpusched.service.control import Answer
from vcpusched.service.state import (
    RETRY_DENIED_S,
    RETRY_S,
    Ending,
    Phase,
    State,
    after,
)
from vcpusched.service.worker import Alive, Crashed, Cycled, Lost, Outcome
from vcpusched.settings import Settings

BEGUN = State(Service(1, 0.0, Settings.model_validate({})))
CYCLE = Cycle(7, 2)
RUNNING = after(BEGUN, Cycled(CYCLE), 0.0, 0.0)
CROWDED = host([25, 25, 25, 25], [])
DECIDED = Cycle(7, 4, host=CROWDED, plan=plan(CROWDED, Policy()), executed=True)
MOVE = Move(VcpuId(DomainUuid("u"), 0, 1), "g", CpuSet.of([0]), CpuSet.of([1]), 0, "")


def outcome_of(state: State, *outcomes: Outcome) -> State:
    """Return the state after outcomes, one each second."""
    for now_s, outcome in enumerate(outcomes, 1):
        state = after(state, outcome, float(now_s), 1000.0 + now_s)
    return state


@pytest.mark.parametrize(
    ("state", "lost", "wait_s"),
    [
        (RUNNING, Lost("gone"), 0.0),
        (BEGUN, Lost("gone"), RETRY_S),
        (BEGUN, Lost("no", denied=True), RETRY_DENIED_S),
        (outcome_of(RUNNING, Lost("gone")), Lost("gone"), RETRY_S),
    ],
)
def test_when_it_connects_again(state: State, lost: Lost, wait_s: float) -> None:
    """At once where a cycle has shown that the connection was good."""
    found = after(state, lost, 100.0, 0.0)
    assert found.phase is Phase.WAITING
    assert found.connect_at_s == 100.0 + wait_s
    assert (found.service.connected, found.service.trouble) == (False, lost.why)


def test_since_when_libvirt_is_away() -> None:
    """From the first loss to the next cycle; an open connection alone says nothing."""
    lost = outcome_of(RUNNING, Lost("a"), Lost("b"))
    assert lost.away_since_s == 1.0
    assert outcome_of(lost, Alive()).away_since_s == 1.0
    assert outcome_of(lost, Alive(), Cycled(CYCLE)).away_since_s is None


def test_cycles_do_not_drift_and_come_in_no_burst() -> None:
    """The next is due a period after the last was, and after a stall a period from now."""
    period_s = BEGUN.settings.period
    first = after(BEGUN.busy(Phase.CONNECTING, 0.0), Alive(), 10.0, 0.0)
    assert first.cycle_at_s == 10.0
    assert first.cycling(10.4).cycle_at_s == 10.0 + period_s
    assert first.cycling(99.0).cycle_at_s == 99.0 + period_s


def test_pins_are_counted_and_others_are_not() -> None:
    """Only what a plan, or its opposite, has pinned."""
    changes = [Changed(replace(MOVE, cause=cause)) for cause in Cause]
    found = outcome_of(RUNNING, *changes, Failure(MOVE, "no"))
    assert found.service.pins == 2
    assert [pin.move.cause for pin in found.service.last_pins] == [Cause.BALANCE, Cause.WORSE_OFF]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Cycled(Cycle(1, 0)), exits.OK),
        (Cycled(Cycle(1, 2)), None),
        (Cycled(DECIDED), exits.OK),
        (Cycled(replace(DECIDED, failures=(Failure(MOVE, "no"),))), exits.FAILURE),
        (Cycled(Cycle(1, 0, lost="gone")), None),
        (Cycled(replace(DECIDED, lost="gone")), None),
        (Lost("gone"), exits.UNAVAILABLE),
        (Lost("no", denied=True), exits.NOT_PERMITTED),
        (Lost("odd", stands=True), exits.FAILURE),
        (Lost("no", denied=True, stands=True), exits.NOT_PERMITTED),
        (Crashed("Traceback"), exits.FAILURE),
    ],
)
def test_how_one_decision_ends(outcome: Outcome, status: int | None) -> None:
    """With `once`; a service goes on but for a mistake of its own."""
    assert after(replace(BEGUN, once=True), outcome, 0.0, 0.0).stop.exit_status == status
    expected = exits.FAILURE if isinstance(outcome, Crashed) else None
    assert after(BEGUN, outcome, 0.0, 0.0).stop.exit_status == expected


@pytest.mark.parametrize(
    ("cycle", "is_open"),
    [
        (DECIDED, False),
        (CYCLE, False),  # nothing to pin
        (replace(DECIDED, executed=False), True),
        (replace(CYCLE, refused=True), True),
        (replace(CYCLE, lost="gone"), True),
    ],
)
def test_pins_fail_until_the_next_attempt(cycle: Cycle, *, is_open: bool) -> None:
    """A cycle that tries none, since what refused is in quarantine, or libvirt gone, ends nothing.

    Nor does one whose plan is not confirmed yet.
    """
    failed = Cycled(replace(DECIDED, failures=(Failure(MOVE, "no"),)))
    found = outcome_of(BEGUN, failed, Cycled(cycle)).service.pins_failing
    assert found == (("vCPU 1 of g: no",) if is_open else ())


def test_losing_libvirt_gives_a_stop_more_time_once() -> None:
    """And once more after each pin; failing to connect gives none."""
    stopping = replace(RUNNING, stop=Ending(exits.OK, restores=True)).restoring(0.0)
    lost = after(stopping, Lost("gone"), 100.0, 0.0)
    assert lost.stop.progress_s == 100.0
    assert after(lost.restoring(101.0), Lost("gone"), 200.0, 0.0).stop == lost.stop
    restored = after(lost, Changed(replace(MOVE, cause=Cause.RESTORED)), 150.0, 0.0)
    assert restored.stop.progress_s == 150.0
    assert after(restored, Lost("gone"), 190.0, 0.0).stop.progress_s == 190.0
    connecting = restored.busy(Phase.CONNECTING, 150.0)
    assert after(connecting, Lost("gone"), 190.0, 0.0).stop == restored.stop


def test_an_answer_ends_the_restore_of_a_stop_alone() -> None:
    """One that a verb waits for, begun before the stop, does not."""
    stopping = replace(RUNNING, stop=Ending(exits.OK, restores=True))
    asked = after(stopping.busy(Phase.AT_WORK, 1.0), Answer(0), 2.0, 0.0)
    assert asked.stop.restores
    assert not after(asked.restoring(3.0), Answer(0), 4.0, 0.0).stop.restores
