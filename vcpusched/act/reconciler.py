"""A hypervisor that remembers: no pin before what it takes to undo it is written down.

Rule: nothing is planned here. It stands between the cycle and the hypervisor: compares what is
sampled with the ledger (`comparison`), and lets a pin pass once ledger and mark have it. To sample
writes and pins nothing. It reads no clock.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from vcpusched.act.actuator import Actuator, Event, ignore, never
from vcpusched.act.comparison import Books, annotated, is_held, reconcile, suspects
from vcpusched.act.ledger import TO_ORIGINAL, Changed, Ledger, Record
from vcpusched.act.ledger_file import Book
from vcpusched.act.marks import Marks
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    HypervisorError,
    MarkingHypervisor,
    NotRecordedError,
    OvertakenError,
    PermissionDeniedError,
    VanishedError,
)
from vcpusched.model import ALL_CPUS, NO_CPUS, CpuSet, DomainUuid, Topology, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, Origin, Sample

SAVE_NS: Final = 60 * 1_000_000_000
"""How old the CPU times in the file may be, which tell a domain that was started anew."""

BOOKS_MAX: Final = 32
"""Of so many guests libvirt's books are read in one cycle; those of others in the next ones."""

FIND_NS: Final = 60 * 1_000_000_000
"""How long libvirtd may take to find its guests once it answers."""


