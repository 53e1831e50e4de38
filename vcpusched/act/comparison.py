"""What a sample shows beside the ledger: whose affinity is whose, and what was changed by whom.

Rule: pure, values in and values out. How another's pin is told from ours is said in `ledger`.

How another's doing is told from the kernel's: libvirt's books still have our pin when the kernel
undid it, as pCPUs came or went, while virsh changes both. (`taskset` to several pCPUs looks like
the kernel's doing.) While libvirt starts or wakes a guest, or plugs a vCPU in, the thread runs for
up to half a second where it likes, before libvirt puts it where the books have it: a vCPU is young
for some seconds after it is first seen, in which no difference decides anything.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.act.ledger import (
    RESETS_MAX,
    Changed,
    Entry,
    Hold,
    Ledger,
    Record,
    settled,
)
from vcpusched.model import ALL_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, DomainReading, Sample, VcpuReading
from vcpusched.text import printable

UNSEEN_NS_MAX: Final = 60 * 1_000_000_000
"""So long a pin may take whose answer was lost: libvirt gives up on it after 30 s."""

YOUNG_NS: Final = 10 * 1_000_000_000
"""So long after it was first seen a vCPU is where libvirt has put it."""

RESETS_NS: Final = 3600 * 1_000_000_000
"""Within so long pins that the kernel undoes again and again are given up."""

FALL_NS: Final = 30_000_000
"""Counters of CPU time fall by no more in one run: libvirt's go in steps of 10 ms, and count less
than those of the kernel that may have been read before."""

Books = Mapping[DomainUuid, Definition]
"""The definitions of some domains, read just now: where libvirt put their vCPUs, and the cpuset."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The ledger as a sample shows it, and what others changed since."""

    ledger: Ledger
    changes: tuple[Changed, ...]


def suspects(ledger: Ledger, sample: Sample) -> frozenset[DomainUuid]:
    """Return the domains in which the kernel may have undone a pin of ours, or one that is held.

    Whether it did, only libvirt's books can tell: they still have the pin then. And those in which
    it may have taken pCPUs away, since the cpuset is not what it was.
    """
    return frozenset(
        domain.uuid
        for domain in sample.domains
        if (entry := ledger.entries.get(domain.uuid)) is not None
        for present in [sample.topology.online & domain.definition.cpuset]
        for reading in domain.vcpus
        if (record := entry.records.get(reading.vcpu)) is not None
        and (
            _may_be_reset(record, reading.affinity, present)
            or _may_still_be_held(record, reading.affinity, present)
            or _may_be_cut(record, reading.affinity, present)
        )
    )


def reconcile(
    ledger: Ledger,
    sample: Sample,
    books: Books,
    *,
    unseen: Collection[DomainUuid] = (),
    uri: str = "",
) -> Reconciled:
    """Compare the ledger with a sample.

    `books` are those of the `suspects`. Of domains that are `unseen` since libvirtd may have been
    restarted neither another domain id nor that they are missing means anything: ids may have been
    given anew, and a daemon that starts finds its guests one after the other. The sample is that of
    the libvirt at `uri`, which knows nothing of the domains of another one.
    """
    entries = {
        uuid: entry
        for uuid, entry in ledger.entries.items()
        if uuid in sample.unread or (entry.is_kept() and (uuid in unseen or not entry.is_at(uri)))
    }
    changes: list[Changed] = []
    for domain in sample.domains:
        before = ledger.entries.get(domain.uuid)
        # One that was written down by another address may well be of the same libvirt.
        is_unseen = domain.uuid in unseen or (before is not None and not before.is_at(uri))
        if before is not None and _is_another_run(before, domain, is_unseen=is_unseen):
            before = None
            entries.pop(domain.uuid, None)
        if before is None:
            # Before its definition is known nobody knows whether it bears our mark.
            if not domain.definition.allowed:
                continue
            before = Entry(domain.name, domain.domain_id)
        records, others = _compared_all(before, domain, sample, books.get(domain.uuid))
        changes += others
        entries[domain.uuid] = replace(
            before, name=domain.name, domain_id=domain.domain_id, records=records, uri=uri
        )
    return Reconciled(Ledger(entries), tuple(changes))


