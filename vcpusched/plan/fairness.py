"""Judge a plan by what vCPUs get before and after it, and trim it to what is fair.

Rule: pure integers; knows hosts and affinities, and nothing of how plans are made.

Problem: a plan that makes loads more equal can still take from guests that have little for their
    weight: where more is wanted than there is, where weights differ, or where threads share a core.
Approach: work out what the kernel would give each vCPU before and after. To relieve the starving
    something may be taken from those that have plenty, but none may starve more than they do now.
Terms: the *demand* of a vCPU is its load, at most its quota. Its *weight* is its guest's shares
    divided by the number of the guest's vCPUs with load, its *level* what it gets divided by its
    weight. A *place* is the pCPUs that vCPUs are pinned to, as bits; a *pool* is one of several.
    The *floor* is the lowest level before the plan, on the cores that a move leaves or enters, of
    vCPUs that get less than nine tenths of their demand: to miss a little is not to starve.
Algorithm: 1. Pour the demand of each pool over its pCPUs, to equal use: over cores, as the kernel
    prefers idle ones, then over the threads of each. There it is one claim.
    2. Where a core cannot meet all claims, divide what it gives by weighted max-min fairness: on
    each thread, then what claims get there on the core. What a pool gets its vCPUs divide likewise.
    3. Refuse a plan by which a vCPU on the cores that a move leaves or enters gets less than nine
    tenths of what it got and of what the floor would give it (no floor where nobody starves), or by
    which all of these get more than a point less.
    4. To trim, drop the step that brings most to each place of such a vCPU, and judge the rest as a
    whole again, since one step may have made room for another. The next time drop two, and so on.
Properties: exact but for rounding where all vCPUs are bound. Neither order nor names matter. The
    floor is one for the whole plan: who starves on one core that it touches excuses what it takes
    on another. A vCPU on no managed pCPU counts as if it got all it wants, since that is unknown.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Final, NamedTuple

from vcpusched.model import NO_CPUS, PPM, PPM_PER_POINT, CpuSet, Host, HostCpu, VcpuId
from vcpusched.plan.cpu_groups import by_core, capacity_ppm
from vcpusched.text import vcpu_text

LEVEL_BITS: Final = 44
"""Levels are whole numbers: so finely is a ppm divided by a weight."""

PinChanges = Sequence[tuple[int, CpuSet]]
"""Moves that are made together, as vCPU (by position) and new affinity: one, or an exchange."""


class Unfair(NamedTuple):
    """Why a plan does not pass, as the end of a sentence.

    `steps` are the positions of the steps that are blamed, the one that brings most first.
    """

    why: str
    steps: tuple[int, ...]


def trim(
    host: Host, steps: Sequence[PinChanges], isolated: CpuSet = NO_CPUS
) -> tuple[list[int], list[Unfair]]:
    """Return the positions of the steps that pass together, in their order, and why others do not.

    What is left is fair as a whole. Whether it still improves the loads the caller must see. On
    `isolated` pCPUs the kernel moves no floater, so its load counts where it ran.
    """
    judging, kept = Judge(host, isolated), dict(enumerate(steps))
    refusals, most = list[Unfair](), 1
    while refused := judging.refusals(kept):
        refusals += refused
        for at in chain(*[refusal.steps[:most] for refusal in refused]):
            kept.pop(at, None)
        most += 1
    return list(kept), refusals


def unmet_ppm(host: Host) -> int:
    """Return the demand that is unmet even if there were no pins, in ppm of a pCPU.

    No placement gives more in all: only fewer guests, or more pCPUs, would do.
    """
    managed, wants = host.online.bits, Counter[int]()
    for vcpu in host.vcpus:
        place = vcpu.allowed.bits & managed or vcpu.cpus.bits & managed
        wants[place] += min(vcpu.load_ppm, vcpu.quota_ppm)
    cores = _cores(host.cpus)
    _pour(cores, wants)
    return sum(core.unmet_ppm(wants) for core in cores)


class _Core(NamedTuple):
    """A core, as bits: what each of its managed threads gives, and all together, in ppm."""

    bits: int
    threads: Mapping[int, int]
    most_ppm: int

    def unmet_ppm(self, wants_ppm: Mapping[int, int]) -> int:
        """Return how much of what is wanted of the threads the core cannot give."""
        wants = [wants_ppm[thread] for thread in self.threads]
        return sum(wants) - min(self.most_ppm, sum(map(min, wants, self.threads.values())))


def _cores(cpus: Sequence[HostCpu]) -> list[_Core]:
    """Return the cores of a host; each further thread of one is worth a quarter.

    The host's own load leaves half of a pCPU or core at least.
    """
    own, found = {cpu.id: cpu.host_load_ppm for cpu in cpus}, []
    for threads in by_core(cpu.cpu for cpu in sorted(cpus, key=lambda cpu: cpu.id)).values():
        gives = {
            1 << cpu.id: max(1, cpu.capacity_ppm - own[cpu.id], cpu.capacity_ppm // 2)
            for cpu in threads
        }
        whole = capacity_ppm(threads)
        most = max(1, whole - sum(own[cpu.id] for cpu in threads), whole // 2)
        found.append(_Core(sum(gives), gives, min(sum(gives.values()), most)))
    return found


def _pour(cores: Sequence[_Core], wants_ppm: Counter[int]) -> list[tuple[int, int, int]]:
    """Pour pools over what is wanted of their threads; return pool, thread, ppm of each share."""
    pools, shares = [place for place in wants_ppm if place & (place - 1)], []
    for pool in sorted(pools, key=lambda pool: (pool.bit_count(), pool)):
        reached = [
            ({bit: gives for bit, gives in core.threads.items() if bit & pool}, core.most_ppm)
            for core in cores
            if core.bits & pool
        ]
        rooms = [
            (sum([wants_ppm[bit] for bit in threads]), min(most_ppm, sum(threads.values())))
            for threads, most_ppm in reached
        ]
        for (threads, _), falls_ppm in zip(reached, _spread(rooms, wants_ppm[pool]), strict=True):
            rooms = [(wants_ppm[bit], gives) for bit, gives in threads.items()]
            for bit, ppm in zip(threads, _spread(rooms, falls_ppm), strict=True):
                wants_ppm[bit] += ppm
                if ppm:
                    shares.append((pool, bit, ppm))
    return shares


def _spread(rooms: Sequence[tuple[int, int]], amount_ppm: int) -> list[int]:
    """Return what falls to each room, of what load and what it gives, so that use is equal."""
    total_ppm, gives_ppm = amount_ppm, 0
    for load_ppm, can_ppm in sorted(rooms, key=lambda room: (room[0] << LEVEL_BITS) // room[1]):
        if gives_ppm and load_ppm * gives_ppm >= total_ppm * can_ppm:
            break
        total_ppm += load_ppm
        gives_ppm += can_ppm
    return [max(0, total_ppm * can_ppm // gives_ppm - load_ppm) for load_ppm, can_ppm in rooms]


def _share(gives: int, claims: Iterable[int], got: list[int], weights: Sequence[int]) -> None:
    """Cut what some claims get to what there is, by weighted max-min fairness."""
    ordered = sorted(claims, key=lambda claim: (got[claim] << LEVEL_BITS) // weights[claim])
    weight = sum([weights[claim] for claim in ordered])
    for claim in ordered:
        got[claim] = min(got[claim], gives * weights[claim] // weight)
        gives -= got[claim]
        weight -= weights[claim]


class Judge:
    """Judges several plans for one host: what is true of the host is worked out once."""

    def __init__(self, host: Host, isolated: CpuSet) -> None:
        self.vcpus, self.managed, self.cores = host.vcpus, host.online.bits, _cores(host.cpus)
        self.demands_ppm = [min(vcpu.load_ppm, vcpu.quota_ppm) for vcpu in host.vcpus]
        self.places = {at: vcpu.cpus.bits & self.managed for at, vcpu in enumerate(host.vcpus)}
        for index, vcpu in enumerate(host.vcpus if isolated else ()):
            if vcpu.on is not None and self.places[index] & isolated.bits & 1 << vcpu.on:
                self.places[index] = 1 << vcpu.on

    @cached_property
    def weights(self) -> list[int]:
        """The weight of each vCPU."""
        guests = Counter([vcpu.id.uuid for vcpu in self.vcpus if vcpu.load_ppm >= PPM_PER_POINT])
        # Shares are whole numbers, too: so finely can they be split.
        return [(max(1, one.shares) << 16) // (guests[one.id.uuid] or 1) for one in self.vcpus]

    def refusals(self, steps: Mapping[int, PinChanges]) -> list[Unfair]:
        """Return why steps, by their positions, do not pass together, the greatest loss first."""
        places, touched = dict(self.places), 0
        for index, cpus in chain(*steps.values()):
            # These come last, in the order of the steps: the order of vCPUs must not tell in ties.
            touched |= places.pop(index) | cpus.bits
            places[index] = cpus.bits & self.managed
        after = self.divide(places, touched)
        if after == self.demands_ppm:
            return []
        before, touched = self.divide(self.places, touched), self.whole(touched)
        among = [index for index, place in places.items() if place & touched]
        levels = [  # one that is rounded to nothing must not excuse everything
            (max(1, before[index]) << LEVEL_BITS) // self.weights[index]
            for index in among
            if before[index] * 10 < self.demands_ppm[index] * 9
        ]
        floor = min(levels, default=PPM << LEVEL_BITS)
        fair = {i: min(before[i], self.weights[i] * floor >> LEVEL_BITS) for i in among}
        losers = [index for index in among if after[index] * 10 < fair[index] * 9]

        def gain(index: int) -> tuple[int, int, VcpuId]:
            return after[index] - before[index], places[index], self.vcpus[index].id

        end = ", less than is fair"
        lost_ppm = sum([before[index] - after[index] for index in among])
        if not losers and lost_ppm > PPM_PER_POINT:
            losers = [min(among, key=gain)]
            end = f", and all together get ~{lost_ppm / PPM_PER_POINT:.0f} points less"
        found: dict[int, Unfair] = {}
        for index in sorted(losers, key=gain):
            vcpu, place = self.vcpus[index], places[index]
            if place not in found:
                was, gets = (f"~{got[index] / PPM_PER_POINT:.3g}%" for got in (before, after))
                name = vcpu_text(vcpu.id.vcpu, vcpu.domain)
                why = f"would cut {name} from {was} to {gets} of a pCPU{end}"
                found[place] = Unfair(why, self.blamed(steps, place, after))
        return [*found.values()]

    def blamed(
        self, steps: Mapping[int, PinChanges], place: int, got_ppm: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the steps that enter the cores of a place, or else all, what brings most first."""
        whole = self.whole(place)
        brings = [
            (sum([got_ppm[index] for index, _ in step]), at)
            for at, step in steps.items()
            if any(cpus.bits & whole for _, cpus in step)
        ]
        return tuple(at for _, at in sorted(brings, reverse=True)) or tuple(steps)

    def whole(self, places: int) -> int:
        """Return all threads of the cores that places are on."""
        return sum([core.bits for core in self.cores if core.bits & places])

    def divide(self, places: Mapping[int, int], reach: int) -> list[int]:
        """Return what each vCPU gets; one that neither moves nor pools reach, what it wants."""
        members, wants = defaultdict[int, list[int]](list), Counter[int]()
        for index, place in places.items():
            members[place].append(index)
        for place, those in members.items():
            wants[place] = sum([self.demands_ppm[index] for index in those])
            reach |= place if place & (place - 1) else 0
        shares = _pour(self.cores, wants)
        crowded = [core for core in self.cores if core.bits & reach and core.unmet_ppm(wants)]
        if not crowded:
            return self.demands_ppm
        got, weights = list(self.demands_ppm), list(self.weights)
        claims = {thread: [*members[thread]] for core in crowded for thread in core.threads}
        falling = [share for share in shares if share[1] in claims]
        pools = {pool for pool, _, _ in falling}
        whole = {pool: sum([weights[index] for index in members[pool]]) for pool in pools}
        for claim, (pool, thread, ppm) in enumerate(falling, len(got)):
            claims[thread].append(claim)
            weights.append(max(1, whole[pool] * ppm // wants[pool]))
        got += [ppm for _, _, ppm in falling]
        for core in crowded:
            for thread, gives_ppm in core.threads.items():
                _share(gives_ppm, claims[thread], got, weights)
            if len(core.threads) > 1:
                _share(core.most_ppm, chain(*[claims[at] for at in core.threads]), got, weights)
        for claim, (pool, _, ppm) in enumerate(falling, len(self.vcpus)):
            wants[pool] -= ppm - got[claim]
        for pool in pools:
            _share(wants[pool], members[pool], got, weights)
        return got[: len(self.vcpus)]
