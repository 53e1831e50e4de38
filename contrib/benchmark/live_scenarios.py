"""What is tried on real guests: who they are, where they start, and what is claimed of them.

Rule: values only, made for any pCPUs; nothing here runs anything.

Guests come in groups, one for each two pCPUs unless fewer are asked for (where pCPUs are emulated,
and share fewer real ones). A group asks for less than its two pCPUs have: what balance can give
shows only where a crowded pCPU has a free one beside it.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vcpusched.model import CpuSet

CPUS_MIN: Final = 2
CPUS_FOR_POOLS: Final = 4
"""From so many pCPUs on, there are two pools that have several pCPUs and none in common."""

SETTINGS: Final = {"period": "1.0", "half_life": "3.0"}
"""Beyond these, defaults: a host is watched for seconds here, not for days."""


class Claim(enum.StrEnum):
    """What is claimed."""

    GAINS = "the worst-off guest gains, none loses more than the noise"
    ALIKE = "no pin, difference within the noise"
    ONCE = "each vCPU bound at most once, no guest loses more than the noise"
    OBEYED = "obeyed in the next cycle, nothing held"


@dataclass(frozen=True, slots=True)
class Shape:
    """A guest: what each vCPU wants (in pCPUs, above 0, up to 1) and where all of them start.

    `pool` is what another hand sets as their affinity when the daemon has come to rest.
    """

    name: str
    shares: tuple[float, ...]
    start: CpuSet
    pool: CpuSet | None = None

    @property
    def wants(self) -> float:
        """What all its vCPUs want, in pCPUs."""
        return sum(self.shares)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host, how the daemon is set (TOML values by key), and what is claimed."""

    title: str
    claim: Claim
    cpus: CpuSet
    guests: tuple[Shape, ...]
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)


def scenarios(cpus: CpuSet, groups: int | None = None) -> dict[str, Scenario]:
    """Give all scenarios on these pCPUs, by their short names.

    Raises ValueError for fewer than `CPUS_MIN` pCPUs, and for groups that find no two pCPUs each.
    """
    most = len(cpus) // 2
    groups = most if groups is None else groups
    if len(cpus) < CPUS_MIN or not 1 <= groups <= most:
        raise ValueError(f"{len(cpus)} pCPUs hold 1 to {most} groups of guests, not {groups}")
    makers: dict[str, Callable[[CpuSet, int], Scenario]] = {
        "bad": _bound_badly,
        "floating": _all_floating,
        "once": _bound_once,
        "half": _half_bound,
        "pool": _pool_rewritten,
    }
    return {name: make(cpus, groups) for name, make in makers.items()}


def _bound_badly(cpus: CpuSet, groups: int) -> Scenario:
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
    return Scenario("Bound badly at the start", Claim.GAINS, cpus, tuple(guests))


def _all_floating(cpus: CpuSet, groups: int) -> Scenario:
    """Place the same guests wherever the kernel likes."""
    bound = _bound_badly(cpus, groups).guests
    return Scenario(
        'All floating, floating = "kernel"',
        Claim.ALIKE,
        cpus,
        tuple(Shape(guest.name, guest.shares, cpus) for guest in bound),
        {**SETTINGS, "floating": '"kernel"'},
    )


def _bound_once(cpus: CpuSet, groups: int) -> Scenario:
    """Place them likewise, and let the daemon bind whom it likes."""
    floating = _all_floating(cpus, groups).guests
    settings = {**SETTINGS, "floating": '"pin"'}
    return Scenario('All floating, floating = "pin"', Claim.ONCE, cpus, floating, settings)


def _half_bound(cpus: CpuSet, groups: int) -> Scenario:
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
    return Scenario("Half bound to two pCPUs, half floating", Claim.GAINS, cpus, tuple(guests))


def _pool_rewritten(cpus: CpuSet, groups: int) -> Scenario:
    """Half of the guests in a pool of pCPUs that another hand exchanges for another pool.

    From the lower half of the pCPUs to the upper half; where a half is a single pCPU, from that one
    to all. Floaters are left to the kernel and moved vCPUs may move again at once, so that a pin of
    a pooled guest, or one that must stay, can mean one thing only.
    """
    first, second = pools(cpus)
    order = list(cpus)
    guests = []
    for group in range(groups):
        left, right = (CpuSet.of([cpu]) for cpu in order[2 * group : 2 * group + 2])
        guests += [
            Shape(_name("shop", group, groups), (0.3,), first, second),
            Shape(_name("mail", group, groups), (0.3,), first, second),
            Shape(_name("database", group, groups), (0.35,), left),
            Shape(_name("wiki", group, groups), (0.25,), right),
        ]
    return Scenario(
        "A pool rewritten under the daemon",
        Claim.OBEYED,
        cpus,
        tuple(guests),
        {**SETTINGS, "floating": '"kernel"', "cooldown": "0.0"},
    )


def pools(cpus: CpuSet) -> tuple[CpuSet, CpuSet]:
    """Give a pool to start in, and another one to change to."""
    order: Sequence[int] = list(cpus)
    half = len(order) // 2
    if len(order) < CPUS_FOR_POOLS:
        return CpuSet.of(order[:1]), cpus
    return CpuSet.of(order[:half]), CpuSet.of(order[half:])


def _name(name: str, group: int, groups: int) -> str:
    return name if groups == 1 else f"{name}{group + 1}"
