"""Searches, move by move, for the fewest moves after which every load lies within its bounds.

Rule: plain integers and lists, no `Host`; pure, and deterministic for equal input.

Problem: vCPUs have loads and homes. Find at most `pins` of them to move so that every pCPU ends
    between its `low` and `high`, and the busiest and the freest that count are less than `span`
    apart.
Approach: depth first, from a pCPU that is out of bounds: some vCPU must leave it (or come to it),
    so try each in turn, the most promising first, and forbid it to the tries after it.
Terms: a donor is above its `high`, a receiver below its `low`. A move is a vCPU and a pCPU, both
    by position in the lists.
Algorithm: a branch ends when the moves left are fewer than a lower bound. (1) A donor must lose at
    least as many vCPUs as, largest first, bring it down; (2) a receiver must get at least as many
    as, largest of all first, bring it up; (3) every move is one loss and one gain, and a pCPU that
    one loss or gain would do for, but that no single vCPU fits, needs one loss or gain more. vCPUs
    of equal load, home and mask are interchangeable: what is forbidden to one is so to all.
Properties: with no limit on its steps it finds a solution exactly when there is one.
"""

import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

UNBOUNDED: Final = 1 << 60
"""A load that no pCPU has: the `high` of one that may have any."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to search: vCPUs by position, pCPUs by position, loads in ppm of a pCPU.

    `may` has, per vCPU, a bit for each pCPU that it may be moved to (never its home); `start` is
    the load of each pCPU with every vCPU at home; `tops` and `bottoms` are the pCPUs that count
    for the largest and the smallest load, and `outside` what pCPUs that are not in this task make
    of those two.
    """

    loads: Sequence[int]
    home: Sequence[int]
    may: Sequence[int]
    start: Sequence[int]
    low: Sequence[int]
    high: Sequence[int]
    span: int
    tops: Sequence[int]
    bottoms: Sequence[int]
    outside: tuple[int, int] = (-1, UNBOUNDED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Moves as (vCPU, pCPU), or None; `complete` when None means that there are none."""

    moves: tuple[tuple[int, int], ...] | None
    steps: int
    complete: bool


_Option = tuple[float, int, int, int, int]
"""A move to try: its promise (the less the better), load, vCPU, source and target."""


class _OutOfStepsError(Exception):
    pass


def movable_by_cpu(
    loads: Sequence[int], home: Sequence[int], may: Sequence[int], count: int
) -> list[list[tuple[int, int]]]:
    """Give, for each of `count` pCPUs, its movable vCPUs as (-load, vCPU), the largest first."""
    own: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for vcpu, mask in enumerate(may):
        if mask:
            own[home[vcpu]].append((-loads[vcpu], vcpu))
    for members in own:
        members.sort()
    return own


def lower_bound(task: Task) -> int | None:
    """Give how many moves are needed at least; None when no number of moves will do."""
    own = movable_by_cpu(task.loads, task.home, task.may, len(task.start))
    sums = _sums_largest_first(own)
    losses = gains = 0
    for cpu, load in enumerate(task.start):
        if load > task.high[cpu]:
            rest = load - task.high[cpu]
            for negative, _ in own[cpu]:
                rest += negative
                losses += 1
                if rest <= 0:
                    break
            else:
                return None
        elif load < task.low[cpu]:
            needed = bisect_left(sums, task.low[cpu] - load)
            if needed >= len(sums):
                return None
            gains += needed
    return max(losses, gains)


def _sums_largest_first(own: Sequence[Sequence[tuple[int, int]]]) -> list[int]:
    sizes = sorted((-negative for members in own for negative, _ in members), reverse=True)
    return [0, *itertools.accumulate(sizes)]


def _where_it_fits(task: Task) -> tuple[Sequence[int], set[int]]:
    fixed = list(task.start)
    for vcpu, mask in enumerate(task.may):
        if mask:
            fixed[task.home[vcpu]] -= task.loads[vcpu]
    room = [high - load for high, load in zip(task.high, fixed, strict=True)]
    least = min(room, default=0)
    if max(task.loads, default=0) <= least:
        return task.may, set()
    may, must_go = list(task.may), set()
    for vcpu, size in enumerate(task.loads):
        if size > least and may[vcpu]:
            may[vcpu] &= sum(1 << cpu for cpu, free in enumerate(room) if size <= free)
            if size > room[task.home[vcpu]]:
                must_go.add(vcpu)
    return may, must_go


def search(  # noqa: C901, PLR0915  one state, and functions that close over it: that is quickest
    task: Task,
    pins: int,
    steps_max: int,
    chance: Callable[[], float] | None = None,
    accept: Callable[[Sequence[tuple[int, int]]], bool] = lambda _moves: True,
) -> Outcome:
    """Search for a solution of at most `pins` moves, for at most `steps_max` steps.

    `chance` (0 to 1), where given, shuffles moves that promise about the same: restarts with it
    find what one order misses. Solutions that `accept` does not like are passed over.
    """
    loads, home, low, high = task.loads, task.home, task.low, task.high
    level = list(task.start)
    cpus = range(len(level))
    may, must_go = _where_it_fits(task)
    own = movable_by_cpu(loads, home, may, len(level))
    at_home = {vcpu for members in own for _, vcpu in members}
    sums = _sums_largest_first(own)
    largest = sums[1] if len(sums) > 1 else 0
    sizes = sorted(loads[vcpu] for vcpu in at_home)
    kinds: dict[tuple[int, int, int], int] = {}
    kind = [kinds.setdefault(key, len(kinds)) for key in zip(home, loads, may, strict=True)]
    open_to = [mask for _, _, mask in kinds]
    # A vCPU that cannot stay has few places to go to: the search begins with it.
    urgent = [0] * len(level)
    for vcpu in must_go:
        urgent[home[vcpu]] += loads[vcpu]
    shuffle = task.span // 2
    path: list[tuple[int, int]] = []
    steps = 0

    def loss_count(cpu: int, rest: int) -> tuple[int, bool]:
        """Count a donor's losses; tell whether one loss would do but no single vCPU fits."""
        room, need, count = level[cpu] - low[cpu], rest, 0
        for negative, vcpu in own[cpu]:
            if not open_to[kind[vcpu]]:
                continue
            if rest > 0:
                rest += negative
                count += 1
                if rest > 0:
                    continue
                if count > 1:
                    return count, False
            if -negative <= room:
                return 1, -negative < need
        return (1, True) if rest <= 0 else (pins + 1, False)

    def bound(left: int) -> tuple[int, int, int, int] | None:  # noqa: C901  split, it is slower
        """Give losses, gains, the worst donor and receiver; None when `left` cannot do."""
        losses = gains = misfits = above = below = 0
        donor = receiver = -1
        for cpu in cpus:
            load = level[cpu]
            if load > high[cpu]:
                rest = load - high[cpu]
                pressing = rest + urgent[cpu]
                if pressing > above:
                    above, donor = pressing, cpu
                count, misfit = loss_count(cpu, rest)
                losses += count
                misfits += misfit
                if losses > left:
                    return None
            elif load < low[cpu]:
                rest = low[cpu] - load
                if rest > below:
                    below, receiver = rest, cpu
                if rest <= largest:
                    gains += 1
                    nearest = bisect_left(sizes, rest)
                    misfits += nearest == len(sizes) or sizes[nearest] > high[cpu] - load
                else:
                    count = bisect_left(sums, rest)
                    if count == len(sums):
                        return None
                    gains += count
                if gains > left:
                    return None
        if losses + gains + misfits > 2 * left:
            return None
        return losses, gains, donor, receiver

    def outside_after(cpu: int, load: int) -> int:
        return load - high[cpu] if load > high[cpu] else max(0, low[cpu] - load)

    def leaving(source: int, left: int, losses: int, gains: int) -> list[_Option]:
        """Give the moves off a pCPU as (promise, load, vCPU, source, target)."""
        options: list[_Option] = []
        load, last_gain = level[source], gains == left
        for negative, vcpu in own[source]:
            mask = open_to[kind[vcpu]]
            rest = load + negative
            if not mask or (last_gain and rest < low[source]):
                continue
            here = outside_after(source, rest)
            for target in cpus:
                if not mask >> target & 1:
                    continue
                there = level[target]
                need = low[target] - there
                if need <= 0:
                    if last_gain:
                        continue
                    need = 0
                comes = there - negative
                if comes > high[target] and losses == left and there <= high[target]:
                    continue
                promise = here + outside_after(target, comes) - need
                if vcpu in must_go:
                    promise += negative
                options.append((promise, -negative, vcpu, source, target))
        return options

    def coming(target: int, left: int, losses: int, but_from: int) -> list[_Option]:
        """Give the moves to a pCPU."""
        options: list[_Option] = []
        there = level[target]
        for vcpu in at_home:
            source = home[vcpu]
            if not open_to[kind[vcpu]] >> target & 1 or source == but_from:
                continue
            load = level[source]
            too_much = max(0, load - high[source])
            if losses == left and not too_much:
                continue
            size = loads[vcpu]
            promise = (
                outside_after(target, there + size) + outside_after(source, load - size) - too_much
            )
            options.append((promise, size, vcpu, source, target))
        return options

    def ends() -> tuple[int, int] | None:
        """Give the pCPUs that are too far apart, -1 for one outside; None when none are."""
        busiest = max(task.tops, key=level.__getitem__, default=-1)
        freest = min(task.bottoms, key=level.__getitem__, default=-1)
        top, bottom = task.outside
        if busiest < 0 or level[busiest] < top:
            busiest = -1
        else:
            top = level[busiest]
        if freest < 0 or level[freest] > bottom:
            freest = -1
        else:
            bottom = level[freest]
        return (busiest, freest) if top - bottom >= task.span else None

    def descend(left: int) -> bool:
        nonlocal steps
        steps += 1
        if steps > steps_max:
            raise _OutOfStepsError
        found = bound(left)
        if found is None:
            return False
        losses, gains, donor, receiver = found
        if not losses and not gains:
            apart = ends()
            if apart is None:
                return accept(path)
            if not left:
                return False
            donor, receiver = apart
            options = leaving(donor, left, losses, gains) if donor >= 0 else []
            if receiver >= 0:
                options += coming(receiver, left, losses, donor)
        elif losses >= gains:
            options = leaving(donor, left, losses, gains)
        else:
            options = coming(receiver, left, losses, -1)
        if chance is not None:
            options = [(option[0] + chance() * shuffle, *option[1:]) for option in options]
        return attempt(sorted(options), left)

    def attempt(options: list[_Option], left: int) -> bool:
        forbidden: list[tuple[int, int]] = []
        for _, size, vcpu, source, target in options:
            group = kind[vcpu]
            if not open_to[group] >> target & 1:
                continue  # like one that was tried
            entry = (-size, vcpu)
            level[source] -= size
            level[target] += size
            own[source].remove(entry)
            at_home.discard(vcpu)
            path.append((vcpu, target))
            if vcpu in must_go:
                urgent[source] -= size
            if descend(left - 1):
                return True
            path.pop()
            at_home.add(vcpu)
            if vcpu in must_go:
                urgent[source] += size
            insort(own[source], entry)
            level[source] += size
            level[target] -= size
            open_to[group] &= ~(1 << target)
            forbidden.append((group, target))
        for group, target in forbidden:
            open_to[group] |= 1 << target
        return False

    try:
        moves = tuple(path) if descend(pins) else None
    except _OutOfStepsError:
        return Outcome(None, steps, complete=False)
    return Outcome(moves, steps, complete=True)
