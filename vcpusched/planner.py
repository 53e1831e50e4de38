"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find the fewest pin changes after which the busiest and the freest pCPU are less than the
    threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: `solve` finds where the vCPUs should be. From there: plan again on the result until
    nothing is left to do, keep a guest's vCPUs apart where that costs nothing, and put the moves
    into an order in which no step makes a pCPU busier than any was.
Terms: a bound vCPU may use one pCPU, a floating one (floater) several. In the *measured* view a
    floater counts where it was last seen; in the *poured* view floaters fill the least loaded
    pCPUs of their masks like water, as the kernel spreads them within milliseconds.
Algorithm: 1. With `Floating.PIN`, plan on the measured view, with only floaters movable; that plan
    is taken when it ends balanced and leaves every pCPU it touches below saturation.
    2. Otherwise floaters are the kernel's: plan on the poured view, and move bound vCPUs only.
    3. Where the check of service refuses a plan, hold the moved vCPUs that it blames, and plan
    again, up to `TRIES_MAX` times; then rest.
Properties: no vCPU is moved twice; masks and fixed vCPUs are respected; a vCPU alone on the busiest
    pCPU stays. The gap never grows, the loads compared largest first become smaller, and no prefix
    of the plan (an exchange is one step) leaves a higher peak of bound load than the host had.
    Planning again on the result of step 2 yields no step 2, unless the plan was cut short (by
    `moves_max`, or on one host in a thousand since no order could be found for the rest); of step 1
    there can be at most as many plans as there are floaters, and each vCPU is bound by at most one.
    With the check of service on, whom a plan held is free again on its result, so there may be more
    to do; every plan makes the loads smaller, so that ends.
"""

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.arrange import Step, after, in_order, keep_apart
from vcpusched.board import Board
from vcpusched.frame import Problem
from vcpusched.model import PPM, CpuSet, Host, VcpuId
from vcpusched.service import Judge
from vcpusched.solve import solve
from vcpusched.text import printable

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""


TRIES_MAX: Final = 8
"""How often to plan again without the moves that the check of service refused. Of 216 hosts that
want 0.9 to 1.5 of what there is, 3 tries left 66 without any move, 8 leave 32. At rest like that, a
cycle with its eighth of the search takes 3 to 4 times as long as one full plan (33 hosts)."""


POURED_STEPS_MAX: Final = 64
"""Up to this many steps the reasons tell loads with the floaters in them; else without."""


class Floating(enum.StrEnum):
    """What to do with vCPUs that may use several pCPUs."""

    PIN = "pin"
    KERNEL = "kernel"


class Stop(enum.StrEnum):
    """Why planning ended."""

    BALANCED = "balanced"
    NO_GAIN = "no_gain"
    MOVE_LIMIT = "move_limit"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator wants of a plan.

    `balance_threshold_ppm`: the gap from which on a host is unbalanced, above 0.
    `min_gain_ppm`: how much of the load outside the balanced band a move must bring inside.
    `moves_max`: the most pin changes in one plan; None: no limit.
    `steps_max`: how long to search for fewer pin changes; a step takes some microseconds.
    `service_check`: refuse plans by which guests get less than they should (see `service`).
    """

    balance_threshold_ppm: int = 100_000
    min_gain_ppm: int = 50_000
    moves_max: int | None = None
    floating: Floating = Floating.PIN
    steps_max: int = 12_000
    service_check: bool = False


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
    busiest less that of the freest pCPU, `loads` the load of each pCPU; `binds_floaters` tells
    which of the two views the plan was made on. `refused` is why the check of service would not
    have more, or anything, the end of a sentence about the plan that it saw first.
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


def plan(host: Host, policy: Policy) -> Plan:
    """Plan the pin changes of one decision."""
    found = _unchecked(host, policy)
    if not policy.service_check or not found.moves:
        return found
    judge, refused, now = Judge(host), "", host
    for tries_left in reversed(range(TRIES_MAX + 1)):
        refusal = judge.refusal({move.vcpu: move.to_cpus for move in found.moves})
        if refusal is None:
            break
        refused = refused or refusal.why
        # Without a try left, there is no vCPU left to move either.
        blamed = refusal.blamed if tries_left else {vcpu.id for vcpu in host.vcpus}
        now = _holding(now, blamed)
        found = _unchecked(now, policy)
    return replace(found, refused=refused)


