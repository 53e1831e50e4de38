"""Turns samples into a host with loads.

Rule: pure arithmetic on values. What is unknown stays absent, never 0.

Problem: libvirt gives counters of CPU time; the planner needs the load of every vCPU, steady enough
    that noise moves nothing and quick enough to follow a real change, and to know which vCPUs may
    be moved at all.
Approach: the difference of two readings of the same vCPU over the time that really passed between
    them, not over the nominal period; then a mean that forgets.
Terms: usage is run time over wall time, at most one pCPU. Load is smoothed usage. The half-life is
    the time after which a usage counts half as much as a new one. A pool is a live affinity of
    several pCPUs that is narrower than the domain's definition: somebody keeps it, so it is obeyed.
Algorithm: 1. Match readings by `VcpuId`; drop those that cannot be trusted. 2. Mix each usage into
    the load, with the weight that the half-life gives to the time between the readings. 3. Decide
    who may move.
Properties: a vCPU seen for the first time, restarted, or whose counter went backwards has no load,
    nor has one that began less than the settling time ago; one that was read badly keeps its last
    one. A load lies between the smallest and the largest usage. No result depends on the order of
    domains or vCPUs.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How usage becomes load.

    `half_life_s`: seconds after which a usage counts half; 0: only the last one counts.
    `settle_s`: seconds after its start for which a guest is not judged, since guests boot.
    """

    half_life_s: float = 0.0
    settle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Track:
    """What is remembered of one vCPU: its load, the weight behind it, and its affinity.

    `weight_ppm` goes to a million as usages come in; `load_ppm` is None before the first of them.
    A vCPU that began while we looked is not judged before `judged_from_ns`.
    """

    judged_from_ns: int = 0
    load_ppm: int | None = None
    weight_ppm: int = 0
    affinity: CpuSet = field(default_factory=CpuSet)


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as it is now, and what to remember for the next time."""

    host: Host
    tracks: Mapping[VcpuId, Track]


def observe(
    before: Sample | None,
    after: Sample,
    earlier: Observed | None = None,
    smoothing: Smoothing = Smoothing(),
) -> Observed:
    """Give the host as it was up to `after`; `before` is the `baseline` of the sample before.

    Every vCPU of `after` that `before` knows too has a load. One that could not be read well this
    time keeps the load that it had, and stays where it is while its domain cannot be read at all:
    taken for 0, it would look like room for others. The rest is absent; `Host.unsettled` are the
    pCPUs that any of them are bound to.
    """
    managed = after.topology.online
    read_before = {_domain_key(domain): domain for domain in before.domains} if before else {}
    known = earlier.tracks if earlier is not None else {}
    stranger = Track() if earlier is None else None
    vcpus = [
        dataclasses.replace(vcpu, fixed=True)
        for vcpu in (earlier.host.vcpus if earlier else ())
        if vcpu.id.uuid in after.unread
    ]
    tracks = {identity: track for identity, track in known.items() if identity.uuid in after.unread}
    unsettled = CpuSet()
    for unread in tracks.values():
        if unread.load_ppm is None and len(unread.affinity) == 1:
            unsettled |= unread.affinity
    for domain in after.domains:
        first = read_before.get(_domain_key(domain))
        for reading in domain.vcpus:
            identity = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
            track = _follow(first, domain, reading, known.get(identity, stranger), smoothing)
            if track is None:
                # Whoever was there when we began to look may have run for a year.
                wait_ns = round(smoothing.settle_s * 1e9) if before is not None else 0
                track = Track(judged_from_ns=domain.at_ns + wait_ns)
            tracks[identity] = track = dataclasses.replace(track, affinity=reading.affinity)
            if track.load_ppm is not None:
                vcpus.append(_vcpu(identity, domain, reading, track.load_ppm, managed))
            elif len(reading.affinity) == 1:
                unsettled |= reading.affinity
    host = Host(
        cpus=tuple(HostCpu(cpu) for cpu in sorted(after.topology.cpus, key=lambda cpu: cpu.id)),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
        unsettled=unsettled,
    )
    return Observed(host, tracks)


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


def _follow(
    before: DomainReading | None,
    after: DomainReading,
    reading: VcpuReading,
    track: Track | None,
    smoothing: Smoothing,
) -> Track | None:
    """Give the track with this reading in it; None for another vCPU than the one before."""
    if before is None or track is None:
        return track
    run_before_ns = {earlier.vcpu: earlier.run_ns for earlier in before.vcpus}.get(reading.vcpu)
    if run_before_ns is None:
        return track
    if run_before_ns > reading.run_ns:
        return None  # another vCPU under the same identity
    interval_ns = after.at_ns - before.at_ns
    # What it did before it is judged must not be in its load.
    if before.at_ns < track.judged_from_ns or _is_uncertain(before, after):
        return track
    usage = usage_ppm(run_before_ns, reading.run_ns, interval_ns)
    return track if usage is None else smoothed(track, usage, interval_ns, smoothing.half_life_s)


def smoothed(track: Track, usage: int, interval_ns: int, half_life_s: float) -> Track:
    """Mix a usage into a load.

    A mean whose weights halve every half-life, and add up to one from the first usage on.
    """
    if half_life_s <= 0:
        keep_ppm = 0
    else:
        keep_ppm = round(PPM * 2 ** (-interval_ns / (half_life_s * 1e9)))
    before_ppm = usage if track.load_ppm is None else track.load_ppm
    weight_ppm = track.weight_ppm * keep_ppm // PPM + PPM - keep_ppm
    # Rounded to the nearest, or a long half-life would pull every load down.
    change_ppm = ((usage - before_ppm) * (PPM - keep_ppm) * 2 + weight_ppm) // (
        2 * max(1, weight_ppm)
    )
    return dataclasses.replace(track, load_ppm=before_ppm + change_ppm, weight_ppm=weight_ppm)


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
