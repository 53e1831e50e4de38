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
    load. No result depends on the order of domains or vCPUs.
"""

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


def observe(before: Sample | None, after: Sample) -> Host:
    """Give the host as it was between two samples.

    Every vCPU of `after` that `before` knows too has its usage as load; the others are absent.
    """
    managed = after.topology.online
    earlier = {_domain_key(domain): domain for domain in before.domains} if before else {}
    vcpus = [
        vcpu
        for domain in after.domains
        for vcpu in _observe_domain(earlier.get(_domain_key(domain)), domain, managed)
    ]
    return Host(
        cpus=tuple(HostCpu(cpu) for cpu in sorted(after.topology.cpus, key=lambda cpu: cpu.id)),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
    )


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


def _observe_domain(
    before: DomainReading | None, after: DomainReading, managed: CpuSet
) -> list[Vcpu]:
    if before is None:
        return []
    interval_ns = after.at_ns - before.at_ns
    if max(before.took_ns, after.took_ns) * UNCERTAIN_MAX > interval_ns:
        return []
    run_before_ns = {reading.vcpu: reading.run_ns for reading in before.vcpus}
    found = []
    for reading in after.vcpus:
        if reading.vcpu not in run_before_ns:
            continue
        load_ppm = usage_ppm(run_before_ns[reading.vcpu], reading.run_ns, interval_ns)
        if load_ppm is None:
            continue
        found.append(_vcpu(after, reading, load_ppm, managed))
    return found


def _vcpu(domain: DomainReading, reading: VcpuReading, load_ppm: int, managed: CpuSet) -> Vcpu:
    definition = domain.allowed.get(reading.vcpu, CpuSet()) & managed
    affinity = reading.affinity
    # A live pin to one pCPU is placement and may be changed within the definition. Several pCPUs
    # are the whole definition, or a pool (or a wider mask) that another hand keeps.
    fixed = len(affinity) != 1 and affinity & managed != definition
    return Vcpu(
        id=VcpuId(domain.uuid, domain.domain_id, reading.vcpu),
        domain=domain.name,
        load_ppm=load_ppm,
        cpus=affinity,
        allowed=affinity if fixed else definition,
        on=reading.on,
        fixed=fixed or not definition,
    )
