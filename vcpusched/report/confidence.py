"""Means of repeated measurements, and how far they can be trusted.

Rule: pure functions of numbers; nothing here knows what was measured.

The interval is that of a mean of few normal values (NIST/SEMATECH e-Handbook of Statistical
Methods, 1.3.5.2, "Confidence Limits for the Mean"): m +- t * s / sqrt(n), where t is Student's with
n - 1 degrees of freedom.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95

PAIRS_MIN: Final = 2
"""From one pair, or value, nothing can be said of the noise."""

# fmt: off
STUDENT_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""What a value of Student's distribution does not exceed either way with that confidence, from one
degree of freedom on (e-Handbook, 1.3.6.7.2). More of them than there are here would take a little
less."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and the limits between which it lies with a confidence of `CONFIDENCE`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of these values. Raises ValueError for fewer than `PAIRS_MIN`."""
    if len(values) < PAIRS_MIN:
        raise ValueError(f"{len(values)} values say nothing of the noise")
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = STUDENT_T[min(len(values) - 1, len(STUDENT_T)) - 1] * error
    return Estimate(mean, mean - reach, mean + reach)
