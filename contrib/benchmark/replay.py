"""Recorded and made-up loads, period by period, under every competitor.

Rule: every competitor meets the same guests, bursts and starting places, and acts through the
production `Scheduler` on the simulated host; only the rule that plans, and how loads are smoothed
and confirmed, differ, and the table says how.

Competitors: the kernel alone, every vCPU floating: no pins at all, and a simulated kernel that
    spreads work at once. Fixed pins: one random pCPU for each vCPU, for ever; this is also where
    all that pin begin. The original's rule and the re-packs act on what the last period showed,
    as the original did, without waiting for confirmation. One re-pack of each kind gets the
    smoothed loads that ours gets, so that smoothing and planning can be told apart.
Sets: guests of one vCPU (PlanetLab) on 32 pCPUs at a mean load of 0.6; guests of several
    (Bitbrains) on 48 at 0.9, which is more than bursts leave room for; made-up ones on 32 at 0.6.
    256 vCPUs each. One value of a trace is one period.
"""

import functools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from baselines import Rule, descent, one_move, repack, sticky_repack
from methods import METHODS, OURS, OURS_CHECKED
from progress import follow

from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.model import PPM, Cpu, Granularity, Topology
from vcpusched.plan.planner import plan
from vcpusched.report.simulation import Result
from vcpusched.settings import Settings
from vcpusched.simulate.simulator import Place, simulate
from vcpusched.simulate.traces import generate
from vcpusched.simulate.workload import Workload, scaled
from vcpusched.simulate.workload_files import read_trace

VCPUS: Final = 256
PERIOD_S: Final = 3

HALF_LIVES: Final = (0, 3, 30)
"""In periods: variants of ours, to choose the default by."""


@dataclass(frozen=True, slots=True)
class Competitor:
    """Who plans (None: nobody), how its loads are smoothed and confirmed, and where vCPUs begin.

    `half_life` in periods, 0 for loads as they were in the last period; `confirm` the periods for
    which an imbalance must last. None for either: as vcpusched ships. The bars are stated for
    plans without fair shares.
    """

    rule: Rule | None
    half_life: int | None = None
    confirm: int | None = None
    place: Place = Place.RANDOM
    colour: str = "black"
    fair_shares: bool = False
    granularity: Granularity = Granularity.CPU

    def rules(self) -> Rules:
        """Give the settings for the scheduler."""
        chosen = {"fair_shares": self.fair_shares, "pin_to": self.granularity}
        rules = Settings.model_validate(chosen).rules()
        if self.half_life is not None:
            smoothing = replace(rules.smoothing, half_life_s=self.half_life * PERIOD_S)
            rules = replace(rules, smoothing=smoothing)
        if self.rule is not plan:
            rules = replace(rules, cooldown_s=0)
        return rules if self.confirm is None else replace(rules, confirm=self.confirm)


def _competitors() -> dict[str, Competitor]:
    found = {
        "floating, the kernel alone": Competitor(None, place=Place.FLOATING, colour="#000000"),
        "fixed random pins": Competitor(None, colour="#999999"),
        "one-move rule": Competitor(one_move, 0, 1),
        "one paying move": Competitor(descent, 0, 1),
        "re-pack": Competitor(repack, 0, 1),
        "re-pack, smoothed loads": Competitor(repack, None, 1, colour="#66c2a5"),
        "sticky re-pack": Competitor(sticky_repack, 0, 1),
        "sticky re-pack, smoothed loads": Competitor(sticky_repack, None, 1, colour="#e7a9cf"),
        OURS: Competitor(plan),
        OURS_CHECKED: Competitor(plan, fair_shares=True),
        f"{OURS}, vCPUs floating at first": Competitor(
            plan, place=Place.FLOATING, colour="#56b4e9"
        ),
    }
    for granularity in (Granularity.CORE, Granularity.CACHE, Granularity.NODE):
        found[f"{OURS}, pinned to a {granularity}"] = Competitor(
            plan, granularity=granularity, colour="#009e73"
        )
    for periods in HALF_LIVES:
        found[f"{OURS}, half-life {periods}"] = Competitor(plan, periods, colour="#56b4e9")
    return {
        name: replace(one, colour=METHODS[name].colour) if name in METHODS else one
        for name, one in found.items()
    }


COMPETITORS: Final[Mapping[str, Competitor]] = _competitors()

