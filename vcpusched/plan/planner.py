"""Decides which pins to change, and why no others.

Rule: `plan` is a pure function of a `Host` and a `Policy`. It knows neither time nor libvirt, and
its answer does not depend on the order of its input.

Problem: find the fewest pin changes after which the busiest and the least loaded pCPU are less than
    the threshold apart; where that is out of reach, come as close as moves that pay can, and rest.
Approach: what is wanted is one objective (`objective`), what must not be is a missing bit
    (`problem`), and how it is found is one neighbourhood with exact search on groups (`search`).
Terms: a round is one search from where vCPUs are. Balance has a value of its own: it is worth
    1 pin, plus 1 for every 4 bins, that each gain less than `min_gain`.
Algorithm: 1. Plan on the measured view, with those floaters movable that `floating` gives to us.
    Take that plan if it ends balanced and saturates no bin that it touches; else floaters are the
    kernel's: plan on the poured view, and move what is bound, or on isolated pCPUs.
    2. A round searches for balance as if pins cost next to nothing. Where it finds that, and it is
    worth it, this is the answer; otherwise it searches for moves that pay, each by itself.
    3. Search again from the answer, until nothing is left to do. Put the moves in order, trim them
    to what is fair (`fairness`), and cut them to the limit, whole steps only.
Properties: no vCPU is moved twice; what is not feasible is never done. The gap never grows, and the
    loads compared largest first shrink (or stay, and those of second threads shrink). No prefix of
    the plan (an exchange is one step) leaves a higher peak than the host had. Planning again on the
    result yields nothing, unless the plan was cut or trimmed, or guests keep their vCPUs apart, and
    hardly anything on large hosts (`ROUNDS_LARGE`); but once bound vCPUs were moved, floaters may
    be bound. A plan for balance's sake closes the gap by
    three tenths of the threshold or of twice `min_gain`, whichever is less: noise plans nothing.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final

from vcpusched.model import Cause, Host
from vcpusched.plan.cpu_groups import bins_of
from vcpusched.plan.crowded import with_crowded
from vcpusched.plan.descent import part
from vcpusched.plan.fairness import trim
from vcpusched.plan.moves import (
    MIN_WAIT_PPM,
    Floating,
    Move,
    Plan,
    Policy,
    Step,
    Stop,
    in_order,
    plan_of,
)
from vcpusched.plan.objective import Assignment, best_band
from vcpusched.plan.problem import SCALE, Problem
from vcpusched.plan.search import (
    LARGE_BINS,
    UNREACHED_PPM,
    is_large,
    is_worth,
    search_balance,
    search_large,
    search_paying,
)
from vcpusched.plan.views import problem_of

__all__ = ["MIN_WAIT_PPM", "Cause", "Floating", "Move", "Plan", "Policy", "Stop", "plan"]

SATURATION_PPM: Final = 900_000
"""Load from which on a pCPU counts as saturated for binding floaters: above it bursts of the vCPUs
bound there collide where floating ones would have gone elsewhere."""

ENDS: Final = 4
"""Between how many of the busiest and of the least loaded bins one move is searched for."""

ROUNDS_MAX, ROUNDS_LARGE = 8, 2
"""How often to search again from the answer; hardly a host needs more than two rounds. Of those of
1,000 bins a third makes one plan of 800 pins in four 1 to 3 longer, for a quarter of the time."""


def plan(host: Host, policy: Policy) -> Plan:
    """Plan the pin changes of one decision."""
    host = replace(host, vcpus=tuple(sorted(host.vcpus, key=attrgetter("id"))))
    bins, wait = bins_of(host, policy.pin_to), MIN_WAIT_PPM[policy.floating]
    binds = any(vcpu.wait_ppm >= wait and vcpu.cpus.bits.bit_count() > 1 for vcpu in host.vcpus)
    for measured in (True, False) if binds else (False,):
        problem = problem_of(host, bins, policy, measured=measured)
        steps = _rounds(problem, policy) if policy.max_moves != 0 else []
        is_judged = policy.fair_shares and bool(steps)
        steps, refused = _fair(host, problem, steps) if is_judged else (steps, "")
        # A plan is judged whole, however much of it is made at once.
        if measured and _binds_well(problem, _after(problem, steps)):
            break
    begun = _begun(problem, steps, policy.max_moves)
    found = replace(plan_of(problem, begun, is_cut=len(begun) < len(steps)), refused=refused)
    return with_crowded(found, host, bins, policy) if bins.are_sets else found


def _binds_well(problem: Problem, place: Sequence[int]) -> bool:
    """Return whether the floaters bound at these places are better off than with the kernel.

    Those on isolated pCPUs are so anyway: they may be bound without the others, too.
    """
    bins, after = problem.bins, problem.levels(problem.at(place))
    freely = [i for i in problem.moved(place) if (problem.vcpus[i].on or 0) not in bins.isolated]
    touched = {bin_ for item in freely for bin_ in (problem.current[item], place[item])}
    full = any(bins.shown(after, bin_) >= SATURATION_PPM for bin_ in touched)
    return bool(freely) and bins.gap(after) < problem.span and not full


def _fair(host: Host, problem: Problem, steps: list[Step]) -> tuple[list[Step], str]:
    """Return the steps that are fair, and why the others are not; none where that is no plan."""
    asked = [[(item, problem.target(item, bin_)) for item, bin_ in step] for step in steps]
    kept, refusals = trim(host, asked, problem.bins.isolated)
    if not refusals:
        return steps, ""
    left = _after(problem, [steps[at] for at in kept])
    ordered = in_order(problem, left) if _is_better_at(problem, left) else None
    return ordered or [], refusals[0].why


def _begun(problem: Problem, steps: list[Step], most: int | None) -> list[Step]:
    """Return the longest beginning that is allowed at once and helps; else any step that does."""
    if most is None:
        return steps
    pins = itertools.accumulate(map(len, steps))
    begins = [steps[:end] for end, made in enumerate(pins, 1) if made <= most]
    single = [[step] for step in steps if len(step) <= most]
    tries = itertools.chain(reversed(begins), single)
    helps = (some for some in tries if _is_better_at(problem, _after(problem, some)))
    return next(helps, [])


def _after(problem: Problem, steps: Iterable[Step]) -> Sequence[int]:
    """Return where the items are once these steps are made."""
    found = list(problem.current)
    for item, bin_ in itertools.chain.from_iterable(steps):
        found[item] = bin_
    return found


def _rounds(problem: Problem, policy: Policy) -> list[Step]:
    """Search until nothing is left to do, and return the steps to there.

    What leads to places to which there is no order from here is refused, and searched for anew, so
    that the next plan has nothing to do either; one host in 10,000 needs that.
    """
    if problem.bins.gap(problem.levels()) < problem.span:
        return []
    # Not of each round: what a descent leaves of a crowd would be searched for longest.
    problem = problem.but(is_large=is_large(problem))
    now, steps = problem, list[Step]()
    is_slow = len(problem.bins.judged) > LARGE_BINS and not problem.pools
    for _ in range(ROUNDS_LARGE if is_slow else ROUNDS_MAX):
        found = _round(now.without_lone(), policy)
        if list(found) == list(now.current) and now.bins.siblings:
            part(state := Assignment(now, 0))
            found = state.place if _is_better_at(now, state.place) else now.current
        if list(found) == list(now.current):
            break
        ordered = in_order(problem, found)
        if ordered is None:
            refused = problem.refused | {tuple(_after(problem, steps))}
            return _rounds(problem.but(refused=refused), policy) if steps else []
        steps = ordered
        if problem.bins.gap(problem.levels(problem.at(found))) < problem.span:
            break
        now = now.then(found)
    return steps


def _round(problem: Problem, policy: Policy) -> Sequence[int]:
    """Return better places for the items, or the current ones."""
    if not problem.pools:
        return _answer(problem, problem, policy)
    if not problem.is_large and (place := _one_move(problem)):
        return place
    # Floaters flow to where they find room: first they are taken to do so, then to stand still.
    filled = frozenset(bin_ for bins, _ in problem.pools for bin_ in bins)
    flowing = problem.but(filled=filled, floating=sum(load for _, load in problem.pools))
    for one in (flowing, problem.but(base=problem.levels())):
        place = _answer(one, problem, policy)
        if list(place) != list(problem.current):
            return place
    return problem.current


def _one_move(problem: Problem) -> Sequence[int]:
    """Return the places after the cheapest move that balances a host as its floaters then flow.

    To take them to flow into any gap, or to stand still, misses some; empty: there is none.
    """
    state, levels = Assignment(problem, 0), problem.levels()
    near, found = min(problem.span, _near(problem, levels)), list[tuple[int, int, int, list[int]]]()
    order = sorted(problem.bins.judged, key=lambda bin_: (levels[bin_], problem.base[bin_]))
    for source, target in itertools.product(order[-ENDS:], order[:ENDS]):
        for size, item in problem.own[source] if source != target else ():
            price, place = problem.price(item, target), list(problem.current)
            place[item] = target
            if price <= _value(problem) and state.fits(item, target):
                gap = problem.bins.gap(problem.levels(problem.at(place)))
                if gap < near and _is_better_at(problem, place) and in_order(problem, place):
                    found.append((price, gap, size, place))
    return min(found)[-1] if found else ()


def _value(problem: Problem) -> int:
    """Return what balance is worth beside what pays by itself."""
    return problem.prices[1] * (1 + len(problem.bins.judged) // 4)


def _near(problem: Problem, levels: Sequence[int]) -> int:
    """Return below what a plan for balance's sake must bring the gap.

    Noise around the threshold must not plan again and again, so the gap must fall well below.
    """
    deadband = min(problem.span, 2 * problem.min_gain) * 3 // 10
    return problem.bins.gap(levels) - deadband + 1


def _answer(problem: Problem, real: Problem, policy: Policy) -> Sequence[int]:
    """Return the best places: balanced where that is worth it, else as moves pay.

    `real` is the problem as it is, with floaters poured.
    """
    current = list(problem.current)
    # Both are worked out here once, for all that follow.
    if not any(problem.own) or not problem.limits:
        return current
    paying = problem.but(min_gain=max(problem.min_gain, UNREACHED_PPM))
    value = _value(problem)
    levels = [problem.base[bin_] for bin_ in problem.bins.judged]
    near = min(problem.span, _near(problem, problem.base))
    if problem.is_large:
        place = search_large(paying, value if near == problem.span else 0)
        return place if _is_better_at(real, place) else current
    if near > 0:
        pins_max = (best_band(levels, near)[0] * SCALE + value) // problem.prices[1]
        cheap = problem.but(min_gain=0, span=near)
        found = search_balance(cheap, policy.steps_max, 2 * pins_max + 1)
        if (
            not found.overload
            and _is_better_at(real, place := list(found.place))
            and real.bins.gap(real.levels(real.at(place))) < _near(real, real.levels())
            and (not problem.min_gain or is_worth(found, paying, value))
        ):
            return place
    found = search_paying(paying, policy.steps_max)
    return found.place if _is_better_at(real, found.place) else current


def _is_better_at(problem: Problem, place: Sequence[int]) -> bool:
    """Return whether the gap does not grow and the loads, the largest first, shrink."""
    bins, both = problem.bins, (problem.levels(), problem.levels(problem.at(place)))
    if bins.gap(both[1]) > bins.gap(both[0]):
        return False
    then, now = (sorted([one[bin_] for bin_ in bins.judged], reverse=True) for one in both)
    if then == now:
        then, now = (
            sorted([bins.second(one, bin_) for bin_ in bins.firsts], reverse=True) for one in both
        )
    return now < then
