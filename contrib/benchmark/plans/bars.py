"""The bars of the planner as one table: a row a bar, and beside it what each commit reaches.

Rule: all sides get the same hosts in the same run, and what they reach is added up from where they
put the vCPUs (`hosts`, `judged`), never taken from what a plan says of itself.

Settings: those that each commit ships, but single pCPUs and no limit of moves; fair shares are off
    but in the first rows, those on fairness, and at rest.
"""

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import builders
from plans import rest
from plans.hosts import Bonds, Case, Layout, Spread, built, make_host, seeded, weighted
from plans.judged import (
    PLAIN,
    POLICY,
    beyond_ppm,
    cost_ppm,
    crowded_cores,
    distances,
    is_worse,
    planned,
)
from plans.optimum import Optimum, Verdict
from plans.proven import Outcome, attempts, prove, score
from plans.rules import PERIODS_MAX, RULES, Rule
from progress import follow
from sides import Planner, Side, timed
from tables import Table, milliseconds

from vcpusched.model import PPM_PER_POINT, Host

SHIPPED: Final = {"pin_to": "cpu", "max_moves": 0}
UNCHECKED: Final = {**SHIPPED, "fair_shares": False}

LARGE: Final = ((16, 4), (32, 8), (48, 12), (64, 16))
SMALL: Final = ((4, 2), (6, 2), (8, 2), (9, 3), (12, 3), (12, 4), (16, 4))

CYCLED_HOSTS, CYCLES, SETTLED = 2, 24, 12
"""On how many hosts cycles are timed, how many there are, and how many of the last count."""

TWO_NODES: Final = Layout(per_node=16, per_cache=8, per_core=2)
ONE_NODE: Final = Layout(per_node=1024, per_cache=1024, per_core=2)
HYBRID: Final = Layout(per_node=1024, per_cache=1024, weak_ppm=600_000)

MEAN_LOAD: Final = 0.6
KINDS: Final = {
    "uniform": ((Spread.UNIFORM, Bonds.FREE), None, "1.0"),
    "lumpy": ((Spread.LUMPY, Bonds.FREE), None, "1.0"),
    "lumpy, masks": ((Spread.LUMPY, Bonds.MASKS), None, "1.0"),
    "uniform, nodes": (
        (Spread.UNIFORM, Bonds.FREE),
        Layout(per_node=256, per_cache=16, per_core=2),
        "0.6",
    ),
}
"""The large hosts on which plans are timed, their layout, and the ratio of times that is wanted."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is tried: hosts for each row, and for how many periods they rest."""

    seeds: int
    limit_s: float
    topology: int
    smt: tuple[tuple[tuple[int, int], int], ...]
    hybrid: int
    size: tuple[int, int]
    timed: int
    rest: int
    periods: int


FULL: Final = Scale(
    seeds=200,
    limit_s=20,
    topology=40,
    smt=(((32, 16), 32), ((128, 64), 12)),
    hybrid=40,
    size=(10_000, 1_024),
    timed=9,
    rest=12,
    periods=1_000,
)
QUICK: Final = Scale(
    seeds=40,
    limit_s=5,
    topology=8,
    smt=(((32, 16), 8), ((128, 64), 2)),
    hybrid=8,
    size=(2_000, 205),
    timed=5,
    rest=3,
    periods=200,
)


@dataclass(frozen=True, slots=True)
class Row:
    """A bar: what is measured, what is wanted of it, and what each side reaches, by its name."""

    bar: str
    wanted: str
    reached: Mapping[str, str]


def run(sides: Sequence[Side], scale: Scale, jobs: int) -> list[Row]:
    """Measure all sides against all bars."""
    large = list(seeded(range(1, scale.seeds + 1), LARGE, [Spread.LUMPY]))
    small = list(seeded(range(1, scale.seeds + 1), SMALL, list(Spread)))
    optima = prove([*large, *small], scale.limit_s, jobs)
    proven = {case: optima[case] for case in small if optima[case].verdict is Verdict.PROVEN}
    return [
        *_lumpy(sides, {case: optima[case] for case in large}),
        *_small(sides, proven),
        *(row for size, each in scale.smt for row in _fair(sides, size, each)),
        *_timed(sides, scale),
        *_near(sides, scale.topology),
        *_strong(sides, scale.hybrid),
        *_at_rest(sides, scale, optima),
    ]


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    return Table(
        "The planner against its bars",
        ("what", "wanted", *rows[0].reached),
        tuple((row.bar, row.wanted, *row.reached.values()) for row in rows),
        (
            (
                "Settings as each commit ships them, but single pCPUs and no limit of moves; fair"
                ' shares are on where a row says "as shipped" or speaks of fairness or rest.'
            ),
            (
                "Fewest: proven by HiGHS, on the hosts that a plan brings under the threshold."
                " Simple rules have the settings of min_gain 0, the one-move rule 200 periods. J:"
                " points outside the best band, plus 5 points for a pin, 12.5 to another cache, 20"
                " to another node. Crowded core: both threads at 10 points or more while another"
                " core has less. Worse served: the lowest level (what a vCPU that falls short gets"
                " by its weight) falls by more than a tenth."
            ),
            (
                "Ratio of times: median of what each host took now, over what it took there. Rest:"
                " the service on the simulated host, each load with 5 % of noise."
            ),
        ),
    )


