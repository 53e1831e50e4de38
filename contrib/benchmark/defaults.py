"""What other defaults would do: replays, and hosts at rest, with one setting changed at a time.

Rule: everything else is as shipped, so that a row differs from the first by its setting alone. Each
is replayed on pCPUs that share nothing, and on ones in caches, where `pin_to` chooses sets.

Choice: what is shipped is kept. Less `min_gain` or `half_life` serves one machine a little better
    for more pins, and the other no better; a `cooldown` of 300 s leaves vCPUs where they starve.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import rest
from bars import LARGE, SHIPPED, SMALL, Scale
from grid import Spread, seeded
from methods import OURS
from replay import ON_CACHES, Competitor, LoadSet, Run, run
from replay_tables import set_tables
from sides import HERE
from static import prove
from tables import Table

from vcpusched.plan.planner import plan

TRIED: Final = {"min_gain": (2, 3, 5, 8), "cooldown": (60, 300), "half_life": (15, 30, 60)}


def _variants() -> Iterator[tuple[str, Mapping[str, object]]]:
    yield "as shipped", {}
    for setting, values in TRIED.items():
        for value in values:
            if value != getattr(HERE.settings(), setting):
                yield f"{setting} {value}", {setting: value}


VARIANTS: Final = dict(_variants())

COMPETITORS: Final = {
    f"{machine}, {name}": Competitor(plan, wishes, has_caches=machine == ON_CACHES)
    for machine in (OURS, ON_CACHES)
    for name, wishes in VARIANTS.items()
}


def replayed(sets: Sequence[LoadSet], jobs: int) -> list[Run]:
    """Replay all sets with all variants."""
    return run(sets, jobs, COMPETITORS)


def tables(runs: Sequence[Run], scale: Scale, jobs: int) -> list[Table]:
    """Return one table for each set of loads, and one of hosts at rest."""
    seeds = range(1, scale.seeds + 1)
    cases = [*seeded(seeds, LARGE, [Spread.LUMPY]), *seeded(seeds, SMALL, list(Spread))]
    optima = prove([case for case in cases if 4 <= case.cpus <= 8], scale.limit_s, jobs)  # noqa: PLR2004  quick to simulate
    verdicts = {case: it.verdict for case, it in optima.items()}
    rows = []
    for name, wishes in VARIANTS.items():
        chosen = {**SHIPPED, **wishes}
        found = rest.rested(HERE, verdicts, scale.rest, scale.periods, **chosen)
        rows.append((name, *found.values()))
    title = f"At rest, {scale.periods:,} periods: pins, most plans on a host"
    return [*set_tables(runs), Table(title, ("setting", *rest.KINDS), tuple(rows))]
