"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find the fewest pin changes after which the busiest and the freest pCPU are less than the
    threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: `solve` finds where the vCPUs should be, once those that their pCPU is too weak for are
    on stronger ones (`misfit`). From there: plan again on the result until nothing is left to do,
    keep a guest's vCPUs apart where that costs nothing, and put the moves into an order in which no
    step makes a pCPU busier than any was.
Terms: a bound vCPU may use one pCPU, a floating one (floater) several. In the *measured* view a
    floater counts where it was last seen; in the *poured* view floaters fill the least loaded
    pCPUs of their masks like water, as the kernel spreads them within milliseconds.
Algorithm: 1. Unless with `Floating.KERNEL`, plan on the measured view, with only floaters movable;
    that plan is taken when it ends balanced and leaves every pCPU it touches below saturation.
    2. Otherwise floaters are the kernel's: plan on the poured view, and move bound vCPUs only.
    3. Where the check of service refuses a plan, hold the moved vCPUs that it blames, and plan
    again, up to `TRIES_MAX` times; then rest.
Properties: no vCPU is moved twice; masks and fixed vCPUs are respected; a vCPU alone on the busiest
    pCPU stays, unless one that can do more has room for it. The gap never grows, the loads compared
    largest first become smaller, and no prefix of the plan (an exchange is one step) leaves a
    higher peak of bound load than the host had.
    Planning again on the result of step 2 yields no step 2, unless the plan was cut short (by
    `moves_max`, or on one host in a thousand since no order could be found for the rest); of step 1
    there can be at most as many plans as there are floaters, and each vCPU is bound by at most one.
    No vCPU of a `spread` guest is moved onto a core that holds another one, at any point of the
    plan; into a core that one left only the next plan may move another.
    With the check of service on, whom a plan held is free again on its result, so there may be more
    to do; every plan makes the loads smaller, so that ends.
"""

import bisect
import enum
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import PPM, CpuSet, Granularity, Host, VcpuId
from vcpusched.plan.answer import Move, Plan, Stop, told
from vcpusched.plan.apart import Apart, separated
from vcpusched.plan.arrange import Step, after, as_far_as_ordered, in_order, keep_apart
from vcpusched.plan.board import Board
from vcpusched.plan.frame import Problem, excess
from vcpusched.plan.misfit import differ, on_stronger, without_idle_steps_up
from vcpusched.plan.near import Gains, core_loads, is_flat, nearer, part_siblings, worth_going
from vcpusched.plan.service import Judge
from vcpusched.plan.solve import solve
from vcpusched.plan.units import Units, grouped, narrow
from vcpusched.text import cpus_text

__all__ = ["Floating", "Move", "Plan", "Policy", "Stop", "plan"]

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""


TRIES_MAX: Final = 8
"""How often to plan again without the moves that the check of service refused. Of 216 hosts that
want 0.9 to 1.5 of what there is, 3 tries left 66 without any move, 8 leave 32. At rest like that, a
cycle with its eighth of the search takes 3 to 4 times as long as one full plan (33 hosts)."""


class Floating(enum.StrEnum):
    """What to do with vCPUs that may use several pCPUs; `AUTO` pins them, as `PIN` does."""

    AUTO = "auto"
    PIN = "pin"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the administrator wants of a plan.

    `balance_threshold_ppm`: the gap from which on a host is unbalanced, above 0.
    `min_gain_ppm`: how much of the load outside the balanced band a move must bring inside.
    `node_gain_ppm`: the same for a move to another NUMA node; half-way to another cache.
    `moves_max`: the most pin changes in one plan; None: no limit.
    `steps_max`: how long to search for fewer pin changes; a step takes some microseconds.
    `granularity`: what a vCPU is pinned to; with sets, loads are means over a set's pCPUs. Where
    pCPUs differ in what they can do, they or their sets are balanced by that.
    `service_check`: refuse plans by which guests get less than they should (see `service`).
    """

    balance_threshold_ppm: int = 100_000
    min_gain_ppm: int = 50_000
    moves_max: int | None = None
    floating: Floating = Floating.PIN
    steps_max: int = 12_000
    granularity: Granularity = Granularity.CPU
    service_check: bool = False
    node_gain_ppm: int = 200_000


def plan(host: Host, policy: Policy) -> Plan:
    """Plan the pin changes of one decision."""
    granularity = policy.granularity.on([cpu.cpu for cpu in host.cpus])
    policy = replace(policy, granularity=granularity)
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
    alike = all(cpu.cpu.capacity_ppm == PPM for cpu in host.cpus)
    if policy.granularity is Granularity.CPU and alike:
        return _plan(host, policy)
    return _plan_units(host, policy)


