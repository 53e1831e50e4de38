"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find the fewest pin changes after which the busiest and the least loaded pCPU are less than
    the threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: what is wanted is one objective (`objective`), what must not be is a missing bit
    (`problem`), and how it is found is one neighbourhood with exact search on groups (`search`).
Terms: a look is one search from where vCPUs are. Balance has a value of its own: it is worth
    1 pin, plus 1 for every 4 bins, that each gain less than `min_gain`.
Algorithm: 1. With `Floating.PIN`, plan on the measured view, with only floaters movable; that plan
    is taken when it ends balanced and leaves every bin that it touches below saturation. Otherwise
    floaters are the kernel's: plan on the poured view, and move bound vCPUs only.
    2. A look first searches for balance as if pins cost next to nothing. Where it finds that, and
    it is worth it, this is the answer; otherwise it searches for moves that pay, each by itself.
    3. Look again from the answer, until nothing is left to do. Put the moves in order, and cut
    them to the limit, whole steps only.
Properties: no vCPU is moved twice; what is not feasible is never done. The gap never grows, and the
    loads compared largest first shrink (or stay, and those of second threads shrink). No prefix of
    the plan (an exchange is one step) leaves a higher peak than the host had. Planning again on the
    result yields nothing, unless the plan was cut, or guests keep their vCPUs apart. On hosts that
    only just miss the threshold balance has no value, so that noise does not plan again and again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from candidate.cpu_groups import Bins, bins_of, crowded, name
from candidate.moves import Floating, Move, Plan, Policy, Step, Stop, in_order, told
from candidate.objective import best_band
from candidate.problem import SCALE, Distances, Problem
from candidate.search import UNREACHED_PPM, is_large, is_worth, search, search_large
from candidate.views import problem_of
from vcpusched.model import CpuSet, Granularity, Host, Vcpu

__all__ = ["Floating", "Granularity", "Move", "Plan", "Policy", "Stop", "plan"]

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""

LOOKS_MAX, LOOKS_LARGE = 8, 2
"""How often to look again from the answer; hardly a host needs more than two."""


def plan(host: Host, policy: Policy, distances: Distances | None = None) -> Plan:
    """Plan the pin changes of one decision; `distances` are those between NUMA nodes."""
    bins = bins_of(host, policy.granularity)
    vcpus = sorted(host.vcpus, key=lambda vcpu: (vcpu.id.uuid, vcpu.id.domain_id, vcpu.id.vcpu))

    def view(*, measured: bool) -> Problem:
        span, gain = policy.balance_threshold_ppm, policy.min_gain_ppm
        return problem_of(host, vcpus, bins, span, gain, distances or {}, measured=measured)

    poured = view(measured=False)
    found = None
    if policy.floating is Floating.PIN and poured.pools:
        measured = view(measured=True)
        if any(measured.allowed):
            found = _settle(measured, bins, policy)
            if not _binds_well(found, measured, bins):
                found = None
    if found is None:
        found = _settle(poured, bins, policy)
    return _with_crowded(found, host, bins, policy) if bins.are_sets else found


def _binds_well(found: Plan, problem: Problem, bins: Bins) -> bool:
    """Tell whether the floaters that a plan binds are better off than with the kernel."""
    if found.stop is not Stop.BALANCED or not found.moves:
        return False
    loads, seen = dict(found.loads_after_ppm), {vcpu.id: vcpu.on for vcpu in problem.vcpus}
    touched = {cpu for move in found.moves for cpu in (*move.to_cpus, seen[move.vcpu])}
    return all(loads[cpu] < SATURATION_PPM for cpu in touched if cpu in bins.of_cpu)


def _settle(problem: Problem, bins: Bins, policy: Policy) -> Plan:
    """Plan on one view of the host."""
    now, place, steps = problem, problem.home, list[Step]()
    if problem.gap(problem.levels()) >= problem.span:
        for _ in range(LOOKS_LARGE if is_large(problem) else LOOKS_MAX):
            found = _look(now.without_lone(), policy)
            if list(found) == list(now.home):
                break
            ordered = in_order(problem, found)
            if ordered is None or not _is_better_at(problem, found):
                break
            place, steps = found, ordered
            if problem.gap(problem.levels(problem.at(place))) < problem.span:
                break
            now = now.then(place)
    kept, moves = list[Step](), 0
    for step in steps:
        moves += len(step)
        if policy.moves_max is not None and moves > policy.moves_max:
            break
        kept.append(step)
    is_cut = len(kept) < len(steps)
    if is_cut:
        kept = _cut(problem, place, steps, kept, policy.moves_max or 0)
    return told(problem, bins, kept, place, is_cut=is_cut)


