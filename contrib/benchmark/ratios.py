"""Ratios of measurements that belong together pair by pair.

Rule: pure functions of numbers; nothing here knows what was measured.

A ratio of work is as far from 1 at 2 as at 1/2, so means are taken of logarithms.
"""

import math
from collections.abc import Sequence

from vcpusched.report.confidence import PAIRS_MIN, Estimate, mean_of


def ratio_of_pairs(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """Return the ratio of `after` to `before`, whose values belong together pair by pair.

    Raises ValueError for fewer than `PAIRS_MIN` pairs, for values without partner, and for values
    that are not above 0.
    """
    if len(before) != len(after) or len(before) < PAIRS_MIN:
        raise ValueError(f"{len(before)} and {len(after)} values are not {PAIRS_MIN} or more pairs")
    if min(*before, *after) <= 0:
        raise ValueError("a ratio needs values above 0")
    mean = mean_of([math.log(new / old) for old, new in zip(before, after, strict=True)])
    return Estimate(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high))
