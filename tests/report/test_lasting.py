"""Lines about what lasts: few, whatever the noise."""

import dataclasses
import random
from collections.abc import Sequence

import pytest
from builders import MemoryHost, host

from vcpusched.act.cycle import Cycle, Scheduler
from vcpusched.plan.planner import Policy, plan
from vcpusched.report.lasting import AGAIN_NS, LASTING_NS, MOVES_MAX, Lasting, dry_run_text
from vcpusched.settings import Settings

SECOND_NS = 1_000_000_000
CROWDED = host([50, 50, 25, 25], [10])
ELSEWHERE = host([10], [50, 50, 25, 25])
SETTLED = host([90], [30])
BALANCED = host([60], [60])


def lines(lasting: Lasting, *cycles: Cycle) -> list[str]:
    """Return what is reported after cycles."""
    return [entry.message for cycle in cycles for entry in lasting.entries(cycle, Policy())]


def dry(drawn: object, at_s: float) -> Cycle:
    """Return a cycle of a dry run."""
    return dataclasses.replace(cycle(drawn, at_s), executed=True, dry_run=True)


def cycle(drawn: object, at_s: float) -> Cycle:
    """Return a cycle that plans for a host."""
    found = plan(drawn, Policy())  # type: ignore[arg-type]
    return Cycle(1, 4, host=drawn, plan=found, at_ns=round(at_s * SECOND_NS))  # type: ignore[arg-type]


def test_a_dry_run_is_reported_once() -> None:
    """The same plan never again; another one, but not within ten minutes of the last."""
    lasting, later_s = Lasting(), AGAIN_NS / SECOND_NS
    (said,) = lines(lasting, *(dry(CROWDED, at_s) for at_s in (1, 4, 7, 5000)))
    assert said == (
        "Dry run: would make 2 pins, gap 140 -> ~10 points: "
        "vCPU 0 of g1, pCPU 0 -> pCPU 1; vCPU 0 of g2, pCPU 0 -> pCPU 1"
    )
    assert len(lines(lasting, *(dry(ELSEWHERE, 5000 + at_s) for at_s in (1, 4, 7)))) == 1
    assert lines(lasting, dry(CROWDED, 5100)) == []
    assert len(lines(lasting, dry(CROWDED, 5001 + later_s))) == 1


def test_a_long_plan_is_one_line() -> None:
    """It names some moves, and says how many more there are."""
    found = plan(host([20] * 40, [], [], []), Policy())
    text = dry_run_text(found)
    assert text.count(", pCPU 0 -> ") == MOVES_MAX
    assert f"{len(found.moves) - MOVES_MAX} more" in text


def test_an_unbalanced_host_without_a_worthwhile_pin_is_reported_and_its_end() -> None:
    """Once each, when it has lasted for a minute; a moment of something else is no end."""
    lasting, last_s = Lasting(), LASTING_NS / SECOND_NS
    assert lines(lasting, *(cycle(SETTLED, at_s) for at_s in (0, 30, last_s - 1))) == []
    (begun,) = lines(lasting, *(cycle(SETTLED, at_s) for at_s in (last_s, last_s + 3, 500)))
    assert begun.startswith("Not balancing: gap 60 points, but vCPU 0 of g0")
    assert lines(lasting, cycle(BALANCED, 600), cycle(SETTLED, 630), cycle(BALANCED, 665)) == []
    (ended,) = lines(lasting, cycle(BALANCED, 665 + last_s), cycle(BALANCED, 2000))
    assert ended == "Balanced again: gap 0 points"


def test_nothing_is_said_to_be_balanced_in_a_dry_run() -> None:
    """That there are moves again is so in a pause and a dry run, too, which make none."""
    lasting, last_s = Lasting(), LASTING_NS / SECOND_NS
    lines(lasting, cycle(SETTLED, 0), cycle(SETTLED, last_s))
    lines(lasting, dry(CROWDED, 600))
    (ended,) = lines(lasting, dry(CROWDED, 600 + last_s))
    assert ended == "Unbalanced, and there are moves that are worth a pin again: gap 140 points"


def noisy(cpus: int, seed: int, crowded: Sequence[int]) -> MemoryHost:
    """Return a host with three guests a pCPU, all of them on the `crowded` pCPUs."""
    chance = random.Random(seed)
    names = [f"g{number}" for number in range(3 * cpus)]
    wants = {name: chance.choice([0.05, 0.1, 0.2, 0.3, 0.6]) for name in names}
    return MemoryHost(cpus, wants, {name: str(chance.choice(crowded)) for name in names})


def lines_an_hour(cpus: int, *, dry_run: bool, periods: int = 1200) -> tuple[int, int]:
    """Run the service's cycle on a noisy host; returns lines an hour about what lasts, and plans.

    Each guest wants up to a tenth of a pCPU more or less in each period of 3 s.
    """
    simulated = noisy(cpus, 1, range(cpus // 2))
    base, chance = dict(simulated.wants), random.Random(2)
    lasting, scheduler, said, plans = Lasting(), Scheduler(), 0, 0
    rules = Settings.model_validate({"pin_to": "cpu", "dry_run": dry_run}).rules()
    for _ in range(periods):
        simulated.wants = {
            name: min(1.0, max(0.0, want + chance.uniform(-0.1, 0.1)))
            for name, want in base.items()
        }
        simulated.pass_time(3)
        done = scheduler.cycle(simulated, rules)
        plans += done.executed
        said += len(lines(lasting, done))
    return said * 1200 // periods, plans


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_noisy_host_is_quiet(*, dry_run: bool) -> None:
    """Eight pCPUs, five minutes: a dry run finds a plan in every second period, and reports one."""
    said, plans = lines_an_hour(8, dry_run=dry_run, periods=100)
    assert said <= 12
    assert plans > (30 if dry_run else 0)
