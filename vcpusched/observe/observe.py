"""Turns samples into a host with loads.

Rule: pure arithmetic on values. What is unknown stays absent, never 0.

Problem: the kernel counts CPU time; the planner needs the load of every vCPU, steady enough
    that noise moves nothing and quick enough to follow a real change, and to know which vCPUs may
    be moved at all.
Approach: the difference of two readings of the same vCPU over the time that really passed between
    them, not over the nominal period; then a mean that forgets.
Terms: usage is run time over wall time, at most one pCPU; demand what a vCPU would use if it never
    waited (`demand`). Load is smoothed demand. The half-life is the time after which a demand
    counts half as much as a new one. Run time on a pCPU that can do less than the strongest is
    worth as much less, so that a load stays the same wherever the vCPU goes, and so it is beside
    busy threads of the core; who never sleeps there may want any more than it gets, and is taken
    to want all of the strongest pCPU. Where all pCPUs can do the same, time is told as it is.
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
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vcpusched.model import PPM, CpuSet, DomainUuid, Host, HostCpu, Vcpu, VcpuId
from vcpusched.observe.demand import (
    CROWDED_PPM,
    INTERVAL_MIN_NS,
    RESTLESS_PPM,
    Capacities,
    HostTrack,
    Track,
    busy_ppm,
    demand_ppm,
    explained,
    host_loads_ppm,
    is_undisturbed,
    smoothed,
    wait_ppm,
)
from vcpusched.observe.placement_rules import DEFAULT_RULES, House, HouseRules
from vcpusched.sample import DomainReading, Sample, VcpuReading

UNCERTAIN_MAX: Final = 10
"""A reading that took more than one part in this many of the interval is not used: when within
the call the counter was read is not known, so its usage could be wrong by as much."""

FADE_NS: Final = 300 * 1_000_000_000
"""The load of a guest that cannot be read counts for so long: by then it may be any other."""

HOST_HALF_LIVES: Final = 4
"""The host's own load is smoothed over so many times the half-life: it is more restless than guests
are, and goes elsewhere by itself."""

HOST_STEP_PPM: Final = 50_000
"""The host's own load is told anew when it differs by as much from what was told before: noise of
a few points must not move guests, and the readings that it is made of are no better."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """How demand becomes load.

    `half_life_s`: seconds after which a demand counts half; 0: only the last one counts.
    `settle_s`: seconds after its start for which a guest is not judged, since guests boot.
    """

    half_life_s: float = 0.0
    settle_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as it is now, and what to remember for the next time.

    `waits` tells for which share of the time since the sample before each vCPU that may use a
    managed pCPU was kept waiting, `busy` how busy each pCPU was; `house` is what the rules come to.
    """

    host: Host
    tracks: Mapping[VcpuId, Track]
    host_tracks: Mapping[int, HostTrack] = field(default_factory=dict)
    waits: Mapping[VcpuId, int] = field(default_factory=dict)
    busy: Mapping[int, int] = field(default_factory=dict)
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
    taken for 0, it would look like room for others. That ends after `FADE_NS`. The rest is absent;
    `Host.unsettled` are the pCPUs that any of them are bound to. By the `rules` some pCPUs are not
    managed, and no part of the host, and some vCPUs must stay.
    """
    house = House.of(rules, after, earlier.house if earlier is not None else None)
    busy = busy_ppm(before.busy, after.busy) if before else {}
    known = earlier.tracks if earlier is not None else {}
    stranger = Track() if earlier is None else None
    unread = _unread(before, after)
    vcpus = [
        dataclasses.replace(vcpu, fixed=True, why="its domain cannot be read", wait_ppm=0)
        for vcpu in (earlier.host.vcpus if earlier else ())
        if vcpu.id.uuid in unread
    ]
    tracks = {identity: track for identity, track in known.items() if identity.uuid in unread}
    unsettled = CpuSet()
    for kept in tracks.values():
        if kept.load_ppm is None and house.binds(kept.affinity):
            unsettled |= kept.affinity
    intervals = list(_intervals(before, after, busy))
    waits = dict(_waits(intervals, house.managed))
    room = CpuSet.of(
        cpu.id for cpu in house.cpus if not cpu.isolated and busy.get(cpu.id, PPM) <= CROWDED_PPM
    )
    host_tracks = earlier.host_tracks if earlier is not None else {}
    enough = explained(busy, host_tracks, _known(intervals, known))

    @functools.cache
    def freest_ppm(affinity: CpuSet) -> int:
        # The kernel lets nobody wait who may use a pCPU that idles.
        return min((busy.get(cpu, 0) for cpu in affinity), default=0)

    for interval in intervals:
        domain, reading, identity = interval.domain, interval.after, interval.identity
        freest = freest_ppm(reading.affinity)
        track = _follow(interval, known.get(identity, stranger), smoothing, freest, enough)
        if track is None:
            # Whoever was there when we began to look may have run for a year.
            wait_ns = round(smoothing.settle_s * 1e9) if before is not None else 0
            track = Track(judged_from_ns=domain.at_ns + wait_ns)
        tracks[identity] = track = track.at(reading.affinity)
        if track.load_ppm is not None:
            found = _vcpu(identity, domain, reading, track.load_ppm, house)
            if not found.is_bound and found.cpus & room:
                found = dataclasses.replace(found, wait_ppm=waits.get(identity, 0))
            vcpus.append(found)
        elif house.binds(reading.affinity):
            unsettled |= reading.affinity
    if before is not None and busy:
        unclear = _unclear(before, after, intervals)
        host_tracks = _follow_host(host_tracks, before, after, busy, intervals, unclear, smoothing)
    told_ppm = Counter({cpu: track.told_ppm for cpu, track in host_tracks.items()})
    host = Host(
        cpus=tuple(HostCpu(cpu, told_ppm[cpu.id] * cpu.capacity_ppm // PPM) for cpu in house.cpus),
        vcpus=tuple(sorted(vcpus, key=lambda vcpu: vcpu.id)),
        unsettled=unsettled,
        node_distances=after.topology.node_distances,
    )
    return Observed(
        host=host,
        tracks=tracks,
        host_tracks=host_tracks,
        waits=waits,
        busy=busy,
        house=house,
    )


def _unread(before: Sample | None, after: Sample) -> frozenset[DomainUuid]:
    """Return the domains that cannot be read and that were not long ago."""
    busy_ns = after.busy.at_ns if after.busy is not None else 0
    now_ns = max([busy_ns, *(domain.at_ns for domain in after.domains)])
    known = before.domains if before is not None else ()
    old = {domain.uuid for domain in known if now_ns - domain.at_ns > FADE_NS}
    return frozenset(after.unread.keys() - old)


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
    can be said; `restarted` for another vCPU under the same identity. `can_ppm` is what the pCPUs
    could do that it may use, on average: where it really ran is not known.
    """

    domain: DomainReading
    after: VcpuReading
    before: VcpuReading | None = None
    began_ns: int = 0
    usage_ppm: int | None = None
    restarted: bool = False
    can_ppm: int = PPM

    def work_ppm(self, time_ppm: int) -> int:
        """Give what a share of the time on its pCPUs is worth, in ppm of the strongest pCPU."""
        if self.can_ppm == PPM:
            return time_ppm
        return PPM if time_ppm >= RESTLESS_PPM else time_ppm * self.can_ppm // PPM

    @property
    def identity(self) -> VcpuId:
        """Which vCPU it is."""
        return VcpuId(self.domain.uuid, self.domain.domain_id, self.after.vcpu)


