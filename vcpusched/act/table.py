"""Remembers what to leave alone for a while: cooldown and back-off of vCPUs, and quarantine.

Rule: one table of vCPUs, one of guests and pCPUs, which `applied` prunes once a cycle: what is in
the sample is kept, and what belongs to a guest that could not be read. It knows no clock but that
of the samples. What must outlive the process is in the ledger, loads in what was observed last.
"""

from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import CpuSet, DomainUuid, Host, Vcpu, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Sample

QUARANTINE_CYCLES, QUARANTINE_MAX = 10, 640
"""For how many cycles a guest or pCPU that refused a pin is in quarantine; doubled each time."""

BACK_OFF_NS: Final = 300_000_000_000
BACK_OFF_MAX_NS: Final = 24 * 3_600_000_000_000
"""For how long a vCPU that was moved in vain is left alone; doubled when it is so again."""


@dataclass(frozen=True, slots=True)
class _Left:
    """Until when something is left alone, and how long that is in all: in cycles, or in ns."""

    until: int
    length: int


@dataclass(frozen=True, slots=True)
class _Vcpu:
    """What is remembered of a vCPU.

    It `cools` down since it was moved, from when it was first seen there; it has a `back_off` since
    it was moved in vain.
    """

    cools: bool = False
    cools_from_ns: int | None = None
    back_off: _Left | None = None


class VcpuTable:
    """What is remembered of vCPUs and guests that still run, and of pCPUs."""

    def __init__(self) -> None:
        self._vcpus: dict[VcpuId, _Vcpu] = {}
        self._quarantine: dict[DomainUuid | int, _Left] = {}
        """By guest, and by the number of a pCPU."""

    def pinned(self, move: Move) -> None:
        """Note that a move was made, or may have been."""
        if move.cause is not Cause.RESET:
            known = self._of(move.vcpu)
            self._vcpus[move.vcpu] = replace(known, cools=True, cools_from_ns=None)
        for proven in (move.vcpu.uuid, *move.to_cpus):
            self._quarantine.pop(proven, None)

    def refused(self, what: DomainUuid | int, number: int) -> None:
        """Note that a guest or pCPU refused a pin in the cycle of this number."""
        known = self._quarantine.get(what)
        cycles = QUARANTINE_CYCLES if known is None else min(known.length * 2, QUARANTINE_MAX)
        self._quarantine[what] = _Left(number + cycles, cycles)

    def quarantined(self, number: int) -> frozenset[DomainUuid | int]:
        """Return the guests and pCPUs that refused a pin lately, in the cycle of this number."""
        return frozenset(what for what, left in self._quarantine.items() if number < left.until)

    def back_off(self, vcpu: VcpuId, now_ns: int) -> None:
        """Note that a vCPU was moved in vain."""
        known = self._of(vcpu).back_off
        length_ns = BACK_OFF_NS if known is None else min(known.length * 2, BACK_OFF_MAX_NS)
        self._vcpus[vcpu] = replace(self._of(vcpu), back_off=_Left(now_ns + length_ns, length_ns))

    def helped(self, vcpu: VcpuId) -> None:
        """Note that to move a vCPU helped."""
        self._vcpus[vcpu] = replace(self._of(vcpu), back_off=None)

    def applied(self, host: Host, sample: Sample, *, number: int, cooldown_s: float) -> Host:
        """Fix what is to be left alone, in the cycle of this number, so that plans do without.

        What does not run any more is forgotten.
        """
        self._forget(host, sample, cooldown_s)
        now_ns = {domain.uuid: domain.at_ns for domain in sample.domains}
        quarantined = self.quarantined(number)
        refused = CpuSet.of(what for what in quarantined if isinstance(what, int))

        def judged(vcpu: Vcpu) -> Vcpu:
            why = self._why(vcpu.id, now_ns.get(vcpu.id.uuid, 0), cooldown_s)
            if vcpu.id.uuid in quarantined:
                why = "its guest refused a pin lately"
            elif refused and not why:
                vcpu = replace(vcpu, allowed=vcpu.allowed - refused)
                why = "" if vcpu.allowed else "all pCPUs that it may use refused a pin lately"
            return replace(vcpu, fixed=True, why=why) if why else vcpu

        vcpus = (vcpu if vcpu.fixed else judged(vcpu) for vcpu in host.vcpus)
        return replace(host, vcpus=tuple(vcpus))

    def _of(self, vcpu: VcpuId) -> _Vcpu:
        return self._vcpus.get(vcpu, _Vcpu())

    def _forget(self, host: Host, sample: Sample, cooldown_s: float) -> None:
        """Keep what is known of what is in the sample, and of guests that could not be read."""
        at_ns = {
            VcpuId(domain.uuid, domain.domain_id, reading.vcpu): domain.at_ns
            for domain in sample.domains
            for reading in domain.vcpus
        }
        known = {*(domain.uuid for domain in sample.domains), *sample.unread, *host.online}
        self._quarantine = {what: left for what, left in self._quarantine.items() if what in known}
        self._vcpus = {
            vcpu: _cooled(known, at_ns.get(vcpu), cooldown_s)
            for vcpu, known in self._vcpus.items()
            if vcpu in at_ns or vcpu.uuid in sample.unread
        }

    def _why(self, vcpu: VcpuId, now_ns: int, cooldown_s: float) -> str:
        known = self._of(vcpu)
        if known.cools:
            return f"moved less than {cooldown_s:g} s ago"
        if known.back_off is not None and now_ns < known.back_off.until:
            minutes = -(-(known.back_off.until - now_ns) // 60_000_000_000)
            return f"moved in vain, so left alone for {minutes} min more"
        return ""


def _cooled(known: _Vcpu, at_ns: int | None, cooldown_s: float) -> _Vcpu:
    """Count the cooldown from the first sample after the pin, so never less than was asked for."""
    if not known.cools or at_ns is None:
        return known
    from_ns = at_ns if known.cools_from_ns is None else known.cools_from_ns
    return replace(known, cools=at_ns - from_ns < cooldown_s * 1e9, cools_from_ns=from_ns)
