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

_HALVINGS: Final = 200


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
    reach = student_t(CONFIDENCE, len(values) - 1) * error
    return Estimate(mean, mean - reach, mean + reach)


def student_t(confidence: float, degrees: int) -> float:
    """Return the t that a value of Student's distribution does not exceed, with this confidence.

    Either way: |T| <= t. `confidence` above 0 and below 1, `degrees` of freedom from 1 on. Raises
    ValueError for others.
    """
    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"no such distribution: {confidence}, {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, degrees: int) -> float:
    """Return the probability that |T| <= t.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 (odd degrees) and 26.7.4
    (even ones): finite series in the cosine of atan(t / sqrt(degrees)).
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= step / (step + 1) * cosine * cosine
    return (angle + sine * total) * 2 / math.pi if odd else sine * total
