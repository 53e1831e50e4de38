"""Which guests are held, and which may be moved."""

import dataclasses

from builders import change, host, of_one_guest

from vcpusched.plan.explain import explained
from vcpusched.plan.planner import Policy, plan
from vcpusched.report.treatments import treatment_lines, treatments_as_json


def test_who_may_be_moved_and_who_may_not() -> None:
    """A line for each guest that is held and its reason; the others together."""
    drawn = of_one_guest(host([20, 20, 20, 20], [20]), "g0", "g4")
    drawn = change(drawn, "g1", fixed=True, why="held by its metadata")
    drawn = change(drawn, "g2", why="its metadata asks for balance")
    first, *others = drawn.vcpus
    drawn = dataclasses.replace(
        drawn, vcpus=(dataclasses.replace(first, fixed=True, why="a realtime vCPU"), *others)
    )
    assert treatment_lines(drawn) == [
        "vCPU 0 of g0 stays: a realtime vCPU",
        "g1 stays: held by its metadata",
        "May be moved: vCPU 1 of g0, g2 (its metadata asks for balance), g3",
    ]
    assert [entry["movable"] for entry in treatments_as_json(drawn)] == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert treatment_lines(host([], [])) == []


def test_a_name_is_text() -> None:
    """It cannot forge a line."""
    assert treatment_lines(change(host([20]), "g0", domain="a\nb")) == ["May be moved: a?b"]


def test_a_reason_of_a_snapshot_is_text() -> None:
    """It may come from a stranger: neither a line of its own, nor an escape sequence."""
    evil = "x\x1b]0;owned\x07\nstays"
    held, movable = (change(host([20]), "g0", fixed=fixed, why=evil) for fixed in (True, False))
    reasons = explained(held, plan(held, Policy()), Policy(), "g0")
    for line in (*treatment_lines(held), *treatment_lines(movable), reasons[0].text):
        assert line.isprintable()
        assert "x?]0;owned??stays" in line
