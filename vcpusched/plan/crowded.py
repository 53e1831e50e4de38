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
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vcpusched.model import CpuSet, Host, HostCpu, Vcpu
from vcpusched.plan.cpu_groups import Bins, by_core, capacity_ppm, pour
from vcpusched.plan.moves import Move, Plan, Policy
from vcpusched.text import cpus_text


def with_crowded(found: Plan, host: Host, bins: Bins, policy: Policy) -> Plan:
    """Return a plan with the vCPUs to let into all of their set, too."""
    moved = {move.vcpu: move.to_cpus for move in found.moves}
    inside: defaultdict[int, list[tuple[Vcpu, CpuSet]]] = defaultdict(list)
    for vcpu in sorted(host.vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        cpus = moved.get(vcpu.id, vcpu.cpus)
        if (bin_ := bins.bin_of(cpus)) is not None:
            inside[bin_].append((vcpu, cpus & bins.members[bin_]))
    more = []
    for bin_, vcpus in inside.items():
        members = bins.members[bin_]
        if members & host.unsettled:
            continue
        cpus_in = [cpu for cpu in host.cpus if cpu.id in members]
        for vcpu, part in _crowded(cpus_in, vcpus, policy):
            verb = "were" if len(part) > 1 else "was"
            reason = (
                f"{cpus_text(part)} {verb} crowded while {cpus_text(members)} had room; now the "
                "kernel may run it on all of these"
            )
            more.append(Move(vcpu.id, vcpu.domain, vcpu.cpus, members, vcpu.load_ppm, reason))
    more.sort(key=lambda move: move.vcpu)
    room = None if policy.max_moves is None else max(0, policy.max_moves - len(moved))
    return replace(found, moves=(*found.moves, *more[:room]))


def _crowded(
    cpus: Sequence[HostCpu], vcpus: Sequence[tuple[Vcpu, CpuSet]], policy: Policy
) -> Iterator[tuple[Vcpu, CpuSet]]:
    """Yield the vCPUs of a set to let into all of it, with the part of it that each is in."""
    bound, floating = {cpu.id: cpu.host_load_ppm for cpu in cpus}, 0
    every, narrow = CpuSet.of(bound), list[tuple[int, Vcpu, CpuSet]]()
    for vcpu, part in vcpus:
        share = vcpu.load_ppm // len(part)
        if part == every:
            floating += vcpu.load_ppm
            continue
        for cpu in part:
            bound[cpu] += share
        if share and not vcpu.fixed and every.is_within(vcpu.allowed):
            narrow.append((share, vcpu, part))
    cores = [
        ([cpu.id for cpu in core], capacity_ppm(core))
        for core in by_core(cpu.cpu for cpu in cpus).values()
    ]
    while True:
        use = {
            cpu: bound[cpu] + max(0, sum(bound[one] for one in core) - gives)
            for core, gives in cores
            for cpu in core
        }
        more = dict(pour(bound, bound, floating))
        least = min(load + more.get(cpu, 0) for cpu, load in use.items())
        crowded = [
            (share, vcpu, part)
            for share, vcpu, part in narrow
            if max(use[cpu] for cpu in part) - max(share, least) >= policy.balance_threshold_ppm
        ]
        if not crowded:
            return
        share, vcpu, part = crowded[0]
        narrow.remove(crowded[0])
        yield vcpu, part
        floating += vcpu.load_ppm
        for cpu in part:
            bound[cpu] -= share
