"""Reports once what lasts: a dry run that would do the same again, a host that stays unbalanced.

Rule: remembers nothing but what it reported last; its clock is that of the samples.

Problem: loads are noisy. Of equal guests a plan takes now the one and now the other, and a gap that
    is near the threshold is above it every other period; each would be a line.
Approach: a dry run is reported when it would do something else to the pCPUs than was reported,
    at most every ten minutes; a state of the host when it has lasted for a minute.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from vcpusched.act.cycle import Cycle
from vcpusched.model import CpuSet
from vcpusched.plan.planner import Plan, Policy
from vcpusched.report.messages import JournalEntry, Priority, change_text
from vcpusched.report.plan_text import only_lets_in, settled
from vcpusched.text import counted, number, points, vcpu_text

AGAIN_NS: Final = 600 * 1_000_000_000
"""So long nothing of the same kind is reported again."""

LASTING_NS: Final = 60 * 1_000_000_000
"""A state is one that has lasted for so long."""

MOVES_MAX: Final = 8
"""Moves that a line names; `vcpusched plan` shows all of them."""


class Lasting:
    """What was reported of states that last."""

    def __init__(self) -> None:
        self._would: Counter[tuple[CpuSet, CpuSet]] = Counter()
        self._told_ns = self._began_ns = -AGAIN_NS  # long enough before any sample
        self._is_settled = False
        self._other_since_ns: int | None = None

    def entries(self, cycle: Cycle, policy: Policy) -> Iterator[JournalEntry]:
        """Return what is to be reported after a cycle."""
        if cycle.plan is None:
            return
        if cycle.executed and cycle.dry_run:
            yield from self._dry_run(cycle.plan, cycle.at_ns)
        yield from self._settled(cycle, cycle.plan, policy)

    def _dry_run(self, plan: Plan, now_ns: int) -> Iterator[JournalEntry]:
        would = Counter((move.from_cpus, move.to_cpus) for move in plan.moves)
        if would != self._would and now_ns - self._told_ns >= AGAIN_NS:
            self._would, self._told_ns = would, now_ns
            yield JournalEntry(Priority.INFO, dry_run_text(plan))

    def _settled(self, cycle: Cycle, plan: Plan, policy: Policy) -> Iterator[JournalEntry]:
        host, now_ns = cycle.host, cycle.at_ns
        is_settled = not plan.balanced and (not plan.moves or only_lets_in(plan))
        if host is None or is_settled == self._is_settled:
            self._other_since_ns = None
            return
        if self._other_since_ns is None:
            self._other_since_ns = now_ns
        if now_ns - self._other_since_ns < LASTING_NS:
            return
        if is_settled and now_ns - self._began_ns < AGAIN_NS:
            return
        self._is_settled, self._other_since_ns = is_settled, None
        gap = f"gap {points(plan.gap_before_ppm)}"
        if is_settled:
            self._began_ns = now_ns
            text = f"Not balancing: {gap}, but {settled(host, plan, policy)}"
        elif plan.balanced:
            text = f"Balanced again: {gap}"
        else:
            text = f"Unbalanced, and there are moves that are worth a pin again: {gap}"
        yield JournalEntry(Priority.INFO, text)


def dry_run_text(plan: Plan) -> str:
    """Word what a dry run would do, in one line."""
    moves = [
        f"{vcpu_text(move.vcpu.vcpu, move.domain)}, {change_text(move)}"
        for move in plan.moves[:MOVES_MAX]
    ]
    if (left := len(plan.moves) - MOVES_MAX) > 0:
        moves.append(f'{left} more ("vcpusched plan" shows them)')
    gap = f"{number(plan.gap_before_ppm)} -> ~{points(plan.gap_after_ppm)}"
    return f"Dry run: would make {counted(len(plan.moves), 'pin')}, gap {gap}: {'; '.join(moves)}"
