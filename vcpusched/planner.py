"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find few pin changes after which the busiest and the freest pCPU are less than the
    threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: steepest descent. Take from the busiest pCPU the vCPU that best evens it out with a
    freer one, never so that the imbalance only changes sides; put a pCPU aside that no move can
    help. Then keep the net difference, and drop every move that balance does not need.
Terms: a bound vCPU may use one pCPU, a floating one (floater) several. In the *measured* view a
    floater counts where it was last seen; in the *poured* view floaters fill the least loaded
    pCPUs of their masks like water, as the kernel spreads them within milliseconds.
Algorithm: 1. With `Floating.PIN`, plan on the measured view, with only floaters movable; that plan
    is taken when it ends balanced and leaves every pCPU it touches below saturation.
    2. Otherwise floaters are the kernel's: plan on the poured view, and move bound vCPUs only.
Properties: no vCPU is moved twice; masks and fixed vCPUs are respected; the gap never grows, and
    no step raises the peak that the host had; a pCPU with one vCPU keeps it. Planning again on
    the result of step 2 yields no step 2; of step 1 there can be at most as many plans as there
    are floaters, and each vCPU is bound by at most one of them.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vcpusched.board import Board
from vcpusched.model import PPM, CpuSet, Host, Vcpu, VcpuId

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""


class Floating(enum.StrEnum):
    """What to do with vCPUs that may use several pCPUs."""

    PIN = "pin"
    KERNEL = "kernel"


class Stop(enum.StrEnum):
    """Why planning ended."""

    BALANCED = "balanced"
    NO_GAIN = "no_gain"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator wants of a plan.

    `balance_threshold_ppm`: the gap from which on a host is unbalanced, above 0.
    `min_gain_ppm`: where balance is out of reach, how much a move must at least lower the load of
    the pCPU that it leaves or the load that decides there, whichever is less.
    """

    balance_threshold_ppm: int = 100_000
    min_gain_ppm: int = 50_000
    floating: Floating = Floating.PIN


@dataclass(frozen=True, slots=True)
class Move:
    """One pin to change; `reason` is a sentence for the administrator."""

    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    load_ppm: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in the order to do it, and what comes of it.

    `balanced` describes the host as found, `stop` why planning ended; `gap` is the load of the
    busiest less that of the freest pCPU, `loads` the load of each pCPU; `binds_floaters` tells
    which of the two views the plan was made on.
    """

    balanced: bool
    stop: Stop
    gap_before_ppm: int
    gap_after_ppm: int
    loads_before_ppm: tuple[tuple[int, int], ...]
    loads_after_ppm: tuple[tuple[int, int], ...]
    moves: tuple[Move, ...]
    binds_floaters: bool = False


def plan(host: Host, policy: Policy) -> Plan:
    """Plan the pin changes of one decision."""
    vcpus = tuple(sorted(host.vcpus, key=lambda vcpu: vcpu.id))
    if policy.floating is Floating.PIN:
        binding = _plan_binding(host, vcpus, policy)
        if binding is not None:
            return binding
    poured = [not vcpu.is_bound for vcpu in vcpus]
    start = Board.of(host, vcpus, poured)
    movable = [vcpu.is_bound and not vcpu.fixed for vcpu in vcpus]
    return _settle(start, movable, policy)


def _plan_binding(host: Host, vcpus: Sequence[Vcpu], policy: Policy) -> Plan | None:
    """Plan on the measured view; None where floaters are better left to the kernel."""
    managed = host.online
    # Not known where it is, or seen where it may not be any more.
    poured = [
        not vcpu.is_bound and (vcpu.on is None or vcpu.on not in managed & vcpu.cpus)
        for vcpu in vcpus
    ]
    start = Board.of(host, vcpus, poured)
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return None
    floaters = [
        not vcpu.is_bound and not vcpu.fixed and not pour
        for vcpu, pour in zip(vcpus, poured, strict=True)
    ]
    if not any(floaters):
        return None
    # Only floaters: bound ones that moved after where floaters happened to be seen would be moved
    # back when those are seen elsewhere.
    found = _settle(start, floaters, policy)
    return found if _binds_well(found, vcpus) else None


def _binds_well(found: Plan, vcpus: Sequence[Vcpu]) -> bool:
    floating = {vcpu.id: vcpu.on for vcpu in vcpus if not vcpu.is_bound}
    if found.stop is not Stop.BALANCED or not found.binds_floaters:
        return False
    loads = dict(found.loads_after_ppm)
    touched = {cpu for move in found.moves for cpu in move.to_cpus}
    touched |= {cpu for move in found.moves if (cpu := floating[move.vcpu]) is not None}
    return all(loads[cpu] < SATURATION_PPM for cpu in touched)


def _settle(start: Board, movable: Sequence[bool], policy: Policy) -> Plan:
    """Give the better of two plans: keeping a guest's vCPUs apart, or not minding."""
    if start.gap_ppm() < policy.balance_threshold_ppm:
        return _finish(start, start, policy)
    ends = [_descend(start, movable, policy, keep_apart=apart) for apart in (True, False)]
    apart, plain = (_finish(start, end, policy) for end in ends)
    as_good = (
        apart.stop is plain.stop
        and len(apart.moves) <= len(plain.moves)
        and apart.gap_after_ppm < plain.gap_after_ppm + policy.balance_threshold_ppm // 2
    )
    return apart if as_good else plain


