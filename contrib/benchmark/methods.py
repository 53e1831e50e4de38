"""The competitors of the benchmark, under the names that tables and pictures use.

Rule: one table. Ours is a competitor like the others, called through the same signature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from baselines import Rule, descent, one_move, repack, sticky_repack
from candidate import moves as candidate_moves
from candidate import planner as candidate_planner

from vcpusched.model import Host
from vcpusched.plan.planner import Move, Plan, Policy, Stop, plan

POLICY: Final = Policy(min_gain_ppm=0)
"""What the bars are stated for: the default threshold, no least gain, and no check of service."""

PERIODS_MAX: Final = 200
"""For how many periods a rule may go on that makes one move in each."""


@dataclass(frozen=True, slots=True)
class Method:
    """A competitor: its rule, how many periods it is given, and its colour in pictures."""

    rule: Rule
    periods_max: int
    colour: str


def checked(host: Host, policy: Policy) -> Plan:
    """Plan as vcpusched does with the check of service on."""
    return plan(host, replace(policy, service_check=True))


def by_one_objective(host: Host, policy: Policy) -> Plan:
    """Plan with the next planner, as far as it goes: without a check of service."""
    asked = candidate_moves.Policy(
        balance_threshold_ppm=policy.balance_threshold_ppm,
        min_gain_ppm=policy.min_gain_ppm,
        moves_max=policy.moves_max,
        floating=candidate_moves.Floating(policy.floating),
        granularity=policy.granularity,
    )
    found = candidate_planner.plan(host, asked)
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    moves = tuple(
        Move(**{field.name: getattr(move, field.name) for field in fields(move)})
        for move in found.moves
    )
    return Plan(**{**values, "moves": moves, "stop": Stop(found.stop)})


OURS: Final = "vcpusched"
OURS_CHECKED: Final = f"{OURS}, service check"

METHODS: Final[Mapping[str, Method]] = {
    OURS: Method(plan, 1, "#0072b2"),
    OURS_CHECKED: Method(checked, 1, "#56b4e9"),
    "one objective": Method(by_one_objective, 1, "#000000"),
    "one-move rule": Method(one_move, PERIODS_MAX, "#d55e00"),
    "one paying move": Method(descent, PERIODS_MAX, "#e69f00"),
    "re-pack": Method(repack, 1, "#009e73"),
    "sticky re-pack": Method(sticky_repack, 1, "#cc79a7"),
}
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""
