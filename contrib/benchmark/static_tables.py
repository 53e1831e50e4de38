"""The tables of the static part and of the timing part.

Rule: every figure comes from `static.score` or a `scaling.Point`; what is left out is said.
"""

import statistics
from collections.abc import Sequence
from typing import Final

import scaling
from grid import Bonds, Spread
from methods import OURS, OURS_CHECKED, PERIODS_MAX
from optimum import Verdict
from static import Row, Score, of_kind, of_size, score
from tables import Table, milliseconds, ratio, share

MISSED_SHOWN: Final = 10


def static_tables(rows: Sequence[Row]) -> list[Table]:
    """Give all tables of the static part."""
    return [_hosts(rows), _methods(rows), _kinds(rows), _unreachable(rows)]


def _sizes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.case.size for row in rows))


def _methods_of(rows: Sequence[Row]) -> list[str]:
    return list(rows[0].outcomes)


def _hosts(rows: Sequence[Row]) -> Table:
    lines = []
    for size in [*_sizes(rows), "all"]:
        chosen = list(rows) if size == "all" else of_size(rows, size)
        times_s = [row.optimum.took_s for row in chosen]
        verdicts = [row.optimum.verdict for row in chosen]
        lines.append(
            (
                size,
                str(len(chosen)),
                *(str(verdicts.count(verdict)) for verdict in Verdict),
                str(sum(row.optimum.pins or 0 for row in chosen)),
                f"{statistics.median(times_s):.2f}",
                f"{max(times_s):.1f}",
            )
        )
    unknown = [row for row in rows if row.optimum.verdict is Verdict.UNKNOWN]
    ours = [row.outcomes[OURS] for row in unknown]
    notes = [
        (
            "Proven: HiGHS proved the fewest pin changes that bring the gap below 10 points;"
            " unreachable: it proved that none do; unknown: its time did not suffice."
        ),
    ]
    if unknown:
        fewest = sum(row.optimum.pins_min for row in unknown)
        notes.append(
            f"On the {len(unknown)} unknown hosts {OURS} reached the threshold"
            f" {sum(outcome.reached for outcome in ours)} times, with"
            f" {sum(outcome.pins for outcome in ours if outcome.reached)} pins; at least {fewest}"
            " are needed, if balance is within reach on all of them."
        )
    return Table(
        "Hosts, and what is proven of them",
        ("size", "hosts", *(str(v) for v in Verdict), "fewest pins", "s p50", "s max"),
        tuple(lines),
        tuple(notes),
    )


def _methods(rows: Sequence[Row]) -> Table:
    lines = []
    for size in [*_sizes(rows), "all"]:
        chosen = list(rows) if size == "all" else of_size(rows, size)
        for number, name in enumerate(_methods_of(rows)):
            scored = score(chosen, name)
            lines.append(("" if number else size, name, *_cells(scored)))
    missed = [
        f"{row.case} (fewest {row.optimum.pins})"
        for row in rows
        if row.optimum.verdict is Verdict.PROVEN and not row.outcomes[OURS].reached
    ]
    notes = [
        (
            "Hosts where balance is proven within reach. Pins: all pin changes on them. Ratio,"
            " mean, worst: pin changes over the proven fewest on hosts that the method brought"
            " below the threshold: of the totals, mean of the hosts, worst host. p50, p99:"
            " CPU time of one plan, on all hosts, reachable or not."
        ),
        (
            f"vcpusched and the re-packs make one plan; the rules that make one move in each period"
            f" get up to {PERIODS_MAX} periods."
        ),
    ]
    refused = [row.outcomes[OURS_CHECKED] for row in rows if row.outcomes[OURS_CHECKED].refused]
    notes.append(
        f"Fair shares refused the first plan on {len(refused)} of {len(rows)} hosts, and"
        f" every plan on {sum(outcome.at_rest for outcome in refused)} of them."
    )
    if missed:
        notes.append(
            f"{OURS} missed {len(missed)}: "
            + "; ".join(missed[:MISSED_SHOWN])
            + ("; …" if len(missed) > MISSED_SHOWN else ".")
        )
    return Table(
        "Plans against the proven optimum",
        ("size", "method", "reached", "pins", "ratio", "mean", "worst", "p50 ms", "p99 ms"),
        tuple(lines),
        tuple(notes),
    )


