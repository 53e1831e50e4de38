"""Judges a plan by what guests get, before and after it.

Rule: pure; knows hosts and affinities, and nothing of how plans are made.

Problem: a plan that makes loads more equal can still take from guests that have little: on a host
    where more is wanted than there is, where guests have shares, or where a pCPU shares its core.
Approach: work out what the kernel would give each vCPU where it is, and where the plan puts it, and
    refuse plans after which somebody is worse off that should not be.
Terms: a vCPU's *demand* is its load, at most its quota. Its *weight* is its guest's shares, split
    over those of the guest's vCPUs that have a load, as the kernel splits a group's. What it *gets*
    is what weighted max-min fairness under the affinities gives it (see `sharing`). A pCPU can
    give its capacity less the host's own load, but half at least; the threads of a core together at
    most what `units.capacity_ppm` says: each further thread of a core is worth a quarter. Its
    *fair share* is what it would get if all vCPUs could use every managed pCPU that their `allowed`
    names (those it is on, where that names none), `fixed` or not: no pins in anybody's way.
Algorithm: 1. Add up the demand on each pCPU; only where it is too much is there anything to share.
    2. Compare what each vCPU that falls short after the plan gets with what it got before. Only
    when somebody loses more than a point, work out the fair shares.
Properties: a plan is refused when a vCPU would lose more than `LOSS_MAX_PPM`, unless it had more
    than its fair share, or when a vCPU would get a smaller part of its demand than the worst-served
    vCPU gets now. It does not matter in which order the host is told. vCPUs without a managed pCPU
    are not judged, since nobody knows what they get.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import PPM_PER_POINT, CpuSet, Host, HostCpu, Vcpu, VcpuId
from vcpusched.plan.curves import Claim, Curve
from vcpusched.plan.sharing import ROUNDING_PPM, Core, fill
from vcpusched.plan.units import capacity_ppm
from vcpusched.text import vcpu_text

LOSS_MAX_PPM: Final = PPM_PER_POINT
"""What a vCPU that has no more than its fair share may lose at most, in ppm of a pCPU."""

WEIGHT_PER_SHARE: Final = 1 << 16
"""Weights are whole numbers: so finely can shares be split over a guest's vCPUs."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a plan should not be carried out, as the end of a sentence, and which of its moves not.

    `blamed` are the moved vCPUs that end where the one that would be worse off gets its share.
    """

    why: str
    blamed: frozenset[VcpuId]


def unmet_ppm(host: Host) -> int:
    """Give the demand that could not be met even if there were no pins, in ppm of a pCPU.

    Max-min fairness leaves no pCPU idle that somebody short could use, so no placement, nor any
    other division, gives more in all: only fewer guests, or more pCPUs, would do.
    """
    served = Served(host)
    short = served.fair_short_ppm()
    return sum(served.demand_ppm(index) - fair_ppm for index, fair_ppm in short.items())


class Judge:
    """Judges several plans for one host: what is true of the host is worked out once."""

    def __init__(self, host: Host) -> None:
        self._before = Served(host)
        self._short = self._before.short_ppm()
        self._worst = self._least_served(self._short)
        self._fair_short: Mapping[int, int] | None = None

    def refusal(self, affinities: Mapping[VcpuId, CpuSet]) -> Refusal | None:
        """Tell why a plan should not be carried out; None: it may.

        `affinities` are those that the plan gives; every other vCPU keeps its own.
        """
        after = self._before.after(affinities)
        short = after.short_ppm()
        losses = {
            index: loss_ppm
            for index, served_ppm in short.items()
            if (loss_ppm := self._got_ppm(index) - served_ppm) > LOSS_MAX_PPM
            and not self._has_more_than_fair(index)
        }
        below = {index: ppm for index, ppm in short.items() if self._is_below_all(index, ppm)}
        if losses:
            most = max(losses, key=lambda index: (losses[index], after.vcpus[index].id))
            why = (
                f"would take {round(losses[most] / PPM_PER_POINT, 1):g} points from"
                f" {_name(after.vcpus[most])}, which has no more than its fair share"
            )
        elif below:
            least, least_ppm = self._least_served(below) or (0, 0)
            why = (
                f"would leave {_name(after.vcpus[least])} with {self._percent(least, least_ppm)} of"
                " what it wants, where nobody has less than"
                f" {self._percent(*self._worst) if self._worst else '100 %'} now"
            )
        else:
            return None
        return Refusal(why, after.movers_to(losses.keys() | below.keys(), affinities))

    def _got_ppm(self, index: int) -> int:
        return self._short.get(index, self._before.demand_ppm(index))

    def _percent(self, index: int, served_ppm: int) -> str:
        return f"{100 * served_ppm / self._before.demand_ppm(index):.1f} %"

    def _least_served(self, short: Mapping[int, int]) -> tuple[int, int] | None:
        """Give the vCPU that gets the smallest part of its demand, with what it gets, in ppm."""
        before = self._before
        return min(
            short.items(),
            key=lambda one: (one[1] / before.demand_ppm(one[0]), before.vcpus[one[0]].id),
            default=None,
        )

    def _is_below_all(self, index: int, served_ppm: int) -> bool:
        """Tell whether a vCPU would be served worse than the worst-served one is now."""
        part_ppm = demand_ppm = self._before.demand_ppm(index)
        if self._worst is not None:
            worst, worst_ppm = self._worst
            part_ppm = demand_ppm * worst_ppm // self._before.demand_ppm(worst)
        return served_ppm + ROUNDING_PPM < part_ppm

    def _has_more_than_fair(self, index: int) -> bool:
        if self._fair_short is None:
            self._fair_short = self._before.fair_short_ppm()
        fair_ppm = self._fair_short.get(index, self._before.demand_ppm(index))
        return self._got_ppm(index) > fair_ppm + ROUNDING_PPM


class Served:
    """The vCPUs of a host by where they are: who shares which pCPU. Goes by position in `vcpus`.

    `bound` are those bound to each pCPU, `wanted` what they want in all, `pools` the others by the
    managed pCPUs that they may use. `claims` are true wherever they are, and worked out once for
    all that is made of a host by `after`, like the curves of those that are where they were.
    """

    def __init__(self, host: Host) -> None:
        self.vcpus: Sequence[Vcpu] = host.vcpus
        self.masks = [vcpu.cpus.bits for vcpu in self.vcpus]
        self.managed = host.online.bits
        self.cores = _cores(host)
        self.bound: dict[int, list[int]] = {cpu.id: [] for cpu in host.cpus}
        self.wanted = dict.fromkeys(self.bound, 0)
        self.pools: dict[int, list[int]] = {}
        self.claims = _claims(self.vcpus)
        self.curves_bound: dict[int, Curve] = {}
        self.curves_pools: dict[int, Curve] = {}
        for index, vcpu in enumerate(self.vcpus):
            if vcpu.load_ppm:
                self._put(index, self.masks[index], 1)

    def after(self, affinities: Mapping[VcpuId, CpuSet]) -> "Served":
        """Give the same host once some vCPUs have other affinities."""
        then = copy.copy(self)
        then.masks = list(self.masks)
        then.bound = {cpu: list(there) for cpu, there in self.bound.items()}
        then.pools = {mask: list(there) for mask, there in self.pools.items()}
        then.wanted = dict(self.wanted)
        then.curves_bound = dict(self.curves_bound)
        then.curves_pools = dict(self.curves_pools)
        guests = {vcpu.uuid for vcpu in affinities}  # quicker to look up than a whole id
        for index, vcpu in enumerate(self.vcpus):
            if vcpu.id.uuid in guests and vcpu.id in affinities:
                then.move(index, affinities[vcpu.id].bits)
        return then

    def move(self, index: int, mask: int) -> None:
        """Give a vCPU another affinity."""
        if self.vcpus[index].load_ppm:
            self._put(index, self.masks[index], -1)
            self._put(index, mask, 1)
        self.masks[index] = mask

    def demand_ppm(self, index: int) -> int:
        """Give the most that a vCPU can make use of."""
        return self.claims[index][0]

    def may(self, index: int) -> int:
        """Give the managed pCPUs that a vCPU could use without pins."""
        return self.vcpus[index].allowed.bits & self.managed or self.masks[index] & self.managed

    def short_ppm(self) -> dict[int, int]:
        """Give what vCPUs get that get less than their demand."""
        cores = self.cores
        if not self.pools:
            wanted = self.wanted
            cores = [
                core
                for core in cores
                if any(wanted[cpu] > most for cpu, most in core.threads.items())
                or sum(wanted[cpu] for cpu in core.threads) > core.most_ppm
            ]
        bound = {cpu: self.bound[cpu] for core in cores for cpu in core.threads}
        self._add_curves(self.curves_bound, bound)
        self._add_curves(self.curves_pools, self.pools)
        levels = fill(cores, self.curves_bound, self.curves_pools)
        return _short_ppm(levels.cpus, bound, self.curves_bound) | _short_ppm(
            levels.pools, self.pools, self.curves_pools
        )

    def fair_short_ppm(self) -> dict[int, int]:
        """Give the fair shares that are less than the demand."""
        pools: dict[int, list[int]] = {}
        for index, vcpu in enumerate(self.vcpus):
            mask = self.may(index)
            if mask and vcpu.load_ppm:
                pools.setdefault(mask, []).append(index)
        curves: dict[int, Curve] = {}
        self._add_curves(curves, pools)
        return _short_ppm(fill(self.cores, {}, curves).pools, pools, curves)

    def movers_to(
        self, worse: Iterable[int], affinities: Mapping[VcpuId, CpuSet]
    ) -> frozenset[VcpuId]:
        """Give the moved vCPUs that are on the cores where these get their share, or else all."""
        reach = 0
        for index in worse:
            reach |= self.masks[index]
        for core in self.cores:
            siblings = sum(1 << cpu for cpu in core.threads)
            reach |= siblings if siblings & reach else 0
        movers = frozenset(vcpu for vcpu, cpus in affinities.items() if cpus.bits & reach)
        return movers or frozenset(affinities)

    def _add_curves(self, curves: dict[int, Curve], places: Mapping[int, Sequence[int]]) -> None:
        """Add the curves of those who are in these places, where they are missing."""
        for place, there in places.items():
            if place not in curves:
                curves[place] = Curve([self.claims[index] for index in there])

    def _put(self, index: int, mask: int, sign: int) -> None:
        mask &= self.managed
        if not mask:
            return
        if mask & (mask - 1):
            there = self.pools.setdefault(mask, [])
            self.curves_pools.pop(mask, None)
        else:
            cpu = mask.bit_length() - 1
            there = self.bound[cpu]
            self.curves_bound.pop(cpu, None)
            self.wanted[cpu] += sign * self.demand_ppm(index)
        if sign > 0:
            there.append(index)
        else:
            there.remove(index)
            if not there:
                self.pools.pop(mask, None)


def _claims(vcpus: Sequence[Vcpu]) -> list[Claim]:
    guests = [(vcpu.id.uuid, vcpu.id.domain_id) for vcpu in vcpus]
    running = Counter(guest for guest, vcpu in zip(guests, vcpus, strict=True) if vcpu.load_ppm)
    return [
        (
            min(vcpu.load_ppm, vcpu.quota_ppm),
            max(1, vcpu.shares * WEIGHT_PER_SHARE // (running[guest] or 1)),
        )
        for guest, vcpu in zip(guests, vcpus, strict=True)
    ]


def _short_ppm(
    stopped: Mapping[int, int], places: Mapping[int, Sequence[int]], curves: Mapping[int, Curve]
) -> dict[int, int]:
    short: dict[int, int] = {}
    for place, level in stopped.items():
        there = places.get(place)
        if there:
            for position, served_ppm in curves[place].short_ppm(level):
                short[there[position]] = served_ppm
    return short


def _cores(host: Host) -> list[Core]:
    cores: dict[tuple[bool, int], list[HostCpu]] = {}
    for cpu in sorted(host.cpus, key=lambda cpu: cpu.id):
        known = cpu.cpu.core
        cores.setdefault((False, cpu.id) if known is None else (True, known), []).append(cpu)
    found = []
    for cpus in cores.values():
        # The host's own threads are shared with like any others: they leave half, if need be.
        threads = {
            cpu.id: max(cpu.cpu.capacity_ppm - cpu.host_load_ppm, cpu.cpu.capacity_ppm // 2)
            for cpu in cpus
        }
        most_ppm = sum(threads.values())
        if len(cpus) > 1:
            together_ppm = capacity_ppm([cpu.cpu for cpu in cpus])
            used_ppm = sum(cpu.host_load_ppm for cpu in cpus)
            most_ppm = min(most_ppm, max(together_ppm - used_ppm, together_ppm // 2))
        found.append(Core(threads, most_ppm))
    return found


def _name(vcpu: Vcpu) -> str:
    return vcpu_text(vcpu.id.vcpu, vcpu.domain)
