"""The competitors, under the names that tables and pictures use.

Rule: one table. Ours is a competitor like the others, called through the same signature.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plans.rules import Rule, one_move, repack, sticky_repack
from sides import HERE, Planner, Side, timed

from vcpusched.plan.planner import Policy

PLAIN: Final[Mapping[str, object]] = {
    "pin_to": "cpu",
    "max_moves": 0,
    "fair_shares": False,
    "min_gain": 0,
}
"""The settings under which plans are compared with the proven fewest pin changes."""

POLICY: Final[Policy] = HERE.settings(**PLAIN).policy()

PERIODS_MAX: Final = 200
"""For how many periods a rule may go on that makes one move in each."""


@dataclass(frozen=True, slots=True)
class Method:
    """A competitor: its planner, how many periods it is given, and its colour in pictures."""

    planner: Planner
    periods_max: int = 1
    colour: str = "#000000"


def _ruled(rule: Rule) -> Planner:
    return timed(lambda host: rule(host, POLICY))


OURS: Final = "vcpusched"

METHODS: Final[Mapping[str, Method]] = {
    OURS: Method(HERE.planner(**PLAIN), 1, "#0072b2"),
    "one-move rule": Method(_ruled(one_move), PERIODS_MAX, "#d55e00"),
    "re-pack": Method(_ruled(repack), 1, "#009e73"),
    "sticky re-pack": Method(_ruled(sticky_repack), 1, "#cc79a7"),
}
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""


def with_side(side: Side | None) -> Mapping[str, Method]:
    """Return the competitors, and after ours the planner of another commit."""
    if side is None:
        return METHODS
    first, *others = METHODS.items()
    return dict([first, (f"{OURS} at {side.name}", Method(side.planner(**PLAIN))), *others])
