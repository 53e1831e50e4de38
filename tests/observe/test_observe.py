"""Loads from counters: what is known, what is not, and who may be moved."""

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpusched.model import (
    PPM,
    PPM_PER_POINT,
    Cpu,
    CpuSet,
    DomainUuid,
    Granularity,
    Topology,
    Vcpu,
)
from vcpusched.observe.demand import INTERVAL_MIN_NS, Track
from vcpusched.observe.intervals import baseline
from vcpusched.observe.observe import Observed, observe
from vcpusched.observe.placement_rules import DEFAULT_RULES, PlacementRules
from vcpusched.sample import Busy, Definition, DomainReading, Sample, Unread, VcpuReading, Waited

SECOND_NS = 1_000_000_000
ALL = CpuSet.parse("0-3")


def reading(at_s: float, *run_s: float, affinity: CpuSet = ALL, **changes: object) -> DomainReading:
    """Give a reading of guest "web" whose vCPUs 0, 1, … have run for so long."""
    made = DomainReading(
        uuid=DomainUuid("u"),
        domain_id=7,
        name="web",
        at_ns=round(at_s * SECOND_NS),
        vcpus=tuple(
            VcpuReading(vcpu, round(run * SECOND_NS), affinity, on=1)
            for vcpu, run in enumerate(run_s)
        ),
        definition=Definition(dict.fromkeys(range(len(run_s)), ALL)),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def sample(*domains: DomainReading) -> Sample:
    """Give a sample of a host with four pCPUs."""
    return Sample(Topology(tuple(Cpu(cpu) for cpu in range(4))), domains)


def loads(before: Sample | None, later: Sample) -> dict[int, int]:
    """Give the load of each vCPU that has one."""
    return {vcpu.id.vcpu: vcpu.load_ppm for vcpu in observe(before, later).host.vcpus}


def test_usage_is_run_time_over_the_measured_interval() -> None:
    """3.5 s passed where 3 s were meant; 1.4 s of run time are 40 %."""
    assert loads(sample(reading(10, 5.0)), sample(reading(13.5, 6.4))) == {0: 400_000}


def waiting(at_s: float, wait_s: float, affinity: str, throttled_s: float = 0) -> DomainReading:
    """Return a reading of a vCPU that has not run, but waited for so long."""
    made = reading(at_s, 0.0, affinity=CpuSet.parse(affinity))
    waited = Waited(round(wait_s * SECOND_NS), round(throttled_s * SECOND_NS))
    vcpu = dataclasses.replace(made.vcpus[0], waited=waited)
    return dataclasses.replace(made, vcpus=(vcpu,))


@pytest.mark.parametrize(("affinity", "wait"), [("0", 100_000), ("0-3", 100_000), ("4-5", None)])
def test_how_long_each_vcpu_waited(affinity: str, wait: int | None) -> None:
    """However busy its pCPUs were, if one of them is managed; without what its quota held back."""
    before, after = (
        dataclasses.replace(
            sample(waiting(at, at / 5, affinity, at / 10)),
            busy=Busy(at * SECOND_NS, dict.fromkeys(range(4), 0)),
        )
        for at in (10, 12)
    )
    assert list(observe(before, after).waits.values()) == ([] if wait is None else [wait])


@pytest.mark.parametrize(
    ("affinity", "busy", "isolated", "wait"),
    [
        ("0-1", (100, 80, 100, 100), "", 100_000),
        ("0-1", (100, 81, 0, 0), "", 0),  # others idle, but it may not use them
        ("1", (100, 0, 0, 0), "", 0),  # bound
        ("0-1", (100, 0, 0, 0), "1", 0),
        ("0-1", (), "", 0),  # not known
        ("0,4", (100, 0, 0, 0), "", 0),  # not online
    ],
)
def test_who_waited_beside_room(
    affinity: str, busy: tuple[int, ...], isolated: str, wait: int
) -> None:
    """A pCPU that it may use, managed and not isolated, was idle for a fifth of the time."""
    before, after = (
        dataclasses.replace(
            sample(waiting(at, at / 10, affinity)),
            busy=Busy(at * SECOND_NS, {cpu: at * each * 10**7 for cpu, each in enumerate(busy)}),
            isolated=CpuSet.parse(isolated),
        )
        for at in (10, 12)
    )
    rules = PlacementRules("all")
    (vcpu,) = observe(before, after, rules=rules).host.vcpus
    assert vcpu.wait_ppm == wait
    seen = observe(before, after, rules=rules)
    gone = dataclasses.replace(sample(), unread={DomainUuid("u"): Unread("web", "why")})
    assert observe(after, gone, seen).host.vcpus[0].wait_ppm == 0


def test_nobody_wants_more_than_its_definitions_quota() -> None:
    """It gets 30 % of a saturated pCPU and never sleeps; a quota lets it have 60 % at most."""
    for quota_ppm, load_ppm in ((PPM, PPM), (600_000, 600_000)):
        defined = Definition({0: ALL}, quota_ppm=quota_ppm)
        vcpus = (
            (VcpuReading(0, round(run_s * SECOND_NS), CpuSet.of([0]), waited=Waited(wait_ns)),)
            for run_s, wait_ns in ((1.0, 0), (4.0, 7 * SECOND_NS))
        )
        before, after = (
            dataclasses.replace(
                sample(reading(at, vcpus=next(vcpus), definition=defined)),
                busy=Busy(at * SECOND_NS, {0: at * SECOND_NS}),
            )
            for at in (10, 20)
        )
        assert loads(before, after) == {0: load_ppm}


def test_the_first_sample_has_no_loads() -> None:
    """Without an earlier sample nothing is known, and nothing is claimed to be 0."""
    assert loads(None, sample(reading(10, 5.0))) == {}


def test_a_restarted_domain_is_unknown() -> None:
    """The same name and UUID with another id is another run: its counter says nothing yet."""
    again = reading(13, 5.9, domain_id=8)
    assert loads(sample(reading(10, 5.0)), sample(again)) == {}


def test_a_counter_that_went_backwards_is_unknown() -> None:
    """Ids are given anew when libvirtd restarts, so the counter decides."""
    assert loads(sample(reading(10, 5.0, 1.0)), sample(reading(13, 0.2, 2.5))) == {1: 500_000}


def test_added_and_removed_vcpus() -> None:
    """A vCPU that was plugged in is unknown for one period, one that was removed is gone."""
    assert loads(sample(reading(10, 5.0)), sample(reading(12, 6.0, 0.4))) == {0: 500_000}
    assert loads(sample(reading(10, 5.0, 1.0)), sample(reading(12, 6.0))) == {0: 500_000}


def test_a_domain_that_cannot_be_read_stays_as_it_was() -> None:
    """Its vCPUs keep their last load and must not be moved; they are gone when it ended."""
    known = observe(sample(reading(7, 4.1)), sample(reading(10, 5.0)))
    unread = dataclasses.replace(sample(), unread={DomainUuid("u"): Unread("web", "why")})
    (vcpu,) = observe(sample(reading(10, 5.0)), unread, known).host.vcpus
    assert (vcpu.load_ppm, vcpu.fixed) == (300_000, True)
    assert observe(sample(reading(10, 5.0)), sample(), known).host.vcpus == ()


def test_the_load_of_a_domain_that_cannot_be_read_fades() -> None:
    """It counts for five minutes by the readings of others, or where there are none of pCPUs."""
    before = sample(reading(10, 5.0))
    known = observe(sample(reading(7, 4.1)), before)
    why = {DomainUuid("u"): Unread("web", "why")}
    for at_s, count in ((310, 1), (311, 0)):
        other = reading(at_s, 1.0, uuid=DomainUuid("other"))
        busy = Busy(at_s * SECOND_NS, {})
        for seen in (sample(other), dataclasses.replace(sample(), busy=busy)):
            unread = dataclasses.replace(seen, unread=why)
            found = observe(baseline(before, unread), unread, known)
            vcpus = [vcpu for vcpu in found.host.vcpus if vcpu.id.uuid == "u"]
            assert (len(vcpus), len([*found.tracks]) - len(seen.domains)) == (count, count)


def test_a_domain_that_can_be_read_again_is_judged_anew() -> None:
    """What it ran meanwhile is no load of now."""
    before = sample(reading(10, 5.0))
    known = observe(sample(reading(7, 4.1)), before)
    gone = dataclasses.replace(
        sample(reading(400, 1.0, uuid=DomainUuid("other"))),
        unread={DomainUuid("u"): Unread("web", "why")},
    )
    kept = baseline(before, gone)
    faded = observe(before, gone, known)
    back = sample(reading(403, 300.0))
    found = observe(kept, back, faded)
    assert found.host.vcpus == ()
    again = sample(reading(416, 305.2))
    found = observe(baseline(kept, back), again, found)
    later = sample(reading(419, 305.8))
    (vcpu,) = observe(baseline(back, again), later, found).host.vcpus
    assert vcpu.load_ppm == 200_000


def test_bound_vcpus_of_unknown_load_are_counted() -> None:
    """One that is bound to a pCPU may fill it, for all that is known; a floating one may not."""
    bound = reading(13, 0.1, affinity=CpuSet.of([2]))
    assert observe(sample(), sample(bound)).host.unsettled == CpuSet.of([2])
    assert observe(sample(), sample(reading(13, 0.1))).host.unsettled == CpuSet()
    # To be bound within a set that vCPUs are pinned to is to be bound.
    pair = reading(13, 0.1, affinity=CpuSet.parse("0-1"))
    caches = Sample(Topology(tuple(Cpu(cpu, cache=cpu // 2) for cpu in range(4))), (pair,))
    for granularity, found in ((Granularity.CPU, ""), (Granularity.CACHE, "0-1")):
        rules = PlacementRules(granularity=granularity)
        assert str(observe(sample(), caches, rules=rules).host.unsettled) == found


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_usage_is_a_share_of_one_cpu(ran_ns: int, interval_ns: int) -> None:
    """Usage lies between 0 and one pCPU, and is unknown for intervals too short to judge."""
    first = reading(0, 0.0)
    vcpus = (dataclasses.replace(first.vcpus[0], run_ns=ran_ns),)
    found = loads(sample(first), sample(reading(0, at_ns=interval_ns, vcpus=vcpus)))
    usage_ppm = min(PPM, ran_ns * PPM // interval_ns)
    assert found == ({} if interval_ns < INTERVAL_MIN_NS else {0: usage_ppm})


def observed(affinity: str, definition: str) -> tuple[bool, str]:
    """Give whether a vCPU is fixed, and where it may go."""
    defined = Definition({0: CpuSet.parse(definition)})
    pair = [
        sample(reading(at, at / 2, affinity=CpuSet.parse(affinity), definition=defined))
        for at in (10, 12)
    ]
    vcpu = observe(pair[0], pair[1]).host.vcpus[0]
    return vcpu.fixed, str(vcpu.allowed)


def test_who_may_be_moved() -> None:
    """A pin to one pCPU is placement; a narrower or wider mask of several is someone's choice."""
    assert observed("2", "0-3") == (False, "0-3")  # bound: may go where the definition allows
    assert observed("0-3", "0-3") == (False, "0-3")  # floating over its whole definition
    assert observed("0-1", "0-3") == (True, "0-1")  # a pool
    assert observed("0-3", "0-1") == (True, "0-3")  # wider than the definition: not ours to judge
    assert observed("2", "2") == (True, "2")  # the definition itself pins it
    assert observed("0-3", "0-127") == (False, "0-3")  # pCPUs 4-127 are offline
    assert observed("2", "9") == (True, "")  # the definition names only offline pCPUs


def test_more_than_64_pcpus() -> None:
    """A vCPU on pCPU 300 of 512 with pCPUs 64-127 offline is seen there and may go anywhere."""
    online = CpuSet.parse("0-63,128-511")
    topology = Topology(tuple(Cpu(cpu) for cpu in online), {(0, 1): 32})
    pair = [
        Sample(
            topology,
            (
                reading(
                    at,
                    at / 4,
                    affinity=CpuSet.of([300]),
                    definition=Definition({0: CpuSet.parse("0-511")}),
                ),
            ),
        )
        for at in (10, 12)
    ]
    host = observe(pair[0], pair[1]).host
    (vcpu,) = host.vcpus
    assert (str(vcpu.cpus), str(vcpu.allowed)) == ("300", "0-63,128-511")
    assert (host.online, host.node_distances) == (online, {(0, 1): 32})


@pytest.mark.parametrize(
    ("affinity", "ran_s", "load"),
    [("0", 0.5, 50), ("2", 0.5, 30), ("0-3", 0.5, 40), ("2", 0.998, 100), ("0", 0.998, 99.8)],
)
def test_time_on_a_weak_pcpu_is_worth_less(affinity: str, ran_s: float, load: float) -> None:
    """PCPUs 2 and 3 do 60 %: half of the time there is 30 points of work, wherever it is done next.

    Who floats over all four may have run on any: 80 % on average. Who never sleeps on a weak one
    may want more than the 60 it gets, and is taken to want 100.
    """
    cpus = tuple(Cpu(cpu, capacity_ppm=PPM if cpu < 2 else 600_000) for cpu in range(4))
    pair = [
        Sample(Topology(cpus), (reading(at, run_s, affinity=CpuSet.parse(affinity)),))
        for at, run_s in ((10, 1.0), (11, 1 + ran_s))
    ]
    (vcpu,) = observe(pair[0], pair[1]).host.vcpus
    assert vcpu.load_ppm == round(load * PPM_PER_POINT)


@pytest.mark.parametrize(
    ("sibling_s", "weak_ppm", "load"), [(0.0, 600_000, 50), (1.0, 600_000, 31.25), (1.0, PPM, 50)]
)
def test_time_beside_a_busy_thread_is_worth_less_where_pcpus_differ(
    sibling_s: float, weak_ppm: int, load: float
) -> None:
    """Core {0 1} and a weak one: beside a busy thread half of the time is half of 62.5 points.

    So it can be compared with time on the weak one. Where all pCPUs can do the same it is taken as
    the guest sees it, too.
    """
    cpus = (Cpu(0, core=0), Cpu(1, core=0), Cpu(2, core=1, capacity_ppm=weak_ppm))
    pair = [
        Sample(
            Topology(cpus),
            (reading(at, run_s, affinity=CpuSet.of([0])),),
            busy=Busy(at * SECOND_NS, {0: 0, 1: round((at - 10) * sibling_s * SECOND_NS), 2: 0}),
        )
        for at, run_s in ((10, 1.0), (11, 1.5))
    ]
    (vcpu,) = observe(pair[0], pair[1]).host.vcpus
    assert vcpu.load_ppm == round(load * PPM_PER_POINT)


def test_what_the_host_runs_on_a_weak_pcpu_is_worth_less() -> None:
    """Busy for half of the time with nothing of ours: 30 points of one that does 60 %."""
    cpus = (Cpu(0), Cpu(1, capacity_ppm=600_000))
    seen: Observed | None = None
    earlier: Sample | None = None
    for at in range(1, 5):
        at_ns = at * SECOND_NS
        now = Sample(Topology(cpus), (), busy=Busy(at_ns, dict.fromkeys((0, 1), at_ns // 2)))
        seen, earlier = observe(earlier, now, seen), now
    assert seen is not None
    assert [cpu.host_load_ppm for cpu in seen.host.cpus] == [500_000, 300_000]


@pytest.mark.parametrize(
    ("later", "own"),
    [
        ((reading(14, 6.2, affinity=CpuSet.of([1])),), (50, 30, 50, 50)),
        ((reading(14, 0.2, affinity=CpuSet.of([1])),), (50, 40, 50, 50)),
        ((reading(14, 6.2, affinity=CpuSet.of([2])),), (50, 40, 30, 50)),
        ((), (50, 40, 50, 50)),
        (
            (
                reading(14, 6.2, affinity=CpuSet.of([1])),
                reading(14, 0.5, affinity=CpuSet.of([2]), uuid=DomainUuid("new")),
            ),
            (50, 30, 30, 50),
        ),
    ],
    ids=["known", "anew", "moved", "gone", "beside a new one"],
)
def test_what_the_host_runs_is_as_before_where_it_is_not_known_what_vcpus_ran(
    later: tuple[DomainReading, ...], own: tuple[int, ...]
) -> None:
    """A vCPU that runs for 60 points on pCPU 1, and then is another, moves or ends.

    That is no load of the host where it was, nor is what it takes where it is now, nor a new one.
    """
    busy_s = {10: (0, 0, 0, 0), 12: (0.2, 2, 0.6, 0), 14: (1.2, 3.8, 1.6, 1)}
    first, second, third = (
        dataclasses.replace(
            sample(*domains),
            busy=Busy(at * SECOND_NS, {cpu: round(s * 10**9) for cpu, s in enumerate(busy_s[at])}),
        )
        for at, domains in (
            (10, (reading(10, 3.8, affinity=CpuSet.of([1])),)),
            (12, (reading(12, 5.0, affinity=CpuSet.of([1])),)),
            (14, later),
        )
    )
    seen = observe(first, second, observe(None, first))
    assert [cpu.host_load_ppm // PPM_PER_POINT for cpu in seen.host.cpus] == [10, 40, 30, 0]
    seen = observe(second, third, seen)
    assert [cpu.host_load_ppm // PPM_PER_POINT for cpu in seen.host.cpus] == list(own)


def follow(usages: Sequence[float], half_life_s: float, interval_s: float = 3.0) -> list[float]:
    """Give the load, in percent, after each usage in percent."""
    track, seen = Track(), []
    for usage in usages:
        interval_ns = round(interval_s * SECOND_NS)
        track = track.smoothed(round(usage * PPM_PER_POINT), interval_ns, half_life_s)
        assert track.load_ppm is not None
        seen.append(track.load_ppm / PPM_PER_POINT)
    return seen


def test_without_a_half_life_only_the_last_usage_counts() -> None:
    """Load is usage, whatever was before."""
    assert follow([10, 90, 0, 35], 0) == [10, 90, 0, 35]


def test_a_usage_counts_half_after_the_half_life() -> None:
    """Half-life 6 s: a usage 6 s and two others later weighs half of the newest.

    Weights of the last three at 3 s apart: 1/2, 1/sqrt(2) and 1. With 0, 0 and 10 %: 10 / 2.207.
    """
    assert follow([0, 0, 10], 6.0)[-1] == pytest.approx(10 / (1 + 2**-0.5 + 0.5), abs=0.01)


def test_the_measured_interval_decides_the_weight() -> None:
    """Two intervals of 3 s leave as much of what was before as one of 6 s."""
    once = Track(load_ppm=0, weight_ppm=PPM).smoothed(40_000, 6 * SECOND_NS, 6.0)
    twice = Track(load_ppm=0, weight_ppm=PPM)
    for _ in range(2):
        twice = twice.smoothed(40_000, 3 * SECOND_NS, 6.0)
    assert once.load_ppm == pytest.approx(twice.load_ppm, abs=2) == 20_000


def test_a_change_for_good_is_in_the_load_after_some_half_lives() -> None:
    """From 10 to 90 %, half-life 6 s, a look each 3 s: half of it after 6 s, 15/16 after 24 s."""
    seen = follow([10] * 50 + [90] * 8, 6.0)[50:]
    assert seen[1] == pytest.approx(50, abs=0.1)
    assert seen[7] == pytest.approx(85, abs=0.1)


def test_noise_is_smoothed_away() -> None:
    """Noise of 10 points around 50 %, half-life ten periods: the load stays within 4 points."""
    chance = random.Random(1)
    seen = follow([50 + chance.uniform(-10, 10) for _ in range(500)], 30.0)
    assert max(abs(load - 50) for load in seen[50:]) < 4


@given(
    st.lists(st.integers(0, PPM), min_size=1, max_size=50),
    st.floats(0, 1000),
    st.integers(INTERVAL_MIN_NS, 10**12),
)
def test_a_load_lies_between_the_usages(
    usages: list[int], half_life_s: float, interval_ns: int
) -> None:
    """Whatever the half-life, no load is outside what was seen; one usage for ever is the load."""
    track = Track()
    for usage in usages:
        track = track.smoothed(usage, interval_ns, half_life_s)
        assert track.load_ppm is not None
        assert min(usages) <= track.load_ppm <= max(usages)
        assert 0 <= track.weight_ppm <= PPM
    for _ in range(3):
        track = track.smoothed(123_456, interval_ns, 0)
    assert track.load_ppm == 123_456


def test_a_guest_that_starts_while_we_look_is_not_judged_before_it_has_settled() -> None:
    """Seen first at 13 s and settling for 10 s: its usage counts from its reading at 25 s on.

    It runs at 100 % while it boots and at 20 % afterwards; nothing of the boot is in its load.
    """
    empty = sample()
    before, seen, loads_seen = empty, observe(None, empty), {}
    for at_s in range(13, 35, 3):
        run_s = min(at_s, 23) - 13 + 0.2 * max(0, at_s - 23)
        now = sample(reading(at_s, run_s, affinity=CpuSet.of([2])))
        seen = observe(before, now, seen, 30.0)
        before = baseline(before, now)
        loads_seen[at_s] = [vcpu.load_ppm for vcpu in seen.host.vcpus]
        assert (seen.host.unsettled == CpuSet.of([2])) == (not loads_seen[at_s])
    assert loads_seen[25] == []
    assert loads_seen[28] == [200_000]


def test_who_was_there_when_we_began_is_judged_at_once() -> None:
    """A guest in the first sample may have run for a year: its load is known from the second on."""
    first, later = sample(reading(10, 5.0)), sample(reading(13, 6.5))
    seen: Observed = observe(None, first)
    (vcpu,) = observe(first, later, seen).host.vcpus
    assert vcpu.load_ppm == 500_000


def test_a_guest_that_is_not_judged_yet_and_cannot_be_read_is_no_room() -> None:
    """New, bound to pCPU 2, and then unreadable: that pCPU stays out of the game."""
    new = sample(reading(13, 0.1, affinity=CpuSet.of([2])))
    seen = observe(sample(), new, observe(None, sample()))
    unread = dataclasses.replace(sample(), unread={DomainUuid("u"): Unread("web", "why")})
    assert observe(new, unread, seen).host.unsettled == CpuSet.of([2])


def test_a_long_half_life_pulls_no_load_down() -> None:
    """Half-life a day, a look each 3 s, 49 and 51 % in turns: the load stays at 50 %."""
    assert follow([50, 50, *([49, 51] * 2000)], 86_400)[-1] == pytest.approx(50, abs=0.1)


def test_a_vcpu_that_is_as_before_is_the_same_and_else_judged_anew() -> None:
    """By its definition, its hold, its affinity, and the rules; its load makes another of it, too.

    What was judged before never shows: the same comes of a sample without it.
    """
    before, now = sample(reading(10, 5.0)), sample(reading(13, 6.5))
    earlier = observe(before, now)
    (vcpu,) = earlier.host.vcpus

    def then(run_s: float, rules: PlacementRules = DEFAULT_RULES, **changes: object) -> Vcpu:
        after = sample(reading(16, run_s, **changes))  # type: ignore[arg-type]
        (found,) = observe(now, after, earlier, rules=rules).host.vcpus
        unaware = dataclasses.replace(earlier, judged={})
        assert observe(now, after, unaware, rules=rules).host.vcpus == (found,)
        return found

    assert then(8.0) is vcpu
    assert then(8.0, definition=Definition({0: ALL})) is vcpu
    assert then(9.0) == dataclasses.replace(vcpu, load_ppm=833_333)
    assert then(8.0, definition=Definition({0: ALL}, wish="hold")).why == "held by its metadata"
    assert then(8.0, definition=Definition({0: ALL}, wish="spread")).spread
    assert then(8.0, affinity=CpuSet.parse("0-1")).why == "someone else keeps it on pCPUs 0-1"
    assert then(8.0, PlacementRules(exclude_domains=("w*",))).fixed
    held = VcpuReading(0, 8 * SECOND_NS, ALL, on=1, held="restored on request")
    assert then(8.0, vcpus=(held,)).why == "restored on request"
