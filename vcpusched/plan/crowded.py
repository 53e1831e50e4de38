"""Finds the vCPUs to let into all of the set of pCPUs that they are bound in.

Rule: pure; adds to a plan for sets what no move between sets can do.

Problem: a vCPU that is bound inside a set to less than all of it waits while the set has room.
Terms: such a vCPU is narrow.
Algorithm: first, where the pCPUs of a set are a threshold apart, the largest of the busiest is let
    out; then those on a core that wants `min_gain` more than it can give while others have room.
Properties: whoever may not use all of its set stays. Nothing is taken from anybody: on the whole
    set the kernel divides by weight.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from vcpusched.model import PPM_PER_POINT, CpuSet, Granularity, Host, HostCpu, Vcpu, sets
from vcpusched.plan.cpu_groups import Bins, capacity_ppm, name, pour
from vcpusched.plan.moves import Move, Plan, Policy


def with_crowded(found: Plan, host: Host, bins: Bins, policy: Policy) -> Plan:
    """Return a plan with the vCPUs to let into all of their set, too."""
    moved = {move.vcpu: move.to_cpus for move in found.moves}
    vcpus = tuple(replace(vcpu, cpus=moved.get(vcpu.id, vcpu.cpus)) for vcpu in host.vcpus)
    moves = list(found.moves)
    span, gain = policy.balance_threshold_ppm, policy.min_gain_ppm
    for vcpu, part, bin_ in _crowded(replace(host, vcpus=vcpus), bins, span, gain):
        if vcpu.id not in moved and (policy.max_moves is None or len(moves) < policy.max_moves):
            moves.append(_let_in(vcpu, bins, part, bin_))
    return replace(found, moves=tuple(moves))


def _let_in(vcpu: Vcpu, bins: Bins, part: CpuSet, bin_: int) -> Move:
    members = bins.members[bin_]
    verb = "were" if len(part) > 1 else "was"
    return Move(
        vcpu=vcpu.id,
        domain=vcpu.domain,
        from_cpus=vcpu.cpus,
        to_cpus=members,
        load_ppm=vcpu.load_ppm,
        reason=f"{name(part)} {verb} crowded while {name(members)} had room; now the kernel may "
        "run it on all of these",
    )


def _crowded(
    host: Host, bins: Bins, span_ppm: int, min_gain_ppm: int
) -> list[tuple[Vcpu, CpuSet, int]]:
    """Return the narrow vCPUs to let into their bin, where each was crowded, and the bin."""
    found: list[tuple[Vcpu, CpuSet, int]] = []
    inside: defaultdict[int, list[Vcpu]] = defaultdict(list)
    for vcpu in host.vcpus:
        touched = {bins.of_cpu[cpu] for cpu in vcpu.cpus if cpu in bins.of_cpu}
        if len(touched) == 1:
            inside[touched.pop()].append(vcpu)
    by_id = {cpu.id: cpu for cpu in host.cpus}
    for bin_, vcpus in sorted(inside.items()):
        members = bins.members[bin_]
        if len(members) == 1 or members & host.unsettled:
            continue
        cpus = [by_id[cpu] for cpu in members]
        out = _Parts(cpus, [CpuSet(1 << cpu) for cpu in members], vcpus).let_out(span_ppm)
        gone = {vcpu.id for vcpu, _ in out}
        wide = [vcpu for vcpu in vcpus if vcpu.id not in gone]
        floating = sum(vcpu.load_ppm for vcpu, _ in out)
        cores = _Parts(cpus, sets((cpu.cpu for cpu in cpus), Granularity.CORE), wide, floating)
        out += cores.let_off(max(1, min_gain_ppm))
        found += [(vcpu, part, bin_) for vcpu, part in out]
    return sorted(found, key=lambda one: one[0].id)


COMPANY_PPM: Final = 5 * PPM_PER_POINT
"""With less beside it a vCPU counts as alone."""


class _Parts:
    """The pCPUs or cores of one set, the vCPUs that are bound to one of them, and what floats."""

    def __init__(
        self,
        cpus: Sequence[HostCpu],
        parts: Sequence[CpuSet],
        vcpus: Sequence[Vcpu],
        floating_ppm: int = 0,
    ) -> None:
        self._parts, self._floating = parts, floating_ppm
        self._all = CpuSet.of(cpu.id for cpu in cpus)
        by_id = {cpu.id: cpu for cpu in cpus}
        self._load = [sum(by_id[cpu].host_load_ppm for cpu in part) for part in parts]
        self._gives = [capacity_ppm([by_id[cpu].cpu for cpu in part]) for part in parts]
        self._on: list[list[Vcpu]] = [[] for _ in parts]
        for vcpu in vcpus:
            inside = [index for index, part in enumerate(parts) if vcpu.cpus & part]
            if len(inside) == 1:
                self._on[inside[0]].append(vcpu)
                self._load[inside[0]] += vcpu.load_ppm
            else:
                self._floating += vcpu.load_ppm

    def let_out(self, span_ppm: int) -> list[tuple[Vcpu, CpuSet]]:
        """Free the largest on the busiest part while it has company and parts are far apart."""
        found: list[tuple[Vcpu, CpuSet]] = []
        while True:
            poured = pour(self._load, range(len(self._parts)), self._floating)
            levels = list(self._load)
            for part, amount in poured:
                levels[part] += amount
            busiest = max(range(len(levels)), key=lambda part: (levels[part], -part))
            if levels[busiest] - min(levels) < span_ppm or not self._free_largest(busiest, found):
                return found

    def let_off(self, least_ppm: int) -> list[tuple[Vcpu, CpuSet]]:
        """Free vCPUs of parts that want so much more than they can give, where others have room."""
        found: list[tuple[Vcpu, CpuSet]] = []
        while len(self._parts) > 1:
            room = [give - load for give, load in zip(self._gives, self._load, strict=True)]
            tightest = min(range(len(room)), key=lambda part: (room[part], part))
            left = sum(free for free in room if free > 0) - self._floating
            if -room[tightest] < least_ppm or left < least_ppm:
                break
            if not self._free_largest(tightest, found):
                break
        return found

    def _free_largest(self, part: int, found: list[tuple[Vcpu, CpuSet]]) -> bool:
        able = [
            vcpu
            for vcpu in self._on[part]
            if vcpu.load_ppm and not vcpu.fixed and self._all.is_within(vcpu.allowed)
        ]
        largest = max(able, key=lambda vcpu: (vcpu.load_ppm, vcpu.id), default=None)
        # One that makes all the load is no better off elsewhere.
        if largest is None or self._load[part] - largest.load_ppm < COMPANY_PPM:
            return False
        self._on[part].remove(largest)
        self._load[part] -= largest.load_ppm
        self._floating += largest.load_ppm
        found.append((largest, self._parts[part]))
        return True
