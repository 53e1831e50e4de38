"""Turns samples into a host with loads.

Rule: pure arithmetic on values. What is unknown stays absent, never 0.

Problem: the kernel counts CPU time; the planner needs the load of every vCPU, steady enough
    that noise moves nothing and quick enough to follow a real change, and to know which vCPUs may
    be moved at all.
Terms: usage is run time over wall time, at most one pCPU (`intervals`); demand what a vCPU would
    use if it never waited (`demand`). Load is smoothed demand. The half-life is the time after
    which a demand counts half as much as a new one. Run time on a pCPU that can do less than the
    strongest is worth as much less, so that a load stays the same wherever the vCPU goes, and so it
    is beside busy threads of the core; a vCPU that never sleeps there may want any more than it
    gets, and is taken to want all of the strongest pCPU. Where all pCPUs can do the same, time is
    taken as it is.
Algorithm: 1. Match readings. 2. Mix each demand into the load, with the weight that the half-life
    gives to the time between the readings. 3. Do the same for what the host itself runs, more
    slowly, and where it is known what the vCPUs ran. 4. Have the rules decide which vCPUs may move
    (`placement_rules`).
Properties: a vCPU seen for the first time, restarted, or whose counter went backwards has no load,
    nor has one that began less than the settling time ago; one that cannot be read keeps its last
    one. A load lies between the smallest and the largest demand. A host load that stays within
    `HOST_STEP_PPM` of what was reported before is reported the same. No result depends on the
    order of domains or vCPUs.
"""

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import PPM, CpuSet, DomainUuid, Host, HostCpu, Vcpu, VcpuId
from vcpusched.observe.demand import (
    CROWDED_PPM,
    HostTrack,
    Track,
    busy_ppm,
    demand_ppm,
    explained,
    host_loads_ppm,
    is_undisturbed,
)
from vcpusched.observe.intervals import Interval, intervals, unclear
from vcpusched.observe.placement_rules import (
    DEFAULT_RULES,
    Eligibility,
    Placement,
    PlacementRules,
    Wish,
)
from vcpusched.sample import Definition, Sample

FADE_NS: Final = 300 * 1_000_000_000
"""The load of a guest that cannot be read counts for so long: by then it may be any other."""

HOST_HALF_LIVES: Final = 4
"""The host's own load is smoothed over so many times the half-life: it is more restless than guests
are, and goes elsewhere by itself."""

SETTLE_NS: Final = 10 * 1_000_000_000
"""For so long after its start a guest is not judged, since guests boot."""


JudgedBy = tuple[str, Definition, CpuSet, bool, str]
"""What eligibility is judged by beside the placement: the guest's name and definition, the vCPU's
affinity, whether that is ours, and why it is held."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as it is now, and what to remember for the next time.

    `waits` says for which share of the time since the sample before each vCPU that may use a
    managed pCPU was kept waiting, `busy` how busy each pCPU was; `placement` is by the rules.
    `periods` is from how many of them loads are known. `judged` has each vCPU of the host that was
    read, and what it was judged by.
    """

    host: Host
    tracks: Mapping[VcpuId, Track]
    host_tracks: Mapping[int, HostTrack]
    waits: Mapping[VcpuId, int]
    busy: Mapping[int, int]
    placement: Placement
    periods: int
    judged: Mapping[VcpuId, tuple[JudgedBy, Vcpu]]


