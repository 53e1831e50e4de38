"""Turns samples into a host with loads.

Rule: pure arithmetic on values. What is unknown stays absent, never 0.

Problem: libvirt gives counters of CPU time; the planner needs the load of every vCPU, steady enough
    that noise moves nothing and quick enough to follow a real change, and to know which vCPUs may
    be moved at all.
Approach: the difference of two readings of the same vCPU over the time that really passed between
    them, not over the nominal period; then a mean that forgets.
Terms: usage is run time over wall time, at most one pCPU; demand what a vCPU would use if it never
    waited (`demand`). Load is smoothed demand. The half-life is the time after which a demand
    counts half as much as a new one.
Algorithm: 1. Match readings by `VcpuId`; drop those that cannot be trusted. 2. Mix each demand into
    the load, with the weight that the half-life gives to the time between the readings. 3. Do the
    same for what the host itself runs, more slowly, and where it is known what the vCPUs ran.
    4. Have the rules of the house decide who may move (`house`).
Properties: a vCPU seen for the first time, restarted, or whose counter went backwards has no load,
    nor has one that began less than the settling time ago; one that was read badly keeps its last
    one. A load lies between the smallest and the largest demand. A host load that stays within
    `HOST_STEP_PPM` of what was told before is told the same. No result depends on the order of
    domains or vCPUs.
"""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vcpusched.demand import (
    INTERVAL_MIN_NS,
    WAITS_PPM,
    busy_ppm,
    crowded,
    demand_ppm,
    host_loads_ppm,
    wait_ppm,
)
from vcpusched.house import DEFAULT_RULES, House, HouseRules
from vcpusched.model import (
    ALL_CPUS,
    NO_CPUS,
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

UNCERTAIN_MAX: Final = 10
"""A reading that took more than one part in this many of the interval is not used: when within
the call the counter was read is not known, so its usage could be wrong by as much."""


HOST_HALF_LIVES: Final = 4
"""The host's own load is smoothed over so many times the half-life: it is more restless than guests
are, and goes elsewhere by itself."""

HOST_STEP_PPM: Final = 50_000
"""The host's own load is told anew when it differs by as much from what was told before: noise of
a few points must not move guests, and the readings that it is made of are no better."""


class Measure(enum.StrEnum):
    """What is smoothed into a vCPU's load."""

    DEMAND = "demand"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How usage becomes load.

    `half_life_s`: seconds after which a usage counts half; 0: only the last one counts.
    `settle_s`: seconds after its start for which a guest is not judged, since guests boot.
    """

    half_life_s: float = 0.0
    settle_s: float = 0.0
    measure: Measure = Measure.DEMAND


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
class HostTrack:
    """What is remembered of the host's own load on one pCPU; `told_ppm` is what was told last.

    It begins as nothing and not as the first value: that of the seconds in which we start.
    """

    load_ppm: int = 0
    weight_ppm: int = PPM
    told_ppm: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as it is now, and what to remember for the next time.

    `crowded` are the pCPUs whose vCPUs should be asked how long they waited; `contended` tells
    whether one really had to wait since the sample before; `house` is what the rules come to.
    """

    host: Host
    tracks: Mapping[VcpuId, Track]
    host_tracks: Mapping[int, HostTrack] = field(default_factory=dict)
    crowded: CpuSet = NO_CPUS
    contended: bool = False
    house: House | None = None


def observe(
    before: Sample | None,
    after: Sample,
    earlier: Observed | None = None,
    smoothing: Smoothing = Smoothing(),
    rules: HouseRules = DEFAULT_RULES,
) -> Observed:
    """Give the host as it was up to `after`; `before` is the `baseline` of the sample before.

    Every vCPU of `after` that `before` knows too has a load. One that could not be read well this
    time keeps the load that it had, and stays where it is while its domain cannot be read at all:
    taken for 0, it would look like room for others. The rest is absent; `Host.unsettled` are the
    pCPUs that any of them are bound to. By the `rules` some pCPUs are not managed, and no part of
    the host, and some vCPUs must stay.
    """
    house = House.of(rules, after, earlier.house if earlier is not None else None)
    busy = busy_ppm(before.busy, after.busy) if before else {}
    known = earlier.tracks if earlier is not None else {}
    stranger = Track() if earlier is None else None
    vcpus = [
        dataclasses.replace(vcpu, fixed=True, why="its domain cannot be read")
        for vcpu in (earlier.host.vcpus if earlier else ())
        if vcpu.id.uuid in after.unread
    ]
    tracks = {identity: track for identity, track in known.items() if identity.uuid in after.unread}
    unsettled = CpuSet()
    for unread in tracks.values():
        if unread.load_ppm is None and len(unread.affinity) == 1:
            unsettled |= unread.affinity
    intervals = list(_intervals(before, after))
    for interval in intervals:
        domain, reading = interval.domain, interval.after
        identity = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
        track = _follow(interval, known.get(identity, stranger), smoothing, busy)
        if track is None:
            # Whoever was there when we began to look may have run for a year.
            wait_ns = round(smoothing.settle_s * 1e9) if before is not None else 0
            track = Track(judged_from_ns=domain.at_ns + wait_ns)
        tracks[identity] = track = dataclasses.replace(track, affinity=reading.affinity)
        if track.load_ppm is not None:
            vcpus.append(_vcpu(identity, domain, reading, track.load_ppm, house))
        elif len(reading.affinity) == 1:
            unsettled |= reading.affinity
    host_tracks = earlier.host_tracks if earlier is not None else {}
    if before is not None and busy:
        unclear = _unclear(before, after, intervals)
        host_tracks = _follow_host(host_tracks, before, after, busy, intervals, unclear, smoothing)
    told_ppm = {cpu: track.told_ppm for cpu, track in host_tracks.items()}
    host = Host(
        cpus=tuple(
            HostCpu(cpu, told_ppm.get(cpu.id, 0))
            for cpu in sorted(after.topology.cpus, key=lambda cpu: cpu.id)
            if cpu.id in house.managed
        ),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
        unsettled=unsettled,
    )
    # Before anything is known everybody is asked: loads that begin right need no correction.
    asked = crowded(busy) if busy else ALL_CPUS
    return Observed(
        host=host,
        tracks=tracks,
        host_tracks=host_tracks,
        crowded=asked,
        contended=any(_waits(interval, asked, house.managed) for interval in intervals),
        house=house,
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


@dataclass(frozen=True, slots=True)
class _Interval:
    """One vCPU between two readings.

    `before` is None without an earlier reading of the same vCPU, `usage_ppm` None where nothing
    can be said; `restarted` for another vCPU under the same identity.
    """

    domain: DomainReading
    after: VcpuReading
    before: VcpuReading | None = None
    began_ns: int = 0
    usage_ppm: int | None = None
    restarted: bool = False


def _intervals(before: Sample | None, after: Sample) -> Iterator[_Interval]:
    read_before = {_domain_key(domain): domain for domain in before.domains} if before else {}
    for domain in after.domains:
        first = read_before.get(_domain_key(domain))
        earlier = {reading.vcpu: reading for reading in first.vcpus} if first else {}
        for reading in domain.vcpus:
            known = earlier.get(reading.vcpu)
            if first is None or known is None:
                yield _Interval(domain, reading)
            elif known.run_ns > reading.run_ns:
                yield _Interval(domain, reading, restarted=True)
            else:
                usage = usage_ppm(known.run_ns, reading.run_ns, domain.at_ns - first.at_ns)
                yield _Interval(
                    domain,
                    reading,
                    known,
                    first.at_ns,
                    None if _is_uncertain(first, domain) else usage,
                )


def _follow(
    interval: _Interval, track: Track | None, smoothing: Smoothing, busy: Mapping[int, int]
) -> Track | None:
    """Give the track with this interval in it; None for another vCPU than the one before."""
    if interval.restarted:
        return None
    # What it did before it is judged must not be in its load.
    if track is None or interval.usage_ppm is None or interval.began_ns < track.judged_from_ns:
        return track
    wanted_ppm = interval.usage_ppm
    if interval.before is not None and smoothing.measure is Measure.DEMAND:
        # The kernel lets nobody wait who may use a pCPU that idles.
        freest = min((busy.get(cpu, 0) for cpu in interval.after.affinity), default=0)
        wanted_ppm = demand_ppm(wanted_ppm, interval.before.waited, interval.after.waited, freest)
    passed_ns = interval.domain.at_ns - interval.began_ns
    return smoothed(track, wanted_ppm, passed_ns, smoothing.half_life_s)


def _waits(interval: _Interval, crowded: CpuSet, managed: CpuSet) -> bool:
    """Tell whether a vCPU had to wait since its pCPUs, one of them managed, are crowded."""
    cpus = interval.after.affinity
    if interval.before is None or not (cpus.is_within(crowded) and cpus & managed):
        return False
    return wait_ppm(interval.before.waited, interval.after.waited) >= WAITS_PPM


def _unclear(before: Sample, after: Sample, intervals: Sequence[_Interval]) -> CpuSet:
    """Give the pCPUs that ran vCPUs of which nobody knows how much."""
    unclear = CpuSet()
    running = {_domain_key(domain) for domain in after.domains}
    for domain in before.domains:
        if _domain_key(domain) not in running:
            for gone in domain.vcpus:
                unclear |= gone.affinity
    for interval in intervals:
        if interval.usage_ppm is None:
            unclear |= interval.after.affinity
        if interval.before is not None and interval.before.affinity != interval.after.affinity:
            unclear |= interval.after.affinity | interval.before.affinity
    return unclear


def _follow_host(  # noqa: PLR0913, PLR0917  all that the host's own load is what is left of
    tracks: Mapping[int, HostTrack],
    before: Sample,
    after: Sample,
    busy: Mapping[int, int],
    intervals: Sequence[_Interval],
    unclear: CpuSet,
    smoothing: Smoothing,
) -> Mapping[int, HostTrack]:
    if before.busy is None or after.busy is None:
        return tracks
    usages = [
        (interval.after.affinity, interval.usage_ppm)
        for interval in intervals
        if interval.usage_ppm is not None
    ]
    passed_ns = after.busy.at_ns - before.busy.at_ns
    followed = {}
    for cpu, load_ppm in host_loads_ppm(busy, usages).items():
        track = tracks.get(cpu, HostTrack())
        if cpu not in unclear:
            mean_ppm, weight_ppm = mixed(
                track.load_ppm,
                track.weight_ppm,
                load_ppm,
                passed_ns,
                smoothing.half_life_s * HOST_HALF_LIVES,
            )
            differs = abs(mean_ppm - track.told_ppm) >= HOST_STEP_PPM
            told_ppm = mean_ppm if differs else track.told_ppm
            track = HostTrack(mean_ppm, weight_ppm, told_ppm)
        followed[cpu] = track
    return followed


def smoothed(track: Track, wanted_ppm: int, interval_ns: int, half_life_s: float) -> Track:
    """Mix what a vCPU wanted into its load."""
    load_ppm, weight_ppm = mixed(
        track.load_ppm, track.weight_ppm, wanted_ppm, interval_ns, half_life_s
    )
    return dataclasses.replace(track, load_ppm=load_ppm, weight_ppm=weight_ppm)


def mixed(
    mean_ppm: int | None, weight_ppm: int, value_ppm: int, interval_ns: int, half_life_s: float
) -> tuple[int, int]:
    """Mix a value into a mean, given with the weight behind it.

    A mean whose weights halve every half-life, and add up to one from the first value on.
    """
    if half_life_s <= 0:
        keep_ppm = 0
    else:
        keep_ppm = round(PPM * 2 ** (-interval_ns / (half_life_s * 1e9)))
    before_ppm = value_ppm if mean_ppm is None else mean_ppm
    weight_ppm = weight_ppm * keep_ppm // PPM + PPM - keep_ppm
    # Rounded to the nearest, or a long half-life would pull every mean down.
    change_ppm = ((value_ppm - before_ppm) * (PPM - keep_ppm) * 2 + weight_ppm) // (
        2 * max(1, weight_ppm)
    )
    return before_ppm + change_ppm, weight_ppm


def _vcpu(
    identity: VcpuId, domain: DomainReading, reading: VcpuReading, load_ppm: int, house: House
) -> Vcpu:
    standing = house.standing(domain, reading)
    return Vcpu(
        id=identity,
        domain=domain.name,
        load_ppm=load_ppm,
        cpus=reading.affinity,
        allowed=standing.allowed,
        on=reading.on,
        fixed=standing.fixed,
        why=standing.why,
        memory_node=domain.definition.memory_node,
        shares=domain.definition.shares,
        quota_ppm=domain.definition.quota_ppm,
        spread=standing.spread,
    )
