"""The competitors of the benchmark, under the names that tables and pictures use.

Rule: one table. Ours is a competitor like the others, called through the same signature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from baselines import Rule, descent, one_move, repack, sticky_repack

from vcpusched.model import Host
from vcpusched.plan.planner import Plan, Policy, plan

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


OURS: Final = "vcpusched"
OURS_CHECKED: Final = f"{OURS}, service check"

METHODS: Final[Mapping[str, Method]] = {
    OURS: Method(plan, 1, "#0072b2"),
    OURS_CHECKED: Method(checked, 1, "#56b4e9"),
    "one-move rule": Method(one_move, PERIODS_MAX, "#d55e00"),
    "one paying move": Method(descent, PERIODS_MAX, "#e69f00"),
    "re-pack": Method(repack, 1, "#009e73"),
    "sticky re-pack": Method(sticky_repack, 1, "#cc79a7"),
}
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""
