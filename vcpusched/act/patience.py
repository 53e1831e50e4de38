"""Whom to leave alone for a while: whoever was moved lately or in vain, or refused a pin.

Rule: remembers and answers; knows nothing of loads. Its clock is that of the samples.
"""

from dataclasses import dataclass, replace
from typing import Final

from vcpusched.model import DomainUuid, Host, Sample, VcpuId

ASIDE_CYCLES: Final = 10
ASIDE_CYCLES_MAX: Final = 640
"""For how many cycles a domain that refused a pin is left alone; doubled when it does so again."""

DOUBT_NS: Final = 300_000_000_000
DOUBT_MAX_NS: Final = 24 * 3_600_000_000_000
"""For how long a vCPU that was moved in vain is left alone; doubled when it is so again."""

_MINUTE_NS: Final = 60_000_000_000


@dataclass(frozen=True, slots=True)
class _Aside:
    until: int
    cycles: int


@dataclass(frozen=True, slots=True)
class _Doubt:
    until_ns: int
    length_ns: int


class Patience:
    """What happened lately to vCPUs and domains that still run."""

    def __init__(self) -> None:
        self._pinned: set[VcpuId] = set()
        self._cools_from_ns: dict[VcpuId, int] = {}
        self._aside: dict[DomainUuid, _Aside] = {}
        self._doubts: dict[VcpuId, _Doubt] = {}

    def pinned(self, vcpu: VcpuId) -> None:
        """Note that a vCPU was pinned, or may have been."""
        self._pinned.add(vcpu)
        self._aside.pop(vcpu.uuid, None)

    def refused(self, uuid: DomainUuid, number: int) -> None:
        """Note that a domain refused a pin in the cycle of this number."""
        known = self._aside.get(uuid)
        cycles = ASIDE_CYCLES if known is None else min(known.cycles * 2, ASIDE_CYCLES_MAX)
        self._aside[uuid] = _Aside(until=number + cycles, cycles=cycles)

    def is_aside(self, uuid: DomainUuid, number: int) -> bool:
        """Tell whether a domain refused a pin lately, in the cycle of this number."""
        aside = self._aside.get(uuid)
        return aside is not None and number < aside.until

    def doubt(self, vcpu: VcpuId, now_ns: int) -> None:
        """Note that a vCPU was moved in vain."""
        known = self._doubts.get(vcpu)
        length_ns = DOUBT_NS if known is None else min(known.length_ns * 2, DOUBT_MAX_NS)
        self._doubts[vcpu] = _Doubt(now_ns + length_ns, length_ns)

    def trust(self, vcpu: VcpuId) -> None:
        """Note that to move a vCPU helped."""
        self._doubts.pop(vcpu, None)

    def applied(self, host: Host, sample: Sample, *, number: int, cooldown_s: float) -> Host:
        """Fix whoever is to be left alone, in the cycle of this number, so that plans do without.

        Whoever does not run any more is forgotten.
        """
        running = {domain.uuid for domain in sample.domains} | set(sample.unread)
        there = {vcpu.id for vcpu in host.vcpus}
        self._aside = {uuid: aside for uuid, aside in self._aside.items() if uuid in running}
        self._doubts = {vcpu: doubt for vcpu, doubt in self._doubts.items() if vcpu in there}
        now_ns = {domain.uuid: domain.at_ns for domain in sample.domains}
        for vcpu in self._pinned & there:
            # Counted from the first look after the pin, so never less than was asked for.
            if vcpu.uuid in now_ns:
                self._cools_from_ns[vcpu] = now_ns[vcpu.uuid]
                self._pinned.discard(vcpu)
        self._pinned = {vcpu for vcpu in self._pinned if vcpu.uuid in running}
        self._cools_from_ns = {
            vcpu: from_ns
            for vcpu, from_ns in self._cools_from_ns.items()
            if vcpu.uuid in running and now_ns.get(vcpu.uuid, from_ns) - from_ns < cooldown_s * 1e9
        }
        return replace(
            host,
            vcpus=tuple(
                replace(vcpu, fixed=True, why=why)
                if not vcpu.fixed
                and (why := self._why(vcpu.id, number, now_ns.get(vcpu.id.uuid, 0), cooldown_s))
                else vcpu
                for vcpu in host.vcpus
            ),
        )

    def _why(self, vcpu: VcpuId, number: int, now_ns: int, cooldown_s: float) -> str:
        if self.is_aside(vcpu.uuid, number):
            return "its guest refused a pin lately"
        if vcpu in self._cools_from_ns or vcpu in self._pinned:
            return f"moved less than {cooldown_s:g} s ago"
        doubt = self._doubts.get(vcpu)
        if doubt is not None and now_ns < doubt.until_ns:
            minutes = -(-(doubt.until_ns - now_ns) // _MINUTE_NS)
            return f"moved in vain, so left alone for {minutes} min more"
        return ""
