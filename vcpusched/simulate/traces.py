"""Recorded traces of what guests wanted every few minutes, and guests made up as clouds have them.

Rule: pure, and repeatable by its seed: a figure drawn for one guest moves no other. Every mistake
in a trace becomes a `WorkloadError` that names the line.

Terms: a trace is a text of one row per guest, `day,288 integers` (PlanetLab: percent of one vCPU
    every 5 minutes) or `id,vcpus,integers` (Bitbrains: permille of all its vCPUs). One value of
    a trace is one period of the simulation, so time is compressed. For guests that are made up a
    step is one period, and the peak is the load that the bursts of a guest reach.
Problem: traces have one value every 5 minutes, and not any number of guests; a scheduler samples
    every few seconds.
Approach: each guest is drawn from distributions published for Azure's guests of 2019 (read off
    figures, so good to 3 points): its vCPUs, its life, its mean load, and the load that it
    exceeds in 5 % of all 5 minutes. What it wants is made on three scales of time.
Algorithm: per guest, in parts of its vCPUs' capacity: 1. a level for every 5 minutes: the mean, a
    swing over the day, and noise that is remembered little by most guests (correlation 0.1), much
    by the others (0.75); 2. each step swings around that level, remembered for some 10 s;
    3. bursts of seconds to minutes (Pareto) lift it to the peak for 0.5 to 6 % of the time, but
    for no more than half of the guest's work. A guest's load is split unevenly over its vCPUs.
    Guests come at random (Poisson) at the rate at which they end, so their number stays about
    the same; the ones there at the beginning are in the middle of lives that tend to be long.
Properties: over many guests, the distributions of vCPUs, lives, means and peaks are the published
    ones within 3 points.
"""

import bisect
import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import PPM, PPM_PER_POINT
from vcpusched.simulate.workload import (
    Guest,
    Workload,
    WorkloadError,
    check_size,
    shares_of_vcpus,
    split,
)
from vcpusched.text import counted, printable, shown

PLANETLAB_VALUES: Final = 288
"""The 5 minutes of a day."""

_DAY: Final = re.compile(r"20[0-9]{2}(0[1-9]|1[0-2])[0-3][0-9]")


@dataclass(frozen=True, slots=True)
class Row:
    """One guest of a trace; `loads_ppm` in parts per million of all its vCPUs together."""

    name: str
    vcpu_count: int
    loads_ppm: tuple[int, ...]

    def guest(
        self, name: str, vcpus_max: int, periods: int, shift: float, chance: random.Random
    ) -> Guest:
        """Cut `periods` out of the row, `shift` (0 to 1) of the way into it; round when short."""
        length = len(self.loads_ppm)
        room = length - periods if length >= periods else length - 1
        first = int(shift * (room + 1))
        window = [self.loads_ppm[(first + period) % length] for period in range(periods)]
        weights = shares_of_vcpus(self.vcpu_count, chance)
        parts = [split(load_ppm * self.vcpu_count, weights) for load_ppm in window]
        return Guest(name, tuple(zip(*parts, strict=True))[:vcpus_max])


def is_trace(text: str) -> bool:
    """Return whether a text begins as a trace does."""
    return re.match(r"[0-9]+,[0-9]+,[0-9]+", text) is not None


