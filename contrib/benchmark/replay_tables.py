"""The tables of the replays.

Rule: every figure comes from `replay.summary`; where the bar is checked, both its halves are shown.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from methods import OURS
from replay import CEILING, Run, Summary, summary
from tables import Table, ratio

BAR_PINS: Final = 1 / 100
"""What ours may pin, as a part of what the full re-pack does."""


def by_set(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, Summary]]]:
    """Return each set with the summary of every competitor."""
    for name in dict.fromkeys(one.load_set for one in runs):
        here = [one for one in runs if one.load_set == name]
        yield (
            name,
            {
                competitor: summary(one for one in here if one.competitor == competitor)
                for competitor in dict.fromkeys(one.competitor for one in here)
            },
        )


def replay_tables(runs: Sequence[Run]) -> list[Table]:
    """Return one table for each set, and one with the bar."""
    return [*set_tables(runs), _bar(runs)]


def set_tables(runs: Sequence[Run]) -> list[Table]:
    """Return one table for each set."""
    return [_table(name, found, runs) for name, found in by_set(runs)]


def _table(name: str, found: dict[str, Summary], runs: Sequence[Run]) -> Table:
    here = [one for one in runs if one.load_set == name]
    seeds = {one.seed for one in here}
    return Table(
        f"Replay of {name}: {here[0].periods} periods, {len(seeds)} choices of guests",
        (
            "method",
            "unmet %",
            "wait %",
            "worst wait %",
            "pins a period",
            "balanced %",
            "moved back",
        ),
        tuple((competitor, *_cells(one)) for competitor, one in found.items()),
        (
            (
                "Unmet: demand not served in its period, in percent of demand. Wait: of the time in"
                " which vCPUs had work, the percentage in which they had no pCPU; worst: the same"
                " for the vCPU that waited most. Balanced: periods in which the gap between single"
                " pCPUs was under the threshold, by loads smoothed as shipped. Moved back: pins"
                " that undid one of the five periods before, all choices of guests together."
            ),
        ),
    )


def _cells(one: Summary) -> tuple[str, ...]:
    return (
        f"{one.unmet_ppm / 10_000:.2f}",
        f"{one.wait_ppm / 10_000:.1f}",
        f"{one.worst_ppm / 10_000:.1f}",
        f"{one.pins_per_period:.3f}",
        f"{one.balanced_ppm / 10_000:.1f}",
        str(one.back),
    )


def _bar(runs: Sequence[Run]) -> Table:
    lines = []
    for name, found in by_set(runs):
        others = [
            one.unmet_ppm
            for competitor, one in found.items()
            if one.pins_per_period and not competitor.startswith(OURS)
        ]
        for competitor, one in found.items():
            if not competitor.startswith(OURS):
                continue
            unmet = one.unmet_ppm / min(others) if min(others) else None
            pins = one.pins_per_period / found[CEILING].pins_per_period
            holds = (unmet is None or unmet < 1) and pins <= BAR_PINS
            fewer = f"1/{1 / pins:,.0f}" if pins else "0"
            lines.append((name, competitor, ratio(unmet), fewer, "yes" if holds else "no"))
    return Table(
        "Less unmet demand than any other rule that pins, at 1/100 of the full re-pack's pins",
        ("loads", "method", "unmet / least", "pins / re-pack", "holds"),
        tuple(lines),
    )
