"""Tells what to do and what comes of it: the moves of a plan, in order, each with its reason.

Rule: pure; decides nothing. Loads are in parts per million of a pCPU.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.model import CpuSet, VcpuId
from vcpusched.plan.arrange import Step
from vcpusched.plan.board import Board
from vcpusched.text import percent, vcpu_text

POURED_STEPS_MAX: Final = 64
"""Up to this many steps the reasons tell loads with the floaters in them; else without."""


class Stop(enum.StrEnum):
    """Why planning ended."""

    BALANCED = "balanced"
    NO_GAIN = "no_gain"
    MOVE_LIMIT = "move_limit"


@dataclass(frozen=True, slots=True)
class Move:
    """One pin to change; `reason` is a sentence for the administrator.

    `exchanged_with` is the vCPU that goes the other way, in the move before or after.
    """

    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    load_ppm: int
    reason: str
    exchanged_with: VcpuId | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in the order to do it, and what comes of it.

    `balanced` describes the host as found, `stop` why planning ended; `gap` is the load of the
    busiest less that of the freest pCPU, where each that can do less than the best counts as much
    more as it lacks at the mean; `loads` the load of each pCPU, in ppm of what it can do;
    `binds_floaters` tells which of the two views the plan was made on. `refused` is why the check
    of service would not have more, or anything, the end of a sentence about the plan that it saw
    first.
    """

    balanced: bool
    stop: Stop
    gap_before_ppm: int
    gap_after_ppm: int
    loads_before_ppm: tuple[tuple[int, int], ...]
    loads_after_ppm: tuple[tuple[int, int], ...]
    moves: tuple[Move, ...]
    binds_floaters: bool = False
    refused: str = ""


def told(
    board: Board,
    threshold_ppm: int,
    steps: Sequence[Step],
    place: Sequence[int] = (),
    *,
    is_cut: bool = False,
) -> Plan:
    """Turn steps into a plan."""
    moves: list[Move] = []
    base = list(board.base)
    levels = first = board.levels(base)
    # To pour the water anew for each of hundreds of steps takes seconds.
    poured = len(steps) <= POURED_STEPS_MAX
    if not poured:
        levels = base
    for step in steps:
        ends = [cpu for vcpu in step for cpu in (board.home[vcpu], place[vcpu])]
        was = board.told(levels, ends)
        for vcpu in step:
            base[board.home[vcpu]] -= board.loads[vcpu]
            base[place[vcpu]] += board.loads[vcpu]
        if poured:
            levels = board.levels(base)
        becomes = board.told(levels, ends)
        moves += [_move(board, place, step, vcpu, was, becomes) for vcpu in step]
    levels = board.levels(base)
    every = range(len(board.cpus))
    gap_ppm = board.gap_ppm(levels)
    stop = Stop.BALANCED if gap_ppm < threshold_ppm else Stop.NO_GAIN
    return Plan(
        balanced=board.gap_ppm(first) < threshold_ppm,
        stop=Stop.MOVE_LIMIT if is_cut and stop is Stop.NO_GAIN else stop,
        gap_before_ppm=board.gap_ppm(first),
        gap_after_ppm=gap_ppm,
        loads_before_ppm=tuple(zip(board.cpus, board.told(first, every).values(), strict=True)),
        loads_after_ppm=tuple(zip(board.cpus, board.told(levels, every).values(), strict=True)),
        moves=tuple(moves),
        binds_floaters=any(len(move.from_cpus) > 1 for move in moves),
    )


def _move(  # noqa: PLR0913, PLR0917  all that one sentence tells of
    board: Board,
    place: Sequence[int],
    step: Step,
    vcpu: int,
    before: Mapping[int, int],
    then: Mapping[int, int],
) -> Move:
    moved = board.vcpus[vcpu]
    source, target = board.home[vcpu], place[vcpu]
    names = board.names[source], board.names[target]
    exchange, together, exchanged_with = "", "this", None
    for other in step:
        if other != vcpu:
            partner = board.vcpus[other]
            exchanged_with, together = partner.id, "together this"
            exchange = f"in exchange for {vcpu_text(partner.id.vcpu, partner.domain)}, since "
    return Move(
        vcpu=moved.id,
        domain=moved.domain,
        from_cpus=moved.cpus,
        to_cpus=CpuSet(1 << board.cpus[target]),
        load_ppm=moved.load_ppm,
        exchanged_with=exchanged_with,
        reason=(
            f"{exchange}{names[0]} {'were' if names[0].startswith('pCPUs') else 'was'} at "
            f"{percent(before[source])} and {names[1]} at {percent(before[target])}; {together} "
            f"makes them {percent(then[source])} and {percent(then[target])}"
        ),
    )
