"""Plans for random hosts, side by side with the proven fewest pin changes.

Rule: every competitor gets the same hosts, and what it reached is added up from where it put the
vCPUs, never taken from what its plan says of itself. A host without a verdict is counted and
shown, not dropped.
"""

import multiprocessing
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Final

from grid import Bonds, Case, Spread, carried_out, cases, gap_ppm, make_host, outside_ppm
from methods import METHODS, POLICY, Method
from optimum import Optimum, SolverError, Verdict, solve
from progress import follow

from vcpusched.model import Host
from vcpusched.plan.planner import Plan


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
    """What one competitor did on one host.

    `plan_ns` is the CPU time of its first plan; `cycled` says that it came back to where it was;
    `outside_ppm` is the load that was left outside the best band; `refused` says that the check of
    service had its first plan changed, `at_rest` that it made none.
    """

    reached: bool
    pins: int
    periods: int
    cycled: bool
    outside_ppm: int
    plan_ns: int
    refused: bool = False
    at_rest: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One host: what is proven of it, and what each competitor did, by name."""

    case: Case
    optimum: Optimum
    outside_before_ppm: int
    outcomes: dict[str, Outcome]


@dataclass(frozen=True, slots=True)
class Score:
    """What one competitor did on many hosts.

    Ratios are pin changes over the proven fewest, on hosts that it brought below the threshold:
    `ratio` of the totals, `ratio_mean` the mean of the hosts' own ratios, `ratio_worst` the worst
    of them. `left_ppm` is the share of load outside the band that was left on hosts where balance
    is proven out of reach.
    """

    reachable: int
    reached: int
    pins: int
    pins_fewest: int
    ratio: float | None
    ratio_mean: float | None
    ratio_worst: float | None
    left_ppm: int | None
    pins_unreachable: int
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
    unreachable = [row for row in rows if row.optimum.verdict is Verdict.UNREACHABLE]
    reached = [row for row in proven if row.outcomes[name].reached]
    fewest = sum(row.optimum.pins or 0 for row in reached)
    ratios = [row.outcomes[name].pins / row.optimum.pins for row in reached if row.optimum.pins]
    outside_before = sum(row.outside_before_ppm for row in unreachable)
    outside_after = sum(row.outcomes[name].outside_ppm for row in unreachable)
    plans_ns = sorted(row.outcomes[name].plan_ns for row in rows)
    return Score(
        reachable=len(proven),
        reached=len(reached),
        pins=sum(row.outcomes[name].pins for row in proven),
        pins_fewest=sum(row.optimum.pins or 0 for row in proven),
        ratio=sum(row.outcomes[name].pins for row in reached) / fewest if fewest else None,
        ratio_mean=statistics.fmean(ratios) if ratios else None,
        ratio_worst=max(ratios, default=None),
        left_ppm=outside_after * 1_000_000 // outside_before if outside_before else None,
        pins_unreachable=sum(row.outcomes[name].pins for row in unreachable),
        plan_p50_ns=quantile(plans_ns, 0.5),
        plan_p99_ns=quantile(plans_ns, 0.99),
    )


def quantile(ordered: Sequence[int], share: float) -> int:
    """Give the value that this share of the sorted values does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def of_size(rows: Iterable[Row], size: str) -> list[Row]:
    """Give the hosts of one size."""
    return [row for row in rows if row.case.size == size]


def of_kind(rows: Iterable[Row], spread: Spread, bonds: Bonds) -> list[Row]:
    """Give the hosts of one kind, of all sizes."""
    return [row for row in rows if (row.case.spread, row.case.bonds) == (spread, bonds)]


def attempt(host: Host, method: Method) -> Outcome:
    """Let a competitor act on a host until it is balanced, wants nothing, or starts anew."""
    seen, pins, plan_ns, cycled, periods = {_places(host)}, 0, 0, False, 0
    refused = False
    for period in range(method.periods_max):
        found, took_ns = method.planner(host)
        plan_ns = plan_ns or took_ns
        refused = refused or bool(found.refused)
        if not found.moves:
            break
        check(host, found)
        host, pins, periods = carried_out(host, found), pins + len(found.moves), period + 1
        cycled = _places(host) in seen
        if cycled:
            break
        seen.add(_places(host))
    threshold_ppm = POLICY.balance_threshold_ppm
    return Outcome(
        reached=gap_ppm(host) < threshold_ppm,
        pins=pins,
        periods=periods,
        cycled=cycled,
        outside_ppm=outside_ppm(host, threshold_ppm),
        plan_ns=plan_ns,
        refused=refused,
        at_rest=not periods,
    )


def row_of(case: Case, optimum: Optimum, methods: Mapping[str, Method]) -> Row:
    """Let every competitor act on one host, and hold the proof against what they reach."""
    host = make_host(case)
    outcomes = {name: attempt(host, method) for name, method in methods.items()}
    for name, outcome in outcomes.items():
        # The proof is held against everybody's plans as well.
        too_few = optimum.pins_min > outcome.pins or optimum.verdict is Verdict.UNREACHABLE
        if outcome.reached and too_few:
            raise SolverError(
                f"{name} balances with {outcome.pins} pins, the solver says "
                f"{optimum.verdict} and at least {optimum.pins_min}: {case}"
            )
    return Row(case, optimum, outside_ppm(host, POLICY.balance_threshold_ppm), outcomes)


def prove(chosen: Sequence[Case], limit_s: float, jobs: int) -> dict[Case, Optimum]:
    """Have the solver find the fewest pin changes for each host."""
    what = f"Proving the fewest pin changes (HiGHS, at most {limit_s:g} s for a host)"
    return dict(follow(_solve_all(chosen, limit_s, jobs), len(chosen), what))


def _solve_all(chosen: Sequence[Case], limit_s: float, jobs: int) -> Iterator[tuple[Case, Optimum]]:
    if jobs == 1:
        yield from ((case, _solve(case, limit_s)) for case in chosen)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        # The largest first, so that none of them is left alone at the end.
        waiting = {
            pool.submit(_solve, case, limit_s): case
            for case in sorted(chosen, key=lambda case: -case.vcpus)
        }
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _solve(case: Case, limit_s: float) -> Optimum:
    return solve(make_host(case), POLICY, limit_s=limit_s)


def _places(host: Host) -> tuple[int, ...]:
    return tuple(vcpu.cpus.bits for vcpu in host.vcpus)


def check(host: Host, found: Plan) -> None:
    """Refuse a plan that moves what must not be moved, or moves it where it may not go."""
    vcpus = {vcpu.id: vcpu for vcpu in host.vcpus}
    for move in found.moves:
        vcpu = vcpus.pop(move.vcpu)  # none twice
        if vcpu.fixed or not move.to_cpus.is_within(vcpu.allowed) or len(move.to_cpus) != 1:
            raise ValueError(f"{move.vcpu} may not go to pCPUs {move.to_cpus}")
        if move.to_cpus == vcpu.cpus:
            raise ValueError(f"{move.vcpu} is on pCPU {move.to_cpus} already")
