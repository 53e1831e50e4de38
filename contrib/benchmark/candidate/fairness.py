"""Judge a plan by what guests get before and after it, and trim it to what is fair.

Rule: pure; knows hosts and affinities, and nothing of how plans are made.

Problem: a plan that makes loads more equal can still take from guests that have little for their
    weight: where more is wanted than there is, where weights differ, or where threads share a core.
Approach: work out what the kernel would give each vCPU before and after the plan. To relieve the
    starving, something may be taken from those that have plenty, but no vCPU may be left with less
    for its weight than the starving have now.
Terms: the *demand* of a vCPU is its load, at most its quota. Its *weight* is its guest's shares
    divided by the number of the guest's vCPUs with load. What it gets is worked out by `maxmin`.
    Its *level* is what it gets divided by its weight; one that gets all it wants has none. A
    *place* is a set of pCPUs that vCPUs are pinned to. A *site* is a core, for those bound to one
    of its pCPUs, or else the pool of those that float over a place. *Unmet* is demand without CPU.
Algorithm: 1. Divide the cores that a move leaves or enters, and those of all pools that reach
    them, before and after the plan. No other core is looked at.
    2. The *floor* of a site is the lowest level before the plan on it, or where its new vCPUs come
    from, directly or in a chain of moves: those are relieved by what it takes in. So none pays
    for the starving that the plan does not relieve. A pool and the cores that its demand falls to
    are one in this.
    3. Refuse what leaves a site more than a tenth below its floor, and a plan by which more than a
    point of demand is unmet that was met. The steps that enter such a site are blamed.
    4. To trim, drop the step that takes most on each such site, and judge the rest as a whole
    again, since one step may have made room for another.
Properties: after a plan that passes, the lowest level is at most a tenth below the lowest before.
    No vCPU is held to a level above what it wants: where none starves, all keep nine tenths of
    their demand. The order in which the host is told does not matter; names decide between equals
    only. A vCPU on no managed pCPU counts as if it got all it wants, since that is unknown.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from candidate.maxmin import SHIFT, Claim, Division, Places, claim
from vcpusched.model import NO_CPUS, PPM_PER_POINT, CpuSet, Host, VcpuId
from vcpusched.text import printable

LEVEL_LOSS: Final = 10
"""The lowest level may fall by one in so many."""

SUM_LOSS_PPM: Final = PPM_PER_POINT
"""How much less all vCPUs may get together, in ppm of a pCPU."""

WITH_LOAD_PPM: Final = PPM_PER_POINT
"""From this load on a vCPU has a part of its guest's weight: one that only ticks takes none."""

WEIGHT_PER_SHARE: Final = 1 << 16
"""Weights are whole numbers: so finely can shares be split over a guest's vCPUs."""

ROUNDS: Final = 8
"""After so many rounds of dropping single steps all that are blamed go, so that it ends soon."""

LOAD_CHANGE_PPM: Final = 2 * PPM_PER_POINT
"""A refusal is remembered until a load differs by more."""

REMEMBERED_NS: Final = 300 * 1_000_000_000
"""A refusal is remembered for so long at most."""

