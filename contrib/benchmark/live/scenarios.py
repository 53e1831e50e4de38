"""What is tried on real guests: their loads, where they start, and what is claimed of them.

Rule: values only, made for any pCPUs; nothing here runs anything.

Guests come in groups, one for each two pCPUs unless fewer are asked for (where pCPUs are emulated,
and share fewer real ones). A group asks for less than its two pCPUs have: what balance can give
shows only where a crowded pCPU has a free one beside it.
"""

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vcpusched.model import CpuSet

SETTINGS: Final = {"period": "1.0", "half_life": "3.0"}
"""Beyond these, defaults: a host is watched for seconds here, not for days."""

NAMES: Final = ("bad", "floating", "half", "turns")

BY_QUOTAS: Final = ("turns",)
"""Scenarios whose loads are changed from outside the guests, which takes quotas."""

TURN_S: Final = 6.0
"""Two half-lives: a load is seen to have changed, and does not last."""

IDLE: Final = 0.03
"""What a guest gets while it is not its turn, in pCPUs of each vCPU."""


class Claim(enum.StrEnum):
    """What is claimed."""

    GAINS = "the worst-off guest gains, none loses more than the noise"
    ALIKE = "no pin, difference within the noise"


@dataclass(frozen=True, slots=True)
class Shape:
    """A guest: what each vCPU wants (in pCPUs, above 0, up to 1) and where all of them start."""

    name: str
    shares: tuple[float, ...]
    start: CpuSet

    @property
    def wants(self) -> float:
        """Return what all its vCPUs want, in pCPUs."""
        return sum(self.shares)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host, how the daemon is set (TOML values by key), and what is claimed.

    With `in_turns` only half of the guests want their shares at a time, others every `TURN_S`.
    """

    title: str
    claim: Claim
    cpus: CpuSet
    guests: tuple[Shape, ...]
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    in_turns: bool = False

    def turn(self, number: int) -> dict[str, float]:
        """Return what vCPUs of each guest want in a turn from 0 on: their share in every second.

        Which guests work together is drawn, alike in every block.
        """
        order = list(self.guests)
        random.Random(number // 2).shuffle(order)  # noqa: S311  no secret
        half = len(order) // 2
        busy = order[:half] if number % 2 == 0 else order[half:]
        return {guest.name: guest.shares[0] if guest in busy else IDLE for guest in order}


def scenarios(cpus: CpuSet, groups: int | None = None) -> dict[str, Scenario]:
    """Return all scenarios on these pCPUs, by their short names.

    Raises ValueError for less than two pCPUs, and for groups that find no two pCPUs each.
    """
    most = len(cpus) // 2
    groups = most if groups is None else groups
    if not 1 <= groups <= most:
        raise ValueError(f"{len(cpus)} pCPUs hold 1 to {most} groups of guests, not {groups}")
    bad, half = _bound_badly(cpus, groups), _half_bound(cpus, groups)
    free = tuple(Shape(guest.name, guest.shares, cpus) for guest in bad)
    kernel = {**SETTINGS, "floating": '"kernel"'}
    made = (
        Scenario("Bound badly at the start", Claim.GAINS, cpus, bad),
        Scenario('All floating, floating = "kernel"', Claim.ALIKE, cpus, free, kernel),
        Scenario("Half bound to two pCPUs, half floating", Claim.GAINS, cpus, half),
        Scenario("Loads that change", Claim.GAINS, cpus, _in_turns(cpus, groups), in_turns=True),
    )
    return dict(zip(NAMES, made, strict=True))


def _bound_badly(cpus: CpuSet, groups: int) -> tuple[Shape, ...]:
    """All but one guest of each group on the first of its two pCPUs, which they overload."""
    order = list(cpus)
    guests = []
    for group in range(groups):
        crowded, free = (CpuSet.of([cpu]) for cpu in order[2 * group : 2 * group + 2])
        guests += [
            Shape(_name("shop", group, groups), (0.5,), crowded),
            Shape(_name("mail", group, groups), (0.35,), crowded),
            Shape(_name("database", group, groups), (0.25, 0.2), crowded),
            Shape(_name("wiki", group, groups), (0.15,), free),
        ]
    return tuple(guests)


def _half_bound(cpus: CpuSet, groups: int) -> tuple[Shape, ...]:
    """Half of all guests bound to the first two pCPUs, one of them overloaded, and half floating.

    With more groups both are overloaded.
    """
    crowded, other = (CpuSet.of([cpu]) for cpu in list(cpus)[:2])
    guests = []
    for group in range(groups):
        guests += [
            Shape(_name("shop", group, groups), (0.45,), crowded),
            Shape(_name("mail", group, groups), (0.35,), crowded if group % 2 == 0 else other),
            Shape(_name("database", group, groups), (0.3,), crowded),
            Shape(_name("wiki", group, groups), (0.05,), other),
            *(
                Shape(_name(name, group, groups), (0.1,), cpus)
                for name in ("proxy", "cache", "search", "backup")
            ),
        ]
    return tuple(guests)


def _in_turns(cpus: CpuSet, groups: int) -> tuple[Shape, ...]:
    """Six guests of a group, of which three at a time want 1.8 pCPUs, on the first two of all."""
    crowded = [CpuSet.of([cpu]) for cpu in list(cpus)[:2]]
    return tuple(
        Shape(_name(name, group, groups), (0.6,), crowded[number % 2])
        for group in range(groups)
        for number, name in enumerate(("shop", "mail", "database", "wiki", "proxy", "search"))
    )


def _name(name: str, group: int, groups: int) -> str:
    return name if groups == 1 else f"{name}{group + 1}"
