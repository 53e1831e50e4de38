"""Where every vCPU counts, and the load of every pCPU that comes of it.

Rule: a value that is not changed; what the planner thinks on, and no decisions. Inside, pCPUs and
vCPUs are positions in rising order of their numbers, since lists are quick.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from vcpusched.frame import moved
from vcpusched.model import Host, Vcpu

POURINGS: Final = 12
"""How often water in overlapping masks is poured anew: none of 20,000 random hosts needed more
to come within a point of level."""

NOWHERE: Final = -1
"""The home of a vCPU that is poured, or is on no managed pCPU."""


@dataclass(frozen=True, slots=True)
class Board:
    """A host on which each vCPU counts on one pCPU, or is poured.

    `cpus` are the numbers of the pCPUs; all else goes by position in it: `judged` are the pCPUs
    that may give and take, `home` is where each vCPU counts, `allowed` a bit for each pCPU that it
    may be on (0 for one that stays where it is), `base` the loads without the water and `pools` the
    water for each mask; `cores` has for each pCPU a bit for all those on its core.
    """

    vcpus: Sequence[Vcpu]
    cpus: tuple[int, ...]
    judged: tuple[int, ...]
    loads: Sequence[int]
    home: Sequence[int]
    allowed: Sequence[int]
    base: Sequence[int]
    pools: tuple[tuple[tuple[int, ...], int], ...]
    cores: Sequence[int]

    @classmethod
    def of(cls, host: Host, vcpus: Sequence[Vcpu], *, binding: bool) -> Self:
        """Set up a host, its vCPUs in the order of their ids.

        `binding`: floaters count where they were seen, and they are what may be moved. Otherwise
        floaters are water, and bound vCPUs may be moved.
        """
        base_of = {cpu.id: cpu.host_load_ppm for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
        position = {cpu: index for index, cpu in enumerate(base_of)}
        base = list(base_of.values())
        unjudged = {position[cpu] for cpu in host.unsettled if cpu in position}
        loads = [vcpu.load_ppm for vcpu in vcpus]
        home, allowed, water = [], [], []
        targets = _Targets(position, unjudged)
        masks: dict[int, int] = {}
        for index, vcpu in enumerate(vcpus):
            bits = vcpu.cpus.bits
            bound = not bits & (bits - 1)
            on = bits.bit_length() - 1 if bound else vcpu.on
            if not bound and (not binding or on is None or not bits >> on & 1):
                on = None
                water.append(index)
            place = NOWHERE if on is None else position.get(on, NOWHERE)
            home.append(place)
            if place == NOWHERE:
                if on is not None and not bound:
                    water.append(index)
                allowed.append(0)
                continue
            base[place] += loads[index]
            stays = bound is binding or vcpu.fixed or place in unjudged or not loads[index]
            if stays:
                allowed.append(0)
                continue
            bits = vcpu.allowed.bits
            mask = masks.get(bits)
            if mask is None:
                mask = masks[bits] = targets.of(bits)
            allowed.append(mask)
        pools: dict[int, int] = {}
        for index in water:
            mask = targets.managed(vcpus[index].cpus.bits)
            pools[mask] = pools.get(mask, 0) + loads[index]
        return cls(
            vcpus=vcpus,
            cpus=tuple(position),
            judged=tuple(cpu for cpu in range(len(base)) if cpu not in unjudged),
            loads=loads,
            home=home,
            allowed=allowed,
            base=base,
            # Whoever has least choice is poured first, so that the others can flow around it.
            pools=tuple(
                (tuple(_positions(mask)), pools[mask])
                for mask in sorted(pools, key=lambda mask: (mask.bit_count(), mask))
                if mask
            ),
            cores=_cores(host, position),
        )

    def moved(self, place: Sequence[int]) -> "Board":
        """Give the board once the vCPUs are at these places."""
        return dataclasses.replace(self, home=place, base=self.at(place))

    @property
    def may(self) -> list[int]:
        """A bit for each pCPU that a vCPU may be moved to: not its home."""
        return [
            mask & ~(1 << home) if mask else 0
            for mask, home in zip(self.allowed, self.home, strict=True)
        ]

    def lone(self) -> set[int]:
        """Give the vCPUs that are alone on the busiest pCPU: elsewhere they would be as busy."""
        levels = self.levels(self.base)
        peak = max((levels[cpu] for cpu in self.judged), default=0)
        crowd = Counter(self.home)
        busiest = {cpu for cpu in self.judged if levels[cpu] == peak and crowd[cpu] == 1}
        return {vcpu for vcpu, cpu in enumerate(self.home) if cpu in busiest} if busiest else set()

    def at(self, place: Sequence[int]) -> list[int]:
        """Give the loads without the water when the vCPUs are at these places."""
        base = list(self.base)
        for vcpu in moved(self.home, place):
            base[self.home[vcpu]] -= self.loads[vcpu]
            base[place[vcpu]] += self.loads[vcpu]
        return base

    def levels(self, base: Sequence[int]) -> list[int]:
        """Give the loads with the floaters poured over those that are bound."""
        levels = list(base)
        shares: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        # Where masks overlap, the water poured first has to give way to what came later.
        for _ in range(POURINGS if len(self.pools) > 1 else 1):
            for mask, load_ppm in self.pools:
                for cpu, amount_ppm in shares.get(mask, ()):
                    levels[cpu] -= amount_ppm
                shares[mask] = _pour(levels, mask, load_ppm)
                for cpu, amount_ppm in shares[mask]:
                    levels[cpu] += amount_ppm
        return levels

    def gap_ppm(self, levels: Sequence[int]) -> int:
        """Give the load of the busiest less that of the freest pCPU that is judged."""
        judged = [levels[cpu] for cpu in self.judged]
        return max(judged, default=0) - min(judged, default=0)


class _Targets:
    """Translates masks of pCPU numbers into bits of positions; there are few different ones."""

    def __init__(self, position: dict[int, int], unjudged: Iterable[int]) -> None:
        self._position = position
        self._all = sum(1 << cpu for cpu in position)
        self._contiguous = all(cpu == index for cpu, index in position.items())
        self._judged = ~sum(1 << index for index in unjudged)
        self._known: dict[int, int] = {}

    def managed(self, bits: int) -> int:
        """Give the positions of the managed pCPUs in a mask."""
        known = self._known.get(bits)
        if known is None:
            known = bits & self._all
            if not self._contiguous:
                known = sum(1 << self._position[cpu] for cpu in _positions(known))
            self._known[bits] = known
        return known

    def of(self, bits: int) -> int:
        """Give the positions of the pCPUs in a mask that may take a vCPU."""
        return self.managed(bits) & self._judged


def _cores(host: Host, position: dict[int, int]) -> list[int]:
    """Give the positions on the core of each position; one whose core is unknown is a core."""
    cores: dict[int, int] = {}
    for cpu in host.cpus:
        if cpu.cpu.core is not None:
            cores[cpu.cpu.core] = cores.get(cpu.cpu.core, 0) | 1 << position[cpu.id]
    core_of = {cpu.id: cpu.cpu.core for cpu in host.cpus}
    return [
        1 << index if (core := core_of[cpu]) is None else cores[core]
        for cpu, index in position.items()
    ]


def _positions(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def _pour(levels: Sequence[int], mask: Sequence[int], load_ppm: int) -> list[tuple[int, int]]:
    """Share a load over the least loaded pCPUs of a mask so that their levels become equal."""
    order = sorted(mask, key=lambda cpu: (levels[cpu], cpu))
    total_ppm, wet = load_ppm, 0
    for cpu in order:
        if wet and total_ppm <= levels[cpu] * wet:
            break
        total_ppm += levels[cpu]
        wet += 1
    level_ppm, rest_ppm = divmod(total_ppm, wet)
    return [
        (cpu, level_ppm + (position < rest_ppm) - levels[cpu])
        for position, cpu in enumerate(order[:wet])
    ]
