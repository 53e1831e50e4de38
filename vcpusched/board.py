"""Where every vCPU counts, and the load of every pCPU that comes of it.

Rule: a value that is not changed: a move gives another board. What the planner thinks on, and no
decisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from vcpusched.model import CpuSet, Host, Vcpu

POURINGS: Final = 12
"""How often water in overlapping masks is poured anew: none of 20,000 random hosts needed more
to come within a point of level."""


@dataclass(frozen=True, slots=True)
class Board:
    """A host on which each vCPU counts on one pCPU, or is poured.

    `place` holds, by the index of the vCPU, the pCPU it counts on; None for one that is poured or
    on no managed pCPU. `pools` holds the water for each mask, `base` the loads without it, `levels`
    those with it.
    """

    vcpus: tuple[Vcpu, ...]
    place: tuple[int | None, ...]
    pools: tuple[tuple[CpuSet, int], ...]
    base: dict[int, int]
    levels: dict[int, int] = field(default_factory=dict)
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, host: Host, vcpus: Sequence[Vcpu], poured: Sequence[bool]) -> Self:
        """Set up a host; `poured` tells which vCPUs flow like water over their masks."""
        base = {cpu.id: cpu.host_load_ppm for cpu in sorted(host.cpus, key=lambda cpu: cpu.id)}
        place: list[int | None] = []
        for vcpu, pour in zip(vcpus, poured, strict=True):
            cpu = next(iter(vcpu.cpus)) if vcpu.is_bound else vcpu.on
            place.append(None if pour or cpu not in base else cpu)
        members: dict[int, list[int]] = {cpu: [] for cpu in base}
        for index, cpu in enumerate(place):
            if cpu is not None:
                base[cpu] += vcpus[index].load_ppm
                members[cpu].append(index)
        pools: dict[CpuSet, int] = {}
        for index, pour in enumerate(poured):
            if pour:
                mask = CpuSet.of(cpu for cpu in vcpus[index].cpus if cpu in base)
                pools[mask] = pools.get(mask, 0) + vcpus[index].load_ppm
        board = cls(
            vcpus=tuple(vcpus),
            place=tuple(place),
            # Whoever has least choice is poured first, so that the others can flow around it.
            pools=tuple(sorted(pools.items(), key=lambda pool: (len(pool[0]), pool[0].bits))),
            base=base,
            members={cpu: tuple(indices) for cpu, indices in members.items()},
        )
        board.levels.update(board.poured_levels())
        return board

    def poured_levels(self) -> dict[int, int]:
        """Give the loads with the floaters poured over the bound ones."""
        levels = dict(self.base)
        shares: dict[CpuSet, list[tuple[int, int]]] = {}
        # Where masks overlap, the water poured first has to give way to what came later.
        for _ in range(POURINGS if len(self.pools) > 1 else 1):
            for mask, load_ppm in self.pools:
                for cpu, amount_ppm in shares.get(mask, ()):
                    levels[cpu] -= amount_ppm
                shares[mask] = _pour(levels, tuple(mask), load_ppm)
                for cpu, amount_ppm in shares[mask]:
                    levels[cpu] += amount_ppm
        return levels

    def moved(self, index: int, target: int) -> "Board":
        """Give the board with one vCPU elsewhere."""
        source, load_ppm = self.place[index], self.vcpus[index].load_ppm
        place = list(self.place)
        place[index] = target
        base, members = dict(self.base), dict(self.members)
        if source is not None:
            base[source] -= load_ppm
            members[source] = tuple(other for other in members[source] if other != index)
        base[target] += load_ppm
        members[target] = (*members[target], index)
        board = Board(self.vcpus, tuple(place), self.pools, base, {}, members)
        board.levels.update(board.poured_levels())
        return board

    def gap_ppm(self) -> int:
        """Give the load of the busiest less that of the freest pCPU."""
        return max(self.levels.values(), default=0) - min(self.levels.values(), default=0)

    def profile(self) -> list[int]:
        """Give the loads, largest first: of two boards the one with the smaller list is better."""
        return sorted(self.levels.values(), reverse=True)

    def relatives(self, index: int, cpu: int) -> int:
        """Count the other vCPUs of the same domain on a pCPU."""
        uuid = self.vcpus[index].id.uuid
        return sum(
            other != index and self.vcpus[other].id.uuid == uuid for other in self.members[cpu]
        )


def _pour(levels: dict[int, int], mask: Sequence[int], load_ppm: int) -> list[tuple[int, int]]:
    """Share a load over the least loaded pCPUs of a mask so that their levels become equal."""
    order = sorted(mask, key=lambda cpu: (levels[cpu], cpu))
    if not order:
        return []
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
