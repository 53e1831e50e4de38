"""Counts what the service did since it began, for the metrics.

Rule: pure; adds up what others decided and measured. Everything is keyed by a fixed list of words,
or by the guests that run: what ended is forgotten.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Final

from vcpusched.act.cycle import Cycle
from vcpusched.act.feedback import Verdict
from vcpusched.model import PPM, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause
from vcpusched.report.messages import CATALOGUE

FAILURES: Final = {
    "vanished": "vanished",
    "BusyError": "busy",
    "PermissionDeniedError": "denied",
    "NotRecordedError": "not_recorded",
    "OvertakenError": "vanished",
}
"""The words for the kinds of failures; any other is `OTHER`."""

OTHER: Final = "other"

BUCKETS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Recent:
    """How many pins there were in the last hour and the last day, to the minute."""

    def __init__(self) -> None:
        self._by_minute: Counter[int] = Counter()

    def add(self, now_s: float) -> None:
        """Count one pin, now."""
        self._by_minute[int(now_s // 60)] += 1

    def counts(self, now_s: float) -> tuple[int, int]:
        """Give the pins of the last hour and of the last day; what is older is forgotten."""
        minute = int(now_s // 60)
        for old in [key for key in self._by_minute if key <= minute - 24 * 60]:
            del self._by_minute[old]
        hour = sum(n for key, n in self._by_minute.items() if key > minute - 60)
        return hour, self._by_minute.total()


class Durations:
    """How long something took: how often up to each of `BUCKETS_S`, and in all."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Tally:
    """The counts since the process began; none ever falls."""

    def __init__(self) -> None:
        # All words from the start: of a series that begins at 1 nobody sees the increase.
        self.pin_changes = _zeros(CATALOGUE)
        self.pin_failures = _zeros([*FAILURES.values(), OTHER])
        self.plans = _zeros(["executed", "dry_run"])
        self.verdicts = _zeros(Verdict)
        self.cycle = Durations()
        self.plan = Durations()
        self.delays_s: dict[VcpuId, float] = {}
        """How long vCPUs were kept waiting by others on their pCPUs, those that run."""
        self.guest_delays_s: dict[tuple[DomainUuid, int], float] = {}
        """The same of guests, with what vCPUs waited that are gone: a sum that falls counts as
        one that began anew, and all of it once more."""
        self._last_ns: int | None = None

    def changed(self, cause: Cause) -> None:
        """Count an affinity that we changed."""
        self.pin_changes[cause] += 1

    def cycled(self, cycle: Cycle, took_s: float | None, planned_s: float | None) -> None:
        """Count what a cycle did; how long it took in all, and of that to plan, if that is known.

        Affinities are counted as they are changed.
        """
        self.pin_failures.update(FAILURES.get(one.kind, OTHER) for one in cycle.failures)
        self.verdicts.update(proof.verdict.value for proof in cycle.proofs)
        if cycle.executed and cycle.plan is not None:
            self.plans["dry_run" if cycle.dry_run else "executed"] += 1
        if took_s is not None:
            self.cycle.add(took_s)
        if planned_s is not None:
            self.plan.add(planned_s)
        self._add_delays(cycle)

    def _add_delays(self, cycle: Cycle) -> None:
        """Add the wait since the last cycle, none where it was not measured."""
        last_ns, self._last_ns = self._last_ns, cycle.at_ns
        if cycle.host is None:
            return
        elapsed_s = max(0, cycle.at_ns - last_ns) / 1e9 if last_ns is not None else 0.0
        vcpus, guests = self.delays_s, self.guest_delays_s
        self.delays_s, self.guest_delays_s = {}, {}
        for vcpu in cycle.host.vcpus:
            guest = vcpu.id.uuid, vcpu.id.domain_id
            delay_s = elapsed_s * cycle.waits.get(vcpu.id, 0) / PPM
            self.delays_s[vcpu.id] = vcpus.get(vcpu.id, 0.0) + delay_s
            so_far_s = self.guest_delays_s.get(guest, guests.get(guest, 0.0))
            self.guest_delays_s[guest] = so_far_s + delay_s


def _zeros(words: Iterable[str]) -> Counter[str]:
    return Counter(dict.fromkeys(map(str, words), 0))