def _cut(
    problem: Problem, place: Sequence[int], steps: Sequence[Step], kept: list[Step], most: int
) -> list[Step]:
    """Return the longest beginning that is better than nothing, else any step that is."""
    before = problem.levels()

    def helps(some: Sequence[Step]) -> bool:
        then = list(problem.home)
        for step in some:
            for item in step:
                then[item] = place[item]
        return _is_better(problem, before, problem.levels(problem.at(then)))

    while kept and not helps(kept):
        kept.pop()
    if kept:
        return kept
    return next(([step] for step in steps if len(step) <= most and helps([step])), [])


def _look(problem: Problem, policy: Policy) -> Sequence[int]:
    """Return better places for the items, or home."""
    if not problem.pools:
        return _answer(problem, policy, lambda place: _is_better_at(problem, place))
    # Floaters flow to where they find room: first they are taken to do so, then to stand still.
    wet = frozenset(bin_ for bins, _ in problem.pools for bin_ in bins)
    flowing = problem.but(wet=wet, water=sum(load for _, load in problem.pools))
    for one in (flowing, problem.but(base=problem.levels())):
        place = _answer(one, policy, lambda place: _is_better_at(problem, place))
        if list(place) != list(problem.home):
            return place
    return problem.home


def _answer(
    problem: Problem, policy: Policy, accept: Callable[[Sequence[int]], bool]
) -> Sequence[int]:
    """Return the best places: balanced where that is worth it, else as moves pay."""
    home = list(problem.home)
    # Both are worked out here once, for all that follow.
    if not any(problem.own) or not problem.limits:
        return home
    paying = problem.but(min_gain=max(problem.min_gain, UNREACHED_PPM))
    value = problem.min_gain * SCALE * (1 + len(problem.judged) // 4)
    levels = [problem.base[bin_] for bin_ in problem.judged]
    # Noise around the threshold must not plan again and again: there balance has no value.
    hopes = (
        max(levels) - min(levels)
        >= problem.span + min(problem.span, 2 * problem.min_gain) * 3 // 20
    )
    if is_large(problem):
        place = search_large(paying, value if hopes else 0)
        return place if accept(place) else home
    if hopes:
        outside, _ = best_band(levels, problem.span)
        pins_max = (outside * SCALE + value) // problem.prices[1]
        found = search(problem.but(min_gain=0), policy.steps_max, 2 * pins_max + 1)
        if (
            not found.overload
            and accept(place := list(found.place))
            and (not problem.min_gain or is_worth(found, paying, value))
        ):
            return place
    found = search(paying, policy.steps_max, len(problem.size))
    return found.place if accept(found.place) else home


def _is_out_of_reach(problem: Problem, levels: Sequence[int]) -> bool:
    """Tell whether the largest item alone, or what is fixed on a bin, keeps the ends apart."""
    total, others = sum(levels) + problem.water, max(1, len(levels) - 1)
    fixed = [
        problem.base[bin_] - sum(size for size, _ in problem.own[bin_]) for bin_ in problem.judged
    ]
    giant = max((own[-1][0] for own in problem.own if own), default=0) + min(fixed)
    top = max(giant, *fixed)
    return top - (total - top) // others >= problem.span


def _is_better_at(problem: Problem, place: Sequence[int]) -> bool:
    return _is_better(problem, problem.levels(), problem.levels(problem.at(place)))


def _is_better(problem: Problem, before: Sequence[int], after: Sequence[int]) -> bool:
    """Tell whether the gap does not grow and the loads, the largest first, shrink."""
    if problem.gap(after) > problem.gap(before):
        return False
    then, now = (
        sorted((one[bin_] for bin_ in problem.judged), reverse=True) for one in (after, before)
    )
    if then == now and problem.siblings:
        then, now = (problem.contention(one) for one in (after, before))
    return then < now


def _with_crowded(found: Plan, host: Host, bins: Bins, policy: Policy) -> Plan:
    """Add the vCPUs to let into all of their set."""
    moved = {move.vcpu: move.to_cpus for move in found.moves}
    vcpus = tuple(replace(vcpu, cpus=moved.get(vcpu.id, vcpu.cpus)) for vcpu in host.vcpus)
    moves = list(found.moves)
    span, gain = policy.balance_threshold_ppm, policy.min_gain_ppm
    for vcpu, part, bin_ in crowded(replace(host, vcpus=vcpus), bins, span, gain):
        if vcpu.id not in moved and (policy.moves_max is None or len(moves) < policy.moves_max):
            moves.append(_let_in(vcpu, bins, part, bin_))
    return replace(found, moves=tuple(moves))


def _let_in(vcpu: Vcpu, bins: Bins, part: CpuSet, bin_: int) -> Move:
    members = bins.members[bin_]
    verb = "were" if len(part) > 1 else "was"
    return Move(
        vcpu=vcpu.id,
        domain=vcpu.domain,
        from_cpus=vcpu.cpus,
        to_cpus=members,
        load_ppm=vcpu.load_ppm,
        reason=f"{name(part)} {verb} the busiest of {members}; on all of these the kernel finds "
        "it room",
    )
