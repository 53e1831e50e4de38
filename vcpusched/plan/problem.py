"""One balancing problem in plain integers: bins, items, and where each item may be.

Rule: values; nothing here searches. Bins are pCPUs or sets of them (`cpu_groups`), items are vCPUs;
both go by position, in rising order of their numbers and ids. Loads are in ppm of the largest bin.

Terms: a floater may use several bins. In the *measured* view floaters count where they were last
    seen, and are what may be moved. In the *poured* view bound vCPUs may be moved, and floaters
    fill the least loaded bins of their masks as the kernel spreads them. Off an isolated pCPU it
    moves none, so one there counts there and may be moved in both.
Properties: what must not be is a missing bit in `allowed`: masks, fixed vCPUs, unsettled pCPUs,
    those on which guests start, the cores that hold another vCPU of a guest that keeps them apart,
    sets in which nobody waits, and vCPUs alone on the busiest bin, which would make the same load
    elsewhere.
"""

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, count
from typing import Final

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Vcpu
from vcpusched.plan.cpu_groups import ACROSS, CACHE, CORE, NODE, Bins, pour

SCALE: Final = 1_000  # units of the objective per ppm of load
PIN: Final = 100  # what each pin costs beyond its price, so that the fewest win

NOWHERE: Final = -1  # where an item is that floats, or is on no managed pCPU

OTHER_CACHE, OTHER_NODE = 5, 8
"""What a pin to another cache or node must gain, in halves of what one to a neighbour must."""

TIE_PPM: Final = 2 * PPM_PER_POINT
"""Moves whose gains differ by less are equal: company, memory and NUMA distance decide."""

POURINGS: Final = 12
"""How often overlapping masks are poured anew: enough to come within a point of level."""

NEEDS: Final[dict[str, set[str]]] = {
    "own": {"current", "allowed"},
    "limits": {"base", "floating", "current", "allowed", "span"},
    "_company": {"current"},
}
"""What is worked out once, and kept as long as what it needs stays the same."""