Step = Sequence[tuple[VcpuId, CpuSet]]
"""Moves that are made together, as vCPU and new affinity: one, or an exchange of two."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a plan does not pass, as the end of a sentence.

    `vcpu` is the one that would lose most, `steps` the positions of the steps that are blamed, the
    one that takes most first.
    """

    why: str
    vcpu: VcpuId
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The steps of a plan that pass together, and why the others do not."""

    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...]


def judge(host: Host, steps: Sequence[Step], isolated: CpuSet = NO_CPUS) -> tuple[Refusal, ...]:
    """Return why a plan does not pass, the greatest loss first; nothing: it does.

    On `isolated` pCPUs the kernel moves no floater, so its load counts where it ran.
    """
    judging = _Judge(host, isolated)
    return tuple(judging.refusals(judging.moves(steps)))


def trim(host: Host, steps: Sequence[Step], isolated: CpuSet = NO_CPUS) -> Trimmed:
    """Return as much of a plan as passes, in its order.

    What is left is fair as a whole. Whether it still improves the loads the caller must see.
    """
    judging = _Judge(host, isolated)
    kept, refusals, rounds = judging.moves(steps), list[Refusal](), 0
    while refused := judging.refusals(kept):
        refusals += refused
        for refusal in refused:
            for at in refusal.steps[: 1 if rounds < ROUNDS else None]:
                kept.pop(at, None)
        rounds += 1
    return Trimmed(tuple(steps[at] for at in kept), tuple(refusals))


@dataclass(frozen=True, slots=True)
class Remembered:
    """A refusal, the host that it was found on, and when."""

    refusals: tuple[Refusal, ...]
    host: Host
    at_ns: int

    def still_holds(self, host: Host, now_ns: int) -> bool:
        """Return whether nothing has changed that could let the plan pass."""
        before = self.host
        return (
            now_ns - self.at_ns <= REMEMBERED_NS
            and len(before.cpus) == len(host.cpus)
            and len(before.vcpus) == len(host.vcpus)
            and all(
                was.cpu == cpu.cpu and abs(was.host_load_ppm - cpu.host_load_ppm) <= LOAD_CHANGE_PPM
                for was, cpu in zip(before.cpus, host.cpus, strict=True)
            )
            and all(
                abs(was.load_ppm - vcpu.load_ppm) <= LOAD_CHANGE_PPM
                and was.cpus.bits == vcpu.cpus.bits
                and was.allowed.bits == vcpu.allowed.bits
                and was.shares == vcpu.shares
                and was.quota_ppm == vcpu.quota_ppm
                and was.id == vcpu.id
                for was, vcpu in zip(before.vcpus, host.vcpus, strict=True)
            )
        )


class _Judge:
    """Judges several plans for one host: what is true of the host is worked out once.

    A vCPU goes by its position, a move is a vCPU and a place.
    """

    def __init__(self, host: Host, isolated: CpuSet) -> None:
        self.vcpus, self.places = host.vcpus, Places(host.cpus)
        self.with_load = Counter(
            [vcpu.id.uuid for vcpu in host.vcpus if vcpu.load_ppm >= WITH_LOAD_PPM]
        )
        self.claims: dict[int, Claim] = {}
        self.at, self.wants_ppm = list[int](), Counter[int]()
        stays = isolated.bits
        for vcpu in host.vcpus:
            bits = vcpu.cpus.bits
            if stays and vcpu.on is not None and bits & stays & 1 << vcpu.on:
                bits = 1 << vcpu.on
            place = self.places.number(bits)
            self.at.append(place)
            self.wants_ppm[place] += min(vcpu.load_ppm, vcpu.quota_ppm)

    def moves(self, steps: Sequence[Step]) -> dict[int, list[tuple[int, int]]]:
        """Return the moves of each step, vCPU and place, by its position in the plan."""
        movers = {vcpu for step in steps for vcpu, _ in step}
        guests = {vcpu.uuid for vcpu in movers}  # quicker to look up than a whole id
        index_of = {
            vcpu.id: index
            for index, vcpu in enumerate(self.vcpus)
            if vcpu.id.uuid in guests and vcpu.id in movers
        }
        return {
            at: [(index_of[vcpu], self.places.number(to.bits)) for vcpu, to in step]
            for at, step in enumerate(steps)
        }

    def claim(self, index: int) -> Claim:
        """Return what a vCPU claims."""
        known = self.claims.get(index)
        if known is None:
            vcpu = self.vcpus[index]
            weight = vcpu.shares * WEIGHT_PER_SHARE // (self.with_load[vcpu.id.uuid] or 1)
            known = claim(min(vcpu.load_ppm, vcpu.quota_ppm), max(1, weight))
            self.claims[index] = known
        return known

    def refusals(self, steps: Mapping[int, Sequence[tuple[int, int]]]) -> list[Refusal]:
        """Return why steps do not pass together."""
        moved = dict(move for moves in steps.values() for move in moves)
        at, wants = list(self.at), self.wants_ppm.copy()
        for index, to in moved.items():
            demand_ppm = self.claim(index)[1]
            wants[at[index]] -= demand_ppm
            wants[to] += demand_ppm
            at[index] = to
        near = self.places.near({*moved.values(), *[self.at[index] for index in moved]})
        before = self.places.divide(self.at, self.wants_ppm, near, self.claim)
        after = self.places.divide(at, wants, near, self.claim)
        return _Comparison(self, steps, at, before, after).refusals()


class _Change(NamedTuple):
    """What a vCPU gets before and after a plan; the greatest loss sorts first."""

    gain_ppm: int
    id: VcpuId
    vcpu: int
    was_ppm: int
    gets_ppm: int


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What vCPUs get before and after some steps, and where they are then."""

    judge: _Judge
    steps: Mapping[int, Sequence[tuple[int, int]]]
    at: Sequence[int]
    before: Division
    after: Division

    def refusals(self) -> list[Refusal]:
        """Return why the steps do not pass, the greatest loss first."""
        floors, changes = self._floors(), list[tuple[_Change, Refusal]]()
        for site, levels in self.after.short.items():
            floor = floors.get(site)
            if any(_is_too_low(level, met, floor) for level, met in levels):
                changes.append(self._too_low(site, floor))
        unmet_ppm = self.after.unmet_ppm.total() - self.before.unmet_ppm.total()
        if not changes and unmet_ppm > SUM_LOSS_PPM:
            changes.append(self._too_much(unmet_ppm))
        return [refusal for _, refusal in sorted(changes, key=lambda pair: pair[0])]

    def _floors(self) -> dict[int, int]:
        """Return the floor of each site, where there is one."""
        links, site = defaultdict[int, set[int]](set), self.judge.places.site
        for index, to in (move for moves in self.steps.values() for move in moves):
            links[site[self.judge.at[index]]].add(site[to])
        for division in (self.before, self.after):
            for pool, on_cores in division.on_cores.items():
                links[pool] |= on_cores
                for core in on_cores:
                    links[core].add(pool)
        floors: dict[int, int] = {}
        lowest = sorted((min(levels)[0], each) for each, levels in self.before.short.items())
        for level, first in lowest:
            reached = [first]
            while reached:
                each = reached.pop()
                if each not in floors:
                    floors[each] = level
                    reached.extend(links[each])
        return floors

    def _too_low(self, site: int, floor: int | None) -> tuple[_Change, Refusal]:
        """Return why a site must not be left so low, with the greatest loss on it."""
        change = min(
            self._change(index)
            for place, members in self.after.members.items()
            if self.judge.places.site[place] == site and place in self.after.levels
            for index in members
            if _is_too_low(self.after.levels[place], self.judge.claim(index)[0], floor)
        )
        if floor is None:
            return change, self._refusal(change, site, ", where every vCPU gets all it wants now")
        _, demand_ppm, weight = self.judge.claim(change.vcpu)
        least = _percent(min(demand_ppm, weight * floor >> SHIFT))
        return change, self._refusal(change, site, f"; for its weight, today's minimum is ~{least}")

    def _too_much(self, unmet_ppm: int) -> tuple[_Change, Refusal]:
        """Return why so much more must not be unmet, with the greatest loss where most is lost."""
        places, gains = self.judge.places, Counter[int]()
        changes: defaultdict[int, list[_Change]] = defaultdict(list)
        for place, members in self.after.members.items():
            for change in map(self._change, members):
                changes[places.site[place]].append(change)
                gains[places.site[place]] += change.gain_ppm
        site = min(gains, key=lambda site: (gains[site], places.bits[site]))
        points = f"~{unmet_ppm / PPM_PER_POINT:.0f} points"
        change = min(changes[site])
        return change, self._refusal(
            change, site, f", and leave {points} more of demand unmet in all"
        )

    def _refusal(self, change: _Change, site: int, end: str) -> Refusal:
        vcpu = self.judge.vcpus[change.vcpu]
        why = (
            f"would cut vCPU {vcpu.id.vcpu} of {printable(vcpu.domain)} from"
            f" ~{_percent(change.was_ppm)} to ~{_percent(change.gets_ppm)} of a pCPU{end}"
        )
        return Refusal(why, vcpu.id, self._entering(site))

    def _change(self, index: int) -> _Change:
        was_ppm = self._got_ppm(index, self.before, self.judge.at)
        gets_ppm = self._got_ppm(index, self.after, self.at)
        return _Change(gets_ppm - was_ppm, self.judge.vcpus[index].id, index, was_ppm, gets_ppm)

    def _got_ppm(self, index: int, division: Division, at: Sequence[int]) -> int:
        level = division.levels.get(at[index])
        _, demand_ppm, weight = self.judge.claim(index)
        return demand_ppm if level is None else min(demand_ppm, weight * level >> SHIFT)

    def _entering(self, site: int) -> tuple[int, ...]:
        """Return the steps to blame, what takes most first.

        These are the steps that enter the site, or else what a pool shares with it, or else all.
        """
        site_of, pools = self.judge.places.site, self.after.on_cores
        shared = pools.get(site, set()).union(
            pool for pool, cores in pools.items() if site in cores
        )
        for sites in ({site}, shared, set(site_of)):
            taken = {
                at: sum(self._got_ppm(index, self.after, self.at) for index, _ in entering)
                for at, moves in self.steps.items()
                if (entering := [move for move in moves if site_of[move[1]] in sites])
            }
            if taken:
                break
        return tuple(sorted(taken, key=lambda at: (taken[at], at), reverse=True))


def _is_too_low(level: int, met: int, floor: int | None) -> bool:
    """Return whether a vCPU that is met at some level is left too far below the floor."""
    least = met if floor is None else min(met, floor)
    return level * LEVEL_LOSS < least * (LEVEL_LOSS - 1)


def _percent(ppm: int) -> str:
    """Return a percentage, so that figures differ that are a tenth apart."""
    percent = ppm / PPM_PER_POINT
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"  # noqa: PLR2004  two digits
