"""How the time for one plan grows with the host, from 100 to 10,000 vCPUs.

Rule: all competitors plan for the same hosts in the same run, in turn for each host, and each time
is the CPU time of one whole call, without Python's garbage collection. What took too long is shown
as not run, with the size that stopped it.
"""

import copy
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from grid import Bonds, Case, Layout, Spread, built, carried_out, gap_ppm, make_host
from methods import METHODS, OURS, POLICY, Method
from progress import follow
from sides import Planner

from vcpusched.model import Host
from vcpusched.plan.planner import Plan

MEAN_LOAD: Final = 0.6
"""Mean load of the pCPUs, in pCPUs; every vCPU starts on a random one."""

SLOW_NS: Final = 10_000_000_000
"""A competitor that took this long for one plan is not tried on larger hosts."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes (vCPUs, pCPUs), and how many hosts of each."""

    sizes: tuple[tuple[int, int], ...]
    each: int


_SIZES: Final = ((100, 10), (200, 20), (500, 51), (1_000, 102), (2_000, 205), (5_000, 512))
FULL: Final = Scale(sizes=(*_SIZES, (10_000, 1_024)), each=5)
QUICK: Final = Scale(sizes=(*_SIZES, (10_000, 1_024)), each=2)

KINDS: Final = {
    "uniform": (Spread.UNIFORM, Bonds.FREE),
    "lumpy": (Spread.LUMPY, Bonds.FREE),
    "lumpy, masks": (Spread.LUMPY, Bonds.MASKS),
    "uniform, nodes": (Spread.UNIFORM, Bonds.FREE),
}
"""What hosts there are. Those of the last kind have nodes, caches and cores, as a real one has; the
others tell of none, so that all their pCPUs are equally near."""

BUILT: Final = "uniform, nodes"
LAYOUT: Final = Layout(per_node=256, per_cache=16, per_core=2)

AT_REST: Final = f"{OURS}, at rest"
"""Planning once more on the result of the plan: what a cycle costs when nothing is to do."""


@dataclass(frozen=True, slots=True)
class Point:
    """One competitor on hosts of one size and kind: median and longest time, pins, hosts reached.

    `plan_ns` is None where it was not run.
    """

    method: str
    kind: str
    vcpus: int
    cpus: int
    hosts: int
    plan_ns: int | None
    plan_max_ns: int | None = None
    pins: int = 0
    reached: int = 0


def run(scale: Scale, methods: Mapping[str, Method] = METHODS) -> list[Point]:
    """Measure every competitor on every size and kind."""
    tasks = [(size, kind) for size in scale.sizes for kind in KINDS]
    points: list[Point] = []
    slow: set[tuple[str, str]] = set()
    # A daemon's first plan is one of many, so nobody's first is counted.
    in_turn(hosts_of(*tasks[0], 1), _planners(methods))
    for size, kind in follow(tasks, len(tasks), "Timing plans up to 10,000 vCPUs"):
        quick = {name: one for name, one in methods.items() if (name, kind) not in slow}
        points += _measure(size, kind, scale.each, quick)
        points += [Point(name, kind, *size, 0, None) for name in methods if name not in quick]
        slow |= {
            (point.method, kind)
            for point in points
            if point.kind == kind and (point.plan_max_ns or 0) > SLOW_NS
        }
    return points


def hosts_of(size: tuple[int, int], kind: str, each: int) -> list[Host]:
    """Return hosts of one size and kind, each from a number of its own."""
    spread, bonds = KINDS[kind]
    hosts = [make_host(Case(*size, spread, bonds, MEAN_LOAD, number)) for number in range(each)]
    return [built(host, LAYOUT) for host in hosts] if kind == BUILT else hosts


def in_turn(
    hosts: Iterable[Host], planners: Mapping[str, Planner]
) -> dict[str, list[tuple[Plan, int]]]:
    """Let all planners plan for one host after the other; returns plans and CPU times in ns."""
    found = defaultdict(list)
    for host in hosts:
        for name, planner in planners.items():
            # A copy for each, since what was just made lies together in memory and is read faster.
            found[name].append(planner(copy.deepcopy(host)))
    return found


def _planners(methods: Mapping[str, Method]) -> dict[str, Planner]:
    return {name: method.planner for name, method in methods.items()}


def _measure(
    size: tuple[int, int], kind: str, each: int, methods: Mapping[str, Method]
) -> list[Point]:
    hosts = hosts_of(size, kind, each)
    points = []
    for name, answers in in_turn(hosts, _planners(methods)).items():
        results = [carried_out(host, plan) for host, (plan, _) in zip(hosts, answers, strict=True)]
        pins = sum(len(plan.moves) for plan, _ in answers)
        reached = sum(gap_ppm(result) < POLICY.balance_threshold_ppm for result in results)
        points.append(_point(name, kind, size, [took for _, took in answers], pins, reached))
        if name == OURS:
            again = in_turn(results, {AT_REST: methods[OURS].planner})[AT_REST]
            rest_ns = [took_ns for _, took_ns in again]
            points.append(_point(AT_REST, kind, size, rest_ns, 0, reached))
    return points


def _point(  # noqa: PLR0913, PLR0917  what is measured of one place in the table
    name: str, kind: str, size: tuple[int, int], times_ns: list[int], pins: int, reached: int
) -> Point:
    return Point(
        name,
        kind,
        *size,
        hosts=len(times_ns),
        plan_ns=round(statistics.median(times_ns)),
        plan_max_ns=max(times_ns),
        pins=pins,
        reached=reached,
    )
