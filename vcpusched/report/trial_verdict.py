"""What a trial says: how long guests waited, and what they ran, without the service and with it.

Rule: pure. Two blocks that follow each other, one without and one with, are a pair; the noise is
what the pairs show of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.report.confidence import Estimate, mean_of
from vcpusched.text import counted

PAIRS_FOR_VERDICT: Final = 6

POINT: Final = 0.01
"""A share of a vCPU's time. Less than that, either way, is no difference worth a pin."""

GuestRun = tuple[str, int]
"""A name, and libvirt's number of its run: after a restart it counts as another guest."""


@dataclass(frozen=True, slots=True)
class Used:
    """What all vCPUs of a guest ran, and wanted to and did not, in pCPUs: seconds a second."""

    vcpus: int
    run: float
    wait: float


@dataclass(frozen=True, slots=True)
class Block:
    """What guests had in a block: with the service when it `balances`."""

    balances: bool
    guests: Mapping[GuestRun, Used]


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over the blocks without and with the service, and by how much the latter is more."""

    without: float
    having: float
    more: Estimate


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a trial.

    `wait` is the share of its time that a vCPU waits, in the mean of all; `longest` that of the
    guest that waits most in each block; `run` is what all guests run, in pCPUs; `lost` has the wait
    of those guests that wait at least a `POINT` longer with the service, beyond the noise.
    """

    pairs: int
    guests: int
    pins: int
    wait: Difference
    longest: Difference
    run: Difference
    lost: Mapping[GuestRun, Difference]

    @property
    def verdict(self) -> str:
        """Return it as a sentence that begins with better, worse, no difference or undecided."""
        more = self.wait.more
        if self.pairs < PAIRS_FOR_VERDICT:
            few = counted(self.pairs, "pair")
            return f"undecided: {few} of blocks; a verdict takes {PAIRS_FOR_VERDICT}"
        if not self.pins:
            return "no difference: the service changed no pin, so what differs is noise"
        if more.low > -POINT and more.high < POINT:
            return "no difference: what vCPUs wait changes by less than a point"
        by = f"{abs(more.value) / POINT:.1f} points"
        if more.high < 0:
            return f"better: vCPUs wait {by} less with the service"
        if more.low > 0:
            return f"worse: vCPUs wait {by} more with the service"
        return "undecided: the noise hides the difference; a longer trial may show it"


def order(pairs: int) -> list[bool]:
    """Return for each block of so many pairs whether the service balances in it.

    Without, with, with, without, and so on: what changes steadily hits both kinds alike.
    """
    return [number % 4 in {1, 2} for number in range(2 * pairs)]


def judge(blocks: Sequence[Block], pins: int) -> Trial:
    """Judge a trial by its blocks, of which every two are a pair, and the pins that it took.

    Only guests that ran all the time, with as many vCPUs, count. Raises ValueError for less than
    two pairs, and where there is no such guest.
    """
    first = blocks[0].guests
    names = [
        guest
        for guest, used in first.items()
        if all(guest in one.guests and one.guests[guest].vcpus == used.vcpus for one in blocks)
    ]
    vcpus = sum(first[name].vcpus for name in names)
    if not vcpus:
        raise ValueError("no guest ran from its beginning to its end")
    pairs = [
        sorted(pair, key=lambda one: one.balances)
        for pair in zip(blocks[::2], blocks[1::2], strict=True)
    ]

    def compare(value: Callable[[Block], float]) -> Difference:
        without, having = ([value(pair[side]) for pair in pairs] for side in (0, 1))
        more = mean_of([new - old for old, new in zip(without, having, strict=True)])
        return Difference(sum(without) / len(pairs), sum(having) / len(pairs), more)

    def wait_of(name: GuestRun) -> Callable[[Block], float]:
        return lambda block: block.guests[name].wait / first[name].vcpus

    waits = {name: compare(wait_of(name)) for name in names}
    return Trial(
        pairs=len(pairs),
        guests=len(names),
        pins=pins,
        wait=compare(lambda block: sum(block.guests[name].wait for name in names) / vcpus),
        longest=compare(lambda block: max(wait_of(name)(block) for name in names)),
        run=compare(lambda block: sum(block.guests[name].run for name in names)),
        lost={name: wait for name, wait in waits.items() if wait.more.low > POINT},
    )