def _plan_units(host: Host, policy: Policy) -> Plan:
    units = grouped(host, policy.granularity)
    found = _plan(units.host, policy)
    vcpus = {vcpu.id: vcpu for vcpu in host.vcpus}
    moves = [
        replace(
            move,
            from_cpus=vcpus[move.vcpu].cpus,
            to_cpus=units.target(vcpus[move.vcpu], move.to_cpus),
            load_ppm=vcpus[move.vcpu].load_ppm,
        )
        for move in found.moves
    ]
    moved = {move.vcpu: move.to_cpus for move in moves}
    then = _with(host, moved) if moved else host
    span, gain = policy.balance_threshold_ppm, policy.min_gain_ppm
    for vcpu, busiest in narrow(then, units, span, gain):
        if vcpu.id not in moved and (policy.moves_max is None or len(moves) < policy.moves_max):
            unit = units.members[units.of_cpu[next(iter(busiest & host.online))]]
            moves.append(
                Move(
                    vcpu=vcpu.id,
                    domain=vcpu.domain,
                    from_cpus=vcpu.cpus,
                    to_cpus=unit,
                    load_ppm=vcpu.load_ppm,
                    reason=f"{_was(busiest)} the busiest of {unit}; on all of these the "
                    "kernel finds it room",
                )
            )
    return replace(
        found,
        loads_before_ppm=_each(units, found.loads_before_ppm),
        loads_after_ppm=_each(units, found.loads_after_ppm),
        moves=tuple(moves),
    )


def _with(host: Host, moved: Mapping[VcpuId, CpuSet]) -> Host:
    return replace(
        host,
        vcpus=tuple(
            replace(vcpu, cpus=moved[vcpu.id]) if vcpu.id in moved else vcpu for vcpu in host.vcpus
        ),
    )


def _was(cpus: CpuSet) -> str:
    return f"{cpus_text(cpus)} {'were' if len(cpus) > 1 else 'was'}"


