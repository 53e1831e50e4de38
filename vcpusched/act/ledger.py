"""What must be known to undo what was done: the affinity of each vCPU before our first pin.

Rule: pure values; who keeps them, and in which file, is the business of `ledger_file` and `keeper`.

Problem: a pin that nobody remembers is taken for the administrator's by whoever comes next, also by
    ourselves after a `kill -9`; and an administrator's pin must not be taken for one of ours.
Approach: each vCPU that was seen has a record of its affinity as we left it. An affinity that is
    neither that one nor one that was asked for is another hand's.
Terms: a pin is pending from before it is asked for until it was seen in force; the original is the
    affinity before the first pin, and there only while a pin of ours is in force or pending.
Algorithm: 1. Write down original and pending affinity. 2. Pin. 3. What a later sample shows tells
    whether 2 happened.
Properties: between any two steps the original is in the ledger, or in force, or both. A vCPU whose
    affinity is the original one again has no pin of ours. A record is one run of one vCPU: its UUID
    and number, and a CPU time not below what was recorded, since libvirtd may give domain ids anew
    when it restarts.
"""

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from vcpusched.model import (
    ALL_CPUS,
    CpuSet,
    Definition,
    DomainReading,
    DomainUuid,
    Sample,
    VcpuId,
    VcpuReading,
)

RESETS_MAX: Final = 3
"""How often a pin of ours that was undone is made again."""


UNSEEN_NS_MAX: Final = 60 * 1_000_000_000
"""So long a pin may take whose answer was lost: libvirt gives up on it after 30 s."""


class Hold(enum.StrEnum):
    """Why a vCPU is left alone: another hand pinned it, or our pin was undone again and again."""

    PINNED = "pinned"
    RESET = "reset"


