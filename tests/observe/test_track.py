"""What vCPUs ran undisturbed, and how long that is believed on a crowded pCPU."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpusched.model import PPM, CpuSet
from vcpusched.observe.demand import HostTrack, Track, explained

SECOND_NS = 1_000_000_000
PERIOD_NS = 3 * SECOND_NS
HALF_LIFE_S = 30.0


def known(ppm: int) -> Track:
    """Give the track of a vCPU that ran so much undisturbed."""
    return Track().undisturbed(ppm, 0, PERIOD_NS, HALF_LIFE_S)


def after(track: Track, estimates: list[int]) -> Track:
    """Give the track after these estimates, one a period, in all of which 50 % was run."""
    for estimate in estimates:
        track = track.smoothed(500_000, PERIOD_NS, HALF_LIFE_S, estimate)
    return track


def test_the_memory_is_better_than_the_estimate() -> None:
    """60 % when undisturbed; on a crowded pCPU it runs 50 and is taken for 80: it wants 60."""
    assert known(600_000).wanted_ppm(500_000, 800_000) == 600_000
    assert Track().wanted_ppm(500_000, 800_000) == 800_000


def test_who_runs_more_than_it_remembers_has_grown() -> None:
    """30 % when undisturbed, and a tenth and two points more may be chance: 35 %, not 36."""
    assert known(300_000).wanted_ppm(350_000, 900_000) == 350_000
    assert known(300_000).wanted_ppm(360_000, 900_000) == 900_000
    assert known(300_000).known_ppm(350_000) == 350_000
    assert after(known(300_000), [900_000]).known_ppm(360_000) == 500_000


def test_who_never_sleeps_wants_more_than_it_remembers() -> None:
    """After a half-life without sleep it wants all of a pCPU; one of 80 % may come to no sleep."""
    tireless = [PPM] * 11
    assert after(known(500_000), tireless[:8]).wanted_ppm(500_000, PPM) == 500_000
    assert after(known(500_000), tireless).wanted_ppm(500_000, PPM) == PPM
    assert after(known(800_000), tireless).wanted_ppm(500_000, PPM) == 800_000
    sometimes = [PPM, 900_000, 900_000] * 20
    assert after(known(500_000), sometimes).wanted_ppm(500_000, PPM) == 500_000


def test_a_long_crowd_makes_the_memory_old() -> None:
    """50 % for an hour, then disturbed for ten half-lives: the next usage is nearly all there is.

    A pause as long as ten half-lives leaves a thousandth of what was before.
    """
    track = known(500_000)
    for period in range(1, 1200):
        track = track.undisturbed(
            500_000, period * PERIOD_NS, (period + 1) * PERIOD_NS, HALF_LIFE_S
        )
    now_ns = 1200 * PERIOD_NS + 300 * SECOND_NS
    track = track.undisturbed(100_000, now_ns - PERIOD_NS, now_ns, HALF_LIFE_S)
    assert track.undisturbed_ppm == pytest.approx(100_000, abs=600)


def test_a_crowd_is_explained_by_what_is_known() -> None:
    """{60 30 and 6 of the host} {60 30} {one of 100 that floats over both of the next}."""
    bound = [(CpuSet.of([cpu]), ppm) for cpu in (0, 1) for ppm in (600_000, 300_000)]
    floating = [(CpuSet.parse("2-3"), PPM)] * 2
    host = {0: HostTrack(reported_ppm=60_000), 1: HostTrack(reported_ppm=50_000)}
    assert str(explained(range(4), host, bound)) == "0"
    assert str(explained(range(4), host, bound + floating)) == "0,2-3"
    assert str(explained(range(4), host, bound + floating[:1])) == "0"


@given(st.lists(st.integers(0, PPM), min_size=3, max_size=20))
def test_what_counts_lies_between_usage_and_estimate(values: list[int]) -> None:
    """Whatever it remembers, and however restless it is."""
    track = Track()
    for usage, second in itertools.pairwise(values):
        estimate = max(usage, second)
        assert usage <= track.wanted_ppm(usage, estimate) <= estimate
        assert usage <= track.known_ppm(usage)
        track = track.undisturbed(second, 0, PERIOD_NS, HALF_LIFE_S)
        track = track.smoothed(usage, PERIOD_NS, HALF_LIFE_S, estimate)
        assert 0 <= track.restless_ppm <= PPM
