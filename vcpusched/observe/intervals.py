"""Two samples of a host become intervals: what each vCPU did between them.

Rule: pure arithmetic on values. What is unknown stays None, never 0.

Readings are matched by `VcpuId`. A usage is what the counter says over the time that really passed,
not over the nominal period. Of a guest that could not be read the earlier reading is kept for the
next time (`baseline`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from vcpusched.model import NO_CPUS, PPM, CpuSet, VcpuId
from vcpusched.observe.demand import INTERVAL_MIN_NS, RESTLESS_PPM, Affinities, wait_ppm
from vcpusched.sample import DomainReading, Sample, VcpuReading


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
        earlier = {reading.vcpu: reading for reading in first.vcpus} if first is not None else {}
        for reading in domain.vcpus:
            vcpu = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
            known = earlier.get(reading.vcpu)
            if first is None or known is None or known.run_ns > reading.run_ns:
                yield Interval(vcpu, domain, reading, restarted=known is not None)
                continue
            interval_ns = domain.at_ns - first.at_ns
            usage_ppm = None
            if interval_ns >= INTERVAL_MIN_NS:
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
    """Return the sample that the next one is to be compared with.

    It is `after`, with the earlier readings of domains that could not be read now.
    """
    if before is None or not after.unread:
        return after
    kept = (domain for domain in before.domains if domain.uuid in after.unread)
    return replace(after, domains=(*after.domains, *kept))


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
