"""What a sample shows beside the ledger: whose affinity is whose, and what was changed by whom.

Rule: pure, values in and values out. `ledger` says what makes a pin ours.

An external change differs from a reset: libvirt's books still have our pin when the kernel reset
it, because pCPUs came or went, while virsh changes both. (`taskset` to several pCPUs looks like
a reset.) What the kernel takes away when a cpuset is narrowed is explained by the cpuset
of now. While libvirt starts or wakes a guest, or plugs a vCPU in, the thread runs for up to half a
second where it likes, before libvirt puts it where the books have it: a vCPU is young for some
seconds after it is first seen, in which no difference decides anything.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from vcpusched.act.ledger import RESETS_MAX, Changed, Entry, Hold, Ledger, Record, settled
from vcpusched.model import ALL_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import DomainReading, Sample, VcpuReading

UNCLEAR: Final = "who changed its affinity is not known yet"
"""Why a vCPU is held until libvirt's books have been read."""

UNSEEN_NS_MAX: Final = 60 * 1_000_000_000
"""So long a pin may take whose answer was lost: libvirt gives up on it after 30 s."""

YOUNG_NS: Final = 10 * 1_000_000_000
"""So long after it was first seen a vCPU is where libvirt has put it."""

RESETS_NS: Final = 3600 * 1_000_000_000
"""Within so long pins that the kernel undoes again and again are given up."""

FALL_NS: Final = 30_000_000
"""Counters of CPU time fall by no more in one run: libvirt's go in steps of 10 ms, and count less
than those of the kernel that may have been read before."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The ledger as a sample shows it, and what others changed since.

    The `sample` says whose affinities are whose, and which vCPUs are held. Of `unclear` domains
    nothing is decided before their definitions are read anew.
    """

    ledger: Ledger
    sample: Sample
    changes: tuple[Changed, ...]
    unclear: frozenset[DomainUuid]


def reconcile(
    ledger: Ledger,
    sample: Sample,
    asked: Collection[DomainUuid] = (),
    *,
    unseen: Collection[DomainUuid] = (),
    uri: str = "",
) -> Reconciled:
    """Compare the ledger with a sample.

    The definitions of the domains `asked` were read just now. Of domains that are `unseen` since
    libvirtd may have been restarted neither another domain id nor that they are missing means
    anything: ids may have been given anew, and a daemon that starts finds its guests one after the
    other. The sample is that of the libvirt at `uri`, which knows nothing of the domains of another
    one.
    """
    entries = {
        uuid: entry
        for uuid, entry in ledger.entries.items()
        if uuid in sample.unread or (entry.is_kept() and (uuid in unseen or not entry.is_at(uri)))
    }
    domains, changes, unclear = list[DomainReading](), list[Changed](), set[DomainUuid]()
    online = sample.online
    for domain in sample.domains:
        before, definition = ledger.entries.get(domain.uuid), domain.definition
        if before is not None and _is_another_run(before, domain, is_unseen=domain.uuid in unseen):
            before = None
            entries.pop(domain.uuid, None)
        # Before its definition is known nobody knows whether it bears our mark.
        if before is None and not definition.allowed:
            domains.append(domain)
            continue
        entry = before or Entry(domain.name, domain.domain_id)
        records, readings = dict[int, Record](), list[VcpuReading]()
        # A pCPU outside the guest's cpuset is to it as one that is offline: the kernel shows none,
        # and has taken the guest off it.
        shown, is_asked = online & definition.cpuset, domain.uuid in asked
        for reading in domain.vcpus:
            known = entry.records.get(reading.vcpu)
            if known is not None and _is_as_left(known, entry, reading, shown):
                readings.append(_annotated(reading, entry, known))
                continue
            if known is not None and not known.is_ours and _fell(entry, reading):
                known = None
            found = _followed(known, domain, reading, sample, is_asked=is_asked)
            records[reading.vcpu] = found.record
            annotated = _annotated(reading, entry, found.record, is_undone=found.is_undone)
            if found.is_unclear:
                unclear.add(domain.uuid)
                annotated = replace(annotated, held=annotated.held or UNCLEAR)
            readings.append(annotated)
            if known is not None and found.cause is not None:
                vcpu, now = VcpuId(domain.uuid, domain.domain_id, reading.vcpu), reading.affinity
                move = Move(vcpu, domain.name, known.affinity, now, 0, "", cause=found.cause)
                changes.append(Changed(move, was_ours=known.is_ours))
        vcpus = tuple(readings)
        domains.append(domain if vcpus == domain.vcpus else replace(domain, vcpus=vcpus))
        # A vCPU that is missing is kept: libvirt applies its last pin to one that is plugged in.
        entries[domain.uuid] = Entry(
            domain.name,
            domain.domain_id,
            {**entry.records, **records} if records else entry.records,
            held=entry.held,
            marked=bool(definition.origin) if definition.allowed else entry.marked,
            uri=uri,
            runs_ns={**entry.runs_ns, **{one.vcpu: one.run_ns for one in domain.vcpus}},
        )
    known_sample = replace(sample, domains=tuple(domains), is_reconciled=True)
    return Reconciled(Ledger(entries), known_sample, tuple(changes), frozenset(unclear))


class _Found(NamedTuple):
    """What a reading shows of a vCPU, and by whom it was changed, if by others.

    It `is_undone` where the kernel reset a pin of ours that is to be made again.
    """

    record: Record
    cause: Cause | None = None
    is_unclear: bool = False
    is_undone: bool = False


def _is_as_left(known: Record, entry: Entry, reading: VcpuReading, shown: CpuSet) -> bool:
    """Return whether a vCPU is where it was left and nothing of it is open, as of nearly all."""
    is_open = known.young_ns or known.pending is not None
    # Bits, not sets: this is asked for each vCPU in each cycle.
    is_there = reading.affinity.bits == known.affinity.bits & shown.bits
    return is_there and not is_open and reading.run_ns >= entry.runs_ns.get(reading.vcpu, 0)


