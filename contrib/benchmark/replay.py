"""Recorded and made-up loads, period by period, under every competitor.

Rule: every competitor meets the same guests, bursts and starting places, and acts through the
production `Scheduler` on the simulated host; only the rule that plans, its settings, and how an
imbalance is confirmed differ.

Competitors: the kernel alone, every vCPU floating: no pins at all, and a simulated kernel that
    spreads work at once. Fixed pins: one random pCPU for each vCPU, for ever; this is also where
    all that pin begin. The original's rule and the re-packs act on what the last period showed,
    as the original did, without waiting for confirmation. One re-pack gets the smoothed loads that
    ours gets, so that smoothing and planning can be told apart. Ours is as shipped: on pCPUs that
    share nothing, where each is a set of its own, and on ones in caches and nodes.
Sets: guests of one vCPU (PlanetLab) on 32 pCPUs at a mean load of 0.6; guests of several
    (Bitbrains) on 48 at 0.9, which is more than bursts leave room for; made-up ones on 32 at 0.6.
    256 vCPUs each. One value of a trace is one period.
"""

import functools
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from baselines import Rule, one_move, repack, sticky_repack
from methods import METHODS, OURS
from progress import follow
from sides import HERE, Side

from vcpusched.act.actuator import Account
from vcpusched.act.cycle import Cycle, Rules, Scheduler
from vcpusched.model import PPM, Cpu, Host, Topology
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.report.simulation import Result
from vcpusched.simulate.simulator import Place, simulate
from vcpusched.simulate.traces import generate
from vcpusched.simulate.workload import Workload, scaled
from vcpusched.simulate.workload_files import read_trace

VCPUS: Final = 256

AT_ONCE: Final[Mapping[str, object]] = {"half_life": 0, "cooldown": 0}
"""How rules other than ours run: on the loads of the last period, and on all vCPUs each time."""


def stay(host: Host, policy: Policy) -> Plan:
    """Plan nothing, and only say how the host is."""
    return plan(host, replace(policy, max_moves=0))


@dataclass(frozen=True, slots=True)
class Competitor:
    """Who plans, with which settings other than as shipped, and where vCPUs begin.

    `confirm` is for how many periods an imbalance must last; None: as shipped. Of nodes and caches
    only those are told that have them.
    """

    rule: Rule
    wishes: Mapping[str, object] = field(default_factory=dict)
    confirm: int | None = None
    place: Place = Place.RANDOM
    has_caches: bool = False
    colour: str = "black"

    def rules(self) -> Rules:
        """Return the settings for the scheduler."""
        rules: Rules = HERE.settings(**self.wishes).rules()
        return rules if self.confirm is None else replace(rules, confirm=self.confirm)


ON_CACHES: Final = f"{OURS}, pCPUs in caches"


def _competitors() -> dict[str, Competitor]:
    found = {
        "floating, the kernel alone": Competitor(stay, place=Place.FLOATING, colour="#000000"),
        "fixed random pins": Competitor(stay, colour="#999999"),
        "one-move rule": Competitor(one_move, AT_ONCE, 1),
        "re-pack": Competitor(repack, AT_ONCE, 1),
        "re-pack, smoothed loads": Competitor(repack, {"cooldown": 0}, 1, colour="#66c2a5"),
        "sticky re-pack": Competitor(sticky_repack, AT_ONCE, 1),
        OURS: Competitor(plan),
        ON_CACHES: Competitor(plan, has_caches=True, colour="#56b4e9"),
    }
    for pin_to in ("cpu", "core", "node"):
        found[f'{ON_CACHES}, pin_to = "{pin_to}"'] = Competitor(
            plan, {"pin_to": pin_to}, has_caches=True, colour="#56b4e9"
        )
    return {
        name: replace(one, colour=METHODS[name].colour) if name in METHODS else one
        for name, one in found.items()
    }


COMPETITORS: Final[Mapping[str, Competitor]] = _competitors()


