"""What the blocks of a scenario say: ratios with their intervals, and whether the claim holds.

Rule: a pure function of the blocks. The noise is what the pairs of blocks show of it: a difference
counts when the interval of its ratio leaves 1 out.
"""

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from live.blocks import Block, Got
from live.scenarios import Claim, Scenario, Shape
from ratios import ratio_of_pairs

from vcpusched.report.confidence import Estimate

LOSS_MAX: Final = 0.9
"""Where an interval reaches below this, a loss worth minding is not ruled out: too much noise."""

DIFFERENCE_MAX: Final = 1 / LOSS_MAX


class Measure(enum.StrEnum):
    """What guests are judged by: their own count, or the time that the kernel gave them.

    Emulated pCPUs share real ones: what gets done on one is less while others are busy, however
    much of its time a guest has, so that work measures the real ones, and time the emulated ones.
    """

    WORK = "work"
    TIME = "time"

    def of(self, got: Got) -> float:
        """Return what a guest got in a block, by this measure."""
        return got.work_per_s if self is Measure.WORK else got.run


class Answer(enum.StrEnum):
    """Whether a claim holds."""

    HOLDS = "holds"
    FAILS = "does not hold"
    UNDECIDED = "undecided"


Both = tuple[float, float]
"""Means over the blocks without the daemon, and with it."""


@dataclass(frozen=True, slots=True)
class GuestVerdict:
    """One guest: its run and wait in pCPUs, and ratios of with to without.

    `time` is the ratio of what it ran, `work` of what it got done in that time: less than `time`
    says that its pCPU was slower, as one is with a busy SMT sibling. `judged` is the one that
    counts.
    """

    shape: Shape
    run: Both
    wait: Both
    time: Estimate
    work: Estimate
    judged: Estimate


@dataclass(frozen=True, slots=True)
class Verdict:
    """A scenario: `worst_off` compares the guest that, in each block, got least of what it wants.

    `total` is the ratio of what all guests got, work or time as `measure` says; `wait` is the mean
    over all vCPUs of the share of time that they wanted to run and did not; `beside` is what else
    took the pCPUs, in pCPUs: what makes the noise. `pins` are those of each block with the daemon.
    `reasons` say what keeps the claim from holding.
    """

    measure: Measure
    guests: tuple[GuestVerdict, ...]
    worst_off: Estimate
    total: Estimate
    wait: Both
    beside: Both
    pins: tuple[int, ...]
    answer: Answer
    reasons: tuple[str, ...]


def judge(scenario: Scenario, blocks: Sequence[Block], measure: Measure = Measure.WORK) -> Verdict:
    """Judge a scenario by all its blocks. Raises ValueError for less than two pairs."""
    without = sorted((one for one in blocks if not one.daemon), key=lambda one: one.pair)
    having = sorted((one for one in blocks if one.daemon), key=lambda one: one.pair)

    def compare(value: Callable[[Block], float]) -> Estimate:
        return ratio_of_pairs([value(one) for one in without], [value(one) for one in having])

    def means(value: Callable[[Block], float]) -> Both:
        return statistics.fmean(map(value, without)), statistics.fmean(map(value, having))

    def judged(shape: Shape) -> GuestVerdict:
        name = shape.name
        time = compare(lambda one: one.guests[name].run)
        work = compare(lambda one: one.guests[name].work_per_s)
        return GuestVerdict(
            shape=shape,
            run=means(lambda one: one.guests[name].run),
            wait=means(lambda one: one.guests[name].wait),
            time=time,
            work=work,
            judged=work if measure is Measure.WORK else time,
        )

    vcpus = sum(len(shape.shares) for shape in scenario.guests)
    guests = tuple(map(judged, scenario.guests))
    wants = {shape.name: shape.wants for shape in scenario.guests}
    worst_off = compare(lambda one: _least(one, wants, measure))
    answer, reasons = _answer(scenario.claim, guests, worst_off, having)
    return Verdict(
        measure=measure,
        guests=guests,
        worst_off=worst_off,
        total=compare(lambda one: sum(map(measure.of, one.guests.values()))),
        wait=means(lambda one: sum(got.wait for got in one.guests.values()) / vcpus),
        beside=means(lambda one: one.beside),
        pins=tuple(one.pins for one in having),
        answer=answer,
        reasons=reasons,
    )


def _least(block: Block, wants: Mapping[str, float], measure: Measure) -> float:
    """Return what the guest that got least of what it wants got of that."""
    return min(measure.of(got) / wants[name] for name, got in block.guests.items())


def _answer(
    claim: Claim, guests: Sequence[GuestVerdict], worst_off: Estimate, having: Sequence[Block]
) -> tuple[Answer, tuple[str, ...]]:
    """Weigh what speaks against the claim: one failure fails it, one doubt leaves it open."""
    failures = [f"{one.pins_failing} pins failed" for one in having if one.pins_failing]
    failures += _changes(guests, gains=False)
    doubts = _hidden(guests, gains=claim is Claim.ALIKE)
    if claim is Claim.ALIKE:
        failures += _changes(guests, gains=True)
        if pins := sum(one.pins for one in having):
            failures.append(f"{pins} pins")
    elif worst_off.high < 1:
        failures.append("the worst-off guest loses")
    elif worst_off.low <= 1:
        doubts.append("whether the worst-off guest gains is lost in the noise")
    if failures:
        return Answer.FAILS, (*failures, *doubts)
    return (Answer.UNDECIDED if doubts else Answer.HOLDS), tuple(doubts)


def _changes(guests: Sequence[GuestVerdict], *, gains: bool) -> list[str]:
    """Name the guests that gain beyond the noise, or those that lose."""
    sign, verb = (1, "gains") if gains else (-1, "loses")
    return [
        f"{guest.shape.name} {verb} {sign * (guest.work.value - 1):.1%} of its work"
        f" ({sign * (guest.time.value - 1):.1%} of its time)"
        for guest in guests
        if (guest.judged.low > 1 if gains else guest.judged.high < 1)
    ]


def _hidden(guests: Sequence[GuestVerdict], *, gains: bool) -> list[str]:
    """Name the guests for which noise could hide a loss worth minding, or a gain if that counts."""
    names = [
        guest.shape.name
        for guest in guests
        if guest.judged.low < LOSS_MAX <= guest.judged.high
        or (gains and guest.judged.high > DIFFERENCE_MAX >= guest.judged.low)
    ]
    worth = f"{1 - LOSS_MAX:.0%}"
    return [f"the noise could hide {worth} and more for {', '.join(names)}"] if names else []