CEILING: Final = "re-pack"
"""Whom the bar names: unmet demand within 1.3 times of its, at a hundredth of its pin changes."""


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


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one competitor on one choice of guests.

    Times in ns over all vCPUs; `worst_ppm` the share of its time with work in which the vCPU that
    starved most was kept waiting; `back` the pins that undid one of the last five periods.
    """

    load_set: str
    competitor: str
    seed: int
    periods: int
    demanded_ns: int
    unmet_ns: int
    run_ns: int
    wait_ns: int
    worst_ppm: int
    pins: int
    pins_first: int
    back: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One competitor on one set, over all its seeds; the worst vCPU is the worst of all seeds."""

    unmet_ppm: int
    wait_ppm: int
    worst_ppm: int
    pins_per_period: float
    pins_first: int
    back: int


def load_sets(traces: Path | None, scale: Scale) -> list[LoadSet]:
    """Give the sets to replay: every trace of a folder, and made-up loads.

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


def run(sets: Sequence[LoadSet], jobs: int) -> list[Run]:
    """Run every competitor on every set."""
    tasks = [
        (chosen, seed, name) for chosen in sets for seed in chosen.seeds for name in COMPETITORS
    ]
    done = follow(_run_all(tasks, jobs), len(tasks), "Replaying loads")
    order = {task[0].name: number for number, task in enumerate(tasks)}
    names = list(COMPETITORS)
    # However the processes overtook each other, the results come in one order.
    return sorted(
        done, key=lambda one: (order[one.load_set], names.index(one.competitor), one.seed)
    )


def summary(runs: Iterable[Run]) -> Summary:
    """Sum up one competitor's runs on one set."""
    runs = list(runs)
    demanded_ns = sum(one.demanded_ns for one in runs)
    wait_ns = sum(one.wait_ns for one in runs)
    return Summary(
        unmet_ppm=sum(one.unmet_ns for one in runs) * PPM // demanded_ns,
        wait_ppm=wait_ns * PPM // (wait_ns + sum(one.run_ns for one in runs)),
        worst_ppm=max(one.worst_ppm for one in runs),
        pins_per_period=sum(one.pins for one in runs) / sum(one.periods for one in runs),
        pins_first=sum(one.pins_first for one in runs) // len(runs),
        back=sum(one.back for one in runs),
    )


def _run_all(tasks: Sequence[tuple[LoadSet, int, str]], jobs: int) -> Iterator[Run]:
    if jobs == 1:
        yield from (_run_one(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(_run_one, *task) for task in tasks]):
            yield done.result()


def _run_one(chosen: LoadSet, seed: int, name: str) -> Run:
    competitor, workload = COMPETITORS[name], _workload(chosen, seed)
    scheduler = None if competitor.rule is None else Scheduler(decide=competitor.rule)
    result = simulate(
        workload,
        scheduler,
        competitor.rules() if scheduler else None,
        place=competitor.place,
        # Only who pins to sets is told of them: the simulated pCPUs are all alike.
        topology=machine(chosen.cpus) if competitor.granularity is not Granularity.CPU else None,
    )
    return _figures(chosen, seed, name, result)


def machine(cpus: int) -> Topology:
    """Give pCPUs in cores of 2, caches of 8 and nodes of 16."""
    return Topology(tuple(Cpu(cpu, cpu // 16, cpu // 2, cpu // 8) for cpu in range(cpus)))


def _figures(chosen: LoadSet, seed: int, name: str, result: Result) -> Run:
    first = next((period.pins for period in result.periods if period.pins), 0)
    return Run(
        load_set=chosen.name,
        competitor=name,
        seed=seed,
        periods=len(result.periods),
        demanded_ns=sum(period.demanded_ns for period in result.periods),
        unmet_ns=sum(period.unmet_ns for period in result.periods),
        run_ns=sum(period.run_ns for period in result.periods),
        wait_ns=sum(period.wait_ns for period in result.periods),
        worst_ppm=max(
            (
                vcpu.wait_ns * PPM // (vcpu.run_ns + vcpu.wait_ns)
                for vcpu in result.vcpus
                if vcpu.run_ns + vcpu.wait_ns
            ),
            default=0,
        ),
        pins=len(result.pins),
        pins_first=first,
        back=result.moved_back,
    )


@functools.lru_cache(maxsize=2)
def _workload(chosen: LoadSet, seed: int) -> Workload:
    if chosen.source is None:
        made_up = generate(
            cpu_count=chosen.cpus, vcpu_count=VCPUS, periods=chosen.periods, seed=seed
        )
        return scaled(made_up, chosen.mean_ppm)
    read = read_trace(
        chosen.source,
        cpu_count=chosen.cpus,
        vcpu_count=VCPUS,
        periods=chosen.periods,
        seed=seed,
    )
    return scaled(read, chosen.mean_ppm)