def _descend(start: Board, movable: Sequence[bool], policy: Policy, *, keep_apart: bool) -> Board:
    """Improve until balanced, or until no move pays."""
    board = start
    while True:
        free = _walk(board, movable, policy, gain_min_ppm=1, keep_apart=keep_apart)
        if free.gap_ppm() < policy.balance_threshold_ppm:
            return _prune(start, free, policy)
        paying = _walk(
            board, movable, policy, gain_min_ppm=policy.min_gain_ppm, keep_apart=keep_apart
        )
        # From where paying moves end, balance may have come into reach: look again, so that
        # planning on the result finds nothing new.
        if paying.place == board.place:
            return board
        board = paying


def _walk(
    start: Board,
    movable: Sequence[bool],
    policy: Policy,
    *,
    gain_min_ppm: int,
    keep_apart: bool,
) -> Board:
    """Make single moves, each off the busiest pCPU that one can help, until balanced."""
    board = start
    while board.gap_ppm() >= policy.balance_threshold_ppm:
        levels = board.levels
        freest_first = sorted(levels, key=lambda cpu: (levels[cpu], cpu))
        for busiest in sorted(levels, key=lambda cpu: (-levels[cpu], cpu)):
            step = _best_step(
                board, busiest, movable, freest_first, gain_min_ppm, keep_apart=keep_apart
            )
            if step is not None:
                break
        else:
            return board  # no move helps any of them
        board = step
    return board


def _best_step(  # noqa: PLR0913  the order is the same for all of a round, so it is made once
    board: Board,
    busiest: int,
    movable: Sequence[bool],
    freest_first: Sequence[int],
    gain_min_ppm: int,
    *,
    keep_apart: bool,
) -> Board | None:
    members = board.members[busiest]
    if len(members) < 2:  # noqa: PLR2004  a vCPU alone on its pCPU stays
        return None
    goal_ppm = board.levels[busiest] - gain_min_ppm
    # Counted once, since a crowded pCPU is what is looked at most.
    guests = Counter(board.vcpus[index].id.uuid for index in members)
    options = []
    for index in members:
        if not movable[index]:
            continue
        load_ppm = board.vcpus[index].load_ppm
        for target in _targets(board, index, busiest, freest_first):
            peak_ppm = max(board.levels[busiest] - load_ppm, board.levels[target] + load_ppm)
            # Water on the target flows away from a vCPU that comes: only what is bound there
            # stands in its way for sure.
            dry_ppm = max(board.base[busiest] - load_ppm, board.base[target] + load_ppm)
            if min(peak_ppm, dry_ppm) > goal_ppm:
                continue
            crowd = board.relatives(index, target) - guests[board.vcpus[index].id.uuid] + 1
            apart = crowd if keep_apart else 0
            options.append((peak_ppm > goal_ppm, apart, peak_ppm, crowd, load_ppm, target, index))
    for wet, *_, target, index in sorted(options):
        step = board.moved(index, target)
        # Where floaters were poured, what the move really does shows only after pouring anew.
        if wet and step.levels[busiest] > goal_ppm:
            continue
        if step.profile() < board.profile() and step.gap_ppm() <= board.gap_ppm():
            return step
    return None


def _targets(board: Board, index: int, busiest: int, freest_first: Sequence[int]) -> Iterable[int]:
    """Give the freest allowed pCPU, and the freest one without a vCPU of the same guest."""
    allowed, first = board.vcpus[index].allowed, None
    for cpu in freest_first:
        if cpu == busiest or cpu not in allowed:
            continue
        alone = not board.relatives(index, cpu)
        if first is None or alone:
            first = cpu
            yield cpu
        if alone:
            return


def _prune(start: Board, end: Board, policy: Policy) -> Board:
    """Take back every move without which the end is balanced too, the smallest load first."""
    moved = [index for index, cpu in enumerate(end.place) if cpu != start.place[index]]
    for index in sorted(moved, key=lambda index: (end.vcpus[index].load_ppm, index)):
        home = start.place[index]
        if home is not None:
            without = end.moved(index, home)
            if without.gap_ppm() < policy.balance_threshold_ppm:
                end = without
    return end


def _finish(start: Board, end: Board, policy: Policy) -> Plan:
    """Turn the difference of two boards into a plan, ordered so that no step raises the peak."""
    left = {
        index: target
        for index, target in enumerate(end.place)
        if target is not None and target != start.place[index]
    }
    board, moves = start, []
    while left:
        index = min(left, key=lambda index: (board.levels[left[index]], left[index], index))
        target = left.pop(index)
        vcpu, source = board.vcpus[index], board.place[index]
        if source is None:
            raise AssertionError("only a vCPU that counts somewhere is moved")
        after = board.moved(index, target)
        moves.append(
            Move(
                vcpu=vcpu.id,
                domain=vcpu.domain,
                from_cpus=vcpu.cpus,
                to_cpus=CpuSet.of([target]),
                load_ppm=vcpu.load_ppm,
                reason=_reason(board, after, source, target),
            )
        )
        board = after
    threshold_ppm = policy.balance_threshold_ppm
    return Plan(
        balanced=start.gap_ppm() < threshold_ppm,
        stop=Stop.BALANCED if end.gap_ppm() < threshold_ppm else Stop.NO_GAIN,
        gap_before_ppm=start.gap_ppm(),
        gap_after_ppm=end.gap_ppm(),
        loads_before_ppm=tuple(sorted(start.levels.items())),
        loads_after_ppm=tuple(sorted(end.levels.items())),
        moves=tuple(moves),
        binds_floaters=any(len(move.from_cpus) > 1 for move in moves),
    )


def _reason(before: Board, after: Board, source: int, target: int) -> str:
    return (
        f"pCPU {source} was at {_percent(before.levels[source])} and pCPU {target} at "
        f"{_percent(before.levels[target])}; this makes them {_percent(after.levels[source])} and "
        f"{_percent(after.levels[target])}"
    )


def _percent(load_ppm: int) -> str:
    return f"{load_ppm * 100 / PPM:.0f} %"