def _intervals(
    before: Sample | None, after: Sample, busy: Mapping[int, int]
) -> Iterator[_Interval]:
    read_before = {_domain_key(domain): domain for domain in before.domains} if before else {}
    can_ppm = Capacities(after.topology, busy)
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
                    can_ppm=can_ppm.of(reading.affinity),
                )


def _known(
    intervals: Sequence[_Interval], tracks: Mapping[VcpuId, Track]
) -> Iterator[tuple[CpuSet, int]]:
    for interval in intervals:
        track = tracks.get(interval.identity)
        if track is not None and interval.usage_ppm is not None:
            known_ppm = track.known_ppm(interval.work_ppm(interval.usage_ppm))
            if interval.can_ppm != PPM:
                known_ppm = known_ppm * PPM // interval.can_ppm
            yield interval.after.affinity, known_ppm


def _follow(
    interval: _Interval,
    track: Track | None,
    smoothing: Smoothing,
    freest: int,
    explained: CpuSet,
) -> Track | None:
    """Return the track with this interval in it; None for another vCPU than the one before.

    `freest` is how busy the least busy pCPU was that it may use.
    """
    if interval.restarted:
        return None
    # What it did before it is judged must not be in its load.
    if track is None or interval.usage_ppm is None or interval.began_ns < track.judged_from_ns:
        return track
    usage_ppm, now_ns = interval.usage_ppm, interval.domain.at_ns
    estimate_ppm, worth_ppm = usage_ppm, interval.work_ppm(usage_ppm)
    wanted_ppm = worth_ppm
    if interval.before is not None:
        first, last = interval.before.waited, interval.after.waited
        estimate_ppm = demand_ppm(usage_ppm, first, last, freest)
        wanted_ppm = interval.work_ppm(estimate_ppm)
        if is_undisturbed(first, last, freest):
            track = track.undisturbed(worth_ppm, interval.began_ns, now_ns, smoothing.half_life_s)
        elif interval.after.affinity.is_within(explained):
            wanted_ppm = track.wanted_ppm(worth_ppm, wanted_ppm)
    passed_ns = now_ns - interval.began_ns
    return smoothed(track, wanted_ppm, passed_ns, smoothing.half_life_s, estimate_ppm)


def _waits(intervals: Iterable[_Interval], managed: CpuSet) -> Iterator[tuple[VcpuId, int]]:
    """Return for which share of the time vCPUs waited, those that may use a managed pCPU."""
    for interval in intervals:
        if interval.before is not None and interval.after.affinity & managed:
            first, last = interval.before.waited, interval.after.waited
            if first is not None and last is not None:
                yield interval.identity, wait_ppm(first, last)


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
            half_life_s = smoothing.half_life_s * HOST_HALF_LIVES
            track = track.followed(load_ppm, passed_ns, half_life_s, HOST_STEP_PPM)
        followed[cpu] = track
    return followed


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
        memory_node=domain.definition.memory_node(reading.vcpu),
        shares=domain.definition.shares,
        quota_ppm=domain.definition.quota_ppm,
        spread=standing.spread,
    )
