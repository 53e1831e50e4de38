"""The statistics of trials and benchmarks, against values that are known."""

import math

import pytest
from ratios import ratio_of_pairs

from vcpusched.report.confidence import mean_of


@pytest.mark.parametrize(
    ("count", "known"), [(2, 12.706), (3, 4.303), (11, 2.228), (31, 2.042), (400, 2.042)]
)
def test_the_interval_of_few_values_is_wide(count: int, known: float) -> None:
    """As in any table of Student's distribution, and never narrower than it should be."""
    found = mean_of([1.0, -1.0] * (count // 2) + [0.0] * (count % 2))
    error = math.sqrt(count // 2 * 2 / (count - 1) / count)
    assert found.value == pytest.approx(0)
    assert found.high == pytest.approx(known * error)


def test_the_interval_of_known_pairs() -> None:
    """Logarithms of 1, 2 and 3: mean 2, deviation 1, so 2 +- 4.303 / sqrt(3)."""
    found = ratio_of_pairs([1.0, 1.0, 2.0], [math.e, math.e**2, 2 * math.e**3])
    assert math.log(found.value) == pytest.approx(2)
    assert math.log(found.low) == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=0.0005)
    assert math.log(found.high) == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=0.0005)


def test_the_interval_turns_with_its_pairs() -> None:
    """What is halved one way is doubled the other way, limits and all."""
    values = [3.0, 4.0, 5.0], [7.0, 7.5, 9.0]
    there, back = ratio_of_pairs(*values), ratio_of_pairs(*reversed(values))
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)


def test_noise_that_hits_both_of_a_pair_is_none() -> None:
    """Pairs that differ tenfold from each other, but not within: the ratio is known exactly."""
    found = ratio_of_pairs([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("before", "after"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])]
)
def test_what_is_no_pairs_is_refused(before: list[float], after: list[float]) -> None:
    """One pair, a value without partner, a guest that did nothing."""
    with pytest.raises(ValueError, match=r"pairs|above 0"):
        ratio_of_pairs(before, after)


def test_the_interval_of_a_mean() -> None:
    """Of 1, 2 and 3 as above, but of the values themselves; one value says nothing of noise."""
    found = mean_of([1.0, 2.0, 3.0])
    reach = 4.3027 / math.sqrt(3)
    limits = (found.low, found.value, found.high)
    assert limits == pytest.approx((2 - reach, 2, 2 + reach), abs=0.0005)
    with pytest.raises(ValueError, match="noise"):
        mean_of([1.0])
