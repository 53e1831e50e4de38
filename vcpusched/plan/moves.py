"""What is wanted of a plan and what a plan says: its moves, their order, and their reasons.

Rule: values, and pure functions that decide nothing.

Order: moves are put so that no step makes a bin busier than any was. A step is one move, or two
    items that change places; of the steps that have room the one off the busiest bin comes first,
    and off that bin the one that takes most, since plans are cut.
"""

import enum
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from vcpusched.model import PPM, Cause, CpuSet, Granularity, VcpuId
from vcpusched.plan.cpu_groups import Bins
from vcpusched.plan.problem import Problem
from vcpusched.text import percent, vcpu_text

POURED_STEPS_MAX: Final = 64
"""Up to this many steps the reasons give loads with the floaters in them; else without."""

Step = tuple[tuple[int, int], ...]
"""An item and the bin that it goes to; two of these where items change places."""


class Stop(enum.StrEnum):
    """Why planning ended; `IN_VAIN`: nothing was looked for, since the last plan did not help."""

    BALANCED = "balanced"
    NO_GAIN = "no_gain"
    MOVE_LIMIT = "move_limit"
    IN_VAIN = "in_vain"


class Floating(enum.StrEnum):
    """What to do with vCPUs that may use several pCPUs; `AUTO` pins those that wait needlessly."""

    AUTO = "auto"
    PIN = "pin"
    KERNEL = "kernel"


MIN_WAIT_PPM: Final = {Floating.PIN: 0, Floating.AUTO: 50_000, Floating.KERNEL: PPM + 1}
"""For how much of the period a floater must have waited, beside room, to be bound."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator wants of a plan.

    `balance_threshold_ppm`: the gap from which on a host is unbalanced, above 0.
    `min_gain_ppm`: how much of the load outside the tolerance band a move must bring inside, in ppm
    of a pCPU; 2.5 times that to another cache, 4 times to another node.
    `max_moves`: the most pin changes in one plan; None: no limit.
    `steps_max`: how long to search for fewer pin changes; a step takes some microseconds.
    `pin_to`: what a vCPU is pinned to; with sets, loads are means over a set's pCPUs.
    `fair_shares`: refuse or trim what is unfair.
    """

    balance_threshold_ppm: int = 100_000
    min_gain_ppm: int = 50_000
    max_moves: int | None = None
    floating: Floating = Floating.PIN
    steps_max: int = 16_000
    pin_to: Granularity = Granularity.CPU
    fair_shares: bool = False


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
    cause: Cause = Cause.BALANCE


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in the order to do it, and what comes of it.

    `balanced` describes the host as found, `stop` why planning ended; `gap` is the load of the
    busiest less that of the least loaded pCPU, where each that can do less than the best counts as
    much more as it lacks at the mean; `loads` the load of each pCPU, in ppm of what it can do;
    `binds_floaters` says which of the two views the plan was made on. `refused` is why the check
    of fairness would not have more, or anything, the end of a sentence about the plan that it saw
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


def steps_between(problem: Problem, place: Sequence[int]) -> list[Step]:
    """Return the steps to a placement: pairs that change places, the larger first, and others."""
    current, size = problem.current, problem.size
    waiting: dict[tuple[int, int], list[int]] = {}
    steps: list[Step] = []
    for item in problem.moved(place):
        source, target = current[item], place[item]
        if partners := waiting.get((target, source)):
            pair = (item, target), (partners.pop(0), source)
            steps.append(pair if size[item] > size[pair[1][0]] else pair[::-1])
        else:
            waiting.setdefault((source, target), []).append(item)
    return steps + [((item, target),) for (_, target), items in waiting.items() for item in items]


def in_order(problem: Problem, place: Sequence[int]) -> list[Step] | None:
    """Return the steps to a placement, none of which raises the peak; None where none leads."""
    if problem.refused and tuple(place) in problem.refused:
        return None
    if any(gone > max(0, more) for _, more, gone in problem.leaving(place)):
        return None
    size, current, level = problem.size, problem.current, list(problem.base)
    poured = problem.levels()
    peak = max((poured[bin_] for bin_ in problem.bins.judged), default=0)
    heap = [
        (-level[current[step[0][0]]], sum(size[i] for i, _ in step[1:]) - size[step[0][0]], step)
        for step in steps_between(problem, place)
    ]
    heapify(heap)
    full, done = defaultdict[int, list[tuple[int, Step]]](list), list[Step]()
    while heap:
        key, change, step = heappop(heap)
        source, target = current[step[0][0]], step[0][1]
        if -key != level[source]:
            heappush(heap, (-level[source], change, step))
        elif level[target] - change > peak:
            full[target].append((change, step))
        else:
            done.append(step)
            level[source] += change
            level[target] -= change
            # What waited for room on the source may have it now.
            for waits, waiting in full.pop(source, ()) if change else ():
                heappush(heap, (-level[current[waiting[0][0]]], waits, waiting))
    return None if full else done


def plan_of(problem: Problem, steps: Sequence[Step], *, is_cut: bool = False) -> Plan:
    """Turn steps into a plan, each move with its reason."""
    bins, moves = problem.bins, list[Move]()
    base, first = list(problem.base), problem.levels()
    # To pour floaters anew for each of hundreds of steps takes seconds.
    poured = len(steps) <= POURED_STEPS_MAX
    levels: Sequence[int] = first if poured else base
    for step in steps:
        ends = problem.current[step[0][0]], step[0][1]
        was = [percent(bins.shown(levels, bin_)) for bin_ in ends]
        for item, target in step:
            base[problem.current[item]] -= problem.size[item]
            base[target] += problem.size[item]
        if poured:
            levels = problem.levels(base)
        becomes = [percent(bins.shown(levels, bin_)) for bin_ in ends]
        exchange, both, back = "", "", None
        for at, (item, target) in enumerate(step):
            if len(step) > 1:
                other = problem.vcpus[step[1 - at][0]]
                exchange = f"in exchange for {vcpu_text(other.id.vcpu, other.domain)}, since "
                both, back = "together ", other.id
            vcpu, source = problem.vcpus[item], problem.current[item]
            verb = "were" if len(bins.members[source]) > 1 else "was"
            reason = (
                f"{exchange}{bins.names[source]} {verb} at {was[at]} and {bins.names[target]} at "
                f"{was[1 - at]}; {both}this makes them {becomes[at]} and {becomes[1 - at]}"
            )
            to = problem.target(item, target)
            moves.append(Move(vcpu.id, vcpu.domain, vcpu.cpus, to, vcpu.load_ppm, reason, back))
    last = problem.levels(base)
    gap = bins.gap(last)
    stop = Stop.MOVE_LIMIT if is_cut else Stop.NO_GAIN
    return Plan(
        balanced=bins.gap(first) < problem.span,
        stop=Stop.BALANCED if gap < problem.span else stop,
        gap_before_ppm=bins.gap(first),
        gap_after_ppm=gap,
        loads_before_ppm=_each(bins, first),
        loads_after_ppm=_each(bins, last),
        moves=tuple(moves),
        binds_floaters=problem.measured and bool(moves),
    )


def _each(bins: Bins, levels: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((cpu, bins.shown(levels, bin_)) for cpu, bin_ in sorted(bins.of_cpu.items()))