class Change(enum.StrEnum):
    """What another hand, or the kernel, did to an affinity.

    `PINNED`: another hand pinned the vCPU to one pCPU. `POOLED`: it gave it several. `RESET`: the
    kernel undid our pin, which libvirt still has in its books. `LEFT`: once too often.
    """

    PINNED = "pinned"
    POOLED = "pooled"
    RESET = "reset"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one vCPU.

    `run_ns` is its CPU time when last seen; `affinity` what it had then, or was pinned to since;
    `original` is None without a pin of ours; `pending` was asked for and not seen in force yet;
    `resets` counts how often the last pin was undone and made again; `unseen_ns` is the clock of
    the first sample that did not show what is pending, 0 before there was one.
    """

    run_ns: int
    affinity: CpuSet
    original: CpuSet | None = None
    pending: CpuSet | None = None
    held: Hold | None = None
    resets: int = 0
    unseen_ns: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether a pin of ours is, or may be, in force."""
        return self.original is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of one domain; `held` from `restore` to `release`.

    It is `marked` while our mark is, or may be, in its metadata: a mark that nobody knew to be left
    over would have whoever starts next take any pin for one of ours. `uri` says by which address
    the libvirt was reached that runs it, empty where nobody wrote that down.
    """

    name: str
    domain_id: int
    records: Mapping[int, Record] = field(default_factory=dict)
    held: bool = False
    marked: bool = False
    uri: str = ""

    def is_at(self, uri: str) -> bool:
        """Tell whether it is, or may be, a domain of the libvirt that is reached like this."""
        return self.uri in {"", uri}

    @property
    def has_pins(self) -> bool:
        """Whether a pin of ours is, or may be, in force."""
        return any(record.is_ours for record in self.records.values())

    def is_kept(self) -> bool:
        """Tell whether there is anything that outlives the process."""
        return self.held or self.marked or any(map(is_kept, self.records.values()))


def is_kept(record: Record) -> bool:
    """Tell whether a record outlives the process: a pin is placement to whoever starts anew."""
    return record.is_ours or record.held is not None


@dataclass(frozen=True, slots=True)
class Changed:
    """One affinity that was changed by another hand or the kernel."""

    change: Change
    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    was_ours: bool


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records of all running domains."""

    entries: Mapping[DomainUuid, Entry] = field(default_factory=dict)

    def record(self, vcpu: VcpuId) -> Record | None:
        """Give the record of a vCPU, if there is one."""
        entry = self.entries.get(vcpu.uuid)
        return entry.records.get(vcpu.vcpu) if entry is not None else None

    def pins(self) -> Iterator[tuple[VcpuId, Entry, Record]]:
        """Give all vCPUs with a pin of ours, in the order of their ids."""
        for uuid, entry in sorted(self.entries.items()):
            for vcpu, record in sorted(entry.records.items()):
                if record.is_ours:
                    yield VcpuId(uuid, entry.domain_id, vcpu), entry, record

    def intending(self, vcpu: VcpuId, cpus: CpuSet) -> "Ledger":
        """Give the ledger before a pin. Raises KeyError for a vCPU that was never seen."""
        record = self.entries[vcpu.uuid].records[vcpu.vcpu]
        original = record.affinity if record.original is None else record.original
        intended = replace(record, original=original, pending=cpus, resets=0, unseen_ns=0)
        return self._with(vcpu, intended).marking(vcpu.uuid, marked=True)

    def made(self, vcpu: VcpuId) -> "Ledger":
        """Give the ledger after the pin that was pending."""
        record = self.entries[vcpu.uuid].records[vcpu.vcpu]
        if record.pending is None:
            return self
        return self._with(vcpu, _settled(replace(record, affinity=record.pending, pending=None)))

    def not_reset(self, vcpu: VcpuId) -> "Ledger":
        """Give the ledger without the last reset: the pin could not be made again."""
        record = self.entries[vcpu.uuid].records[vcpu.vcpu]
        return self._with(vcpu, replace(record, resets=max(record.resets - 1, 0)))

    def marking(self, uuid: DomainUuid, *, marked: bool) -> "Ledger":
        """Give the ledger with a domain marked or not. Raises KeyError for one never seen."""
        entry = self.entries[uuid]
        if entry.marked == marked:
            return self
        return self._with_entry(uuid, replace(entry, marked=marked))

    def holding(self, uuid: DomainUuid) -> "Ledger":
        """Give the ledger with a domain held. Raises KeyError for one that was never seen."""
        return self._with_entry(uuid, replace(self.entries[uuid], held=True))

    def releasing(self, uuid: DomainUuid) -> "Ledger":
        """Give the ledger without holds in a domain. Raises KeyError for one never seen."""
        entry = self.entries[uuid]
        records = {
            vcpu: replace(record, held=None, resets=0) for vcpu, record in entry.records.items()
        }
        return self._with_entry(uuid, replace(entry, held=False, records=records))

    def suspects(self, sample: Sample) -> frozenset[DomainUuid]:
        """Give the domains in which the kernel may have undone a pin of ours, or one that is held.

        Whether it did, only libvirt's books can tell: they still have the pin then.
        """
        online = sample.topology.online
        found = set()
        for domain in sample.domains:
            for reading in domain.vcpus:
                record = self.record(VcpuId(domain.uuid, domain.domain_id, reading.vcpu))
                if record is not None and (
                    _may_be_reset(record, reading, online)
                    or _may_still_be_held(record, reading, online)
                ):
                    found.add(domain.uuid)
        return frozenset(found)

    def compared(
        self,
        sample: Sample,
        told: Mapping[DomainUuid, Mapping[int, CpuSet]],
        unseen: Collection[DomainUuid] = (),
        uri: str = "",
    ) -> tuple["Ledger", tuple[Changed, ...]]:
        """Give the ledger as a sample shows it, and what others changed since.

        `told` is what libvirt's books say of the `suspects`. Of domains that are `unseen` since
        libvirtd may have been restarted neither another domain id nor that they are missing means
        anything: ids may have been given anew, and a daemon that starts finds its guests one after
        the other. The sample is that of the libvirt at `uri`, which knows nothing of the domains of
        another one.
        """
        online = sample.topology.online
        entries = {
            uuid: entry
            for uuid, entry in self.entries.items()
            if uuid in sample.unread
            or (entry.is_kept() and (uuid in unseen or not entry.is_at(uri)))
        }
        changes: list[Changed] = []
        for domain in sample.domains:
            before = self.entries.get(domain.uuid)
            # One that was written down by another address may well be of the same libvirt.
            is_unseen = domain.uuid in unseen or (before is not None and not before.is_at(uri))
            if before is not None and _is_another_run(before, domain, is_unseen=is_unseen):
                before = None
                entries.pop(domain.uuid, None)
            if before is None:
                # Before its definition is known nobody knows whether it bears our mark.
                if domain.definition.allowed:
                    records = {
                        reading.vcpu: _first(domain.definition, reading, sample)
                        for reading in domain.vcpus
                    }
                    entries[domain.uuid] = Entry(domain.name, domain.domain_id, records, uri=uri)
                continue
            # A vCPU that is missing is kept: one that is plugged in anew begins with no CPU time.
            records = dict(before.records)
            for reading in domain.vcpus:
                known = records.get(reading.vcpu)
                if known is None or reading.run_ns < known.run_ns:
                    records[reading.vcpu] = Record(reading.run_ns, reading.affinity)
                    continue
                books = told.get(domain.uuid, {}).get(reading.vcpu)
                stated = domain.definition.allowed.get(reading.vcpu, ALL_CPUS)
                record, change = _compared(known, reading, online, books, stated, domain.at_ns)
                records[reading.vcpu] = record
                if change is not None:
                    vcpu = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
                    was, now = known.affinity, reading.affinity
                    changes.append(Changed(change, vcpu, domain.name, was, now, known.is_ours))
            entries[domain.uuid] = replace(
                before, name=domain.name, domain_id=domain.domain_id, records=records, uri=uri
            )
        return Ledger(entries), tuple(changes)

    def _with(self, vcpu: VcpuId, record: Record) -> "Ledger":
        entry = self.entries[vcpu.uuid]
        records = {**entry.records, vcpu.vcpu: record}
        return self._with_entry(vcpu.uuid, replace(entry, records=records))

    def _with_entry(self, uuid: DomainUuid, entry: Entry) -> "Ledger":
        return Ledger({**self.entries, uuid: entry})