def _rows(
    sides: Sequence[Side], bars: Mapping[str, str], reach: Callable[[Side], Sequence[str]]
) -> list[Row]:
    """Return a row for each bar, by what is wanted of it; `reach` returns a side's cells."""
    cells = zip(*(reach(side) for side in sides), strict=True)
    names = [side.name for side in sides]
    return [
        Row(bar, wanted, dict(zip(names, reached, strict=True)))
        for (bar, wanted), reached in zip(bars.items(), cells, strict=True)
    ]


def _attempts(
    side: Side, optima: Mapping[Case, Optimum], wishes: Mapping[str, object]
) -> list[tuple[Optimum, Outcome]]:
    return attempts(side.planner(**wishes), optima, f"Plans for proven hosts, {side.name}")


def _lumpy(sides: Sequence[Side], optima: Mapping[Case, Optimum]) -> list[Row]:
    def reach(side: Side) -> list[str]:
        return [score(_attempts(side, optima, wishes)) for wishes in (SHIPPED, PLAIN)]

    def by_rule(name: str, rule: Rule) -> str:
        planner, periods_max = timed(lambda host: rule(host, POLICY)), PERIODS_MAX.get(name, 1)
        return score(attempts(planner, optima, f"Proven hosts, {name}", periods_max=periods_max))

    bar = "lumpy hosts up to 64 x 16, {}: under the threshold, pins / fewest"
    bars = {bar.format("as shipped"): "95%, 1.10", bar.format("min_gain 0"): "99%, 1.05"}
    rows = _rows(sides, bars, reach)
    names = [side.name for side in sides]
    for name, rule in RULES.items():
        rows.append(Row(bar.format(name), "", dict.fromkeys(names, by_rule(name, rule))))
    return rows


def _small(sides: Sequence[Side], optima: Mapping[Case, Optimum]) -> list[Row]:
    def fewest(side: Side, wishes: Mapping[str, object]) -> int:
        found = _attempts(side, optima, wishes)
        return sum(did.reached and did.pins == optimum.pins for optimum, did in found)

    giant = builders.host([100, 10, 10], [])

    def reach(side: Side) -> list[str]:
        counts = (fewest(side, SHIPPED), fewest(side, PLAIN))
        return [*map(str, counts), str(len(planned(side.planner(**SHIPPED), giant).pins))]

    bar = f"small hosts up to 16 x 4, {{}}: of {len(optima)}, with exactly the fewest pins"
    bars = dict.fromkeys(map(bar.format, ("as shipped", "min_gain 0")), str(len(optima)))
    return _rows(sides, {**bars, "{100, 10, 10} and {}, as shipped: pins": "1"}, reach)


def _fair(sides: Sequence[Side], size: tuple[int, int], each: int) -> list[Row]:
    cases = [
        Case(*size, spread, Bonds.FREE, round(0.6 + 0.3 * (number + 0.5) / each, 3), number)
        for number in range(each)
        for spread in [(Spread.LUMPY, Spread.UNIFORM)[number % 2]]
    ]
    hosts = [built(make_host(case), ONE_NODE) for case in cases]
    # On half of them, of both kinds of loads, guests have unequal shares.
    hosts = [
        weighted(host, number) if number // 2 % 2 else host for number, host in enumerate(hosts)
    ]

    found, idle = {}, {}
    for side in sides:
        fair, free = side.planner(**SHIPPED), side.planner(**UNCHECKED)
        what = f"Busy threads, {size[1]} of them, {side.name}"
        its = found[side.name] = [planned(fair, host) for host in follow(hosts, each, what)]
        idle[side.name] = [it.before for it in its if not it.pins and planned(free, it.before).pins]
    # Where any side refuses a plan, the others show what a cycle costs that does not.
    refused = [host for its in idle.values() for host in its]
    chosen = (refused + [host for host in hosts if host not in refused])[:CYCLED_HOSTS]

    def reach(side: Side) -> list[str]:
        worse = sum(is_worse(it.before, it.after) for it in found[side.name])
        return [str(len(idle[side.name])), str(worse), _cycle_times(side, chosen)]

    bar = f"{size[1]} hyper-threads, mean 0.6 to 0.9, {each} hosts"
    bars = {
        f"{bar}: at rest though a plan exists without fair shares": "0",
        f"{bar}: worse served": "0",
        f"{bar}: CPU time of a cycle at rest / without fair shares, ms": "alike",
    }
    return _rows(sides, bars, reach)


def _cycle_times(side: Side, hosts: Sequence[Host]) -> str:
    """Time the cycles of the service on hosts where it has long found, or refused, its plan."""
    medians = []
    for wishes in (SHIPPED, UNCHECKED):
        cycles_ns = [
            took_ns
            for host in follow(hosts, len(hosts), f"Cycles at rest, {side.name}")
            for took_ns in side.service(rest.noisy(host, CYCLES), **wishes).cycles_ns[-SETTLED:]
        ]
        medians.append(milliseconds(statistics.median(cycles_ns)))
    return " / ".join(medians)