def _holding(host: Host, held: Collection[VcpuId]) -> Host:
    return replace(
        host,
        vcpus=tuple(replace(vcpu, fixed=True) if vcpu.id in held else vcpu for vcpu in host.vcpus),
    )


def _unchecked(host: Host, policy: Policy) -> Plan:
    vcpus = sorted(host.vcpus, key=lambda vcpu: (vcpu.id.uuid, vcpu.id.domain_id, vcpu.id.vcpu))
    floats = any(vcpu.cpus.bits & (vcpu.cpus.bits - 1) for vcpu in vcpus)
    if policy.floating is Floating.PIN and floats:
        measured = Board.of(host, vcpus, binding=True)
        if any(measured.allowed):
            binding = _settle(measured, policy)
            if _binds_well(measured, binding):
                return binding
    return _settle(Board.of(host, vcpus, binding=False), policy)


def _binds_well(board: Board, found: Plan) -> bool:
    """Tell whether the floaters that a plan binds are better off than with the kernel."""
    if found.stop is not Stop.BALANCED or not found.moves:
        return False
    loads = dict(found.loads_after_ppm)
    seen_on = {vcpu.id: vcpu.on for vcpu in board.vcpus}
    touched = {cpu for move in found.moves for cpu in move.to_cpus}
    touched |= {cpu for move in found.moves if (cpu := seen_on[move.vcpu]) is not None}
    return all(loads[cpu] < SATURATION_PPM for cpu in touched)


def _settle(board: Board, policy: Policy) -> Plan:
    """Plan on one view of the host."""
    levels = board.levels(board.base)
    if board.gap_ppm(levels) < policy.balance_threshold_ppm:
        return _told(board, policy, [])
    place = _rest_point(board, policy)
    steps = in_order(board, place)
    kept = _within_limit(steps, policy.moves_max)
    is_cut = len(kept) < len(steps)
    # What is cut short may end between two good places; then a shorter one is better.
    while kept and not _is_better(board, levels, board.levels(after(board, place, kept))):
        kept.pop()
    if is_cut and not kept:
        # Where the limit allows no exchange, some other step may do good by itself.
        kept = next(
            (
                [step]
                for step in steps
                if len(step) <= (policy.moves_max or 0)
                and _is_better(board, levels, board.levels(after(board, place, [step])))
            ),
            [],
        )
    return _told(board, policy, kept, place, is_cut=is_cut)


def _within_limit(steps: Sequence[Step], moves_max: int | None) -> list[Step]:
    kept: list[Step] = []
    moves = 0
    for step in steps:
        moves += len(step)
        if moves_max is not None and moves > moves_max:
            break
        kept.append(step)
    return kept


def _rest_point(board: Board, policy: Policy) -> Sequence[int]:
    """Give where the vCPUs are when planning again changes nothing more."""
    now = board
    while board.gap_ppm(now.levels(now.base)) >= policy.balance_threshold_ppm:
        place = _next_place(now, policy, again=now is not board)
        if place == now.home:
            break
        then = now.moved(keep_apart(now, place, policy.balance_threshold_ppm))
        if not _is_better(board, now.levels(now.base), then.levels(then.base)):
            break  # what is helpless differs from look to look, so this could go round in circles
        if now is not board and not in_order(board, then.home):
            break  # two looks together may not have the order that each has
        now = then
    return now.home


def _next_place(board: Board, policy: Policy, *, again: bool) -> Sequence[int]:
    """Give the best places that one look finds."""
    may = board.may
    for vcpu in board.lone():
        may[vcpu] = 0

    def accept(place: Sequence[int]) -> bool:
        return place == board.home or bool(in_order(board, place))

    def problem(start: Sequence[int], wet: frozenset[int], water_ppm: int) -> Problem:
        return Problem(
            loads=board.loads,
            home=board.home,
            may=may,
            start=start,
            judged=board.judged,
            span=policy.balance_threshold_ppm,
            min_gain=policy.min_gain_ppm,
            steps_max=policy.steps_max,
            again=again,
            accept=accept,
            wet=wet,
            water_ppm=water_ppm,
        )

    if not board.pools:
        return solve(problem(board.base, frozenset(), 0))
    # Water flows to where it finds room: at first it is taken to do so, then to stand still.
    wet = frozenset(cpu for mask, _ in board.pools for cpu in mask)
    levels = board.levels(board.base)
    flowing = problem(board.base, wet, sum(load_ppm for _, load_ppm in board.pools))
    for candidate in (flowing, problem(levels, frozenset(), 0)):
        place = solve(candidate)
        pins = sum(cpu != home for cpu, home in zip(place, board.home, strict=True))
        then = board.levels(board.at(place))
        gain = _outside(board, levels, policy) - _outside(board, then, policy)
        if pins and gain >= pins * max(policy.min_gain_ppm, 1) and _is_better(board, levels, then):
            return place
    return board.home


