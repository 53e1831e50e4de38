"""Finds the vCPUs to let into all of the set of pCPUs that they are bound in.

Rule: pure; adds to a plan for sets what no move between sets can do.

Problem: a vCPU that is bound inside a set to less than all of it waits while the set has room.
Terms: such a vCPU is narrow. The use of a pCPU is what is bound to it, and what is bound to its
    core beyond what that gives.
Algorithm: a narrow vCPU is let out, the largest first, where its pCPU is a threshold busier than
    the vCPU alone would make it, and than the least busy one is with what floats.
Properties: a vCPU that may not use all of its set stays. Nothing is taken from others: on the whole
    set the kernel divides by weight. The result is at rest.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vcpusched.model import Cpu, CpuSet, Granularity, Host, HostCpu, Vcpu, sets
from vcpusched.plan.cpu_groups import Bins, capacity_ppm, pour
from vcpusched.plan.moves import Move, Plan, Policy
from vcpusched.text import cpus_text


def with_crowded(found: Plan, host: Host, bins: Bins, policy: Policy) -> Plan:
    """Return a plan with the vCPUs to let into all of their set, too."""
    moved = {move.vcpu: move.to_cpus for move in found.moves}
    vcpus = tuple(replace(vcpu, cpus=moved.get(vcpu.id, vcpu.cpus)) for vcpu in host.vcpus)
    moves = list(found.moves)
    span = policy.balance_threshold_ppm
    for vcpu, part, bin_ in _crowded(replace(host, vcpus=vcpus), bins, span):
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
        reason=f"{cpus_text(part)} {verb} crowded while {cpus_text(members)} had room; now the "
        "kernel may run it on all of these",
    )


def _crowded(host: Host, bins: Bins, span_ppm: int) -> list[tuple[Vcpu, CpuSet, int]]:
    """Return the narrow vCPUs to let into their bin, where each was crowded, and the bin."""
    found: list[tuple[Vcpu, CpuSet, int]] = []
    inside: defaultdict[int, list[Vcpu]] = defaultdict(list)
    for vcpu in host.vcpus:
        touched = {bins.of_cpu[cpu] for cpu in vcpu.cpus if cpu in bins.of_cpu}
        if len(touched) == 1:
            inside[touched.pop()].append(vcpu)
    by_id = {cpu.id: cpu for cpu in host.cpus}
    for bin_, vcpus in inside.items():
        members = bins.members[bin_]
        if len(members) > 1 and not members & host.unsettled:
            cpus = [by_id[cpu] for cpu in members]
            found += [(vcpu, vcpu.cpus & members, bin_) for vcpu in _let_out(cpus, vcpus, span_ppm)]
    return sorted(found, key=lambda one: one[0].id)


def _let_out(cpus: Sequence[HostCpu], vcpus: Sequence[Vcpu], span_ppm: int) -> list[Vcpu]:
    """Return the vCPUs of a set to let into all of it."""
    bound, floating = {cpu.id: cpu.host_load_ppm for cpu in cpus}, 0
    every, narrow = CpuSet.of(bound), list[tuple[int, Vcpu, CpuSet]]()
    for vcpu in sorted(vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        part = vcpu.cpus & every
        if part == every:
            floating += vcpu.load_ppm
            continue
        share = vcpu.load_ppm // len(part)
        for cpu in part:
            bound[cpu] += share
        if share and not vcpu.fixed and every.is_within(vcpu.allowed):
            narrow.append((share, vcpu, part))
    use = _Use([cpu.cpu for cpu in cpus], bound)
    found, tried, least = list[Vcpu](), -1, use.least(floating)
    while len(narrow) != tried:
        tried, stay = len(narrow), []
        for share, vcpu, part in narrow:
            if max(map(use.of, part)) - max(share, least) < span_ppm:
                stay.append((share, vcpu, part))
                continue
            found.append(vcpu)
            floating += vcpu.load_ppm
            for cpu in part:
                bound[cpu] -= share
            least = use.least(floating)
        narrow = stay
    return found


class _Use:
    """How busy pCPUs are, of what is bound to each."""

    def __init__(self, cpus: Sequence[Cpu], bound: Mapping[int, int]) -> None:
        self._bound, by_id = bound, {cpu.id: cpu for cpu in cpus}
        self._cores: dict[int, tuple[CpuSet, int]] = {}
        for core in sets(cpus, Granularity.CORE):
            gives = capacity_ppm([by_id[cpu] for cpu in core])
            self._cores |= dict.fromkeys(core, (core, gives))

    def of(self, cpu: int, more: int = 0) -> int:
        """Return what is wanted of a pCPU, and of its core beyond what that gives."""
        core, gives = self._cores[cpu]
        return self._bound[cpu] + more + max(0, sum(self._bound[one] for one in core) - gives)

    def least(self, floating: int) -> int:
        """Return the least that any pCPU is used, with what floats."""
        more = dict(pour(self._bound, self._bound, floating))
        return min(self.of(cpu, more.get(cpu, 0)) for cpu in self._bound)