def _timed(sides: Sequence[Side], scale: Scale) -> list[Row]:
    planners = {side.name: side.planner(**UNCHECKED) for side in sides}
    found = []
    for kind, (case, layout, wanted) in follow(
        KINDS.items(), len(KINDS), "Timing plans for large hosts"
    ):
        drawn = [make_host(Case(*scale.size, *case, MEAN_LOAD, i)) for i in range(scale.timed)]
        hosts = [built(host, layout) if layout else host for host in drawn]
        _in_turn(hosts[:1], planners)  # the first plan of a process is slower
        times = _in_turn(hosts, planners)
        reached = {name: milliseconds(statistics.median(it)) for name, it in times.items()}
        if len(sides) > 1:
            first, last = sides[0].name, sides[-1].name
            ratios = [b / a for a, b in zip(times[first], times[last], strict=True)]
            reached[last] += f", ratio {statistics.median(ratios):.2f}"
        bar = f"one plan, {scale.size[0]:,} x {scale.size[1]:,}, {kind}: CPU time, ms"
        found.append(Row(bar, wanted, reached))
    return found


def _in_turn(hosts: Sequence[Host], planners: Mapping[str, Planner]) -> dict[str, list[int]]:
    """Let all planners plan for one host after the other, and return their CPU times in ns."""
    times = defaultdict(list)
    for host in hosts:
        for name, planner in planners.items():
            # A copy for each, since what was just made lies together in memory and is read faster.
            times[name].append(planner(copy.deepcopy(host))[1])
    return times


def _near(sides: Sequence[Side], each: int) -> list[Row]:
    cases = [
        Case(vcpus, 32, spread, Bonds.FREE, round(0.1 + 0.6 * (number + 0.5) / each, 3), number)
        for number in range(each)
        for vcpus, spread in [((16, 24, 40, 64)[number % 4], list(Spread)[number % 3])]
    ]
    hosts = [built(make_host(case), TWO_NODES) for case in cases]

    def reach(side: Side) -> list[str]:
        planner = side.planner(**UNCHECKED)
        what = f"Nodes, caches and threads, {side.name}"
        found = [planned(planner, host) for host in follow(hosts, each, what)]
        far = [distances(one) for one in found]
        within, caches, nodes = (sum(counts) for counts in zip(*far, strict=True))
        before, after = (
            sum(crowded_cores(host) for host in ends)
            for ends in zip(*((one.before, one.after) for one in found), strict=True)
        )
        return [
            f"{nodes} / {caches} / {within + caches + nodes}",
            f"{sum(map(cost_ppm, found)) / PPM_PER_POINT:,.0f}",
            f"{before} -> {after}",
            str(sum(bool(planned(planner, one.after).pins) for one in found)),
        ]

    bar = f"2 nodes, 4 caches, 16 cores, {each} hosts"
    bars = {
        f"{bar}: pins across nodes / across caches / all": "fewer",
        f"{bar}: J": "less",
        f"{bar}: crowded cores beside idle ones, before and after": "no more",
        f"{bar}: hosts that want more pins after the plan": "0",
    }
    return _rows(sides, bars, reach)


def _strong(sides: Sequence[Side], each: int) -> list[Row]:
    cases = [
        Case(32, 16, spread, Bonds.FREE, round(0.2 + 0.4 * (number + 0.5) / each, 3), number)
        for number in range(each)
        for spread in [(Spread.LUMPY, Spread.MIXED)[number % 2]]
    ]
    hosts = [built(make_host(case), HYBRID) for case in cases]

    def reach(side: Side) -> list[str]:
        planner = side.planner(**UNCHECKED)
        found = [planned(planner, host) for host in follow(hosts, each, f"Hybrid, {side.name}")]
        before, after = (
            sum(beyond_ppm(host) for host in ends) / PPM_PER_POINT
            for ends in zip(*((one.before, one.after) for one in found), strict=True)
        )
        return [f"{before:,.0f} -> {after:,.0f}, {sum(len(one.pins) for one in found)} pins"]

    bar = f"half of 16 pCPUs at 0.6, {each} hosts: points that vCPUs want beyond what theirs gives"
    return _rows(sides, {bar: "less"}, reach)


def _at_rest(sides: Sequence[Side], scale: Scale, optima: Mapping[Case, Optimum]) -> list[Row]:
    cases = {case: it.verdict for case, it in optima.items() if 4 <= case.cpus <= 8}  # noqa: PLR2004  quick to simulate

    def reach(side: Side) -> list[str]:
        return list(rest.rested(side, cases, scale.rest, scale.periods, **SHIPPED).values())

    bar = f"{{}}, {scale.periods:,} periods: pins, most plans on a host"
    return _rows(sides, {bar.format(kind): wanted for kind, wanted in rest.KINDS.items()}, reach)