def _cells(scored: Score) -> tuple[str, ...]:
    return (
        f"{scored.reached}/{scored.reachable}",
        str(scored.pins),
        ratio(scored.ratio),
        ratio(scored.ratio_mean),
        ratio(scored.ratio_worst),
        milliseconds(scored.plan_p50_ns),
        milliseconds(scored.plan_p99_ns),
    )


def _kinds(rows: Sequence[Row]) -> Table:
    lines = []
    for spread in Spread:
        for bonds in Bonds:
            scored = score(of_kind(rows, spread, bonds), OURS)
            lines.append(
                (
                    f"{spread}; {bonds}",
                    f"{scored.reached}/{scored.reachable}",
                    str(scored.pins),
                    str(scored.pins_fewest),
                    ratio(scored.ratio),
                    ratio(scored.ratio_worst),
                )
            )
    return Table(
        f"{OURS} by kind of host, all sizes",
        ("loads; bonds", "reached", "pins", "fewest", "ratio", "worst"),
        tuple(lines),
    )


def _unreachable(rows: Sequence[Row]) -> Table:
    lines = []
    for name in _methods_of(rows):
        scored = score(rows, name)
        left = "-" if scored.left_ppm is None else f"{scored.left_ppm / 10_000:.1f} %"
        cycles = [
            sum(row.outcomes[name].cycled for row in rows if row.optimum.verdict is verdict)
            for verdict in (Verdict.UNREACHABLE, Verdict.PROVEN)
        ]
        lines.append((name, str(scored.pins_unreachable), left, *map(str, cycles)))
    return Table(
        "Hosts where balance is proven out of reach",
        ("method", "pins", "load left outside", "cycles", "cycles, reachable hosts"),
        tuple(lines),
        (
            (
                "Load left outside: what lies outside a band as wide as the threshold, where that"
                " fits best, in percent of what lay outside before. Cycles: hosts on which the"
                " method came back to where it had been, so would go on for ever."
            ),
        ),
    )


def scaling_tables(points: Sequence[scaling.Point]) -> list[Table]:
    """Give the table of plan times."""
    names = dict.fromkeys(point.method for point in points)
    lines = []
    for size in dict.fromkeys((point.vcpus, point.cpus) for point in points):
        for number, name in enumerate(names):
            here = {
                point.kind: point
                for point in points
                if (point.vcpus, point.cpus, point.method) == (*size, name)
            }
            if not here:
                continue
            first = "" if number else f"{size[0]:,} x {size[1]:,}"
            lines.append((first, name, *_scaling_cells(here, points)))
    return [
        Table(
            "CPU time of one plan, in ms: median (longest)",
            ("size", "method", *scaling.KINDS, "pins", "reached", "times ours"),
            tuple(lines),
            (
                (
                    f"Mean load {scaling.MEAN_LOAD}, random placement; pins and reached: all kinds"
                    " together, after one plan (the one-move rules need as many plans as pins)."
                    " Times ours: sum of the medians over that of vcpusched for the same hosts."
                ),
            ),
        )
    ]


def _scaling_cells(
    here: dict[str, scaling.Point], points: Sequence[scaling.Point]
) -> tuple[str, ...]:
    cells = [_time(here[kind]) if kind in here else "not run" for kind in scaling.KINDS]
    ours = {
        point.kind: point.plan_ns
        for point in points
        if point.method == OURS and point.vcpus == next(iter(here.values())).vcpus
    }
    both = [
        (point.plan_ns, ours_ns)
        for kind, point in here.items()
        for ours_ns in [ours.get(kind)]
        if point.plan_ns is not None and ours_ns is not None
    ]
    hosts = sum(point.hosts for point in here.values())
    times = sum(a for a, _ in both) / sum(b for _, b in both) if both else None
    return (
        *cells,
        str(sum(point.pins for point in here.values())),
        share(sum(point.reached for point in here.values()), hosts),
        ratio(times),
    )


def _time(point: scaling.Point) -> str:
    longest = f" ({milliseconds(point.plan_max_ns)})" if point.hosts > 1 else ""
    return milliseconds(point.plan_ns) + longest
