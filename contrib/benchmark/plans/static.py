"""Plans for random hosts, side by side with the proven fewest pin changes.

Rule: every competitor gets the same hosts, and what it reached is added up from where it put the
vCPUs, never taken from what its plan says of itself. A host without a verdict is counted and
shown, not dropped.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from builders import after
from planned import check_moves
from plans.hosts import Case, cases, gap_ppm, make_host
from plans.methods import METHODS, PERIODS_MAX, POLICY, Method
from plans.optimum import Optimum, SolverError, Verdict, solve
from progress import follow, in_processes
from tables import Table, milliseconds, ratio

from vcpusched.model import Host


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is tried: hosts of each kind by size, and the solver's time for one host."""

    each: tuple[tuple[tuple[int, int], int], ...]
    limit_s: float


FULL: Final = Scale(
    each=(((8, 2), 20), ((16, 4), 20), ((32, 8), 20), ((48, 12), 12), ((64, 16), 12)), limit_s=60
)
QUICK: Final = Scale(
    each=(((8, 2), 2), ((16, 4), 2), ((32, 8), 2), ((48, 12), 1), ((64, 16), 1)), limit_s=5
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one competitor did on one host; `plan_ns` is the CPU time of its first plan."""

    reached: bool
    pins: int
    plan_ns: int


@dataclass(frozen=True, slots=True)
class Row:
    """One host: what is proven of it, and what each competitor did, by name."""

    case: Case
    optimum: Optimum
    outcomes: dict[str, Outcome]


@dataclass(frozen=True, slots=True)
class Score:
    """What one competitor did on many hosts.

    Ratios are pin changes over the proven fewest, on hosts that it brought below the threshold:
    `ratio` of the totals, `ratio_worst` of the worst host.
    """

    reachable: int
    reached: int
    pins: int
    ratio: float | None
    ratio_worst: float | None
    plan_p50_ns: int
    plan_p99_ns: int


def run(scale: Scale, jobs: int, methods: Mapping[str, Method] = METHODS) -> list[Row]:
    """Solve all hosts, then let every competitor plan for them, one after the other."""
    chosen = [case for size, each in scale.each for case in cases([size], each)]
    optima = prove(chosen, scale.limit_s, jobs)
    # Timed alone, when no solver runs beside it any more.
    return [
        row_of(case, optima[case], methods)
        for case in follow(chosen, len(chosen), "Planning for the hosts")
    ]


def score(rows: Iterable[Row], name: str) -> Score:
    """Sum up what one competitor did on these hosts."""
    rows = list(rows)
    proven = [row for row in rows if row.optimum.verdict is Verdict.PROVEN]
    reached = [row for row in proven if row.outcomes[name].reached]
    fewest = sum(row.optimum.pins or 0 for row in reached)
    ratios = [row.outcomes[name].pins / row.optimum.pins for row in reached if row.optimum.pins]
    plans_ns = sorted(row.outcomes[name].plan_ns for row in rows)
    return Score(
        reachable=len(proven),
        reached=len(reached),
        pins=sum(row.outcomes[name].pins for row in proven),
        ratio=sum(row.outcomes[name].pins for row in reached) / fewest if fewest else None,
        ratio_worst=max(ratios, default=None),
        plan_p50_ns=plans_ns[len(plans_ns) // 2],
        plan_p99_ns=plans_ns[int(0.99 * len(plans_ns))],
    )


def by_size(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the hosts of each size."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.case.size, []).append(row)
    return found


def table(rows: Sequence[Row]) -> Table:
    """Return the competitors' scores for each size of hosts and for all."""
    lines = []
    for size, chosen in {**by_size(rows), "all": rows}.items():
        for number, name in enumerate(rows[0].outcomes):
            it = score(chosen, name)
            times = (milliseconds(it.plan_p50_ns), milliseconds(it.plan_p99_ns))
            reached = f"{it.reached}/{it.reachable}"
            ratios = (ratio(it.ratio), ratio(it.ratio_worst))
            lines.append(("" if number else size, name, reached, str(it.pins), *ratios, *times))
    verdicts = [row.optimum.verdict for row in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict)
    return Table(
        "Plans against the proven optimum",
        ("size", "method", "reached", "pins", "ratio", "worst", "p50 ms", "p99 ms"),
        tuple(lines),
        (
            (
                f"{len(rows)} hosts: {counts}. Proven: HiGHS proved the fewest pin changes that"
                " bring the gap below 10 points; unreachable: it proved that none do; unknown: its"
                " time did not suffice."
            ),
            (
                "On the proven hosts: pins are all pin changes; ratio and worst are pin changes"
                " over the fewest, of the totals and of the worst host, where the method brought"
                " the gap below the threshold. p50, p99: CPU time of one plan, on all hosts. The"
                f" one-move rule gets up to {PERIODS_MAX} periods, the others make one plan."
            ),
        ),
    )


def attempt(host: Host, method: Method) -> Outcome:
    """Let a competitor act on a host until it is balanced, wants nothing, or repeats itself."""
    seen, pins, plan_ns = {_assignment(host)}, 0, 0
    for _ in range(method.periods_max):
        found, took_ns = method.planner(host)
        plan_ns = plan_ns or took_ns
        if not found.moves:
            break
        check_moves(host, POLICY, found)
        host, pins = after(host, found), pins + len(found.moves)
        if _assignment(host) in seen:
            break
        seen.add(_assignment(host))
    return Outcome(gap_ppm(host) < POLICY.balance_threshold_ppm, pins, plan_ns)


def row_of(case: Case, optimum: Optimum, methods: Mapping[str, Method]) -> Row:
    """Let every competitor act on one host, and compare what they reach with the proof."""
    host = make_host(case)
    outcomes = {name: attempt(host, method) for name, method in methods.items()}
    for name, outcome in outcomes.items():
        too_few = optimum.pins_min > outcome.pins or optimum.verdict is Verdict.UNREACHABLE
        if outcome.reached and too_few:
            raise SolverError(
                f"{name} balances with {outcome.pins} pins, the solver says "
                f"{optimum.verdict} and at least {optimum.pins_min}: {case}"
            )
    return Row(case, optimum, outcomes)


def prove(chosen: Sequence[Case], limit_s: float, jobs: int) -> dict[Case, Optimum]:
    """Have the solver find the fewest pin changes for each host."""
    # The largest first, so that none of them is left alone at the end.
    ordered = sorted(chosen, key=lambda case: -case.vcpus)
    what = f"Proving the fewest pin changes (HiGHS, at most {limit_s:g} s for a host)"
    optima = in_processes(functools.partial(_solve, limit_s), ordered, jobs, what)
    return dict(zip(ordered, optima, strict=True))


def _solve(limit_s: float, case: Case) -> Optimum:
    return solve(make_host(case), POLICY, limit_s=limit_s)


def _assignment(host: Host) -> tuple[int, ...]:
    return tuple(vcpu.cpus.bits for vcpu in host.vcpus)