def _annotated(
    reading: VcpuReading, entry: Entry, record: Record, *, is_undone: bool = False
) -> VcpuReading:
    if not (record.is_ours or record.held or entry.held):
        return reading  # as of nearly all
    shows_pin = record.is_ours and not record.young_ns
    return VcpuReading(  # thousands a cycle: `replace` takes three times as long
        reading.vcpu,
        reading.run_ns,
        reading.affinity,
        reading.on,
        reading.waited,
        record.is_ours,
        record.original if shows_pin else None,
        record.affinity if shows_pin else None,
        is_undone,
        entry.why_held(record),
    )


def _is_another_run(before: Entry, domain: DomainReading, *, is_unseen: bool) -> bool:
    """Return whether a domain was started anew: counters of CPU time never fall in one run.

    But for single vCPUs, which are plugged in anew.
    """
    fell = (_fell(before, reading) for reading in domain.vcpus if reading.vcpu in before.records)
    if before.domain_id == domain.domain_id:
        return next(fell, False) and all(fell)
    return not is_unseen or any(fell)


def _fell(before: Entry, reading: VcpuReading) -> bool:
    return reading.run_ns < before.runs_ns.get(reading.vcpu, 0) - FALL_NS


def _followed(
    known: Record | None,
    domain: DomainReading,
    reading: VcpuReading,
    sample: Sample,
    *,
    is_asked: bool,
) -> _Found:
    if known is None:
        return _Found(_first(domain, reading, sample, domain.at_ns))
    if known.young_ns:
        # Books that were read again since may have another's pin, to be compared with ours.
        pin = known.affinity if known.is_ours else None
        known = _first(domain, reading, sample, known.young_ns, pin)
        if known.young_ns or not known.is_ours:
            return _Found(known)
    return _compared(known, domain, reading, sample, is_asked=is_asked)


def _first(
    domain: DomainReading,
    reading: VcpuReading,
    sample: Sample,
    since_ns: int,
    pin: CpuSet | None = None,
) -> Record:
    """Return the record of a vCPU seen since then: what bears our mark is ours, as is its `pin`.

    Such a one is where libvirt's books have it. Whether its thread came to be there as well, or a
    person has pinned it elsewhere meanwhile, is compared once it is not young any more.
    """
    definition, online = domain.definition, sample.online
    stated = definition.allowed.get(reading.vcpu, ALL_CPUS)
    books = definition.booked.get(reading.vcpu, stated)
    record = Record(
        _whole(reading.affinity, (books, stated), sample, definition.cpuset),
        young_ns=since_ns if domain.at_ns - since_ns < YOUNG_NS else 0,
    )
    origin = definition.origin.get(reading.vcpu)
    # While a guest wakes, libvirt's books have its pin and the thread has not.
    pin = pin or definition.booked.get(reading.vcpu, reading.affinity)
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
    shown = sample.online & cpuset
    hidden = sample.present - shown
    for cpus in named:
        if affinity in {cpus & shown, cpus & shown - sample.isolated}:
            return affinity | (cpus & hidden)
    return affinity


def _compared(
    record: Record, domain: DomainReading, reading: VcpuReading, sample: Sample, *, is_asked: bool
) -> _Found:
    """Compare where a vCPU was left with where it is."""
    definition, now = domain.definition, reading.affinity
    online = sample.online & definition.cpuset
    if record.pending is not None and now == record.pending & online:
        return _Found(settled(replace(record, affinity=record.pending, pending=None)))
    left = record.affinity & online
    is_left = now == left or (record.held is Hold.RESET and len(now) > 1)
    stated = definition.allowed.get(reading.vcpu, ALL_CPUS)
    is_pin = not is_left and len(now) == 1 and not (stated & online).is_within(now)
    # The kernel shows only pCPUs that are online; while none is, it lets the vCPU go anywhere that
    # its definition names, and it was a person who pinned it to one.
    if is_left or not (left or is_pin):
        return _Found(_doubted(record, domain.at_ns))
    if not is_asked:
        return _Found(record, is_unclear=True)
    books = definition.booked.get(reading.vcpu, stated)
    widened = bool(left) and len(now) > len(left) and (record.is_ours or record.held is not None)
    if widened and (found := _reset(record, books, domain.at_ns)):
        return found
    if is_pin:
        return _Found(Record(now, held=Hold.PINNED), Cause.PINNED)
    return _Found(Record(_whole(now, (books, stated), sample, definition.cpuset)), Cause.POOLED)


def _reset(record: Record, books: CpuSet, at_ns: int) -> _Found | None:
    """Return what follows if the kernel reset a pin; None if it is an external change."""
    if record.held is not None:
        return _Found(record) if books == record.affinity else None
    if books not in {record.affinity, record.pending}:
        return None
    record = settled(replace(record, affinity=books, pending=None))
    if not record.is_ours:  # the pin that was pending was not made
        return None
    if at_ns - record.reset_ns >= RESETS_NS:
        record = replace(record, resets=0, reset_ns=at_ns)
    if record.resets < RESETS_MAX:
        return _Found(record, is_undone=True)
    return _Found(replace(record, held=Hold.RESET), Cause.LEFT)


def _doubted(record: Record, at_ns: int) -> Record:
    """Give up a pending pin that no sample shows: another's must not be taken for it."""
    if record.pending is None:
        return record
    if not record.unseen_ns:
        return replace(record, unseen_ns=at_ns)
    if at_ns - record.unseen_ns < UNSEEN_NS_MAX:
        return record
    return settled(replace(record, pending=None, unseen_ns=0))
