"""The tables of the replays.

Rule: every figure comes from `replay.summary`; where the bar is checked, both its halves are shown.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from methods import OURS
from replay import CEILING, COMPETITORS, Run, Summary, summary
from tables import Table, ratio

BAR_UNMET: Final = 1.3
BAR_PINS: Final = 1 / 100
"""What ours may leave unmet and pin, as parts of what the full re-pack does."""


def by_set(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, Summary]]]:
    """Give each set with the summary of every competitor."""
    for name in dict.fromkeys(one.load_set for one in runs):
        yield (
            name,
            {
                competitor: summary(here)
                for competitor in COMPETITORS
                if (
                    here := [
                        one for one in runs if (one.load_set, one.competitor) == (name, competitor)
                    ]
                )
            },
        )


def replay_tables(runs: Sequence[Run]) -> list[Table]:
    """Give one table for each set, and one with the bar."""
    return [*(_table(name, found, runs) for name, found in by_set(runs)), _bar(runs)]


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
            "first plan",
            "moved back",
        ),
        tuple((competitor, *_cells(one)) for competitor, one in found.items()),
        (
            (
                "Unmet: demand not served in its period, in percent of demand. Wait: of the time in"
                " which vCPUs had work, the percentage in which they had no pCPU; worst: the same"
                " for the vCPU that waited most. First plan: pins when it first acted. Moved back:"
                " pins that undid one of the five periods before, all choices of guests together."
            ),
        ),
    )


def _cells(one: Summary) -> tuple[str, ...]:
    return (
        f"{one.unmet_ppm / 10_000:.2f}",
        f"{one.wait_ppm / 10_000:.1f}",
        f"{one.worst_ppm / 10_000:.1f}",
        f"{one.pins_per_period:.3f}",
        str(one.pins_first),
        str(one.back),
    )


def _bar(runs: Sequence[Run]) -> Table:
    lines = []
    for name, found in by_set(runs):
        ceiling = found[CEILING]
        for competitor, one in found.items():
            if not competitor.startswith(OURS):
                continue
            unmet = one.unmet_ppm / ceiling.unmet_ppm if ceiling.unmet_ppm else None
            pins = one.pins_per_period / ceiling.pins_per_period
            holds = (unmet is None or unmet <= BAR_UNMET) and pins <= BAR_PINS
            fewer = f"1/{1 / pins:,.0f}" if pins else "0"
            lines.append((name, competitor, ratio(unmet), fewer, "yes" if holds else "no"))
    return Table(
        f"Against the full re-pack: at most {BAR_UNMET} times its unmet demand, 1/100 of its pins",
        ("loads", "method", "unmet", "pins", "holds"),
        tuple(lines),
    )
