"""How the time for one plan grows with the host, from 100 to 10,000 vCPUs.

Rule: all competitors plan for the same hosts in the same run, one after the other, and each time
is that of one whole call. What took too long is shown as not run, with the size that stopped it.
"""

import statistics
import time
from dataclasses import dataclass, replace
from typing import Final

from grid import Bonds, Case, Spread, carried_out, gap_ppm, make_host
from methods import METHODS, OURS, POLICY
from progress import follow

from vcpusched.model import Cpu, Host

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
PER_NODE, PER_CACHE, PER_CORE = 256, 16, 2

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


def run(scale: Scale) -> list[Point]:
    """Measure every competitor on every size and kind."""
    tasks = [(size, kind) for size in scale.sizes for kind in KINDS]
    points: list[Point] = []
    slow: set[tuple[str, str]] = set()
    _measure(scale.sizes[0], next(iter(KINDS)), 1, slow)  # a daemon's first plan is one of many
    for size, kind in follow(tasks, len(tasks), "Timing plans up to 10,000 vCPUs"):
        points += _measure(size, kind, scale.each, slow)
        slow |= {
            (point.method, kind)
            for point in points
            if point.kind == kind and (point.plan_max_ns or 0) > SLOW_NS
        }
    return points


def _measure(
    size: tuple[int, int], kind: str, each: int, slow: set[tuple[str, str]]
) -> list[Point]:
    spread, bonds = KINDS[kind]
    hosts = [make_host(Case(*size, spread, bonds, MEAN_LOAD, number)) for number in range(each)]
    hosts = [_built(host) for host in hosts] if kind == BUILT else hosts
    points = []
    for name, method in METHODS.items():
        if (name, kind) in slow:
            points.append(Point(name, kind, *size, 0, None))
            continue
        times_ns, rest_ns, pins, reached = [], [], 0, 0
        for host in hosts:
            began_ns = time.perf_counter_ns()
            found = method.rule(host, POLICY)
            times_ns.append(time.perf_counter_ns() - began_ns)
            result = carried_out(host, found)
            pins += len(found.moves)
            reached += gap_ppm(result) < POLICY.balance_threshold_ppm
            if name == OURS:
                began_ns = time.perf_counter_ns()
                method.rule(result, POLICY)
                rest_ns.append(time.perf_counter_ns() - began_ns)
        points.append(_point(name, kind, size, times_ns, pins, reached))
        if rest_ns:
            points.append(_point(AT_REST, kind, size, rest_ns, 0, reached))
    return points


def _built(host: Host) -> Host:
    """Give the host with nodes, last-level caches and cores of two threads."""
    return replace(
        host,
        cpus=tuple(
            replace(
                cpu,
                cpu=Cpu(cpu.id, cpu.id // PER_NODE, cpu.id // PER_CORE, cpu.id // PER_CACHE),
            )
            for cpu in host.cpus
        ),
    )


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
