"""Where every vCPU counts, and the load of every pCPU that comes of it.

Rule: a value that is not changed; what the planner thinks on, and no decisions. Inside, pCPUs and
vCPUs are positions in rising order of their numbers, since lists are quick.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from vcpusched.model import PPM, Cpu, CpuSet, Host, Vcpu
from vcpusched.plan.frame import moved
from vcpusched.text import cpus_text

POURINGS: Final = 12
"""How often water in overlapping masks is poured anew: none of 20,000 random hosts needed more
to come within a point of level."""

NOWHERE: Final = -1
"""The home of a vCPU that is poured, or is on no managed pCPU."""


@dataclass(frozen=True)
class Board:
    """A host on which each vCPU counts on one pCPU, or is poured.

    `cpus` are the numbers of the pCPUs; all else goes by position in it: `judged` are the pCPUs
    that may give and take, `home` is where each vCPU counts, `allowed` a bit for each pCPU that it
    may be on (0 for one that stays where it is), `base` the loads without the water, `pools` the
    water for each mask, `spread` the vCPUs of guests that keep theirs apart, `sites` where pCPUs
    are in the machine and `names` what people call them. `lacks` is the load that each counts too
    much since it can do less than the best, and `gives` what it can do.
    """

    vcpus: Sequence[Vcpu]
    cpus: tuple[int, ...]
    judged: tuple[int, ...]
    loads: Sequence[int]
    home: Sequence[int]
    allowed: Sequence[int]
    base: Sequence[int]
    pools: tuple[tuple[tuple[int, ...], int], ...]
    spread: Sequence[int] = ()
    sites: tuple[Cpu, ...] = ()
    names: tuple[str, ...] = ()
    lacks: tuple[int, ...] = ()
    gives: tuple[int, ...] = ()

    @classmethod
    def of(cls, host: Host, vcpus: Sequence[Vcpu], *, binding: bool) -> Self:
        """Set up a host, its vCPUs in the order of their ids.

        `binding`: floaters count where they were seen, and they are what may be moved. Otherwise
        floaters are water, and bound vCPUs may be moved.
        """
        cpus = sorted(host.cpus, key=lambda cpu: cpu.id)
        base_of = {cpu.id: cpu.host_load_ppm + cpu.lacks_ppm for cpu in cpus}
        position = {cpu: index for index, cpu in enumerate(base_of)}
        base = list(base_of.values())
        unjudged = {position[cpu] for cpu in host.unsettled if cpu in position}
        loads = [vcpu.load_ppm for vcpu in vcpus]
        home, allowed, water = [], [], []
        targets = _Targets(position, unjudged)
        masks: dict[int, int] = {}
        known, numbered = masks.get, position.get
        for index, vcpu in enumerate(vcpus):
            bits, place = vcpu.cpus.bits, None
            bound = bits.bit_count() <= 1
            if bound:
                place = numbered(bits.bit_length() - 1)
            else:
                # What floats counts where it was seen only to be bound, and only where it may be.
                on = vcpu.on
                if binding and on is not None and bits >> on & 1:
                    place = numbered(on)
                if place is None:
                    water.append(index)
            load = loads[index]
            if place is None:
                home.append(NOWHERE)
                allowed.append(0)
                continue
            home.append(place)
            base[place] += load
            if bound is binding or vcpu.fixed or not load or place in unjudged:
                allowed.append(0)
                continue
            bits = vcpu.allowed.bits
            mask = known(bits)
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
            spread=[index for index, vcpu in enumerate(vcpus) if vcpu.spread],
            sites=tuple(cpu.cpu for cpu in cpus),
            names=tuple(cpus_text(cpu.members or CpuSet.of([cpu.id])) for cpu in cpus),
            lacks=tuple(cpu.lacks_ppm for cpu in cpus),
            gives=tuple(cpu.gives_ppm for cpu in cpus),
        )

    def moved(self, place: Sequence[int]) -> "Board":
        """Give the board once the vCPUs are at these places."""
        return dataclasses.replace(self, home=place, base=self.at(place))

    @cached_property
    def may(self) -> list[int]:
        """A bit for each pCPU that a vCPU may be moved to: not its home."""
        # One number per pCPU, since in Python to make a number of a thousand bits takes a while.
        others = [~(1 << cpu) for cpu in range(len(self.base))]
        return [
            mask & others[home] if mask else 0
            for mask, home in zip(self.allowed, self.home, strict=True)
        ]

    @cached_property
    def cores(self) -> list[int]:
        """A bit for all pCPUs on the core of each; one whose core is unknown is a core."""
        members: dict[int, int] = {}
        for index, site in enumerate(self.sites):
            if site.core is not None:
                members[site.core] = members.get(site.core, 0) | 1 << index
        return [
            1 << index if site.core is None else members[site.core]
            for index, site in enumerate(self.sites)
        ]

    def lone(self) -> set[int]:
        """Give the vCPUs that are alone on the busiest pCPU: elsewhere they would be as busy."""
        levels = self.levels(self.base)
        peak = max((levels[cpu] for cpu in self.judged), default=0)
        busiest = {cpu for cpu in self.judged if levels[cpu] == peak}
        crowd = Counter(filter(busiest.__contains__, self.home))
        busiest = {cpu for cpu in busiest if crowd[cpu] == 1}
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
                shares[mask] = pour(levels, mask, load_ppm)
                for cpu, amount_ppm in shares[mask]:
                    levels[cpu] += amount_ppm
        return levels

    def told(self, levels: Sequence[int], cpus: Iterable[int]) -> dict[int, int]:
        """Give loads of pCPUs as people are told them: as shares of what each can do."""
        if self._is_even:
            return {cpu: levels[cpu] for cpu in cpus}
        return {cpu: (levels[cpu] - self.lacks[cpu]) * PPM // self.gives[cpu] for cpu in cpus}

    @cached_property
    def _is_even(self) -> bool:
        return not any(self.lacks) and all(gives == PPM for gives in self.gives)

    def gap_ppm(self, levels: Sequence[int]) -> int:
        """Give the load of the busiest less that of the freest pCPU that is judged."""
        judged = [levels[cpu] for cpu in self.judged]
        return max(judged, default=0) - min(judged, default=0)


class Places:
    """Where the vCPUs of a board are, while a few of them are moved, with the loads that makes.

    The water stays where it was at first. `guests` counts the vCPUs of each guest on each pCPU,
    `least` and `most` are the loads between which the host is as balanced as it was: where that is
    within `span`, the threshold, the peak may rise to it, but not above that of the board.
    """

    def __init__(self, board: Board, place: Sequence[int], span: int = 0) -> None:
        self._board = board
        self.of = list(place)
        self.levels = board.levels(board.at(place))
        guests = (vcpu.id.uuid for vcpu in board.vcpus)
        self.guests = Counter(zip(guests, place, strict=True))
        judged = [self.levels[cpu] for cpu in board.judged]
        self.least, self.most = min(judged), max(judged)
        self.is_balanced = self.most - self.least < span
        if self.is_balanced:
            before = board.levels(board.base)
            peak = max(before[cpu] for cpu in board.judged)
            self.most = max(self.most, min(self.least + span - 1, peak))

    def joins(self, vcpu: int, cpu: int) -> bool:
        """Tell whether there is a vCPU of its guest."""
        return self.guests[self._board.vcpus[vcpu].id.uuid, cpu] > 0

    def put(self, vcpu: int, cpu: int) -> None:
        """Move a vCPU."""
        size, guest = self._board.loads[vcpu], self._board.vcpus[vcpu].id.uuid
        for where, sign in ((self.of[vcpu], -1), (cpu, 1)):
            self.levels[where] += sign * size
            self.guests[guest, where] += sign
        self.of[vcpu] = cpu


class _Targets:
    """Translates masks of pCPU numbers into bits of positions; there are few different ones."""

    def __init__(self, position: dict[int, int], closed: Iterable[int]) -> None:
        self._position = position
        self._all = sum(1 << cpu for cpu in position)
        self._contiguous = all(cpu == index for cpu, index in position.items())
        self._open = ~sum(1 << index for index in closed)
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
        return self.managed(bits) & self._open


def _positions(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def pour(
    levels: Sequence[int] | Mapping[int, int], mask: Sequence[int], load_ppm: int
) -> list[tuple[int, int]]:
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