def _outside(board: Board, levels: Sequence[int], policy: Policy) -> int:
    """Give the load outside the band of the threshold's width that holds most of the loads."""
    loads = sorted(levels[cpu] for cpu in board.judged)
    span = policy.balance_threshold_ppm - 1
    return min(
        sum(max(0, load - begin - span) + max(0, begin - load) for load in loads)
        for begin in {*loads, *(max(0, load - span) for load in loads)}
    )


def _is_better(board: Board, before: Sequence[int], after: Sequence[int]) -> bool:
    """Tell whether the gap does not grow and the loads, compared largest first, are smaller."""
    if board.gap_ppm(after) > board.gap_ppm(before):
        return False
    return sorted((after[cpu] for cpu in board.judged), reverse=True) < sorted(
        (before[cpu] for cpu in board.judged), reverse=True
    )


def _told(
    board: Board,
    policy: Policy,
    steps: Sequence[Step],
    place: Sequence[int] = (),
    *,
    is_cut: bool = False,
) -> Plan:
    """Turn steps into a plan."""
    moves: list[Move] = []
    base = list(board.base)
    levels = first = board.levels(base)
    for step in steps:
        for vcpu in step:
            base[board.home[vcpu]] -= board.loads[vcpu]
            base[place[vcpu]] += board.loads[vcpu]
        # To pour the water anew for each of hundreds of steps takes seconds.
        then = board.levels(base) if len(steps) <= POURED_STEPS_MAX else list(base)
        moves += [_move(board, place, step, vcpu, levels, then) for vcpu in step]
        levels = then
    levels = board.levels(base)
    gap_ppm = board.gap_ppm(levels)
    stop = Stop.BALANCED if gap_ppm < policy.balance_threshold_ppm else Stop.NO_GAIN
    return Plan(
        balanced=board.gap_ppm(first) < policy.balance_threshold_ppm,
        stop=Stop.MOVE_LIMIT if is_cut and stop is Stop.NO_GAIN else stop,
        gap_before_ppm=board.gap_ppm(first),
        gap_after_ppm=gap_ppm,
        loads_before_ppm=tuple(zip(board.cpus, first, strict=True)),
        loads_after_ppm=tuple(zip(board.cpus, levels, strict=True)),
        moves=tuple(moves),
        binds_floaters=any(len(move.from_cpus) > 1 for move in moves),
    )


def _move(  # noqa: PLR0913, PLR0917  all that one sentence tells of
    board: Board,
    place: Sequence[int],
    step: Step,
    vcpu: int,
    before: Sequence[int],
    then: Sequence[int],
) -> Move:
    moved = board.vcpus[vcpu]
    source, target = board.home[vcpu], place[vcpu]
    names = board.cpus[source], board.cpus[target]
    was = (
        f"pCPU {names[0]} was at {_percent(before[source])} and pCPU {names[1]} at "
        f"{_percent(before[target])}"
    )
    makes = f"makes them {_percent(then[source])} and {_percent(then[target])}"
    others = [board.vcpus[other] for other in step if other != vcpu]
    exchange = "".join(
        f"in exchange for vCPU {other.id.vcpu} of {printable(other.domain)}, since "
        for other in others
    )
    return Move(
        vcpu=moved.id,
        domain=moved.domain,
        from_cpus=moved.cpus,
        to_cpus=CpuSet(1 << names[1]),
        load_ppm=moved.load_ppm,
        exchanged_with=others[0].id if others else None,
        reason=f"{exchange}{was}; {'together this' if others else 'this'} {makes}",
    )


def _percent(load_ppm: int) -> str:
    return f"{load_ppm * 100 / PPM:.0f} %"