def with_side(side: Side | None) -> Mapping[str, Competitor]:
    """Return the competitors, and the planner of another commit on single pCPUs, as it shipped."""
    if side is None:
        return COMPETITORS
    there = Competitor(functools.partial(_by_side, side), {"pin_to": "cpu"})
    return {**COMPETITORS, f"{OURS} at {side.name}": there}


def _by_side(side: Side, host: Host, _policy: Policy) -> Plan:
    return side.planner(pin_to="cpu")(host)[0]


CEILING: Final = "re-pack"
"""Whom the bar names: ours gets a hundredth of its pin changes."""


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
    starved most was kept waiting; `back` the pins that undid one of the last five periods;
    `balanced` the periods in which the host was under the threshold, by loads smoothed as shipped.
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
    balanced: int
    back: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One competitor on one set, over all its seeds; the worst vCPU is the worst of all seeds."""

    unmet_ppm: int
    wait_ppm: int
    worst_ppm: int
    pins_per_period: float
    balanced_ppm: int
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


def run(
    sets: Sequence[LoadSet], jobs: int, competitors: Mapping[str, Competitor] = COMPETITORS
) -> list[Run]:
    """Run every competitor on every set."""
    tasks = [
        (chosen, seed, name, competitor)
        for chosen in sets
        for seed in chosen.seeds
        for name, competitor in competitors.items()
    ]
    done = follow(_run_all(tasks, jobs), len(tasks), "Replaying loads")
    order = {task[0].name: number for number, task in enumerate(tasks)}
    names = list(competitors)
    # However the processes overtook each other, the results come in one order.
    return sorted(
        done, key=lambda one: (order[one.load_set], names.index(one.competitor), one.seed)
    )


def summary(runs: Iterable[Run]) -> Summary:
    """Sum up one competitor's runs on one set."""
    runs = list(runs)
    periods = sum(one.periods for one in runs)
    demanded_ns = sum(one.demanded_ns for one in runs)
    wait_ns = sum(one.wait_ns for one in runs)
    return Summary(
        unmet_ppm=sum(one.unmet_ns for one in runs) * PPM // demanded_ns,
        wait_ppm=wait_ns * PPM // (wait_ns + sum(one.run_ns for one in runs)),
        worst_ppm=max(one.worst_ppm for one in runs),
        pins_per_period=sum(one.pins for one in runs) / periods,
        balanced_ppm=sum(one.balanced for one in runs) * PPM // periods,
        back=sum(one.back for one in runs),
    )


Task = tuple[LoadSet, int, str, Competitor]


def _run_all(tasks: Sequence[Task], jobs: int) -> Iterator[Run]:
    if jobs == 1:
        yield from (_run_one(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for done in as_completed([pool.submit(_run_one, *task) for task in tasks]):
            yield done.result()


class _Watched(Scheduler):
    """A scheduler whose host another one watches, the same whoever plans."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(decide=rule)
        self._watcher = Scheduler(decide=stay)
        self._judging = replace(HERE.settings(pin_to="cpu").rules(), paused=True)
        self.balanced = 0

    def cycle(self, account: Account, rules: Rules, **more: Any) -> Cycle:  # noqa: ANN401  as it is
        plan = self._watcher.cycle(account, self._judging).plan
        self.balanced += plan is not None and plan.balanced
        return super().cycle(account, rules, **more)


def _run_one(chosen: LoadSet, seed: int, name: str, competitor: Competitor) -> Run:
    scheduler = _Watched(competitor.rule)
    result = simulate(
        _workload(chosen, seed),
        scheduler,
        competitor.rules(),
        place=competitor.place,
        # The simulated pCPUs are all alike.
        topology=machine(chosen.cpus) if competitor.has_caches else None,
    )
    return _figures(chosen, seed, name, result, scheduler.balanced)


def machine(cpus: int) -> Topology:
    """Return pCPUs in cores of 2, caches of 8 and nodes of 16."""
    return Topology(tuple(Cpu(cpu, cpu // 16, cpu // 2, cpu // 8) for cpu in range(cpus)))


def _figures(chosen: LoadSet, seed: int, name: str, result: Result, balanced: int) -> Run:
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
        balanced=balanced,
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