@dataclass
class Problem:
    """Items on bins, and what each may do.

    `span` is the threshold, and `min_gain` the price of a pin, in ppm of a pCPU. `guest` says which
    guest each item is of, None where each is the only one of its guest; `spread` are the items of
    guests that keep theirs on different cores. `allowed` has a bit for each bin that an item may be
    put on, 0 for one that stays; `base` are the loads without floaters; `origin` is where items
    were before the plan. On `filled` bins floaters fill what is missing, `floating` in all. Of the
    bins in `surplus` so many items may leave, net. `refused` are places to which there is no way.
    Where it `is_large` there is time for a descent only.
    """

    bins: Bins
    vcpus: Sequence[Vcpu]
    size: Sequence[int]
    current: Sequence[int]
    allowed: Sequence[int]
    base: Sequence[int]
    span: int
    min_gain: int
    guest: Sequence[str] | None
    spread: Mapping[str, Sequence[int]]
    origin: Sequence[int]
    pools: tuple[tuple[tuple[int, ...], int], ...]
    memory: Mapping[int, int]
    surplus: Mapping[int, int]
    measured: bool
    filled: frozenset[int] = frozenset()
    floating: int = 0
    refused: frozenset[tuple[int, ...]] = frozenset()
    is_large: bool = False

    @cached_property
    def prices(self) -> tuple[int, ...]:
        """What a pin costs by distance."""
        near = self.min_gain * PPM // self.bins.whole * SCALE + PIN
        if self.bins.sites is None:
            return (0, near, near, near, near)
        return (0, near, near + CACHE, near * OTHER_CACHE // 2, near * OTHER_NODE // 2)

    @cached_property
    def tie(self) -> int:
        """What being apart from company costs: less than a pin, so that it asks for none."""
        return min(TIE_PPM * SCALE, self.prices[CORE] * 2 // 5)

    @cached_property
    def own(self) -> list[list[tuple[int, int]]]:
        """The movable items of each bin as (size, item), rising."""
        own: list[list[tuple[int, int]]] = [[] for _ in self.base]
        for mask, current, one in zip(self.allowed, self.current, zip(self.size, count())):  # noqa: B905
            if mask:
                own[current].append(one)
        return [sorted(members) for members in own]

    @cached_property
    def limits(self) -> tuple[int, int]:
        """Where the band may begin: so that the mean of the bins that can be helped is inside."""
        span, own, fixed = self.span, self.own, list(self.base)
        for bin_, members in enumerate(own):
            fixed[bin_] -= sum([size for size, _ in members])
        active = set(self.bins.judged)
        least = min((fixed[bin_] for bin_ in active), default=0)
        rest, mean = sum(self.base[bin_] for bin_ in active) + self.floating, 0
        while active:
            mean = rest // len(active)
            helpless = {}
            for bin_ in active:
                load, giant = fixed[bin_], own[bin_][-1][0] if own[bin_] else 0
                # Where it would be just as far out elsewhere, a giant may as well stay.
                if giant > mean + span - 1 - least and load <= least + span // 2:
                    load += giant
                if load > mean + span - 1:
                    helpless[bin_] = load
            if not helpless:  # nor can be helped what cannot be filled
                most = self._most([bin_ for bin_ in active if self.base[bin_] <= mean - span])
                helpless = {bin_: load for bin_, load in most.items() if load <= mean - span}
            if not helpless or len(helpless) == len(active):
                break
            rest -= sum(helpless.values())
            active -= helpless.keys()
        return max(0, mean - span + 1), mean

    def _most(self, few: Sequence[int]) -> dict[int, int]:
        """Return how much there can be on a few bins, if all came that may."""
        loads, most = dict[int, int](), {bin_: self.base[bin_] for bin_ in few}
        for mask, size in zip(self.allowed, self.size if few else ()):  # noqa: B905  in a hurry
            loads[mask] = loads.get(mask, 0) + size
        for bin_ in few:
            most[bin_] += sum([load for mask, load in loads.items() if mask >> bin_ & 1])
            most[bin_] += self.floating if bin_ in self.filled else 0
        return most

    @cached_property
    def _company(self) -> Counter[tuple[str, int | None, int, int | None]]:
        """How many items of each guest, or cell of it, are on each cache and on each node."""
        company = Counter[tuple[str, int | None, int, int | None]]()
        if self.guest is not None and self.bins.sites is not None:
            for item, current in enumerate(self.current):
                if current != NOWHERE:
                    cell, site = (self.guest[item], self.memory.get(item)), self.bins.sites[current]
                    company[*cell, CACHE, site.cache] += 1
                    company[*cell, NODE, site.node] += 1
        return company

    def price(self, item: int, bin_: int) -> int:
        """Return what it costs to have an item on another bin than now, balance aside."""
        current = self.current[item]
        if bin_ == current:
            return 0
        far = self.bins.distance(current, bin_)
        price = self.prices[far]
        if far >= NODE:
            price += self._apart(item, current, bin_, far)
        if self.bins.thread is not None:
            size, thread = self.size[item], self.bins.thread
            price += SCALE * (max(0, size - thread[bin_]) - max(0, size - thread[current]))
            if size <= thread[current] < thread[bin_]:
                price += self.prices[CORE]  # strong pCPUs are for those that need them
        return price

    def _apart(self, item: int, current: int, bin_: int, far: int) -> int:
        """Return what it costs to go so far: away from memory, from company, over long ways."""
        sites, ways = self.bins.sites or (), self.bins.distances
        here, there, more = sites[current], sites[bin_], 0
        memory = self.memory.get(item)
        if memory is not None and far == ACROSS:
            if there.node == memory:
                more = self.prices[NODE] - self.prices[ACROSS]
            elif here.node == memory:
                more = 2 * self.tie
        if ways and far == ACROSS and here.node is not None and there.node is not None:
            longest = max(ways.values())
            more += self.tie * ways.get((here.node, there.node), longest) // (2 * longest)
        if self.guest is not None:
            cell, company = (self.guest[item], memory), self._company
            leaves = company[*cell, CACHE, here.cache] - 1 > company[*cell, CACHE, there.cache]
            if far == ACROSS and not leaves:
                leaves = company[*cell, NODE, here.node] - 1 > company[*cell, NODE, there.node]
            more += self.tie if leaves else 0
        return more

    def target(self, item: int, bin_: int) -> CpuSet:
        """Return the pCPUs of a bin that an item may use."""
        return self.bins.members[bin_] & self.vcpus[item].allowed

    def moved(self, place: Sequence[int]) -> list[int]:
        """Return the items that are not where they are now."""
        return list(compress(count(), map(operator.ne, place, self.current)))

    def leaving(self, place: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return of each bin of `surplus` how many items may leave it, and how many do, net."""
        gone: Counter[int] = Counter()
        for item in self.moved(place) if self.surplus else ():
            gone[self.current[item]] += 1
            gone[place[item]] -= 1
        return [(bin_, more, gone[bin_]) for bin_, more in self.surplus.items()]

    def at(self, place: Sequence[int]) -> list[int]:
        """Return the loads without floaters when the items are at these places."""
        base = list(self.base)
        for item in self.moved(place):
            base[self.current[item]] -= self.size[item]
            base[place[item]] += self.size[item]
        return base

    def levels(self, base: Sequence[int] | None = None) -> list[int]:
        """Return the loads with the floaters poured over those that are bound."""
        levels = list(self.base if base is None else base)
        shares: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        # Where masks overlap, what was poured first gives way to what came later.
        for _ in range(POURINGS if len(self.pools) > 1 else 1):
            for bins, load in self.pools:
                for bin_, amount in shares.get(bins, ()):
                    levels[bin_] -= amount
                shares[bins] = pour(levels, bins, load)
                for bin_, amount in shares[bins]:
                    levels[bin_] += amount
        return levels

    def without_lone(self) -> "Problem":
        """Return the problem in which items stay that are well off where they are.

        That is in a set with a pCPU for each, or alone on a bin. On the busiest bin, since
        elsewhere they would make the same load; on a weak bin, since they have no use for more. Not
        where another thread of the core is busy, where the host itself makes the load, or where an
        item wants more than the bin can give.
        """
        levels, own = self.levels(), self.own
        peak = max((levels[bin_] for bin_ in self.bins.judged), default=0)
        thread = self.bins.thread or [peak] * len(levels)  # where all are alike none lacks anything
        strongest = max(thread, default=0)
        alone = [bin_ for bin_ in self.bins.judged if len(own[bin_]) == 1]
        crowd = Counter(self.current if alone else ())
        lone = [
            own[bin_][0][1]
            for bin_ in alone
            if (levels[bin_] == peak or thread[bin_] < strongest)
            and crowd[bin_] == 1
            and own[bin_][0][0] <= thread[bin_]
            and levels[bin_] - self.bins.lacks[bin_] - own[bin_][0][0] < self.span
            and not (self.bins.siblings and self.bins.second(levels, bin_) >= self.span)
        ]
        resting = [bin_ for bin_, more in self.surplus.items() if more <= 0]
        stay = [*lone, *(item for bin_ in resting for _, item in own[bin_])]
        if not stay:
            return self
        allowed = list(self.allowed)
        for item in stay:
            allowed[item] = 0
        return self.but(allowed=allowed)

    def but(self, **changes: object) -> "Problem":
        """Return the problem with changes; what is worked out and still holds is kept."""
        found: Problem = replace(self, **changes)  # type: ignore[arg-type]
        for key, needs in NEEDS.items():
            if key in self.__dict__ and not needs & changes.keys():
                found.__dict__[key] = self.__dict__[key]
        return found

    def then(self, place: Sequence[int]) -> "Problem":
        """Return the problem once the items are at these places."""
        allowed = list(self.allowed)
        for item in self.moved(place):
            if allowed[item] == 1 << place[item]:
                allowed[item] = 0  # it has nowhere else to go
        surplus = {bin_: more - gone for bin_, more, gone in self.leaving(place)}
        return self.but(current=list(place), base=self.at(place), allowed=allowed, surplus=surplus)