def observe(
    before: Sample | None,
    after: Sample,
    earlier: Observed | None = None,
    half_life_s: float = 0.0,
    rules: PlacementRules = DEFAULT_RULES,
) -> Observed:
    """Return the host as it was up to `after`; `before` is the `baseline` of the sample before.

    A demand counts half after `half_life_s` seconds; with 0 only the last one counts. Every vCPU of
    `after` that `before` knows too has a load. One that could not be read well this
    time keeps the load that it had, and stays where it is while its domain cannot be read at all:
    taken for 0, it would look like room for others. That ends after `FADE_NS`. The rest is absent;
    `Host.unsettled` are the pCPUs that any of them are bound to. By the `rules` some pCPUs are not
    managed, and no part of the host, and some vCPUs must stay.
    """
    placement = Placement.of(rules, after, earlier.placement if earlier is not None else None)
    busy = busy_ppm(before.busy, after.busy) if before else {}
    known = earlier.tracks if earlier is not None else {}
    # A vCPU that was there when we began may have run for a year.
    stranger = Track() if earlier is None else None
    host_tracks = earlier.host_tracks if earlier is not None else {}
    found = list(intervals(before, after, busy))
    waits = {
        interval.id: interval.wait_ppm
        for interval in found
        if interval.wait_ppm is not None and interval.after.affinity.meets(placement.managed)
    }
    unread = _unread(before, after)
    tracks = {vcpu: track for vcpu, track in known.items() if vcpu.uuid in unread}
    # Where an unreadable guest is nobody knows: what it may fill stays as it was.
    is_unjudged = any(track.load_ppm is None for track in tracks.values())
    unsettled = earlier.host.unsettled if earlier is not None and is_unjudged else CpuSet()
    # Nobody asks unless all pCPUs that a vCPU may use were crowded.
    is_crowded = any(ppm >= CROWDED_PPM for ppm in busy.values())
    enough = explained(busy, host_tracks, _known(found, known)) if is_crowded else CpuSet()
    if before is not None and before.busy is not None and after.busy is not None and busy:
        passed_ns = after.busy.at_ns - before.busy.at_ns
        usages = (
            (interval.after.affinity, interval.usage_ppm)
            for interval in found
            if interval.usage_ppm is not None
        )
        loads_ppm = host_loads_ppm(busy, usages)
        unknown = unclear(before, after, found)
        host_tracks = _host_followed(host_tracks, loads_ppm, unknown, passed_ns, half_life_s)
    vcpus = [
        replace(vcpu, fixed=True, why="its guest cannot be read", wait_ppm=0)
        for vcpu in (earlier.host.vcpus if earlier else ())
        if vcpu.id.uuid in unread
    ]
    room = CpuSet.of(
        cpu.id
        for cpu in placement.cpus
        if not cpu.isolated and busy.get(cpu.id, PPM) <= CROWDED_PPM
    )
    is_alike = earlier is not None and earlier.placement == placement
    judged_before = earlier.judged if earlier is not None and is_alike else {}
    judged: dict[VcpuId, tuple[JudgedBy, Vcpu]] = {}
    for interval in found:
        track = _followed(interval, known.get(interval.id, stranger), half_life_s, enough)
        tracks[interval.id] = track
        affinity = interval.after.affinity
        if track.load_ppm is not None:
            could_run = affinity.meets(room) and len(affinity) > 1
            wait_ppm = waits.get(interval.id, 0) if could_run else 0
            made = _judged(
                interval, track.load_ppm, wait_ppm, placement, judged_before.get(interval.id)
            )
            judged[interval.id] = made
            vcpus.append(made[1])
        elif placement.binds(affinity):
            unsettled |= affinity
    reported_ppm = Counter({cpu: track.reported_ppm for cpu, track in host_tracks.items()})
    host = Host(
        cpus=tuple(
            HostCpu(cpu, reported_ppm[cpu.id] * cpu.capacity_ppm // PPM) for cpu in placement.cpus
        ),
        vcpus=tuple(sorted(vcpus, key=operator.attrgetter("id"))),
        unsettled=unsettled,
        node_distances=after.topology.node_distances,
    )
    periods = (earlier.periods if earlier is not None else 0) + (before is not None)
    return Observed(host, tracks, host_tracks, waits, busy, placement, periods, judged)


def _unread(before: Sample | None, after: Sample) -> frozenset[DomainUuid]:
    """Return the domains that cannot be read and that were not long ago."""
    busy_ns = after.busy.at_ns if after.busy is not None else 0
    now_ns = max([busy_ns, *(domain.at_ns for domain in after.domains)])
    known = before.domains if before is not None else ()
    old = {domain.uuid for domain in known if now_ns - domain.at_ns > FADE_NS}
    return frozenset(after.unread.keys() - old)


def _known(
    found: Sequence[Interval], tracks: Mapping[VcpuId, Track]
) -> Iterator[tuple[CpuSet, int]]:
    for interval in found:
        track = tracks.get(interval.id)
        if track is not None and interval.usage_ppm is not None:
            known_ppm = track.known_ppm(interval.work_ppm(interval.usage_ppm))
            if interval.can_ppm != PPM:
                known_ppm = known_ppm * PPM // interval.can_ppm
            yield interval.after.affinity, known_ppm


def _followed(
    interval: Interval, track: Track | None, half_life_s: float, explained: CpuSet
) -> Track:
    """Return the track with an interval in it; a new one for another vCPU than the one before."""
    now_ns = interval.domain.at_ns
    if track is None or interval.restarted:
        return Track(now_ns + SETTLE_NS)
    usage_ppm = interval.usage_ppm
    # What it did before it is judged must not be in its load.
    if usage_ppm is None or interval.began_ns < track.judged_from_ns:
        return track
    quota_ppm = interval.domain.definition.quota_ppm
    estimate_ppm = demand_ppm(usage_ppm, interval.wait_ppm, quota_ppm, interval.busy_ppm)
    worth_ppm, wanted_ppm = interval.work_ppm(usage_ppm), interval.work_ppm(estimate_ppm)
    if is_undisturbed(interval.wait_ppm, interval.busy_ppm):
        track = track.undisturbed(worth_ppm, interval.began_ns, now_ns, half_life_s)
    elif interval.after.affinity.is_within(explained):
        wanted_ppm = track.wanted_ppm(worth_ppm, wanted_ppm)
    passed_ns = now_ns - interval.began_ns
    return track.smoothed(wanted_ppm, passed_ns, half_life_s, estimate_ppm)


def _host_followed(
    tracks: Mapping[int, HostTrack],
    loads_ppm: Mapping[int, int],
    unclear: CpuSet,
    passed_ns: int,
    half_life_s: float,
) -> Mapping[int, HostTrack]:
    """Return the tracks of the host's own loads, as they were on pCPUs that are `unclear`."""
    followed = {}
    for cpu, load_ppm in loads_ppm.items():
        track = tracks.get(cpu, HostTrack())
        if cpu not in unclear:
            track = track.followed(load_ppm, passed_ns, half_life_s * HOST_HALF_LIVES)
        followed[cpu] = track
    return followed


def _judged(
    interval: Interval,
    load_ppm: int,
    wait_ppm: int,
    placement: Placement,
    before: tuple[JudgedBy, Vcpu] | None,
) -> tuple[JudgedBy, Vcpu]:
    """Return a vCPU and what it is judged by; `before` is what came of it under an equal placement.

    Judged by the same it is as eligible as before, and with the same load the same vCPU.
    """
    domain, reading = interval.domain, interval.after
    definition = domain.definition
    by = domain.name, definition, reading.affinity, reading.ours, reading.held
    if before is not None and before[0] == by:
        vcpu = before[1]
        if (load_ppm, wait_ppm, reading.on) == (vcpu.load_ppm, vcpu.wait_ppm, vcpu.on):
            return before
        eligibility = Eligibility(vcpu.allowed, vcpu.fixed, vcpu.why)
    else:
        eligibility = placement.eligibility(domain, reading)
    return by, Vcpu(
        id=interval.id,
        domain=domain.name,
        load_ppm=load_ppm,
        cpus=reading.affinity,
        allowed=eligibility.allowed,
        on=reading.on,
        fixed=eligibility.fixed,
        why=eligibility.why,
        memory_node=definition.memory_node(reading.vcpu),
        shares=definition.shares,
        quota_ppm=definition.quota_ppm,
        spread=definition.wish == Wish.SPREAD,
        wait_ppm=wait_ppm,
    )