def _each(units: Units, loads_ppm: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple(
        sorted((cpu, load_ppm) for unit, load_ppm in loads_ppm for cpu in units.members[unit])
    )


def _plan(host: Host, policy: Policy) -> Plan:
    vcpus = sorted(host.vcpus, key=lambda vcpu: (vcpu.id.uuid, vcpu.id.domain_id, vcpu.id.vcpu))
    board = Board.of(host, vcpus, binding=False)
    if policy.floating is not Floating.KERNEL and board.pools:
        measured = Board.of(host, vcpus, binding=True)
        if any(measured.allowed):
            binding = _settle(measured, policy)
            if _binds_well(measured, binding):
                return binding
    return _settle(board, policy)


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
    board = separated(board)
    levels = board.levels(board.base)
    if board.gap_ppm(levels) < policy.balance_threshold_ppm:
        return told(board, policy.balance_threshold_ppm, [])
    place, steps = _in_order(board, _looks(board, policy))
    place, steps = _mended(board, policy, place, steps)
    kept = _within_limit(steps, policy.moves_max)
    is_cut = len(kept) < len(steps)
    # What is cut short may end between two good places; then a shorter one is better.
    while kept and not _improves(board, levels, board.levels(after(board, place, kept))):
        kept.pop()
    if is_cut and not kept:
        # Where the limit allows no exchange, some other step may do good by itself.
        kept = next(
            (
                [step]
                for step in steps
                if len(step) <= (policy.moves_max or 0)
                and _improves(board, levels, board.levels(after(board, place, [step])))
            ),
            [],
        )
    return told(board, policy.balance_threshold_ppm, kept, place, is_cut=is_cut)


def _mended(
    board: Board, policy: Policy, place: Sequence[int], steps: list[Step]
) -> tuple[Sequence[int], list[Step]]:
    """Bring an answer nearer to where the vCPUs are, as far as it stays one."""
    if is_flat(board) and not differ(board):
        return place, steps
    span, levels, apart = policy.balance_threshold_ppm, board.levels(board.base), Apart.of(board)
    gains = _gains(policy)

    def without_far_moves(place: Sequence[int]) -> Sequence[int]:
        if is_flat(board):
            return place
        return worth_going(board, place, _band(board, board.levels(board.at(place)), span), gains)

    for mend in (
        lambda place: without_idle_steps_up(board, place),
        lambda place: nearer(board, place, span),
        without_far_moves,
        lambda place: part_siblings(board, place, span, policy.min_gain_ppm),
    ):
        candidate = mend(place)
        if list(candidate) == list(place) or not apart.holds(candidate):
            continue
        if list(candidate) == list(board.home):
            place, steps = candidate, []
            continue
        if not _improves(board, levels, board.levels(board.at(candidate))):
            continue
        if ordered := in_order(board, candidate):
            place, steps = candidate, ordered
    return place, steps


def _gains(policy: Policy) -> Gains:
    return Gains(policy.min_gain_ppm, policy.node_gain_ppm)


def _within_limit(steps: Sequence[Step], moves_max: int | None) -> list[Step]:
    kept: list[Step] = []
    moves = 0
    for step in steps:
        moves += len(step)
        if moves_max is not None and moves > moves_max:
            break
        kept.append(step)
    return kept


def _looks(board: Board, policy: Policy) -> list[Board]:
    """Give where the vCPUs are after each look, until another one would change nothing more."""
    now, looks = board, []
    levels = board.levels(board.base)
    place = on_stronger(board, _gains(policy))
    if list(place) != list(board.home):
        stronger = board.moved(place)
        then = stronger.levels(stronger.base)
        if _is_better(board, levels, then):
            now, levels = stronger, then
            looks.append(now)
    first = now
    while board.gap_ppm(levels) >= policy.balance_threshold_ppm:
        place = _next_place(now, policy, again=now is not first)
        if place == now.home:
            break
        tidied = keep_apart(now, place, policy.balance_threshold_ppm)
        found = now.moved(tidied if Apart.of(now).holds(tidied) else place)
        then = found.levels(found.base)
        if list(tidied) != list(place) and not _is_better(board, levels, then):
            # The water did not flow as it was taken to.
            found = now.moved(place)
            then = found.levels(found.base)
        if not _is_better(board, levels, then):
            break  # what is helpless differs from look to look, so this could go round in circles
        now, levels = found, then
        looks.append(now)
    return looks


def _in_order(board: Board, looks: Sequence[Board]) -> tuple[Sequence[int], list[Step]]:
    """Give where the vCPUs are after the last look that has an order, and the steps there."""
    for then in reversed(looks):
        if steps := in_order(board, then.home):
            return then.home, steps
    return as_far_as_ordered(board, looks[-1].home) if looks else (board.home, [])


def _next_place(board: Board, policy: Policy, *, again: bool) -> Sequence[int]:
    may, apart = board.may.copy(), Apart.of(board)
    for vcpu in board.lone():
        may[vcpu] = 0
    if apart.is_needed:
        may = apart.forbid(may)
    place = _best_place(board, policy, apart, may, again=again)
    if apart.is_needed and place == board.home:
        fewer = apart.one_each(may, board.levels(board.base))
        if fewer != may:
            place = _best_place(board, policy, apart, fewer, again=again)
    return place


def _best_place(
    board: Board, policy: Policy, apart: Apart, may: Sequence[int], *, again: bool
) -> Sequence[int]:
    def accept(place: Sequence[int]) -> bool:
        return place == board.home or (apart.holds(place) and bool(in_order(board, place)))

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
    low, high = _band(board, levels, policy.balance_threshold_ppm)
    return sum(excess(levels[cpu], low, high) for cpu in board.judged)


def _band(board: Board, levels: Sequence[int], threshold_ppm: int) -> tuple[int, int]:
    """Give the band of the threshold's width that holds most of the loads, lowest and highest."""
    loads = sorted(levels[cpu] for cpu in board.judged)
    sums = list(itertools.accumulate(loads, initial=0))
    span = threshold_ppm - 1

    def outside(begin: int) -> int:
        low, high = bisect.bisect_left(loads, begin), bisect.bisect_right(loads, begin + span)
        above = sums[-1] - sums[high] - (begin + span) * (len(loads) - high)
        return begin * low - sums[low] + above

    begin = min(sorted({*loads, *(max(0, load - span) for load in loads)}), key=outside)
    return begin, begin + span


def _is_better(board: Board, before: Sequence[int], after: Sequence[int]) -> bool:
    """Tell whether the gap does not grow and the loads, compared largest first, are smaller."""
    if board.gap_ppm(after) > board.gap_ppm(before):
        return False
    return sorted((after[cpu] for cpu in board.judged), reverse=True) < sorted(
        (before[cpu] for cpu in board.judged), reverse=True
    )


def _improves(board: Board, before: Sequence[int], after: Sequence[int]) -> bool:
    """Tell whether it is better, or as good with the loads of whole cores closer together."""
    if _is_better(board, before, after):
        return True
    if is_flat(board) or board.gap_ppm(after) > board.gap_ppm(before):
        return False
    same = sorted(after[cpu] for cpu in board.judged) == sorted(before[cpu] for cpu in board.judged)
    return same and core_loads(board, after) < core_loads(board, before)
