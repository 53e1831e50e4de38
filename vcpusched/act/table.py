"""Remembers what came of moves: what to leave alone for a while, and what is yet to be judged.

Rule: one table of vCPUs (cooldown, back-off), one of guests and pCPUs (quarantine), which `applied`
prunes once a cycle: what is in the sample is kept, and what belongs to a guest that could not be
read. What is expected of the last plan ends with its verdict, and where that was that it did not
help, no other is asked for until something has changed. It knows no clock but that of the samples.
What must outlive the process is in the ledger, loads in what was observed last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.act.actuator import Event, Failure
from vcpusched.act.feedback import Effect, Expectation, Finding, Verdict, expect, judge
from vcpusched.model import PPM_PER_POINT, CpuSet, DomainUuid, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Cause, Move, Policy, Stop
from vcpusched.sample import Sample

QUARANTINE_CYCLES, QUARANTINE_MAX = 10, 640
"""For how many cycles a guest or pCPU that refused a pin is in quarantine; doubled each time."""

BACK_OFF_NS: Final = 300_000_000_000
BACK_OFF_MAX_NS: Final = 24 * 3_600_000_000_000
"""For how long a vCPU is left alone that was worse off bound; doubled when it is so again."""

IN_VAIN_NS: Final = 300_000_000_000
IN_VAIN_MAX_NS: Final = 3_600_000_000_000
"""For how long nothing is planned after a plan that did not help; doubled when the next did not."""

GROWN_PPM: Final = 20 * PPM_PER_POINT
"""A gap that has grown by so much since is another, and so is what vCPUs wait, in the mean, by half
of it: a gap between sets says nothing of a crowd inside one."""


@dataclass(frozen=True, slots=True)
class _Left:
    """Until when something is left alone, and how long that is in all: in cycles, or in ns."""

    until: int
    length: int

    @classmethod
    def longer(cls, before: "_Left | None", now: int, first: int, longest: int) -> "_Left":
        """Leave it alone from now on: twice as long as before, if it was."""
        length = first if before is None else min(before.length * 2, longest)
        return cls(now + length, length)


@dataclass(frozen=True, slots=True)
class _Vcpu:
    """What is remembered of a vCPU.

    It was first seen at `moved_ns` where it was moved to, 0 until that is so; it has a `back_off`
    since it was worse off bound.
    """

    moved_ns: int | None = None
    back_off: _Left | None = None


_UNKNOWN: Final = _Vcpu()


@dataclass(frozen=True, slots=True)
class _InVain:
    """A plan that did not help: the policy that it was made by, and the host that it left."""

    left: _Left
    policy: Policy
    found: Finding

    def explains(self, finding: Finding) -> bool:
        """Return whether what was found is what the plan left, and what is wanted the same."""
        return (
            finding.at_ns < self.left.until
            and finding.policy == self.policy
            and finding.plan.gap_before_ppm < self.found.plan.gap_before_ppm + GROWN_PPM
            and _mean_ppm(finding.waits) < _mean_ppm(self.found.waits) + GROWN_PPM // 2
            and _places(finding.host) == _places(self.found.host)
        )


def _mean_ppm(waits: Mapping[VcpuId, int]) -> int:
    return sum(waits.values()) // max(1, len(waits))


def _places(host: Host) -> tuple[object, ...]:
    """Return which pCPUs there are, and which vCPUs, and where these may be."""
    vcpus = [(vcpu.id, vcpu.cpus, vcpu.allowed) for vcpu in host.vcpus]
    return [cpu.cpu for cpu in host.cpus], vcpus


class VcpuTable:
    """What is remembered of vCPUs and guests that still run, and of pCPUs."""

    def __init__(self) -> None:
        self._vcpus: dict[VcpuId, _Vcpu] = {}
        self._quarantine: dict[DomainUuid | int, _Left] = {}
        """By guest, and by the number of a pCPU."""
        self._expectation: Expectation | None = None
        self._in_vain: _InVain | None = None
        self.is_in_vain = False
        """Whether a plan would go by the estimates that the last one proved wrong."""

    def note(self, event: Event, number: int, now_ns: int) -> None:
        """Note that a move was made, or may have been, or not, in the cycle of this number."""
        move = event.move
        if isinstance(event, Failure):
            # Once, however many vCPUs of a guest were refused in this cycle.
            for what in {*event.blamed} - self.quarantined(number):
                before = self._quarantine.get(what)
                left = _Left.longer(before, number, QUARANTINE_CYCLES, QUARANTINE_MAX)
                self._quarantine[what] = left
            return
        if move.cause is not Cause.RESET:
            self._vcpus[move.vcpu] = replace(self._of(move.vcpu), moved_ns=0)
        if move.cause is Cause.WORSE_OFF:
            known = self._of(move.vcpu)
            left = _Left.longer(known.back_off, now_ns, BACK_OFF_NS, BACK_OFF_MAX_NS)
            self._vcpus[move.vcpu] = replace(known, back_off=left)
        # The kernel takes a set of pCPUs of which it takes one.
        proven: list[DomainUuid | int] = [move.vcpu.uuid]
        if len(move.to_cpus) == 1:
            proven += move.to_cpus
        for what in proven:
            self._quarantine.pop(what, None)

    def quarantined(self, number: int) -> frozenset[DomainUuid | int]:
        """Return the guests and pCPUs that refused a pin before the cycle of this number."""
        return frozenset(what for what, left in self._quarantine.items() if number < left.until)

    @property
    def is_pending(self) -> bool:
        """Whether it cannot be said yet what came of the last plan."""
        return self._expectation is not None

    def planned(self, number: int, finding: Finding, made: Sequence[Move]) -> None:
        """Expect something of a plan that was carried out."""
        self._expectation = expect(number, finding, made)

    def judged(self, finding: Finding) -> tuple[Effect, ...]:
        """Return what came of the last plan, if that can be said, and has not been."""
        expectation, known = self._expectation, self._in_vain
        effect = judge(expectation, finding) if expectation is not None else None
        if expectation is not None and effect is not None:
            self._expectation = None
            planned = expectation.finding
            # To bind floaters takes several plans, since where the kernel has them is chance. So
            # does what `max_moves` cuts.
            is_part = planned.plan.binds_floaters or planned.plan.stop is Stop.MOVE_LIMIT
            if effect.verdict is Verdict.NO_HELP and not is_part:
                before = known.left if known is not None else None
                left = _Left.longer(before, finding.at_ns, IN_VAIN_NS, IN_VAIN_MAX_NS)
                known = _InVain(left, planned.policy, finding)
            elif effect.verdict is Verdict.HELPED:
                known = None
        self._in_vain = known
        self.is_in_vain = known is not None and known.explains(finding)
        return (effect,) if effect is not None else ()

    def applied(self, host: Host, sample: Sample, *, number: int, cooldown_s: float) -> Host:
        """Fix what is to be left alone, in the cycle of this number, so that plans do without.

        What does not run any more is forgotten.
        """
        if not (self._vcpus or self._quarantine):
            return host
        self._forget(host, sample)
        now_ns = {domain.uuid: domain.at_ns for domain in sample.domains}
        quarantined = self.quarantined(number)
        refused = CpuSet.of(what for what in quarantined if isinstance(what, int))

        def judged(vcpu: Vcpu) -> Vcpu:
            why = self._why(vcpu.id, now_ns.get(vcpu.id.uuid, 0), cooldown_s)
            if vcpu.id.uuid in quarantined:
                why = "its guest refused a pin and is in quarantine"
            elif refused and not why:
                vcpu = replace(vcpu, allowed=vcpu.allowed - refused)
                why = "" if vcpu.allowed else "all its pCPUs refused a pin and are in quarantine"
            return replace(vcpu, fixed=True, why=why) if why else vcpu

        vcpus = (vcpu if vcpu.fixed else judged(vcpu) for vcpu in host.vcpus)
        return replace(host, vcpus=tuple(vcpus))

    def _of(self, vcpu: VcpuId) -> _Vcpu:
        return self._vcpus.get(vcpu, _UNKNOWN)

    def _forget(self, host: Host, sample: Sample) -> None:
        """Keep what is known of what is in the sample, and of guests that could not be read."""
        at_ns = {
            VcpuId(domain.uuid, domain.domain_id, reading.vcpu): domain.at_ns
            for domain in sample.domains
            for reading in domain.vcpus
        }
        known = {*(domain.uuid for domain in sample.domains), *sample.unread, *host.online}
        self._quarantine = {what: left for what, left in self._quarantine.items() if what in known}
        # A cooldown counts from the first sample after the pin, so never less than was asked for.
        self._vcpus = {
            vcpu: replace(known, moved_ns=at_ns[vcpu]) if first else known
            for vcpu, known in self._vcpus.items()
            if vcpu in at_ns or vcpu.uuid in sample.unread
            for first in [known.moved_ns == 0 and vcpu in at_ns]
        }

    def _why(self, vcpu: VcpuId, now_ns: int, cooldown_s: float) -> str:
        known = self._of(vcpu)
        if known.moved_ns is not None and now_ns - known.moved_ns < cooldown_s * 1e9:
            return f"moved less than {cooldown_s:g}s ago"
        if known.back_off is not None and now_ns < known.back_off.until:
            minutes = -(-(known.back_off.until - now_ns) // 60_000_000_000)
            return f"worse off when it was bound, so left alone for {minutes} min more"
        return ""
