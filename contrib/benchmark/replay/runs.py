"""Recorded and made-up loads, period by period, under every competitor; and the tables of that.

Sets: guests of one vCPU (PlanetLab) on 32 pCPUs at a mean load of 0.6; guests of several
    (Bitbrains) on 48 at 0.9, which is more than bursts leave room for; made-up ones on 32 at 0.6.
    256 vCPUs each. One value of a trace is one period.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plans.rules import FULL_REPACK
from progress import in_processes
from replay.competitors import COMPETITORS, OURS, Competitor
from tables import Table, ratio

from vcpusched.act.cycle import Scheduler
from vcpusched.model import PPM, Cpu, Topology
from vcpusched.report.simulation import Result
from vcpusched.simulate.simulator import simulate
from vcpusched.simulate.traces import generate
from vcpusched.simulate.workload import Workload, scaled
from vcpusched.simulate.workload_files import read_trace

VCPUS: Final = 256

BAR_PINS: Final = 1 / 100
"""What ours may pin, as a part of what the full re-pack does."""


@dataclass(frozen=True, slots=True)
class LoadSet:
    """Where guests come from (None: made up), and what they run on; seeds choose the guests."""

    name: str
    source: Path | None
    cpus: int
    mean_ppm: int
    periods: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """How many periods and how many choices of guests for each set."""

    single: tuple[int, int]
    several: tuple[int, int]
    made_up: tuple[int, int]


FULL: Final = Scale(single=(288, 3), several=(400, 2), made_up=(600, 2))
QUICK: Final = Scale(single=(100, 1), several=(60, 1), made_up=(100, 1))


Task = tuple[LoadSet, int, Competitor]
Results = Mapping[str, Mapping[str, Sequence[Result]]]
"""What came of each competitor, by the name of the set and its own: one result for each seed."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One competitor on one set, over all its seeds.

    `worst_ppm` is the part of its time with work for which the vCPU that waited most was kept
    waiting, of all seeds.
    """

    unmet_ppm: int
    wait_ppm: int
    worst_ppm: int
    pins_per_period: float


def load_sets(traces: Path | None, scale: Scale) -> list[LoadSet]:
    """Return the sets to replay: every trace of a folder, and made-up loads.

    Raises ValueError when the folder holds no trace.
    """
    found = []
    paths = sorted(traces.glob("*.csv*")) if traces is not None else []
    if traces is not None and not paths:
        raise ValueError(f"{traces} holds no file named *.csv or *.csv.gz")
    for path in paths:
        probe = read_trace(path, cpu_count=1, vcpu_count=VCPUS, periods=1)
        several = any(len(guest.loads_ppm) > 1 for guest in probe.guests)
        periods, seeds = scale.several if several else scale.single
        cpus, mean_ppm = (48, 900_000) if several else (32, 600_000)
        name = path.name.partition(".")[0]
        found.append(LoadSet(name, path, cpus, mean_ppm, periods, tuple(range(seeds))))
    periods, seeds = scale.made_up
    found.append(LoadSet("made up", None, 32, 600_000, periods, tuple(range(seeds))))
    return found


def run(
    sets: Sequence[LoadSet], jobs: int, competitors: Mapping[str, Competitor] = COMPETITORS
) -> Results:
    """Run every competitor on every set."""
    tasks = [
        (chosen, seed, competitor)
        for chosen in sets
        for seed in chosen.seeds
        for competitor in competitors.values()
    ]
    results = iter(in_processes(_run_one, tasks, jobs, "Replaying loads"))
    found: dict[str, dict[str, list[Result]]] = {}
    for chosen in sets:
        here = found[chosen.name] = {name: [] for name in competitors}
        for _ in chosen.seeds:
            for its in here.values():
                its.append(next(results))
    return found


def summaries(results: Results) -> dict[str, dict[str, Summary]]:
    """Sum up each competitor's results on each set."""
    return {
        name: {competitor: _summary(its) for competitor, its in here.items()}
        for name, here in results.items()
    }


def _summary(results: Sequence[Result]) -> Summary:
    periods = [period for result in results for period in result.periods]
    wait_ns = sum(period.wait_ns for period in periods)
    demanded_ns = sum(period.demanded_ns for period in periods)
    return Summary(
        unmet_ppm=sum(period.unmet_ns for period in periods) * PPM // demanded_ns,
        wait_ppm=wait_ns * PPM // (wait_ns + sum(period.run_ns for period in periods)),
        worst_ppm=max(result.worst.waiting_ppm for result in results if result.worst is not None),
        pins_per_period=sum(len(result.pins) for result in results) / len(periods),
    )


def tables(found: Mapping[str, Mapping[str, Summary]]) -> list[Table]:
    """Return one table for each set, and one with the bar."""
    return [*(_table(name, here) for name, here in found.items()), _bar(found)]


def _table(name: str, found: Mapping[str, Summary]) -> Table:
    columns = ("method", "unmet %", "wait %", "worst wait %", "pins a period")
    rows = tuple(
        (
            competitor,
            f"{one.unmet_ppm / 10_000:.2f}",
            f"{one.wait_ppm / 10_000:.1f}",
            f"{one.worst_ppm / 10_000:.1f}",
            f"{one.pins_per_period:.3f}",
        )
        for competitor, one in found.items()
    )
    note = (
        "Unmet: demand not served in its period, in percent of demand. Wait: of the time in which"
        " vCPUs had work, the percentage in which they had no pCPU; worst: the same for the vCPU"
        " that waited most."
    )
    return Table(f"Replay of {name}", columns, rows, (note,))


def _bar(sets: Mapping[str, Mapping[str, Summary]]) -> Table:
    lines = []
    for name, found in sets.items():
        others = [
            one.unmet_ppm
            for competitor, one in found.items()
            if one.pins_per_period and not competitor.startswith(OURS)
        ]
        for competitor, one in found.items():
            if not competitor.startswith(OURS):
                continue
            unmet = one.unmet_ppm / min(others) if min(others) else None
            pins = one.pins_per_period / found[FULL_REPACK].pins_per_period
            holds = (unmet is None or unmet < 1) and pins <= BAR_PINS
            fewer = f"1/{1 / pins:,.0f}" if pins else "0"
            lines.append((name, competitor, ratio(unmet), fewer, "yes" if holds else "no"))
    return Table(
        f"Less unmet demand than all other rules, with at most {BAR_PINS} of the re-pack's pins",
        ("set", "method", "unmet / best other", "pins / re-pack", "holds"),
        tuple(lines),
    )


def _run_one(task: Task) -> Result:
    chosen, seed, competitor = task
    return simulate(
        _workload(chosen, seed),
        Scheduler(decide=competitor.rule),
        competitor.rules,
        place=competitor.place,
        # The simulated pCPUs are all alike.
        topology=_in_caches(chosen.cpus) if competitor.has_caches else None,
    )


def _in_caches(cpus: int) -> Topology:
    """Return pCPUs in cores of 2, caches of 8 and nodes of 16."""
    return Topology(tuple(Cpu(cpu, cpu // 16, cpu // 2, cpu // 8) for cpu in range(cpus)))


@functools.lru_cache(maxsize=2)
def _workload(chosen: LoadSet, seed: int) -> Workload:
    size = {"cpu_count": chosen.cpus, "vcpu_count": VCPUS, "periods": chosen.periods, "seed": seed}
    read = generate(**size) if chosen.source is None else read_trace(chosen.source, **size)
    return scaled(read, chosen.mean_ppm)
