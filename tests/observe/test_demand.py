"""Demand from usage and wait, and what is left of a pCPU for the host itself."""

from hypothesis import given
from hypothesis import strategies as st

from vcpusched.model import PPM, CpuSet
from vcpusched.observe.demand import busy_ppm, demand_ppm, host_loads_ppm, wait_ppm
from vcpusched.sample import Busy, Waited

SECOND_NS = 1_000_000_000


def waited(seconds: float, throttled_s: float = 0) -> Waited:
    """Give the second of two readings of a thread, 10 s after one with nothing on its counters."""
    return Waited(round(seconds * 1e9), round(throttled_s * 1e9))


ZERO = Waited(0)
INTERVAL_NS = 10 * SECOND_NS


def demand(usage: int, after: Waited, busy: int = PPM, quota: int = PPM) -> int:
    """Give the demand after 10 s."""
    return demand_ppm(usage, wait_ppm(ZERO, after, INTERVAL_NS), quota, busy)


def test_who_never_sleeps_on_a_saturated_pcpu_wants_all_of_it() -> None:
    """Seven share a pCPU: each runs 1/7, waits 6/7, sleeps never."""
    assert demand(PPM // 7, waited(60 / 7)) in range(PPM - 100, PPM + 1)


def test_who_sleeps_in_between_wants_little_more_than_it_runs() -> None:
    """Runs 4 s, waits 2 s, sleeps 4 s: awake for half of the rest, so 0.4 + 0.2 / 8."""
    assert demand(400_000, waited(2)) == 425_000


def test_wait_counts_only_where_the_pcpu_is_saturated() -> None:
    """At 97 % busy nothing was left undone; at 98.5 % half of the 0.2 / 8 counts."""
    assert demand(400_000, waited(2), 970_000) == 400_000
    assert demand(400_000, waited(2), 985_000) == 412_500


def test_the_share_of_the_time_that_was_waited() -> None:
    """Not counting the quota's, and nothing where one reading is missing or too close."""
    assert wait_ppm(ZERO, waited(2), INTERVAL_NS) == 200_000
    assert wait_ppm(ZERO, waited(2, throttled_s=2.5), INTERVAL_NS) == 0
    # Where a quota is taken away nothing is counted any more.
    assert wait_ppm(Waited(0, SECOND_NS), waited(2), INTERVAL_NS) == 200_000
    assert wait_ppm(None, waited(2), INTERVAL_NS) is None
    assert wait_ppm(ZERO, None, INTERVAL_NS) is None
    assert wait_ppm(ZERO, Waited(SECOND_NS // 10), SECOND_NS // 10) is None


def test_without_a_reading_of_wait_demand_is_usage() -> None:
    """One reading says nothing about the time between two."""
    assert demand_ppm(400_000, None, PPM, PPM) == 400_000


def test_a_throttled_vcpu_is_not_hungry() -> None:
    """Capped at 25 % and alone: runs 2.5 s, waits 7.4 s, all of it throttled."""
    assert demand(250_000, waited(7.4, throttled_s=7.4), quota=250_000) == 250_000


def test_nobody_wants_more_than_its_quota() -> None:
    """Capped at 60 %, it gets 30 % of a saturated pCPU, and never sleeps."""
    assert demand(300_000, waited(7), quota=600_000) == 600_000


@given(
    st.integers(0, PPM),
    st.floats(0, 12),
    st.floats(0, 12),
    st.integers(0, PPM),
    st.integers(0, PPM),
)
def test_demand_lies_between_usage_and_a_whole_pcpu(
    usage: int, wait: float, throttled: float, busy: int, quota: int
) -> None:
    """Whatever the counters say."""
    assert usage <= demand(usage, waited(wait, throttled), busy, quota) <= PPM


def test_busy_is_not_idle_time_over_the_interval() -> None:
    """2 s in which pCPU 0 ran for 1.5 s; pCPU 1 came back meanwhile, pCPU 2 is new."""
    before = Busy(0, {0: 7 * SECOND_NS, 1: 9 * SECOND_NS})
    after = Busy(2 * SECOND_NS, {0: 17 * SECOND_NS // 2, 1: SECOND_NS, 2: SECOND_NS})
    assert busy_ppm(before, after) == {0: 750_000}
    assert busy_ppm(None, after) == {}
    assert busy_ppm(before, Busy(1, after.by_cpu_ns)) == {}


def test_the_hosts_own_load_is_what_the_vcpus_leave() -> None:
    """Of pCPU 0, busy for 70 points, its vCPU runs 50; pCPU 1 ran less than was counted."""
    usages = [(CpuSet.of([0]), 500_000), (CpuSet.of([1]), 310_000)]
    assert host_loads_ppm({0: 700_000, 1: 300_000}, usages) == {0: 200_000, 1: 0}


def test_floating_vcpus_are_taken_to_have_run_where_room_was_used() -> None:
    """{50 bound + 30} {10}: a floater ran 20 of the 40 that are not bound, so 15 and 5."""
    usages = [(CpuSet.of([0]), 500_000), (CpuSet.of([0, 1]), 200_000)]
    assert host_loads_ppm({0: 800_000, 1: 100_000}, usages) == {0: 150_000, 1: 50_000}
    assert host_loads_ppm({0: 0, 1: 0}, usages) == {0: 0, 1: 0}
