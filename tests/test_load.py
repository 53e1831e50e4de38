"""Loads from counters: what is known, what is not, and who may be moved."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from vcpusched.load import INTERVAL_MIN_NS, baseline, observe, usage_ppm
from vcpusched.model import (
    PPM,
    Cpu,
    CpuSet,
    DomainReading,
    DomainUuid,
    Sample,
    Topology,
    Unread,
    VcpuReading,
)

SECOND_NS = 1_000_000_000
ALL = CpuSet.parse("0-3")


def reading(at_s: float, *run_s: float, affinity: CpuSet = ALL, **changes: object) -> DomainReading:
    """Give a reading of guest "web" whose vCPUs 0, 1, … have run for so long."""
    made = DomainReading(
        uuid=DomainUuid("u"),
        domain_id=7,
        name="web",
        at_ns=round(at_s * SECOND_NS),
        took_ns=1_000_000,
        vcpus=tuple(
            VcpuReading(vcpu, round(run * SECOND_NS), affinity, on=1)
            for vcpu, run in enumerate(run_s)
        ),
        allowed=dict.fromkeys(range(len(run_s)), ALL),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def sample(*domains: DomainReading) -> Sample:
    """Give a sample of a host with four pCPUs."""
    return Sample(Topology(tuple(Cpu(cpu) for cpu in range(4))), domains)


def loads(before: Sample | None, later: Sample) -> dict[int, int]:
    """Give the load of each vCPU that has one."""
    return {vcpu.id.vcpu: vcpu.load_ppm for vcpu in observe(before, later).vcpus}


def test_usage_is_run_time_over_the_measured_interval() -> None:
    """3.5 s passed where 3 s were meant; 1.4 s of run time are 40 %."""
    assert loads(sample(reading(10, 5.0)), sample(reading(13.5, 6.4))) == {0: 400_000}


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


def test_a_reading_that_took_too_long_is_not_used() -> None:
    """When in 0.5 of 3 s the counter was read is unknown: 17 points of error are too many."""
    before, slow = sample(reading(10, 5.0)), sample(reading(13, 6.4, took_ns=SECOND_NS // 2))
    assert loads(before, slow) == {}
    # A load that was known is kept: 0 would look like room for others.
    known = observe(sample(reading(7, 4.1)), before)
    assert observe(before, slow, known).vcpus[0].load_ppm == 300_000


def test_a_domain_that_is_always_slow_is_measured_over_longer() -> None:
    """Half a second of uncertainty at a look each second: usable once 5 s have passed."""
    before = sample(reading(10, 5.0, took_ns=SECOND_NS // 2))
    seen = {}
    for second in range(11, 17):
        later = sample(reading(second, 5.0 + (second - 10) * 0.3, took_ns=SECOND_NS // 2))
        seen[second] = loads(before, later)
        before = baseline(before, later)
    assert seen == {11: {}, 12: {}, 13: {}, 14: {}, 15: {0: 300_000}, 16: {}}


def test_a_domain_that_cannot_be_read_stays_as_it_was() -> None:
    """Its vCPUs keep their last load and must not be moved; they are gone when it ended."""
    known = observe(sample(reading(7, 4.1)), sample(reading(10, 5.0)))
    unread = dataclasses.replace(sample(), unread={DomainUuid("u"): Unread("web", "why")})
    (vcpu,) = observe(sample(reading(10, 5.0)), unread, known).vcpus
    assert (vcpu.load_ppm, vcpu.fixed) == (300_000, True)
    assert observe(sample(reading(10, 5.0)), sample(), known).vcpus == ()


def test_bound_vcpus_of_unknown_load_are_counted() -> None:
    """One that is bound to a pCPU may fill it, for all that is known; a floating one may not."""
    bound = reading(13, 0.1, affinity=CpuSet.of([2]))
    assert observe(sample(), sample(bound)).unknown == 1
    assert observe(sample(), sample(reading(13, 0.1))).unknown == 0


@given(st.integers(0, 10**15), st.integers(0, 10**12), st.integers(1, 10**12))
def test_usage_is_a_share_of_one_cpu(before_ns: int, ran_ns: int, interval_ns: int) -> None:
    """Usage lies between 0 and one pCPU, and is unknown for intervals too short to tell."""
    usage = usage_ppm(before_ns, before_ns + ran_ns, interval_ns)
    if interval_ns < INTERVAL_MIN_NS:
        assert usage is None
    else:
        assert usage == min(PPM, ran_ns * PPM // interval_ns)


def observed(affinity: str, definition: str) -> tuple[bool, str]:
    """Give whether a vCPU is fixed, and where it may go."""
    allowed = {0: CpuSet.parse(definition)}
    pair = [
        sample(reading(at, at / 2, affinity=CpuSet.parse(affinity), allowed=allowed))
        for at in (10, 12)
    ]
    vcpu = observe(pair[0], pair[1]).vcpus[0]
    return vcpu.fixed, str(vcpu.allowed)


def test_who_may_be_moved() -> None:
    """A pin to one pCPU is placement; a narrower or wider mask of several is somebody's wish."""
    assert observed("2", "0-3") == (False, "0-3")  # bound: may go where the definition allows
    assert observed("0-3", "0-3") == (False, "0-3")  # floating over its whole definition
    assert observed("0-1", "0-3") == (True, "0-1")  # a pool
    assert observed("0-3", "0-1") == (True, "0-3")  # wider than the definition: not ours to judge
    assert observed("2", "2") == (False, "2")  # the definition itself pins it
    assert observed("0-3", "0-127") == (False, "0-3")  # pCPUs 4-127 are offline
    assert observed("2", "9") == (True, "")  # the definition names only offline pCPUs


def test_more_than_64_pcpus() -> None:
    """A vCPU on pCPU 300 of 512 with pCPUs 64-127 offline is seen there and may go anywhere."""
    online = CpuSet.parse("0-63,128-511")
    topology = Topology(tuple(Cpu(cpu) for cpu in online))
    pair = [
        Sample(
            topology,
            (reading(at, at / 4, affinity=CpuSet.of([300]), allowed={0: CpuSet.parse("0-511")}),),
        )
        for at in (10, 12)
    ]
    vcpu = observe(pair[0], pair[1]).vcpus[0]
    assert (str(vcpu.cpus), str(vcpu.allowed)) == ("300", "0-63,128-511")
