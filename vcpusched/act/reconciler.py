"""A hypervisor that remembers: no pin before what it takes to undo it is written down.

Rule: nothing is planned here. It stands between the cycle and the hypervisor: compares what is
sampled with the ledger (`comparison`), and lets a pin pass once ledger and mark have it. To sample
writes and pins nothing. It reads no clock.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from vcpusched.act.actuator import Actuator, Event, ignore, never
from vcpusched.act.comparison import Reconciled, reconcile
from vcpusched.act.ledger import TO_ORIGINAL, Changed, Entry, Mark, Record, agrees
from vcpusched.act.ledger_file import Book
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    CpuRefusedError,
    Hypervisor,
    HypervisorError,
    NotRecordedError,
    OvertakenError,
    PermissionDeniedError,
    VanishedError,
)
from vcpusched.model import ALL_CPUS, NO_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Definition, Sample

SAVE_NS: Final = 60 * 1_000_000_000
"""How old the CPU times in the file may be, which show that a domain was started anew."""

ASKED_MAX: Final = 32
"""Of so many guests definitions are read in one cycle; those of others in the next ones."""

NOT_MADE: Final = (BusyError, OvertakenError, PermissionDeniedError, VanishedError)
"""What a pin raises that was certainly not made."""

FIND_NS: Final = 60 * 1_000_000_000
"""How long libvirtd may take to find its guests once it answers."""


class Reconciler:
    """Stands for one connection to a hypervisor; the book outlives it."""

    def __init__(self, hypervisor: Hypervisor, book: Book) -> None:
        self._hypervisor = hypervisor
        self.book = book
        self._unseen = set(book.ledger.entries)
        self._began_ns: int | None = None
        self._sample = Sample()
        self._unclear = frozenset[DomainUuid]()
        self._changes: list[Changed] = []
        self._intended: dict[VcpuId, Move] = {}
        """What the file has of moves that were not tried yet; the ledger in memory has none."""
        self._marks: dict[DomainUuid, Mark] = {}
        """What the marks of running domains say, where that is known."""
        self._saved_ns: int | None = None
        self._last_asked = DomainUuid("")

    def sample(self) -> Sample:
        """Read the host, and mark which affinities are ours and which vCPUs are held."""
        sample = self._hypervisor.sample()
        self._intended.clear()
        found = self._reconciled(sample)
        if definitions := self._definitions(found.unclear):
            # Repairs and plans go by these, too.
            domains = (
                replace(domain, definition=definitions.get(domain.uuid, domain.definition))
                for domain in sample.domains
            )
            found = self._reconciled(replace(sample, domains=tuple(domains)), definitions)
        self.book.ledger = found.ledger
        self._changes += found.changes
        self._sample, self._unclear = found.sample, found.unclear
        self._marks = {uuid: self._marks.get(uuid, {}) for uuid in sample.unread} | {
            domain.uuid: domain.definition.origin
            for domain in sample.domains
            if domain.definition.allowed
        }
        self._unseen -= {domain.uuid for domain in sample.domains}
        if self._began_ns is None and sample.domains:
            self._began_ns = sample.at_ns
        if self._began_ns is not None and sample.at_ns - self._began_ns >= FIND_NS:
            self._unseen &= set(sample.unread)
        return found.sample

    def _reconciled(self, sample: Sample, asked: Collection[DomainUuid] = ()) -> Reconciled:
        ledger, uri = self.book.ledger, self.book.uri
        return reconcile(ledger, sample, asked, unseen=self._unseen, uri=uri)

    def _definitions(self, uuids: Iterable[DomainUuid]) -> dict[DomainUuid, Definition]:
        """Read those of some, in turn: a slice that is narrowed makes all its guests unclear."""
        definitions = {}
        in_turn = sorted(uuids, key=lambda uuid: (uuid <= self._last_asked, uuid))
        for uuid in in_turn[:ASKED_MAX]:
            self._last_asked = uuid
            try:
                definitions[uuid] = self._hypervisor.definition(uuid)
            except ConnectionLostError:
                raise
            except HypervisorError:
                continue  # the next sample asks again
        return definitions

    def settle(self, on_event: Callable[[Event], None] = ignore, *, rests: bool = False) -> None:
        """Report what others changed, bring file and marks up to date; no mark while it `rests`.

        Raises ConnectionLostError.
        """
        changes, self._changes = self._changes, []
        for changed in changes:
            on_event(changed)
        now_ns = self._sample.at_ns
        if self._saved_ns is None:
            self._saved_ns = now_ns
        if self.book.is_stale or now_ns - self._saved_ns >= SAVE_NS:
            # Before anything else is done, in the middle of which we might be killed.
            self._saved_ns = now_ns
            self.book.catch_up()
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
        before = ledger = self.book.ledger
        for move in moves:
            self._record(move.vcpu)
            self._intended[move.vcpu] = move
        for move in self._intended.values():
            ledger = ledger.intending(move)
        uuid = moves[0].vcpu.uuid
        entry = ledger.entries[uuid]
        try:
            self.book.save(ledger)
        except NotRecordedError:
            if any(move.cause is Cause.BALANCE for move in moves):
                raise
        # What is never tried is no pin of ours, and another's to the same pCPU is not taken for it.
        self.book.ledger = before.marking(uuid, marked=entry.marked)
        pinned = {move.vcpu.vcpu for move in moves if move.cause not in TO_ORIGINAL}
        self._mark(uuid, entry, pinned)

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> CpuSet:
        """Make a move that was intended; returns the offline pCPUs that the kernel did not take.

        Raises OvertakenError when the vCPU is not where the last sample saw it, since another has
        pinned it: then no pin was made, nor where the domain is busy or does not let us.
        """
        before, known = self.book.ledger, self._record(vcpu)
        if not cpus:
            where = known.original or known.affinity
            raise CpuRefusedError(f"pCPUs {where} are offline or outside its cpuset")
        move = self._intended.pop(vcpu)
        self.book.ledger = before.intending(move)
        record = self._record(vcpu)
        try:
            self._check_unchanged(vcpu, known, record)
            missing = self._pin_whole(vcpu, record)
        except NOT_MADE:
            # Or another's pin to the same pCPU would be taken for this one, however late.
            self.book.ledger = before
            raise
        # Not written yet: the next one who reads that it was pending finds it in force. The next
        # sample writes it, before another's pin to where the vCPU was could be taken for ours.
        self.book.ledger = self.book.ledger.made(move, but_for=missing)
        return missing

    def restore(
        self,
        uuids: Iterable[DomainUuid] | None = None,
        *,
        hold: bool = False,
        cancelled: Callable[[], bool] = never,
        on_event: Callable[[Event], None] = ignore,
    ) -> list[Event]:
        """Restore original affinities, of some domains or of all; what failed may be tried again.

        As of the last sample, or one taken now where there is none; what is not running there is
        left in the ledger, since it may be another libvirt that was asked. `hold` keeps them from
        being pinned again until they are released. Raises ConnectionLostError, NotRecordedError,
        and HypervisorError when the host cannot be read.
        """
        if not self._sample.online:
            self.sample()
        wanted = self._running if uuids is None else set(uuids) & self._running
        cpusets = {domain.uuid: domain.definition.cpuset for domain in self._sample.domains}
        moves = [
            Move(vcpu, entry.name, record.affinity, shown, 0, "", cause=Cause.RESTORED)
            for vcpu, entry, record in self.book.ledger.pins()
            if vcpu.uuid in wanted and (original := record.original) is not None
            for shown in [original & self._sample.online & cpusets.get(vcpu.uuid, ALL_CPUS)]
        ]
        if hold:
            self.book.save(self.book.ledger.holding(wanted))
        actuator = Actuator(self, cancelled=cancelled, on_event=on_event)
        actuator.act(moves)
        if actuator.lost is not None:
            raise ConnectionLostError(actuator.lost)
        self._tidy(sorted(wanted))
        return actuator.events

    def still_marked(self, uuids: Collection[DomainUuid] | None = None) -> list[str]:
        """Return the names of running domains that bear our mark and have no pin of ours any more.

        Of some domains or of all. Each cycle tries to remove it.
        """
        wanted = self._running if uuids is None else uuids
        return [
            entry.name
            for uuid, entry in sorted(self.book.ledger.entries.items())
            if uuid in wanted and entry.marked
            if not any(record.is_ours for record in entry.records.values())
        ]

    def release(self, uuids: Collection[DomainUuid] | None = None) -> list[str]:
        """End the holds of some domains, or of all; gives the names of those that had any."""
        ledger = self.book.ledger
        held = {
            uuid: entry.name
            for uuid, entry in sorted(ledger.entries.items())
            if entry.is_held and entry.is_at(self.book.uri) and (uuids is None or uuid in uuids)
        }
        self.book.save(ledger.holding(held, held=False))
        return list(held.values())

    @property
    def _running(self) -> set[DomainUuid]:
        return {domain.uuid for domain in self._sample.domains} | set(self._sample.unread)

    def _record(self, vcpu: VcpuId) -> Record:
        record = self.book.ledger.record(vcpu)
        if record is None:
            raise VanishedError("the vCPU was not in the last sample")
        return record

    def _pin_whole(self, vcpu: VcpuId, record: Record) -> CpuSet:
        """Pin to all of a set, offline pCPUs included; returns what is missing."""
        self._check_ours()
        whole = record.pending or record.affinity
        present = whole & self._sample.present
        try:
            self._hypervisor.pin(vcpu, present)
        except (*NOT_MADE, ConnectionLostError):
            raise
        except HypervisorError:
            if record.pending not in {None, record.original}:  # plans know another pCPU
                raise
            # With version 1 of cgroups no group takes a pCPU that is offline or not its parent's,
            # and its parent may have others by now.
            cpuset = self._hypervisor.definition(vcpu.uuid).cpuset
            cpus = whole & self._sample.online & cpuset
            if cpus in {present, NO_CPUS}:
                raise
            self._hypervisor.pin(vcpu, cpus)
            return whole - cpus
        return whole - present

    def _mark(self, uuid: DomainUuid, entry: Entry, vcpus: Collection[int] | None = None) -> None:
        """See to it that a mark says of some vCPUs what it should; or of all, and of no other."""
        should = entry.mark(self._sample.online, self._sample.present - self._sample.isolated)
        if not agrees(self._marks.get(uuid, {}), should, vcpus):
            self._check_ours()
            self._hypervisor.mark(uuid, entry.domain_id, should)
            self._marks[uuid] = should
            self.book.ledger = self.book.ledger.marking(uuid, marked=bool(should))

    def _check_ours(self) -> None:
        """Drop all that was about to be done once the book is closed: another keeps it then."""
        if self.book.is_closed:
            raise ConnectionLostError("another process keeps the ledger now")

    def _check_unchanged(self, vcpu: VcpuId, before: Record, record: Record) -> None:
        """Raise OvertakenError for a vCPU that is neither as it was seen nor where it was sent."""
        now = self._hypervisor.affinity(vcpu)
        known: set[CpuSet | None] = {before.affinity & self._sample.online}
        if before.pending is not None:
            known.add(before.pending & self._sample.online)
        # Where pCPUs are offline what was seen differs from all that is known. A single pCPU that
        # a young vCPU is on may be a person's choice, and one of which nobody knows whose it is.
        if len(now) > 1 or not (before.young_ns or vcpu.uuid in self._unclear):
            known.add(self._sample.affinity(vcpu))
        if now in known:
            return
        # On its way back what is wider is what the kernel made of it.
        if record.pending is None or record.pending != record.original or len(now) == 1:
            raise OvertakenError(f"someone else has just pinned it to pCPU {now}")

    def _tidy(self, uuids: Collection[DomainUuid] | None = None) -> None:
        """Correct marks, of some domains at once, or of all that libvirt is done with."""
        before = self.book.ledger
        try:
            for uuid in tuple(self._marks) if uuids is None else uuids:
                entry = before.entries.get(uuid)
                if entry is None:
                    continue
                if uuids is None and any(record.young_ns for record in entry.records.values()):
                    continue  # libvirt may still be putting vCPUs where they belong
                try:
                    self._mark(uuid, entry)
                except ConnectionLostError:
                    raise
                except HypervisorError:
                    continue  # the next cycle tries again
        finally:
            if uuids is not None or self.book.ledger is not before:
                self.book.catch_up()