def rows(text: str) -> list[Row]:
    """Read all rows. Raises WorkloadError."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise WorkloadError("holds no row; a trace has at least one")
    return [_row(number, line.split(",")) for number, line in lines]


def _row(number: int, fields: Sequence[str]) -> Row:
    if _DAY.fullmatch(fields[0]):
        if len(fields) != PLANETLAB_VALUES + 1:
            what = f"{counted(len(fields) - 1, 'value')} for {fields[0]}"
            raise WorkloadError(f"line {number}: {what}: a day has {PLANETLAB_VALUES}")
        percents = _integers(number, fields, 1, 100)
        return Row(fields[0], 1, tuple(percent * PPM_PER_POINT for percent in percents))
    # An id, a number of vCPUs, and a value: what looks like a day in another form is none of these.
    if len(fields) < 3 or not fields[0].strip().isdecimal():  # noqa: PLR2004
        raise WorkloadError(
            f"line {number}: {shown(','.join(fields))} is no row of a trace: must be"
            " `20240101,288 integers` in percent or `number,vcpus,integers` in permille"
        )
    (vcpu_count,) = _integers(number, fields[:2], 1, 1024, least=1)
    permilles = _integers(number, fields, 2, 1000)
    return Row(
        printable(fields[0].strip()),
        vcpu_count,
        tuple(permille * (PPM // 1000) for permille in permilles),
    )


def _integers(
    number: int, fields: Sequence[str], first: int, value_max: int, least: int = 0
) -> list[int]:
    values = []
    for position, field in enumerate(fields[first:], first + 1):
        text = field.strip()
        is_number = text.isascii() and text.isdigit() and len(text) < 9  # noqa: PLR2004  enough digits for any of them
        if not (is_number and least <= int(text) <= value_max):
            raise WorkloadError(
                f"line {number}: value {position}: {shown(field)} is not allowed:"
                f" must be a whole number from {least} to {value_max}"
            )
        values.append(int(text))
    return values


SAMPLE_S: Final = 300.0
DAY_S: Final = 86_400.0
HOUR_S: Final = 3600.0

# Each: (value, part of the guests up to it), straight lines in between.
MEANS: Final = ((0.0, 0.0), (0.1, 0.555), (0.2, 0.73), (0.4, 0.89), (0.6, 0.96), (1.0, 1.0))
PEAKS: Final = ((0.0, 0.0), (0.2, 0.34), (0.5, 0.51), (0.8, 0.75), (0.95, 0.85), (1.0, 1.0))
LIVES_H: Final = ((0.02, 0.0), (1.0, 0.65), (8.0, 0.8), (24.0, 0.87), (100.0, 0.9), (1000.0, 1.0))
SIZES: Final = ((1, 0.35), (2, 0.59), (4, 0.89), (8, 0.96), (12, 0.98), (16, 1.0))
"""(vCPUs, part of the guests with at most as many)."""

FORGETFUL: Final = 0.6
"""The part of guests whose 5 minutes are little correlated with the next."""

SWING_S: Final = 10.0
"""For how long a swing within 5 minutes is remembered."""

BURST_MIN_S: Final = 3.0
BURST_MAX_S: Final = 300.0
BURST_SHAPE: Final = 1.5
"""Of the Pareto distribution of the lengths of bursts."""

Distribution = Sequence[tuple[float, float]]


def quantile(distribution: Distribution, part: float) -> float:
    """Return the value that this part of the guests does not exceed."""
    index = bisect.bisect_left([share for _, share in distribution], part, 1)
    (low, below), (high, upto) = distribution[index - 1 : index + 1]
    return low + (high - low) * (part - below) / (upto - below)


def life_s(chance: random.Random) -> float:
    """Draw how long a guest lives that starts now."""
    return quantile(LIVES_H, chance.random()) * HOUR_S


def generate(
    *, cpu_count: int, vcpu_count: int, periods: int, seed: int = 0, period_s: float = 3.0
) -> Workload:
    """Make up a host with about this many vCPUs running at any time.

    Exactly as many run at the beginning. Raises WorkloadError when it would be too large.
    """
    check_size(vcpu_count, periods)
    chance = random.Random(f"{seed}/guests")  # noqa: S311  chance that can be repeated
    guests, left = list[Guest](), vcpu_count

    def add(size: int, start: int, lasting_s: float) -> None:
        own = random.Random(f"{seed}/guest/{len(guests)}")  # noqa: S311  chance that can be repeated
        steps = max(1, min(periods - start, math.ceil(lasting_s / period_s)))
        weights = shares_of_vcpus(size, own)
        loads = Profile.drawn(own).loads(own, steps, period_s, start * period_s)
        parts = [split(round(load * PPM) * size, weights) for load in loads]
        guests.append(Guest(f"guest{len(guests)}", tuple(zip(*parts, strict=True)), start))

    while left > 0:
        size = min(left, _size(chance))
        add(size, 0, _rest_of_life_s(chance))
        left -= size
    # As many arrive as end: in the mean life of a guest, as many as there are.
    arrivals_per_period = len(guests) * period_s / _mean_life_s()
    at = chance.expovariate(arrivals_per_period)
    while at < periods:
        add(_size(chance), int(at), life_s(chance))
        at += chance.expovariate(arrivals_per_period)
    return Workload("made-up guests", cpu_count, periods, tuple(guests), seed)


def _size(chance: random.Random) -> int:
    part = chance.random()
    return next(size for size, upto in SIZES if part <= upto)


def _rest_of_life_s(chance: random.Random) -> float:
    """Draw how long a guest still lives that is met at some moment: long lives are met more often.

    A life is drawn in proportion to its length, and the moment lies anywhere in it.
    """
    weights = [
        (high**2 - low**2) / (high - low) * (upto - below)
        for (low, below), (high, upto) in itertools.pairwise(LIVES_H)
    ]
    (piece,) = chance.choices(range(len(weights)), weights)
    low, high = LIVES_H[piece][0], LIVES_H[piece + 1][0]
    length = math.sqrt(low**2 + (high**2 - low**2) * chance.random())
    return length * chance.random() * HOUR_S


def _mean_life_s() -> float:
    pieces = itertools.pairwise(LIVES_H)
    return sum((low + high) / 2 * (upto - below) for (low, below), (high, upto) in pieces) * HOUR_S


@dataclass(frozen=True, slots=True)
class Profile:
    """What one guest is like; loads in parts of its vCPUs' capacity."""

    mean: float
    peak: float
    memory: float
    day_swing: float
    day_phase: float
    burst_part: float

    @classmethod
    def drawn(cls, chance: random.Random) -> "Profile":
        """Draw a guest; one with a high mean has high peaks."""
        rank = 1 - chance.random()  # never 0: who wants nothing has no bursts either
        mean, peak = quantile(MEANS, rank), quantile(PEAKS, rank)
        return cls(
            mean=mean,
            peak=peak,
            memory=0.1 if chance.random() < FORGETFUL else 0.75,
            day_swing=chance.uniform(0, 0.5),
            day_phase=chance.uniform(0, 2 * math.pi),
            burst_part=min(chance.uniform(0.005, 0.06), mean / (2 * peak)),
        )

    def loads(
        self, chance: random.Random, steps: int, step_s: float, start_s: float
    ) -> list[float]:
        """Make the load of each step, 0 to the peak."""
        base = (self.mean - self.burst_part * self.peak) / (1 - self.burst_part)
        kept = math.exp(-step_s / SWING_S)
        swing = chance.gauss(0, 1)
        level, sample = 0.0, -1
        noise = chance.gauss(0, 1)
        bursting, change_s = False, self._calm_s(chance)
        loads = []
        for step in range(steps):
            at_s = start_s + step * step_s
            if int(at_s / SAMPLE_S) != sample:
                sample = int(at_s / SAMPLE_S)
                fresh = math.sqrt(1 - self.memory**2) * chance.gauss(0, 1)
                noise = self.memory * noise + fresh
                day = 1 + self.day_swing * math.sin(2 * math.pi * at_s / DAY_S + self.day_phase)
                level = max(0.0, base * day * (1 + 0.35 * noise))
            swing = kept * swing + math.sqrt(1 - kept**2) * chance.gauss(0, 1)
            while change_s <= step * step_s:
                bursting = not bursting
                change_s += self._burst_s(chance) if bursting else self._calm_s(chance)
            wanted = self.peak if bursting else max(0.0, level * (1 + 0.25 * swing))
            loads.append(min(wanted, self.peak))
        return loads

    def _burst_s(self, chance: random.Random) -> float:
        return min(BURST_MAX_S, BURST_MIN_S * chance.paretovariate(BURST_SHAPE))

    def _calm_s(self, chance: random.Random) -> float:
        return chance.expovariate(self.burst_part / (1 - self.burst_part) / _MEAN_BURST_S)


_MEAN_BURST_S: Final = (
    BURST_MIN_S
    * (BURST_SHAPE - (BURST_MIN_S / BURST_MAX_S) ** (BURST_SHAPE - 1))
    / (BURST_SHAPE - 1)
)
"""Of a Pareto distribution cut at its longest."""
