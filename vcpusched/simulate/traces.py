"""Reads recorded traces: what guests wanted, every few minutes.

Rule: text in, rows out; every mistake becomes a `WorkloadError` that names the line.

Terms: a trace is a text of one row per guest, `day,288 integers` (PlanetLab: percent of one vCPU
    every 5 minutes) or `id,vcpus,integers` (Bitbrains: permille of all its vCPUs). One value of
    a trace is one period of the simulation, so time is compressed.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import PPM, PPM_PER_POINT
from vcpusched.simulate.workload import Guest, WorkloadError, shares_of_vcpus, split
from vcpusched.text import printable, shown

PLANETLAB_VALUES: Final = 288
"""The 5 minutes of a day."""

_DAY: Final = re.compile(r"[0-9]{8}")


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
        room = length - periods if length > periods else 0 if length == periods else length - 1
        first = int(shift * (room + 1))
        window = [self.loads_ppm[(first + period) % length] for period in range(periods)]
        weights = shares_of_vcpus(self.vcpu_count, chance)
        parts = [split(load_ppm * self.vcpu_count, weights) for load_ppm in window]
        count = min(self.vcpu_count, vcpus_max)
        return Guest(name, tuple(tuple(part[vcpu] for part in parts) for vcpu in range(count)))


def is_trace(text: str) -> bool:
    """Tell whether a text looks like a trace."""
    return re.match(r"[0-9]+,[0-9]+,[0-9]+", text) is not None


def rows(text: str) -> list[Row]:
    """Read all rows. Raises WorkloadError."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise WorkloadError("holds no row; a trace has at least one")
    return [_row(number, line.split(",")) for number, line in lines]


def _row(number: int, fields: Sequence[str]) -> Row:
    if len(fields) == PLANETLAB_VALUES + 1 and _DAY.fullmatch(fields[0]):
        percents = _integers(number, fields, 1, 100)
        return Row(fields[0], 1, tuple(percent * PPM_PER_POINT for percent in percents))
    if len(fields) < 3:  # noqa: PLR2004  an id, a number of vCPUs, and a value
        raise WorkloadError(
            f"line {number}: {shown(','.join(fields))} is no row of a trace: must be"
            " `day,288 integers` in percent or `id,vcpus,integers` in permille"
        )
    (vcpu_count,) = _integers(number, fields[:2], 1, 1024)
    if not vcpu_count:
        raise WorkloadError(f"line {number}: value 2: 0 is not allowed: must be from 1 to 1024")
    permilles = _integers(number, fields, 2, 1000)
    return Row(
        printable(fields[0].strip()),
        vcpu_count,
        tuple(permille * (PPM // 1000) for permille in permilles),
    )


def _integers(number: int, fields: Sequence[str], first: int, value_max: int) -> list[int]:
    values = []
    for position, field in enumerate(fields[first:], first + 1):
        text = field.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= value_max):  # noqa: PLR2004  enough digits for any of them
            raise WorkloadError(
                f"line {number}: value {position}: {shown(field)} is not allowed:"
                f" must be a whole number from 0 to {value_max}"
            )
        values.append(int(text))
    return values