def _is_another_run(before: Entry, domain: DomainReading, *, is_unseen: bool) -> bool:
    if before.domain_id == domain.domain_id:
        return False
    return not is_unseen or any(
        reading.run_ns < before.records[reading.vcpu].run_ns
        for reading in domain.vcpus
        if reading.vcpu in before.records
    )


def _first(definition: Definition, reading: VcpuReading, sample: Sample) -> Record:
    """Give the record of a vCPU in a run that was not seen before: what bears our mark is ours."""
    record = Record(reading.run_ns, reading.affinity)
    online = sample.topology.online
    origin = definition.origin.get(reading.vcpu)
    # While a guest wakes, libvirt's books have its pin and the thread has not.
    pin = definition.booked.get(reading.vcpu, reading.affinity)
    if origin is None or not origin.explains(pin, online):
        return record
    # "Anywhere" is where the kernel puts whom nobody binds.
    everywhere = online - sample.isolated
    original = (everywhere if origin.original == ALL_CPUS else origin.original) & online
    stated = definition.allowed.get(reading.vcpu, ALL_CPUS)
    # A mark of another host's may name pCPUs that there are not here.
    original = (original & stated) or (everywhere & stated) or record.affinity
    return _settled(replace(record, original=original))


def _settled(record: Record) -> Record:
    """Forget the original once it is in force again: there is no pin of ours any more."""
    if record.pending is None and record.original == record.affinity:
        return replace(record, original=None, resets=0)
    return record


def _may_be_reset(record: Record, reading: VcpuReading, online: CpuSet) -> bool:
    left, now = record.affinity & online, reading.affinity
    if not (record.is_ours and left) or record.held is not None or now == left:
        return False
    if record.pending is not None and now == record.pending & online:
        return False
    return len(now) > len(left)


def _may_still_be_held(record: Record, reading: VcpuReading, online: CpuSet) -> bool:
    """Tell whether it may have been the kernel that widened what another hand had pinned."""
    left = record.affinity & online
    return record.held is Hold.PINNED and bool(left) and len(reading.affinity) > len(left)


def _compared(  # noqa: PLR0913, PLR0917  all that is known of one vCPU
    record: Record,
    reading: VcpuReading,
    online: CpuSet,
    books: CpuSet | None,
    stated: CpuSet,
    at_ns: int,
) -> tuple[Record, Change | None]:
    now = reading.affinity
    record = replace(record, run_ns=reading.run_ns)
    if record.pending is not None and now == record.pending & online:
        return _settled(replace(record, affinity=record.pending, pending=None)), None
    left = record.affinity & online
    is_pin = len(now) == 1 and not (stated & online).is_within(now)
    # The kernel shows only pCPUs that are online; while none is, it lets the vCPU go anywhere that
    # its definition names, and whoever pinned it there was a person.
    is_held = _may_still_be_held(record, reading, online) and books in {None, record.affinity}
    is_held |= record.held is Hold.RESET and len(now) > 1
    if is_held or now == left or (not left and not is_pin):
        return _doubted(record, at_ns), None
    if _may_be_reset(record, reading, online):
        if books is None:
            return record, None  # not known yet
        if books in {record.affinity, record.pending}:
            known = _settled(replace(record, affinity=books, pending=None))
            if known.is_ours:
                return _reset(known)
            # The pin that was pending was not made: what the kernel undid was none of ours.
    if is_pin:
        return Record(record.run_ns, now, held=Hold.PINNED), Change.PINNED
    return Record(record.run_ns, now), Change.POOLED


def _doubted(record: Record, at_ns: int) -> Record:
    """Give up a pending pin that no sample shows: another hand's must not be taken for it."""
    if record.pending is None:
        return record
    if not record.unseen_ns:
        return replace(record, unseen_ns=at_ns)
    if at_ns - record.unseen_ns < UNSEEN_NS_MAX:
        return record
    return _settled(replace(record, pending=None, unseen_ns=0))


def _reset(record: Record) -> tuple[Record, Change]:
    if record.resets < RESETS_MAX:
        return replace(record, resets=record.resets + 1), Change.RESET
    return replace(record, held=Hold.RESET), Change.LEFT