def annotated(sample: Sample, ledger: Ledger) -> Sample:
    """Return a sample that says whose affinities are whose, and which vCPUs are held."""
    return replace(sample, domains=tuple(_annotated(domain, ledger) for domain in sample.domains))


def _annotated(domain: DomainReading, ledger: Ledger) -> DomainReading:
    entry = ledger.entries.get(domain.uuid)
    if entry is None:  # until its definition is known
        return domain
    vcpus = []
    for reading in domain.vcpus:
        record = entry.records[reading.vcpu]
        told = replace(reading, ours=record.is_ours, held=why_held(entry, record))
        if record.is_ours and not record.young_ns:
            told = replace(
                told, original=record.original, pin=record.affinity, undone=record.undone
            )
        vcpus.append(told)
    return replace(domain, vcpus=tuple(vcpus))


def is_held(entry: Entry) -> bool:
    """Tell whether a vCPU of a domain is held."""
    return entry.held or any(record.held is not None for record in entry.records.values())


def why_held(entry: Entry, record: Record) -> str:
    """Say why a vCPU is held and how that ends; nothing when it is not."""
    if record.held is None and not entry.held:
        return ""
    ends = f'until its domain restarts or "vcpusched release {printable(entry.name)}"'
    if record.held is Hold.PINNED:
        return f"another hand pinned it to pCPU {record.affinity}, {ends}"
    if record.held is Hold.RESET:
        return f"its pin was undone again and again, {ends}"
    return f"given back by restore, {ends}"


def _compared_all(
    before: Entry, domain: DomainReading, sample: Sample, read: Definition | None
) -> tuple[dict[int, Record], list[Changed]]:
    """Compare the vCPUs of one run of a domain.

    A pCPU outside the guest's cpuset is to it as one that is offline: the kernel shows none, and
    has taken the guest off it. `read` is the definition of a suspect.
    """
    books = read.booked if read is not None else {}
    online = sample.topology.online & (read or domain.definition).cpuset
    # A vCPU that is missing is kept: to one that is plugged in anew libvirt applies its last pin.
    records, changes = dict(before.records), []
    for reading in domain.vcpus:
        known = records.get(reading.vcpu)
        is_new = known is None or (_fell(known, reading) and not known.is_ours)
        if known is None or is_new or known.young_ns:
            since_ns = domain.at_ns if known is None or is_new else known.young_ns
            known = records[reading.vcpu] = _first(domain, reading, sample, since_ns)
            if known.young_ns or not known.is_ours:
                continue
        stated = domain.definition.allowed.get(reading.vcpu, ALL_CPUS)
        known = records[reading.vcpu] = replace(known, run_ns=reading.run_ns, undone=False)
        if read is None and _may_be_cut(known, reading.affinity, online):
            continue  # the cpuset is not known yet
        record, cause = _compared(
            known,
            reading.affinity,
            books.get(reading.vcpu),
            online,
            stated=stated,
            at_ns=domain.at_ns,
        )
        records[reading.vcpu] = record
        if cause is not None:
            vcpu = VcpuId(domain.uuid, domain.domain_id, reading.vcpu)
            move = Move(vcpu, domain.name, known.affinity, reading.affinity, 0, "", cause=cause)
            changes.append(Changed(move, was_ours=known.is_ours))
    return records, changes


def _is_another_run(before: Entry, domain: DomainReading, *, is_unseen: bool) -> bool:
    """Tell whether a domain was started anew: counters of CPU time never fall in one run.

    But for single vCPUs, which are plugged in anew.
    """
    fell = [
        _fell(before.records[reading.vcpu], reading)
        for reading in domain.vcpus
        if reading.vcpu in before.records
    ]
    if before.domain_id == domain.domain_id:
        return bool(fell) and all(fell)
    return not is_unseen or any(fell)


def _fell(record: Record, reading: VcpuReading) -> bool:
    return reading.run_ns < record.run_ns - FALL_NS