class Reconciler:
    """Stands for one connection to a hypervisor; the book outlives it."""

    def __init__(self, hypervisor: MarkingHypervisor, book: Book) -> None:
        self._hypervisor = hypervisor
        self._marks = Marks(self._mark)
        self._book = book
        self._unseen = set(book.ledger.entries)
        self._began_ns: int | None = None
        self._sample = Sample(Topology(()), ())
        self._changes: list[Changed] = []
        self._untried: dict[VcpuId, Record] = {}
        """What was known of vCPUs before the moves that are intended and not tried yet."""
        self._saved_ns: int | None = None
        self._last_asked = DomainUuid("")

    def sample(self) -> Sample:
        """Read the host, and mark which affinities are ours and which vCPUs are held."""
        sample = self._hypervisor.sample()
        self._drop_untried()
        before = self._book.ledger
        books = self._books(suspects(before, sample))
        # What was read just now is what repairs and plans go by, too.
        domains = (
            replace(domain, definition=books.get(domain.uuid, domain.definition))
            for domain in sample.domains
        )
        sample = replace(sample, domains=tuple(domains))
        found = reconcile(before, sample, books, unseen=self._unseen, uri=self._book.uri)
        self._marks.learn(sample)
        after = self._book.ledger = self._marks.applied(found.ledger)
        self._changes += found.changes
        self._sample = sample
        self._find(sample)
        return annotated(sample, after)

    def settle(self, on_event: Callable[[Event], None] = ignore, *, rests: bool = False) -> None:
        """Tell what others changed, and bring file and marks up to date; no mark while it `rests`.

        Raises ConnectionLostError.
        """
        changes, self._changes = self._changes, []
        for changed in changes:
            on_event(changed)
        now_ns = self._now_ns
        if self._saved_ns is None:
            self._saved_ns = now_ns
        if self._book.is_stale or now_ns - self._saved_ns >= SAVE_NS:
            # Before anything else is done, in the middle of which we might be killed.
            self._saved_ns = now_ns
            self.save()
        if not rests:
            self._tidy()

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""
        return self._hypervisor.definition(uuid)

    def intend(self, moves: Sequence[Move]) -> None:
        """Write down where the vCPUs of one guest were, here and in the guest, before they go.

        Raises NotRecordedError when it cannot be written here: then no move must be made, but for
        those back to the originals, which are written already.
        """
        before = ledger = self._book.ledger
        for move in moves:
            if before.record(move.vcpu) is None:
                raise VanishedError("the vCPU was not in the last sample")
            ledger = ledger.intending(move)
        if ledger is not before:
            try:
                self._save(ledger)
            except NotRecordedError:
                if any(move.cause is Cause.BALANCE for move in moves):
                    raise
                self._book.ledger = ledger
        self._untried |= {
            move.vcpu: record
            for move in moves
            if move.cause is not Cause.RESET and (record := before.record(move.vcpu)) is not None
        }
        try:
            for move in moves:
                if move.cause not in TO_ORIGINAL:
                    self._marks.before_pin(move.vcpu, ledger.entries[move.vcpu.uuid])
        except HypervisorError:
            # It may have been written, if the connection broke; the next sample shows it.
            self._drop_untried()
            raise

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> CpuSet:
        """Make a move that was intended; returns the offline pCPUs that the kernel did not take.

        Raises OvertakenError when the vCPU is not where the last sample saw it, since another has
        pinned it: then no pin was made, nor where the domain is busy or does not let us.
        """
        record = self._book.ledger.record(vcpu)
        if record is None:
            raise VanishedError("the vCPU was not in the last sample")
        if not cpus:
            self._drop_untried(vcpu)
            raise HypervisorError(f"pCPUs {record.pending or record.affinity} are offline")
        try:
            self._check_unchanged(vcpu, self._untried.get(vcpu, record), record)
            is_of_plan = record.pending not in {None, record.original}
            whole = record.pending or record.affinity
            missing = self._pin_whole(vcpu, whole, is_of_plan=is_of_plan)
        except (BusyError, OvertakenError, PermissionDeniedError, VanishedError):
            # Or another's pin to the same pCPU would be taken for this one, however late.
            self._drop_untried(vcpu)
            raise
        finally:
            self._untried.pop(vcpu, None)
        # Not written yet: the next one who reads that it was pending finds it in force. The next
        # sample writes it, before another's pin to where the vCPU was could be taken for ours.
        self._book.ledger = self._book.ledger.made(vcpu, but_for=missing)
        return missing

    def restore(
        self,
        uuids: Iterable[DomainUuid] | None = None,
        *,
        hold: bool = False,
        cancelled: Callable[[], bool] = never,
        on_event: Callable[[Event], None] = ignore,
    ) -> list[Event]:
        """Give original affinities back, of some domains or of all; what failed may be tried again.

        As of the last sample, or one taken now where there is none; what is not running there is
        left in the ledger, since it may be another libvirt that was asked. `hold` keeps them from
        being pinned again until they are released. Raises ConnectionLostError, NotRecordedError,
        and HypervisorError when the host cannot be read.
        """
        if not self._sample.topology.cpus:
            self.sample()
        running, online = self._running, self._sample.topology.online
        wanted = running if uuids is None else set(uuids) & running
        cpusets = {domain.uuid: domain.definition.cpuset for domain in self._sample.domains}
        moves = [
            Move(vcpu, entry.name, record.affinity, shown, 0, "", cause=Cause.RESTORED)
            for vcpu, entry, record in self._book.ledger.pins()
            if vcpu.uuid in wanted and (original := record.original) is not None
            for shown in [original & online & cpusets.get(vcpu.uuid, ALL_CPUS)]
        ]
        if hold:
            ledger = self._book.ledger
            for uuid in wanted & set(ledger.entries):
                ledger = ledger.holding(uuid)
            self._save(ledger)
        events: list[Event] = []

        def note(event: Event) -> None:
            events.append(event)
            on_event(event)

        done = Actuator(self, cancelled=cancelled, on_event=note).act(moves)
        if done.lost is not None:
            raise ConnectionLostError(done.lost)
        self._tidy(sorted(wanted))
        return events

    def elsewhere(self) -> str:
        """Say on one line what the ledger has of another libvirt's; nothing where it has none."""
        return self._book.elsewhere()

    def still_marked(self, uuids: Iterable[DomainUuid] | None = None) -> list[str]:
        """Give the names of running domains that bear our mark and have no pin of ours any more.

        Of some domains or of all. It is tried again to take it away, once a minute.
        """
        entries = self._book.ledger.entries
        return [
            entry.name
            for uuid, entry in sorted(entries.items())
            if entry.marked and not entry.has_pins and uuid in self._running
            if uuids is None or uuid in uuids
        ]

    def release(self, uuids: Iterable[DomainUuid] | None = None) -> list[str]:
        """End the holds of some domains, or of all; gives the names of those that had any."""
        ledger = self._book.ledger
        names = []
        for uuid in sorted(ledger.entries if uuids is None else uuids):
            entry = ledger.entries.get(uuid)
            if entry is not None and entry.is_at(self._book.uri) and is_held(entry):
                names.append(entry.name)
                ledger = ledger.releasing(uuid)
        self._save(ledger)
        return names

    def save(self) -> None:
        """Bring the file up to date, where it can be written; the next sample tries again."""
        self._drop_untried()
        with contextlib.suppress(OSError):
            self._book.save(self._book.ledger)

    @property
    def _now_ns(self) -> int:
        return max((domain.at_ns for domain in self._sample.domains), default=0)

    @property
    def _running(self) -> set[DomainUuid]:
        return {domain.uuid for domain in self._sample.domains} | set(self._sample.unread)

    def _sampled(self, vcpu: VcpuId) -> Iterator[CpuSet]:
        for domain in self._sample.domains:
            if domain.uuid == vcpu.uuid:
                yield from (one.affinity for one in domain.vcpus if one.vcpu == vcpu.vcpu)

    def _drop_untried(self, *vcpus: VcpuId) -> None:
        """Forget what was intended and not tried, of some vCPUs or of all; a mark may be there."""
        for vcpu in vcpus or tuple(self._untried):
            if (record := self._untried.pop(vcpu, None)) is not None:
                ledger = self._book.ledger.noting(vcpu, record)
                self._book.ledger = ledger.marking(vcpu.uuid, marked=True)

    def _pin_whole(self, vcpu: VcpuId, whole: CpuSet, *, is_of_plan: bool) -> CpuSet:
        """Pin to all of a set, offline pCPUs included; returns what is missing."""
        self._check_ours()
        present = whole & self._sample.present
        try:
            self._hypervisor.pin(vcpu, present)
        except (BusyError, ConnectionLostError, PermissionDeniedError, VanishedError):
            raise
        except HypervisorError:
            if is_of_plan:
                raise
            # With version 1 of cgroups no group takes a pCPU that is offline or not its parent's,
            # and its parent may have others by now.
            cpuset = self._hypervisor.definition(vcpu.uuid).cpuset
            cpus = whole & self._sample.topology.online & cpuset
            if cpus in {present, NO_CPUS}:
                raise
            self._hypervisor.pin(vcpu, cpus)
            return whole - cpus
        return whole - present

    def _mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        self._check_ours()
        self._hypervisor.mark(uuid, domain_id, origin)

    def _check_ours(self) -> None:
        """Drop all that was about to be done once the book is closed: another keeps it then."""
        if self._book.is_closed:
            raise ConnectionLostError("another process keeps the ledger now")

    def _check_unchanged(self, vcpu: VcpuId, before: Record, record: Record) -> None:
        """Raise OvertakenError for a vCPU that is neither as it was seen nor where it was sent."""
        now, online = self._hypervisor.affinity(vcpu), self._sample.topology.online
        sent = before.affinity if before.pending is None else before.pending
        # Where pCPUs are offline what was seen differs from all that is known. A single pCPU that
        # a young vCPU is on may be a person's choice.
        seen = () if before.young_ns and len(now) == 1 else self._sampled(vcpu)
        if now in {*seen, before.affinity & online, sent & online}:
            return
        # On its way back what is wider is what the kernel made of it.
        if record.pending is None or record.pending != record.original or len(now) == 1:
            raise OvertakenError(f"another hand has just pinned it to pCPU {now}")

    def _save(self, ledger: Ledger) -> None:
        try:
            self._book.save(ledger)
        except OSError as error:
            raise NotRecordedError(
                f"the original affinity cannot be written down: {error.strerror or error}"
            ) from None

    def _find(self, sample: Sample) -> None:
        """Note whom this libvirtd was seen to run; who is not found for long does not run."""
        self._unseen -= {domain.uuid for domain in sample.domains}
        if self._began_ns is None and sample.domains:
            self._began_ns = self._now_ns
        if self._began_ns is not None and self._now_ns - self._began_ns >= FIND_NS:
            self._unseen &= set(sample.unread)

    def _tidy(self, uuids: Iterable[DomainUuid] | None = None) -> None:
        before = self._book.ledger
        try:
            self._marks.tidy(before, uuids)
        finally:
            self._book.ledger = self._marks.applied(before)
            if uuids is not None or self._book.ledger is not before:
                self.save()

    def _books(self, suspected: Iterable[DomainUuid]) -> Books:
        """Read those of some, in turn: a slice that is narrowed makes all its guests suspects."""
        books, uuids = {}, sorted(suspected)
        turn = bisect_right(uuids, self._last_asked)
        for uuid in (uuids[turn:] + uuids[:turn])[:BOOKS_MAX]:
            self._last_asked = uuid
            try:
                books[uuid] = self._hypervisor.definition(uuid)
            except ConnectionLostError:
                raise
            except HypervisorError:
                continue  # the next sample asks again
        return books
