"""Turns two samples into a host with loads.

Rule: pure arithmetic on values. What is unknown stays absent, never 0.

Problem: libvirt gives counters of CPU time; the planner needs the load of every vCPU, and to know
    which vCPUs may be moved at all.
Approach: the difference of two readings of the same vCPU over the time that really passed between
    them, not over the nominal period.
Terms: usage is run time over wall time, at most one pCPU. A pool is a live affinity of several
    pCPUs that is narrower than the domain's definition: somebody keeps it, so it is obeyed.
Algorithm: match readings by `VcpuId`; drop those that cannot be trusted; decide who may move.
Properties: a vCPU seen for the first time, restarted, or whose counter went backwards has no
    load; one that was read badly keeps its last one. No result depends on the order of
    domains or vCPUs.
"""

import dataclasses
from typing import Final

from vcpusched.model import (
    PPM,
    CpuSet,
    DomainReading,
    Host,
    HostCpu,
    Sample,
    Vcpu,
    VcpuId,
    VcpuReading,
)

INTERVAL_MIN_NS: Final = 200_000_000
"""Two readings closer than this say nothing: libvirt counts CPU time in steps of 10 ms, so an
error of 5 % of a pCPU would be usual."""

UNCERTAIN_MAX: Final = 10
"""A reading that took more than one part in this many of the interval is not used: when within
the call the counter was read is not known, so its usage could be wrong by as much."""


def observe(before: Sample | None, after: Sample, previous: Host | None = None) -> Host:
    """Give the host as it was between two samples (`before` is a `baseline`).

    Every vCPU of `after` that `before` knows too has its usage as load. One that could not be read
    well this time keeps the load it had in `previous`, and stays where it is while its domain
    cannot be read at all: taken for 0, it would look like room for others. The rest is absent;
    `Host.unknown` counts those of them that are bound to a pCPU.
    """
    managed = after.topology.online
    earlier = {_domain_key(domain): domain for domain in before.domains} if before else {}
    known = {vcpu.id: vcpu for vcpu in previous.vcpus} if previous else {}
    vcpus = [
        dataclasses.replace(vcpu, fixed=True)
        for vcpu in known.values()
        if vcpu.id.uuid in after.unread
    ]
    unknown = 0
    for domain in after.domains:
        for reading in domain.vcpus:
            identity = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
            load_ppm = _load(earlier.get(_domain_key(domain)), domain, reading, known.get(identity))
            if load_ppm is not None:
                vcpus.append(_vcpu(identity, domain, reading, load_ppm, managed))
            elif len(reading.affinity) == 1:
                unknown += 1
    return Host(
        cpus=tuple(HostCpu(cpu) for cpu in sorted(after.topology.cpus, key=lambda cpu: cpu.id)),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
        unknown=unknown,
    )


def baseline(before: Sample | None, after: Sample) -> Sample:
    """Give the sample that the next one is to be compared with: `after`, where it can be trusted.

    A domain that was slow to read, or could not be read, keeps its earlier reading, so that the
    interval grows until the uncertainty no longer counts.
    """
    if before is None:
        return after
    earlier = {_domain_key(domain): domain for domain in before.domains}
    chosen = []
    for domain in after.domains:
        first = earlier.get(_domain_key(domain))
        keep = first is not None and _is_uncertain(first, domain) and not _is_new(first, domain)
        chosen.append(first if first is not None and keep else domain)
    chosen += [domain for domain in before.domains if domain.uuid in after.unread]
    return dataclasses.replace(after, domains=tuple(chosen))


def _is_uncertain(before: DomainReading, after: DomainReading) -> bool:
    interval_ns = after.at_ns - before.at_ns
    return max(before.took_ns, after.took_ns) * UNCERTAIN_MAX > interval_ns


def _is_new(before: DomainReading, after: DomainReading) -> bool:
    """Tell whether a counter went backwards: other vCPUs, under the same identity."""
    run_before_ns = {reading.vcpu: reading.run_ns for reading in before.vcpus}
    return any(reading.run_ns < run_before_ns.get(reading.vcpu, 0) for reading in after.vcpus)


def usage_ppm(run_before_ns: int, run_after_ns: int, interval_ns: int) -> int | None:
    """Give the usage of a vCPU in parts per million of a pCPU, 0 to 1,000,000.

    None when the counter went backwards (another vCPU, then) or the interval is too short. A thread
    runs on one pCPU at a time; a little more than that is the uncertainty of the reading.
    """
    if run_after_ns < run_before_ns or interval_ns < INTERVAL_MIN_NS:
        return None
    return min(PPM, (run_after_ns - run_before_ns) * PPM // interval_ns)


def _domain_key(domain: DomainReading) -> tuple[str, int]:
    return domain.uuid, domain.domain_id


def _load(
    before: DomainReading | None, after: DomainReading, reading: VcpuReading, known: Vcpu | None
) -> int | None:
    kept_ppm = known.load_ppm if known is not None else None
    if before is None:
        return kept_ppm
    interval_ns = after.at_ns - before.at_ns
    run_before_ns = {earlier.vcpu: earlier.run_ns for earlier in before.vcpus}.get(reading.vcpu)
    if run_before_ns is None:
        return kept_ppm
    if run_before_ns > reading.run_ns:
        return None  # another vCPU under the same identity
    if _is_uncertain(before, after):
        return kept_ppm
    load_ppm = usage_ppm(run_before_ns, reading.run_ns, interval_ns)
    return kept_ppm if load_ppm is None else load_ppm


def _vcpu(
    identity: VcpuId, domain: DomainReading, reading: VcpuReading, load_ppm: int, managed: CpuSet
) -> Vcpu:
    definition = domain.allowed.get(reading.vcpu, CpuSet()) & managed
    affinity = reading.affinity
    # A live pin to one pCPU is placement and may be changed within the definition. Several pCPUs
    # are the whole definition, or a pool (or a wider mask) that another hand keeps.
    fixed = len(affinity) != 1 and affinity & managed != definition
    return Vcpu(
        id=identity,
        domain=domain.name,
        load_ppm=load_ppm,
        cpus=affinity,
        allowed=affinity if fixed else definition,
        on=reading.on,
        fixed=fixed or not definition,
    )
