"""What a trial concludes from its blocks."""

from collections.abc import Callable

import pytest
from rich.console import Console

from vcpusched.report.display import draw_trial
from vcpusched.report.trial_verdict import Block, Used, judge, order

WEB, DB = ("web", 1), ("db", 2)


def blocks(pairs: int, wait: Callable[[bool, int], float]) -> list[Block]:
    """Make blocks in the order of a trial; `wait` gives that of web, of two vCPUs."""
    return [
        Block(
            balances,
            {WEB: Used(2, 1.0, 2 * wait(balances, number)), DB: Used(1, 0.5, 0.02)},
        )
        for number, balances in enumerate(order(pairs))
    ]


def noisy(without: float, having: float, noise: float = 0.01) -> Callable[[bool, int], float]:
    """Return waits that differ from block to block."""
    return lambda balances, number: (having if balances else without) + noise * (number % 3)


def test_the_order_of_blocks() -> None:
    """Each pair has one of each kind, and neither is always the first."""
    assert order(4) == [False, True, True, False, False, True, True, False]


@pytest.mark.parametrize(
    ("pairs", "wait", "begins"),
    [
        (6, noisy(0.3, 0.1), "better: vCPUs wait 13.3 points less"),
        (6, noisy(0.1, 0.3), "worse: vCPUs wait 13.3 points more"),
        (6, noisy(0.1, 0.1, 0.001), "no difference"),
        (6, noisy(0.1, 0.12, 0.2), "undecided: the noise"),
        (5, noisy(0.3, 0.1), "undecided: 5 pairs of blocks; a verdict takes 6"),
    ],
)
def test_verdicts(pairs: int, wait: Callable[[bool, int], float], begins: str) -> None:
    """The mean is over vCPUs: web has two of three."""
    assert judge(blocks(pairs, wait), 3).verdict.startswith(begins)


def test_without_a_pin_nothing_was_done() -> None:
    """Whatever the waits were."""
    found = judge(blocks(6, noisy(0.3, 0.1)), 0)
    assert found.verdict.startswith("no difference: the service changed no pin")
    assert judge(blocks(5, noisy(0.3, 0.1)), 0).verdict.startswith("undecided")


def test_each_pair_is_its_own_measure() -> None:
    """What changes from pair to pair, alike in both blocks, is no noise."""
    drift = judge(
        blocks(6, lambda balances, number: 0.1 + 0.1 * (number // 2) + 0.05 * balances), 3
    )
    assert drift.wait.more.low == pytest.approx(drift.wait.more.high)
    assert drift.wait.more.value == pytest.approx(0.05 * 2 / 3)
    assert drift.longest.more.value == pytest.approx(0.05)


def test_who_loses_is_named() -> None:
    """A guest that waits longer with the service, though all together wait less."""
    made = [
        Block(one.balances, {**one.guests, DB: Used(1, 0.5, 0.2 if one.balances else 0.1)})
        for one in blocks(6, noisy(0.4, 0.1))
    ]
    found = judge(made, 3)
    assert list(found.lost) == [DB]
    assert found.lost[DB].more.value == pytest.approx(0.1)
    console = Console(width=80, record=True)
    console.print(draw_trial(found, "2h on qemu:///system"))
    drawn = console.export_text()
    assert "db waits longer: 10.0% -> 20.0%, +10.0 points" in drawn
    assert "6 pairs of blocks, 2 guests, 3 pins" in drawn
    assert drawn.rstrip().splitlines()[-1].startswith("Verdict: better")


def test_only_guests_that_ran_all_the_time_count() -> None:
    """With as many vCPUs; one that started again is another."""
    made = blocks(2, noisy(0.3, 0.1))
    last = Block(made[3].balances, {("web", 3): made[3].guests[WEB], DB: made[3].guests[DB]})
    assert judge([*made[:3], last], 3).guests == 1
    more = Block(made[3].balances, {WEB: Used(4, 1.0, 0.4), ("db", 9): made[3].guests[DB]})
    with pytest.raises(ValueError, match="no guest ran"):
        judge([*made[:3], more], 3)
    with pytest.raises(ValueError, match="noise"):
        judge(made[:2], 3)
