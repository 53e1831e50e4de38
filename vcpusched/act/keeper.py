"""A hypervisor that remembers: no pin before what it takes to undo it is written down.

Rule: nothing is planned here. It stands between the scheduler and the hypervisor, compares what is
sampled with the ledger, and lets a pin pass once the ledger has it. It reads no clock.

What others did to an affinity is noticed in the next sample. A vCPU that another hand pinned to one
pCPU is held; a pin of ours that the kernel undid, when pCPUs came or went, is made again, a few
times. How the one is told from the other: libvirt's books still have our pin after the kernel's
doing, while virsh changes both. (`taskset` to several pCPUs looks like the kernel's doing.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from vcpusched.act.ledger import Change, Changed, Entry, Hold, Ledger, Record
from vcpusched.act.ledger_file import Book
from vcpusched.act.marks import Marks
from vcpusched.host.hypervisor import (
    BusyError,
    ConnectionLostError,
    HypervisorError,
    MarkingHypervisor,
    NotRecordedError,
    PermissionDeniedError,
    VanishedError,
)
from vcpusched.model import CpuSet, Definition, DomainReading, DomainUuid, Origin, Sample, VcpuId
from vcpusched.text import printable

SAVE_NS: Final = 60 * 1_000_000_000
"""How old the CPU times in the file may be, which tell a domain that was started anew."""

AGAIN_NS: Final = 30 * 1_000_000_000
"""How long a domain is left alone that refused a pin that the kernel had undone."""

FIND_NS: Final = 60 * 1_000_000_000
"""How long libvirtd may take to find its guests once it answers."""


@dataclass(frozen=True, slots=True)
class GivenBack:
    """A vCPU's original affinity, given back; `why_not` says why it was not, if it was not.

    One that is `gone` has nothing left to be given back.
    """

    vcpu: VcpuId
    domain: str
    from_cpus: CpuSet
    to_cpus: CpuSet
    why_not: str = ""
    gone: bool = False


class Keeper:
    """Stands for one connection to a hypervisor; the book outlives it.

    `on_change` is told what others changed. While it `rests`, what the kernel undid stays undone;
    with `acts` false nothing is ever pinned or written.
    """

    def __init__(
        self,
        hypervisor: MarkingHypervisor,
        book: Book,
        on_change: Callable[[Changed], None] = lambda _changed: None,
        *,
        acts: bool = True,
    ) -> None:
        self._hypervisor = hypervisor
        self._marks = Marks(self._mark)
        self._book = book
        self._on_change = on_change
        self._acts = acts
        self.rests = False
        self._unseen = set(book.ledger.entries)
        self._began_ns: int | None = None
        self._has_sampled = False
        self._running: set[DomainUuid] = set()
        self._is_due = False
        self._saved_ns: int | None = None
        self._online = CpuSet()
        self._again_ns: dict[DomainUuid, int] = {}
        self._seen: dict[tuple[DomainUuid, int], CpuSet] = {}

    def sample(self) -> Sample:
        """Read the host, and mark which affinities are ours and which vCPUs are held."""
        return self._compare(self._hypervisor.sample())

    def definition(self, uuid: DomainUuid) -> Definition:
        """Read the domain's definition anew."""
        return self._hypervisor.definition(uuid)

    def pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        """Write the vCPU's original affinity down, here and in its domain, then pin it.

        Raises NotRecordedError when it cannot be written here, VanishedError when the vCPU is not
        where the last sample saw it, since another hand has pinned it: then no pin was made, nor
        where the domain takes no mark.
        """
        before = self._book.ledger
        record = before.record(vcpu)
        if record is None:
            raise VanishedError("the vCPU was not in the last sample")
        self._save(before.intending(vcpu, cpus))
        try:
            self._marks.before_pin(vcpu, self._book.ledger.entries[vcpu.uuid])
        except HypervisorError:
            # The mark may have been written, if the connection broke; the next sample shows it.
            self._book.ledger = before.marking(vcpu.uuid, marked=True)
            self._is_due = True
            raise
        try:
            self._pin_as_known(vcpu, cpus, record)
        except (BusyError, PermissionDeniedError, VanishedError):
            # Or another hand's pin to the same pCPU would be taken for this one, however late.
            self._book.ledger = before.marking(vcpu.uuid, marked=True)
            self._is_due = True
            raise
        # Not written yet: the next one who reads that it was pending finds it in force. The next
        # sample writes it, before another hand's pin to where the vCPU was could be taken for ours.
        self._book.ledger = self._book.ledger.made(vcpu)
        self._is_due = True

    def restore(
        self,
        uuids: Iterable[DomainUuid] | None = None,
        *,
        hold: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        on_given_back: Callable[[GivenBack], None] = lambda _given: None,
    ) -> list[GivenBack]:
        """Give original affinities back, of some domains or of all; what failed may be tried again.

        As of the last sample, or one taken now where there is none; what is not running there is
        left in the ledger, since it may be another libvirt that was asked. `hold` keeps them from
        being pinned again until they are released. Raises ConnectionLostError, NotRecordedError,
        and HypervisorError when the host cannot be read.
        """
        if not self._has_sampled:
            self.sample()
        wanted = self._running if uuids is None else set(uuids) & self._running
        pins = [pin for pin in self._book.ledger.pins() if pin[0].uuid in wanted]
        if hold:
            ledger = self._book.ledger
            for uuid in wanted & set(ledger.entries):
                ledger = ledger.holding(uuid)
            self._save(ledger)
        done = []
        for vcpu, entry, record in pins:
            if cancelled():
                break
            given = self._give_back(vcpu, entry, record)
            done.append(given)
            on_given_back(given)
        try:
            self._marks.tidy(self._book.ledger, sorted(wanted))
        finally:
            self._book.ledger = self._marks.applied(self._book.ledger)
            self.settle()
        return done

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

    def settle(self) -> None:
        """Bring the file up to date, where it can be written; the next sample tries again."""
        self._is_due = True
        if self._acts:
            try:
                self._book.save(self._book.ledger)
            except OSError:
                return
        self._is_due = False

    def _give_back(self, vcpu: VcpuId, entry: Entry, record: Record) -> GivenBack:
        original = record.original if record.original is not None else record.affinity
        given = GivenBack(vcpu, entry.name, record.affinity, original)
        # The binding takes no pCPU beyond the last one, and the kernel none that is offline.
        reach = original & self._online
        if not reach:
            return replace(given, why_not=f"pCPUs {original} are offline")
        if refused := self._why_not(vcpu, record):
            return replace(given, why_not=refused)
        intended = self._book.ledger.intending(vcpu, original)
        try:
            self._save(intended)
        except NotRecordedError:
            self._book.ledger = intended  # what it takes to undo it is in the file already
        try:
            self._pin(vcpu, reach)
        except ConnectionLostError:
            raise
        except VanishedError:
            # It ended, or the vCPU was taken away.
            return replace(given, why_not="it is not running any more", gone=True)
        except HypervisorError as error:
            return replace(given, why_not=str(error))
        self._book.ledger = self._book.ledger.made(vcpu)
        return given

    def _pin_as_known(self, vcpu: VcpuId, cpus: CpuSet, record: Record) -> None:
        if self._by_another_hand(vcpu, record) is not None:
            # The next sample tells.
            raise VanishedError("its affinity was changed by another hand just now")
        self._pin(vcpu, cpus)

    def _pin(self, vcpu: VcpuId, cpus: CpuSet) -> None:
        self._check_ours()
        self._hypervisor.pin(vcpu, cpus)

    def _mark(self, uuid: DomainUuid, domain_id: int, origin: Mapping[int, Origin]) -> None:
        self._check_ours()
        self._hypervisor.mark(uuid, domain_id, origin)

    def _check_ours(self) -> None:
        """Drop all that was about to be done once the book is closed: somebody else acts then."""
        if self._book.is_closed:
            raise ConnectionLostError("somebody else keeps the ledger now")

    def _by_another_hand(self, vcpu: VcpuId, record: Record) -> CpuSet | None:
        """Give a vCPU's affinity if it is neither as it was seen nor where it was sent since.

        Raises a `HypervisorError`.
        """
        now = self._hypervisor.affinity(vcpu)
        sent = record.affinity if record.pending is None else record.pending
        # Where pCPUs are offline what was seen differs from all that is known.
        seen = self._seen.get((vcpu.uuid, vcpu.vcpu))
        is_known = now in {seen, record.affinity & self._online, sent & self._online}
        return None if is_known else now

    def _why_not(self, vcpu: VcpuId, record: Record) -> str:
        """Say why a vCPU must not be given back: a person pinned it since it was seen."""
        try:
            found = self._by_another_hand(vcpu, record)
        except ConnectionLostError:
            raise
        except HypervisorError:
            return ""  # the pin will tell
        # What is wider is what the kernel made of it.
        is_pin = found is not None and len(found) == 1
        return f"another hand has just pinned it to pCPU {found}" if is_pin else ""

    def _save(self, ledger: Ledger) -> None:
        try:
            self._book.save(ledger)
        except OSError as error:
            raise NotRecordedError(
                f"the original affinity cannot be written down: {error.strerror or error}"
            ) from None

    def _compare(self, sample: Sample) -> Sample:
        self._online = sample.topology.online
        before = self._book.ledger
        books = self._books(before.suspects(sample) if self._acts else ())
        if self.rests:
            books = {uuid: _of_others(before, uuid, its) for uuid, its in books.items()}
        after, changes = before.compared(sample, books, unseen=self._unseen, uri=self._book.uri)
        self._has_sampled = True
        self._running = {domain.uuid for domain in sample.domains} | set(sample.unread)
        self._again_ns = {uuid: ns for uuid, ns in self._again_ns.items() if uuid in self._running}
        self._marks.learn(sample)
        after = self._marks.applied(after)
        self._book.ledger = after
        for changed in changes:
            if changed.change is not Change.RESET:
                self._on_change(changed)
        now_ns = max((domain.at_ns for domain in sample.domains), default=0)
        self._seen = {
            (domain.uuid, reading.vcpu): reading.affinity
            for domain in sample.domains
            for reading in domain.vcpus
        }
        self._see(sample, now_ns)
        if self._saved_ns is None:
            self._saved_ns = now_ns
        is_stale = _kept(after) != self._book.written or _has_settled(before, after)
        if is_stale or changes or self._is_due or now_ns - self._saved_ns >= SAVE_NS:
            # Before anything else is done, in the middle of which we might be killed.
            self._saved_ns = now_ns
            self.settle()
        resets = [changed for changed in changes if changed.change is Change.RESET]
        for number, changed in enumerate(resets):
            try:
                self._pin_again(changed, now_ns)
            except ConnectionLostError:
                for left in resets[number:]:
                    self._book.ledger = self._book.ledger.not_reset(left.vcpu)
                raise
        if self._acts and not self.rests:
            self._tidy()
        return replace(sample, domains=tuple(self._marked(domain) for domain in sample.domains))

    def _see(self, sample: Sample, now_ns: int) -> None:
        """Note whom this libvirtd was seen to run; who is not found for long does not run."""
        self._unseen -= {domain.uuid for domain in sample.domains}
        if self._began_ns is None and sample.domains:
            self._began_ns = now_ns
        if self._began_ns is not None and now_ns - self._began_ns >= FIND_NS:
            self._unseen &= set(sample.unread)

    def _tidy(self) -> None:
        before = self._book.ledger
        try:
            self._marks.tidy(before)
        finally:
            after = self._marks.applied(before)
            self._book.ledger = after
            if after is not before:
                self.settle()

    def _books(self, uuids: Iterable[DomainUuid]) -> Mapping[DomainUuid, Mapping[int, CpuSet]]:
        books = {}
        for uuid in uuids:
            try:
                books[uuid] = self._hypervisor.definition(uuid).booked
            except ConnectionLostError:
                raise
            except HypervisorError:
                continue  # the next sample asks again
        return books

    def _pin_again(self, changed: Changed, now_ns: int) -> None:
        """Make a pin again that the kernel undid, and tell; not where it changes or refuses now."""
        vcpu = changed.vcpu
        record = self._book.ledger.record(vcpu)
        if record is None:
            return
        if now_ns >= self._again_ns.get(vcpu.uuid, now_ns):
            try:
                if self._hypervisor.affinity(vcpu) == changed.to_cpus:
                    self._marks.before_pin(vcpu, self._book.ledger.entries[vcpu.uuid])
                    self._pin(vcpu, record.affinity & self._online)
                    self._again_ns.pop(vcpu.uuid, None)
                    self._on_change(changed)
                    return
            except ConnectionLostError:
                raise
            except HypervisorError:
                self._again_ns[vcpu.uuid] = now_ns + AGAIN_NS
        # The next sample finds it undone once more: it counts when it was made.
        self._book.ledger = self._book.ledger.not_reset(vcpu)

    def _marked(self, domain: DomainReading) -> DomainReading:
        entry = self._book.ledger.entries.get(domain.uuid)
        if entry is None:  # until its definition is known
            return domain
        return replace(
            domain,
            vcpus=tuple(
                replace(
                    reading,
                    ours=record.is_ours,
                    original=record.original,
                    held=why_held(entry, record),
                )
                for reading in domain.vcpus
                if (record := entry.records[reading.vcpu])
            ),
        )


