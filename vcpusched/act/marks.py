"""The mark that a running domain carries while it has pins of ours, to be known by anywhere.

Rule: what the mark should say follows from the ledger; here it is only kept that way.

Live pins go with a guest that is migrated or saved, and our ledger does not. So before a pin it is
written into the domain's live metadata where the vCPU was before the first one, and which pins are
ours: the one in force and the one that is about to be made. A mark counts only beside one of these,
or a person's pin would be taken for ours by whoever reads it next.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vcpusched.act.ledger import Entry, Ledger, Record
from vcpusched.host.hypervisor import ConnectionLostError, HypervisorError, VanishedError
from vcpusched.model import ALL_CPUS, NO_CPUS, DomainUuid, VcpuId
from vcpusched.sample import Origin, Sample

RETRY_NS: Final = 60 * 1_000_000_000
"""How long a domain is left alone that would not let its mark be changed."""


class Marks:
    """The marks as they are known over one connection; `mark` writes one."""

    def __init__(self, mark: Callable[[DomainUuid, int, Mapping[int, Origin]], None]) -> None:
        self._mark = mark
        self._marks: dict[DomainUuid, tuple[int, Mapping[int, Origin]]] = {}
        self._not_before_ns: dict[DomainUuid, int] = {}
        self._online = NO_CPUS
        self._everywhere = NO_CPUS
        self._now_ns = 0

    def learn(self, sample: Sample) -> None:
        """Learn which domains are marked; a mark that is known is only changed by us."""
        self._online = sample.topology.online
        self._everywhere = sample.present - sample.isolated
        self._now_ns = max((domain.at_ns for domain in sample.domains), default=self._now_ns)
        known, self._marks = self._marks, {}
        for uuid in sample.unread:
            if uuid in known:
                self._marks[uuid] = known[uuid]
        for domain in sample.domains:
            mark = known.get(domain.uuid)
            if mark is not None and mark[0] == domain.domain_id:
                self._marks[domain.uuid] = mark
            elif domain.definition.allowed:
                self._marks[domain.uuid] = domain.domain_id, domain.definition.origin
        running = self._marks.keys()
        self._not_before_ns = {
            uuid: at_ns for uuid, at_ns in self._not_before_ns.items() if uuid in running
        }

    def applied(self, ledger: Ledger) -> Ledger:
        """Give the ledger with what is known of which domains are marked."""
        for uuid, (domain_id, mark) in self._marks.items():
            entry = ledger.entries.get(uuid)
            if entry is not None and entry.domain_id == domain_id:
                ledger = ledger.marking(uuid, marked=bool(mark))
        return ledger

    def before_pin(self, vcpu: VcpuId, entry: Entry) -> None:
        """See to it that the mark has a vCPU's original and pins. Raises a `HypervisorError`."""
        _domain_id, mark = self._marks.get(vcpu.uuid, (0, {}))
        wanted = self._wanted(entry)
        if not _tells(mark, vcpu.vcpu, wanted[vcpu.vcpu]):
            self._write(vcpu.uuid, vcpu.domain_id, wanted)

    def tidy(self, ledger: Ledger, uuids: Iterable[DomainUuid] | None = None) -> None:
        """Correct marks, of some domains at once, or of all that were not tried lately.

        Raises ConnectionLostError.
        """
        for uuid in list(self._marks) if uuids is None else uuids:
            entry, (domain_id, mark) = ledger.entries.get(uuid), self._marks.get(uuid, (0, {}))
            if entry is None or entry.domain_id != domain_id or self._is_right(entry, mark):
                continue
            is_early = self._now_ns < self._not_before_ns.get(uuid, 0) or entry.is_young
            if uuids is None and is_early:
                continue
            wanted = self._wanted(entry) if entry.has_pins else {}
            try:
                self._write(uuid, domain_id, wanted)
            except ConnectionLostError:
                raise
            except VanishedError:
                # It ended, or somebody took the mark away.
                self._marks[uuid] = domain_id, {}
            except HypervisorError:
                self._not_before_ns[uuid] = self._now_ns + RETRY_NS

    def _write(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        self._mark(uuid, domain_id, origin)
        self._marks[uuid] = domain_id, origin

    def _wanted(self, entry: Entry) -> dict[int, Origin]:
        wanted = ((vcpu, self._origin(record)) for vcpu, record in entry.records.items())
        return {vcpu: origin for vcpu, origin in wanted if origin is not None}

    def _is_right(self, entry: Entry, mark: Mapping[int, Origin]) -> bool:
        """Tell whether whoever reads the mark would take no pin for another's than it is."""
        wanted = self._wanted(entry)
        return mark.keys() == wanted.keys() and all(
            _tells(mark, vcpu, origin) for vcpu, origin in wanted.items()
        )

    def _origin(self, record: Record) -> Origin | None:
        """Return what the mark should say of a vCPU, None where no pin of ours is in force."""
        if record.original is None:
            return None
        pins = {record.affinity, record.pending or record.affinity}
        # What the kernel undid while pCPUs were offline was made again without these.
        pins |= {pin & self._online for pin in pins}
        # Other hosts have other pCPUs.
        everywhere = self._everywhere.is_within(record.original)
        return Origin(ALL_CPUS if everywhere else record.original, frozenset(pins) - {NO_CPUS})


def _tells(mark: Mapping[int, Origin], vcpu: int, wanted: Origin) -> bool:
    known = mark.get(vcpu)
    return known is not None and known.original == wanted.original and wanted.pins <= known.pins
