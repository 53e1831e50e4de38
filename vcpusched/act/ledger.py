"""What must be known to undo what was done: the affinity of each vCPU before our first pin.

Rule: pure values; what a sample shows beside them is found in `comparison`, and they are kept by
`ledger_file` and `reconciler`.

Problem: a pin that nobody remembers is taken for the administrator's by who comes next, also by
    ourselves after a `kill -9`; and an administrator's pin must not be taken for one of ours.
Approach: each vCPU that was seen has a record of its affinity as we left it. An affinity that is
    neither that one nor one that was asked for is an external change.
Terms: a pin is pending from before it is asked for until it was seen in force; the original is the
    affinity before the first pin, and there only while a pin of ours is in force or pending. A pin
    is reset while the kernel has the vCPU elsewhere and libvirt's books still have the pin.
Algorithm: 1. Write down original and pending affinity. 2. Pin. 3. A later sample shows
    whether 2 happened.
The mark: live pins go with a guest that is migrated or saved, and the ledger does not. So before a
    pin it is written into the domain's live metadata where its vCPUs were, and which pins are ours:
    the one in force and the one that is about to be made. A mark counts only beside one of these,
    or a person's pin would be taken for ours by the next that reads it.
Properties: between any two steps the original is in the ledger, or in force, or both. A vCPU whose
    affinity is the original one again has no pin of ours. A record is one run of one vCPU: its UUID
    and number, and a CPU time not below what was recorded, since libvirtd may give domain ids anew
    when it restarts.
"""

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from vcpusched.model import ALL_CPUS, NO_CPUS, CpuSet, DomainUuid, VcpuId
from vcpusched.plan.planner import Cause, Move
from vcpusched.sample import Origin
from vcpusched.text import printable

RESETS_MAX: Final = 3
"""How often a pin of ours that was reset is made again."""

TO_ORIGINAL: Final = frozenset({Cause.WORSE_OFF, Cause.NOT_ALLOWED, Cause.RESTORED})
"""The causes of moves that end a pin of ours."""


Mark = Mapping[int, Origin]
"""What the mark in a domain says of its vCPUs, by their numbers; nothing where there is none."""


class Hold(enum.StrEnum):
    """Why a vCPU is left alone: a person pinned it, or the kernel reset our pin again and again."""

    PINNED = "pinned"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one vCPU.

    `affinity` is what it had when it was last seen, or was pinned to since;
    `original` is None without a pin of ours; `pending` was asked for and not seen in force yet;
    `resets` counts how often the last pin was reset and made again since `reset_ns`; `unseen_ns` is
    the clock of the first sample that did not show what is pending, and `young_ns` of the first
    sample of a vCPU that libvirt may still be starting or waking; each 0 where there is none.
    Records are equal where what is kept of them is.
    """

    affinity: CpuSet
    original: CpuSet | None = None
    pending: CpuSet | None = None
    held: Hold | None = None
    resets: int = 0
    unseen_ns: int = field(default=0, compare=False)
    reset_ns: int = field(default=0, compare=False)
    young_ns: int = field(default=0, compare=False)

    @property
    def is_ours(self) -> bool:
        """Whether a pin of ours is, or may be, in force."""
        return self.original is not None


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of one domain; `held` from `restore` to `release`.

    It is `marked` while our mark is, or may be, in its metadata: a mark that nobody knew to be left
    over would have the next process take any pin for one of ours. `uri` says by which address
    the libvirt was reached that runs it, empty where nobody wrote that down. `runs_ns` are the CPU
    times of its vCPUs when last seen; entries are equal but for these.
    """

    name: str
    domain_id: int
    records: Mapping[int, Record] = field(default_factory=dict)
    held: bool = False
    marked: bool = False
    uri: str = ""
    runs_ns: Mapping[int, int] = field(default_factory=dict, compare=False)

    def is_at(self, uri: str) -> bool:
        """Return whether it is, or may be, a domain of the libvirt that is reached like this."""
        return self.uri in {"", uri}

    @property
    def is_held(self) -> bool:
        """Whether a vCPU of it is held."""
        return self.held or any(record.held is not None for record in self.records.values())

    def is_kept(self) -> bool:
        """Return whether there is anything that outlives the process."""
        return self.held or self.marked or any(map(is_kept, self.records.values()))

    def mark(self, online: CpuSet, anywhere: CpuSet) -> Mark:
        """Return what the domain's mark should say: something of each vCPU with a pin of ours.

        `anywhere` is where the kernel puts what is not bound, offline pCPUs included.
        """
        mark = {}
        for vcpu, record in self.records.items():
            if record.original is None:
                continue
            last, asked = record.affinity, record.pending or record.affinity
            # What the kernel reset while pCPUs were offline was made again without these.
            pins = frozenset({last, asked, last & online, asked & online}) - {NO_CPUS}
            # Other hosts have other pCPUs.
            original = ALL_CPUS if anywhere.is_within(record.original) else record.original
            mark[vcpu] = Origin(original, pins)
        return mark

    def released(self) -> "Entry":
        """Return it without holds."""
        records = {
            vcpu: replace(record, held=None, resets=0) for vcpu, record in self.records.items()
        }
        return replace(self, held=False, records=records)

    def why_held(self, record: Record) -> str:
        """Return why a vCPU is held and how that ends; nothing when it is not."""
        if record.held is None and not self.held:
            return ""
        ends = f'until the guest restarts or "vcpusched release {printable(self.name)}"'
        if record.held is Hold.PINNED:
            return f"pinned to pCPU {record.affinity} by someone else, {ends}"
        if record.held is Hold.RESET:
            return f"reset by the kernel again and again, {ends}"
        return f"restored on request, {ends}"