def _of_others(ledger: Ledger, uuid: DomainUuid, books: Mapping[int, CpuSet]) -> dict[int, CpuSet]:
    """Give what libvirt's books have that is not a pin of ours: the doing of another hand."""
    records = ledger.entries[uuid].records
    return {
        vcpu: cpus
        for vcpu, cpus in books.items()
        if vcpu in records and cpus not in {records[vcpu].affinity, records[vcpu].pending}
    }


def _has_settled(before: Ledger, after: Ledger) -> bool:
    """Tell whether it is known of a pin now whether it was made, and was not before."""
    return any(
        record.pending is not None
        and ((now := after.record(VcpuId(uuid, 0, vcpu))) is None or now.pending is None)
        for uuid, entry in before.entries.items()
        for vcpu, record in entry.records.items()
    )


def _kept(ledger: Ledger) -> set[DomainUuid]:
    return {uuid for uuid, entry in ledger.entries.items() if entry.is_kept()}


def is_held(entry: Entry) -> bool:
    """Tell whether a vCPU of a domain is held."""
    return entry.held or any(record.held is not None for record in entry.records.values())


def why_held(entry: Entry, record: Record) -> str:
    """Say why a vCPU is held and how that ends; nothing when it is not."""
    ends = f'until its domain restarts or "vcpusched release {printable(entry.name)}"'
    if record.held is Hold.PINNED:
        return f"another hand pinned it to pCPU {record.affinity}, {ends}"
    if record.held is Hold.RESET:
        return f"its pin was undone again and again, {ends}"
    if entry.held:
        return f"given back by restore, {ends}"
    return ""
