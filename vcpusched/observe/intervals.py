"""Two samples of a host become intervals: what each vCPU did between them.

Rule: pure arithmetic on values. What is unknown stays None, never 0.

Readings are matched by `VcpuId`. A usage is what the counter says over the time that really passed,
not over the nominal period. One that cannot be trusted is None, and the earlier reading is kept for
the next time (`baseline`), so that the interval grows until the uncertainty no longer counts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from vcpusched.model import NO_CPUS, PPM, CpuSet, VcpuId
from vcpusched.observe.demand import INTERVAL_MIN_NS, RESTLESS_PPM, Affinities, wait_ppm
from vcpusched.sample import DomainReading, Sample, VcpuReading

UNCERTAIN_MAX: Final = 10
"""A reading that took more than one part in this many of the interval is not used: when within
the call the counter was read is not known, so its usage could be wrong by as much."""


class Interval(NamedTuple):
    """One vCPU between two readings.

    `before` is None without an earlier reading of the same vCPU, `usage_ppm` and `wait_ppm` where
    nothing can be said; `restarted` for another vCPU under the same identity. `can_ppm` is what the
    pCPUs could do that it may use, on average: where it really ran is not known; `busy_ppm` how
    busy the least busy of them was.
    """

    id: VcpuId
    domain: DomainReading
    after: VcpuReading
    before: VcpuReading | None = None
    began_ns: int = 0
    usage_ppm: int | None = None
    wait_ppm: int | None = None
    can_ppm: int = PPM
    busy_ppm: int = 0
    restarted: bool = False

    def work_ppm(self, time_ppm: int) -> int:
        """Return what a share of the time on its pCPUs is worth, in ppm of the strongest pCPU."""
        if self.can_ppm == PPM:
            return time_ppm
        return PPM if time_ppm >= RESTLESS_PPM else time_ppm * self.can_ppm // PPM


def intervals(before: Sample | None, after: Sample, busy: Mapping[int, int]) -> Iterator[Interval]:
    """Return the interval of every vCPU of `after`; `before` is the `baseline` of that before."""
    read_before = _by_run(before) if before is not None else {}
    affinities = Affinities(after.topology, busy)
    for domain in after.domains:
        first = read_before.get((domain.uuid, domain.domain_id))
        is_uncertain = first is not None and _is_uncertain(first, domain)
        earlier = {reading.vcpu: reading for reading in first.vcpus} if first is not None else {}
        for reading in domain.vcpus:
            vcpu = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
            known = earlier.get(reading.vcpu)
            if first is None or known is None or known.run_ns > reading.run_ns:
                yield Interval(vcpu, domain, reading, restarted=known is not None)
                continue
            interval_ns = domain.at_ns - first.at_ns
            usage_ppm = None
            if interval_ns >= INTERVAL_MIN_NS and not is_uncertain:
                # A thread runs on one pCPU at a time: more is the uncertainty of the reading.
                usage_ppm = min(PPM, (reading.run_ns - known.run_ns) * PPM // interval_ns)
            yield Interval(
                vcpu,
                domain,
                reading,
                known,
                first.at_ns,
                usage_ppm,
                wait_ppm(known.waited, reading.waited, interval_ns),
                *affinities.of(reading.affinity),
            )


def baseline(before: Sample | None, after: Sample) -> Sample:
    """Return the sample that the next one is to be compared with: `after`, where it can be trusted.

    A domain that was slow to read, or could not be read, keeps its earlier reading.
    """
    if before is None:
        return after
    earlier = _by_run(before)
    chosen = []
    for domain in after.domains:
        first = earlier.get((domain.uuid, domain.domain_id))
        keep = first is not None and _is_uncertain(first, domain) and not _is_new(first, domain)
        chosen.append(first if first is not None and keep else domain)
    chosen += [domain for domain in before.domains if domain.uuid in after.unread]
    return replace(after, domains=tuple(chosen))


def unclear(before: Sample, after: Sample, found: Iterable[Interval]) -> CpuSet:
    """Return the pCPUs that ran vCPUs of which it is not known how much."""
    cpus = NO_CPUS
    running = _by_run(after)
    for run, domain in _by_run(before).items():
        if run not in running:
            for gone in domain.vcpus:
                cpus |= gone.affinity
    for interval in found:
        if interval.usage_ppm is None:
            cpus |= interval.after.affinity
        if interval.before is not None and interval.before.affinity != interval.after.affinity:
            cpus |= interval.after.affinity | interval.before.affinity
    return cpus


def _by_run(sample: Sample) -> dict[tuple[str, int], DomainReading]:
    return {(domain.uuid, domain.domain_id): domain for domain in sample.domains}


def _is_uncertain(before: DomainReading, after: DomainReading) -> bool:
    interval_ns = after.at_ns - before.at_ns
    return max(before.took_ns, after.took_ns) * UNCERTAIN_MAX > interval_ns


def _is_new(before: DomainReading, after: DomainReading) -> bool:
    """Return whether a counter went backwards: other vCPUs, under the same identity."""
    run_before_ns = {reading.vcpu: reading.run_ns for reading in before.vcpus}
    return any(reading.run_ns < run_before_ns.get(reading.vcpu, 0) for reading in after.vcpus)