def _first(domain: DomainReading, reading: VcpuReading, sample: Sample, since_ns: int) -> Record:
    """Return the record of a vCPU seen since then: what bears our mark is ours.

    Such a one is where libvirt's books have it. Whether its thread came to be there as well, or a
    person has pinned it elsewhere meanwhile, is compared once it is not young any more.
    """
    definition, online = domain.definition, sample.topology.online
    stated = definition.allowed.get(reading.vcpu, ALL_CPUS)
    books = definition.booked.get(reading.vcpu, stated)
    record = Record(
        reading.run_ns,
        _whole(reading.affinity, (stated, books), sample, definition.cpuset),
        young_ns=since_ns if domain.at_ns - since_ns < YOUNG_NS else 0,
    )
    origin = definition.origin.get(reading.vcpu)
    # While a guest wakes, libvirt's books have its pin and the thread has not.
    pin = definition.booked.get(reading.vcpu, reading.affinity)
    if origin is None or not origin.explains(pin, online):
        return record
    # "Anywhere" is where the kernel puts what is not bound.
    everywhere = sample.present - sample.isolated
    original = (everywhere if origin.original == ALL_CPUS else origin.original) & sample.present
    # A mark of another host's may name pCPUs that there are not here.
    original = (original & stated) or (everywhere & stated) or record.affinity
    is_back = original in {record.affinity, pin}
    return record if is_back else replace(record, affinity=pin, original=original)


def _whole(affinity: CpuSet, named: Iterable[CpuSet], sample: Sample, cpuset: CpuSet) -> CpuSet:
    """Return an affinity with pCPUs that are offline or outside the cpuset, which it names, too.

    The kernel shows it without. It is known by what the guest's definition or libvirt's books name.
    """
    shown = sample.topology.online & cpuset
    hidden = sample.present - shown
    for cpus in named:
        if affinity in {cpus & shown, cpus & shown - sample.isolated}:
            return affinity | (cpus & hidden)
    return affinity


def _may_be_reset(record: Record, now: CpuSet, online: CpuSet) -> bool:
    left = record.affinity & online
    if not (record.is_ours and left) or record.held is not None or now == left:
        return False
    if record.pending is not None and now == record.pending & online:
        return False
    return len(now) > len(left)


def _may_be_cut(record: Record, now: CpuSet, online: CpuSet) -> bool:
    left = record.affinity & online
    return now != left and now.is_within(left)


def _may_still_be_held(record: Record, now: CpuSet, online: CpuSet) -> bool:
    """Tell whether it may have been the kernel that widened what another had pinned."""
    left = record.affinity & online
    return record.held is Hold.PINNED and bool(left) and len(now) > len(left)


def _compared(  # noqa: PLR0913  all that is known of one vCPU
    record: Record,
    now: CpuSet,
    books: CpuSet | None,
    online: CpuSet,
    *,
    stated: CpuSet,
    at_ns: int,
) -> tuple[Record, Cause | None]:
    if record.pending is not None and now == record.pending & online:
        return settled(replace(record, affinity=record.pending, pending=None)), None
    left = record.affinity & online
    is_pin = len(now) == 1 and not (stated & online).is_within(now)
    # The kernel shows only pCPUs that are online; while none is, it lets the vCPU go anywhere that
    # its definition names, and whoever pinned it there was a person.
    is_held = _may_still_be_held(record, now, online) and books in {None, record.affinity}
    is_held |= record.held is Hold.RESET and len(now) > 1
    if is_held or now == left or (not left and not is_pin):
        return _doubted(record, at_ns), None
    if _may_be_reset(record, now, online):
        if books is None:
            return record, None  # not known yet
        if books in {record.affinity, record.pending}:
            known = settled(replace(record, affinity=books, pending=None))
            if known.is_ours:
                return _undone(known, at_ns)
            # The pin that was pending was not made: what the kernel undid was none of ours.
    if is_pin:
        return Record(record.run_ns, now, held=Hold.PINNED), Cause.PINNED
    return Record(record.run_ns, now), Cause.POOLED


def _doubted(record: Record, at_ns: int) -> Record:
    """Give up a pending pin that no sample shows: another's must not be taken for it."""
    if record.pending is None:
        return record
    if not record.unseen_ns:
        return replace(record, unseen_ns=at_ns)
    if at_ns - record.unseen_ns < UNSEEN_NS_MAX:
        return record
    return settled(replace(record, pending=None, unseen_ns=0))


def _undone(record: Record, at_ns: int) -> tuple[Record, Cause | None]:
    if at_ns - record.reset_ns >= RESETS_NS:
        record = replace(record, resets=0, reset_ns=at_ns)
    if record.resets < RESETS_MAX:
        return replace(record, undone=True), None
    return replace(record, held=Hold.RESET), Cause.LEFT
