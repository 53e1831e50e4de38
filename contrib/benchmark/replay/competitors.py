"""Which rules meet the replayed loads, with which settings, and where vCPUs begin.

Rule: every competitor meets the same guests, bursts and first affinities, and acts through the
production `Scheduler` on the simulated host; only the rule that plans, its settings, and how an
imbalance is confirmed differ.

Competitors: the kernel alone, every vCPU floating: no pins at all, and a simulated kernel that
    spreads work at once. Fixed pins: one random pCPU for each vCPU, for ever; this is also where
    all that pin begin. The original's rule and the re-packs act on what the last period showed,
    as the original did, without waiting for confirmation. Ours is as shipped: on pCPUs that share
    nothing, where each is a set of its own, and on ones in caches and nodes.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from plans.rules import RULES, Rule
from sides import HERE, Side

from vcpusched.act.cycle import Rules
from vcpusched.model import Host
from vcpusched.plan.planner import Plan, Policy, plan
from vcpusched.simulate.simulator import Place

SHIPPED: Final[Rules] = HERE.settings().rules()
AT_ONCE: Final[Rules] = replace(HERE.settings(half_life=0, cooldown=0).rules(), confirm=1)
"""How rules other than ours run: on the loads of the last period, and on all vCPUs each time."""

SINGLE: Final[Rules] = HERE.settings(pin_to="cpu").rules()


def stay(host: Host, policy: Policy) -> Plan:
    """Plan nothing, and only say how the host is."""
    return plan(host, replace(policy, max_moves=0))


@dataclass(frozen=True, slots=True)
class Competitor:
    """Which rule plans, by which settings the scheduler runs, and where vCPUs begin.

    Only those that have caches see nodes and caches.
    """

    rule: Rule
    rules: Rules = SHIPPED
    place: Place = Place.RANDOM
    has_caches: bool = False


OURS: Final = "vcpusched"

COMPETITORS: Final[Mapping[str, Competitor]] = {
    "floating, the kernel alone": Competitor(stay, place=Place.FLOATING),
    "fixed random pins": Competitor(stay),
    **{name: Competitor(rule, AT_ONCE) for name, rule in RULES.items()},
    OURS: Competitor(plan),
    f"{OURS}, pCPUs in caches": Competitor(plan, has_caches=True),
    f'{OURS}, pCPUs in caches, pin_to = "cpu"': Competitor(plan, SINGLE, has_caches=True),
}


def with_side(side: Side | None) -> Mapping[str, Competitor]:
    """Return the competitors, and the planner of another commit on single pCPUs, as it shipped."""
    if side is None:
        return COMPETITORS
    there = Competitor(functools.partial(_by_side, side), SINGLE)
    return {**COMPETITORS, f"{OURS} at {side.name}": there}


def _by_side(side: Side, host: Host, _policy: Policy) -> Plan:
    return side.planner(pin_to="cpu")(host)[0]
