"""What planners reach on hosts of which the solver knows the fewest pin changes.

Rule: what a planner reached is added up from where it put the vCPUs, never taken from what its plan
says of itself.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builders import after
from planned import check_moves
from plans.hosts import Case, gap_ppm, make_host
from plans.judged import POLICY
from plans.optimum import Optimum, SolverError, Verdict, solve
from progress import follow, in_processes
from sides import Planner
from tables import ratio, share

from vcpusched.model import Host


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a planner did on one host: whether that is balanced now, and by how many pins."""

    reached: bool
    pins: int


def attempts(
    planner: Planner, optima: Mapping[Case, Optimum], what: str, *, periods_max: int = 1
) -> list[tuple[Optimum, Outcome]]:
    """Let a planner act on all hosts, for so many periods at most."""
    return [
        (optimum, _attempt(case, optimum, planner, periods_max))
        for case, optimum in follow(optima.items(), len(optima), what)
    ]


def score(made: Sequence[tuple[Optimum, Outcome]]) -> str:
    """Return how many are balanced of the hosts that can be, and the pins there over the fewest."""
    proven = [(optimum.pins, did) for optimum, did in made if optimum.pins is not None]
    reached = [(fewest, did.pins) for fewest, did in proven if did.reached]
    fewest, pins = sum(fewest for fewest, _ in reached), sum(pins for _, pins in reached)
    part = share(len(reached), len(proven))
    return f"{len(reached)} of {len(proven)} ({part}), {ratio(pins / fewest if fewest else None)}"


def prove(chosen: Sequence[Case], limit_s: float, jobs: int) -> dict[Case, Optimum]:
    """Have the solver find the fewest pin changes for each host."""
    # The largest first, so that none of them is left alone at the end.
    ordered = sorted(chosen, key=lambda case: -case.vcpus)
    what = f"Proving the fewest pin changes (HiGHS, at most {limit_s:g} s for a host)"
    optima = in_processes(functools.partial(_solve, limit_s), ordered, jobs, what)
    return dict(zip(ordered, optima, strict=True))


def _attempt(case: Case, optimum: Optimum, planner: Planner, periods_max: int) -> Outcome:
    """Let it act until the host is balanced, it wants nothing, or it repeats itself.

    Raises SolverError where it does what the solver says cannot be done.
    """
    host = make_host(case)
    seen, pins = {_assignment(host)}, 0
    for _ in range(periods_max):
        found, _took_ns = planner(host)
        if not found.moves:
            break
        check_moves(host, POLICY, found)
        host, pins = after(host, found), pins + len(found.moves)
        if _assignment(host) in seen:
            break
        seen.add(_assignment(host))
    reached = gap_ppm(host) < POLICY.balance_threshold_ppm
    if reached and (pins < optimum.pins_min or optimum.verdict is Verdict.UNREACHABLE):
        raise SolverError(
            f"{pins} pins balance a host, the solver says {optimum.verdict} and at least"
            f" {optimum.pins_min}: {case}"
        )
    return Outcome(reached, pins)


def _solve(limit_s: float, case: Case) -> Optimum:
    return solve(make_host(case), POLICY, limit_s=limit_s)


def _assignment(host: Host) -> tuple[int, ...]:
    return tuple(vcpu.cpus.bits for vcpu in host.vcpus)