def is_kept(record: Record) -> bool:
    """Return whether a record outlives the process: to the next one any other pin is placement."""
    return record.is_ours or record.held is not None


@dataclass(frozen=True, slots=True)
class Changed:
    """One affinity that was changed; the cause of its move says by whom and why.

    `number` is that of the cycle in which we did it, 0 outside of one. `was_ours` says whether a
    pin of ours was in force before. Of an original that is `missing` which is offline, and so stays
    recorded.
    """

    move: Move
    number: int = 0
    was_ours: bool = True
    missing: CpuSet = NO_CPUS


@dataclass(frozen=True, slots=True)
class Ledger:
    """The records of all running domains."""

    entries: Mapping[DomainUuid, Entry] = field(default_factory=dict)

    def record(self, vcpu: VcpuId) -> Record | None:
        """Return the record of a vCPU, if there is one."""
        entry = self.entries.get(vcpu.uuid)
        return entry.records.get(vcpu.vcpu) if entry is not None else None

    def pins(self) -> Iterator[tuple[VcpuId, Entry, Record]]:
        """Return all vCPUs with a pin of ours, in the order of their ids."""
        for uuid, entry in sorted(self.entries.items()):
            for vcpu, record in sorted(entry.records.items()):
                if record.is_ours:
                    yield VcpuId(uuid, entry.domain_id, vcpu), entry, record

    def intending(self, move: Move) -> "Ledger":
        """Return the ledger before a move. Raises KeyError for a vCPU that was never seen."""
        record = self.entries[move.vcpu.uuid].records[move.vcpu.vcpu]
        if move.cause is Cause.RESET:
            return self  # the pin is known, and what undoes it
        original = record.affinity if record.original is None else record.original
        pending = original if move.cause in TO_ORIGINAL else move.to_cpus
        intended = Record(record.affinity, original, pending, record.held)
        return self._noting(move.vcpu, intended).marking(move.vcpu.uuid, marked=True)

    def made(self, move: Move, but_for: CpuSet = NO_CPUS) -> "Ledger":
        """Return the ledger after a move.

        While pCPUs are offline the kernel may take what was asked for only `but_for` these; then it
        is no original that is in force again.
        """
        record = self.entries[move.vcpu.uuid].records[move.vcpu.vcpu]
        if record.pending is not None:
            record = settled(replace(record, affinity=record.pending - but_for, pending=None))
        elif move.cause is Cause.RESET:
            pin = record.affinity - but_for
            record = replace(record, affinity=pin, resets=record.resets + 1)
        return self._noting(move.vcpu, record)

    def marking(self, uuid: DomainUuid, *, marked: bool) -> "Ledger":
        """Return the ledger with a domain marked or not, where it knows it."""
        entry = self.entries.get(uuid)
        if entry is None or entry.marked == marked:
            return self
        return Ledger({**self.entries, uuid: replace(entry, marked=marked)})

    def holding(self, uuids: Collection[DomainUuid], *, held: bool = True) -> "Ledger":
        """Return the ledger with some domains held, or without any hold in them."""
        changed = {
            uuid: replace(entry, held=True) if held else entry.released()
            for uuid, entry in self.entries.items()
            if uuid in uuids
        }
        return Ledger({**self.entries, **changed})

    def _noting(self, vcpu: VcpuId, record: Record) -> "Ledger":
        entry = self.entries[vcpu.uuid]
        records = {**entry.records, vcpu.vcpu: record}
        return Ledger({**self.entries, vcpu.uuid: replace(entry, records=records)})


def agrees(mark: Mark, should: Mark, vcpus: Collection[int] | None = None) -> bool:
    """Return whether a mark says what it `should` of some vCPUs, or of all and of no other.

    It may name more pins.
    """
    if vcpus is None and mark.keys() != should.keys():
        return False
    return all(
        (known := mark.get(vcpu)) is not None
        and known.original == should[vcpu].original
        and should[vcpu].pins <= known.pins
        for vcpu in (should if vcpus is None else vcpus)
    )


def settled(record: Record) -> Record:
    """Forget the original once it is in force again: there is no pin of ours any more."""
    if record.pending is None and record.original == record.affinity:
        return replace(record, original=None, resets=0)
    return record
