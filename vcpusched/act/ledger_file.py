"""The ledger as it outlives us: kept before it is relied on, by one process at a time.

Rule: JSON of version 1, and a `Store` that is passed in; what the ledger means is said in `ledger`.
What is no ledger becomes a `LedgerError` of one line; keys that it does not know are passed over.
"""

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, Literal, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)

from vcpusched.act.ledger import RESETS_MAX, Entry, Hold, Ledger, Record, is_kept
from vcpusched.host.hypervisor import NotRecordedError
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.text import place, printable

NOT_WRITTEN: Final = "the original affinity cannot be written down"


def _affinity(text: object) -> CpuSet:
    found = CpuSet.parse(text) if isinstance(text, str) else None
    if not found:
        raise ValueError("an affinity must name at least one pCPU")
    return found


_Affinity = Annotated[CpuSet, PlainValidator(_affinity), PlainSerializer(str)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _RecordPart(_Part):
    vcpu: int = Field(ge=0, le=65_535)
    run_ns: int = Field(ge=0, lt=1 << 63)
    affinity: _Affinity
    original: _Affinity | None = None
    pending: _Affinity | None = None
    held: Hold | None = None
    resets: int = Field(0, ge=0, le=RESETS_MAX)


class _EntryPart(_Part):
    uuid: str = Field(min_length=1, max_length=64)
    name: str
    id: Annotated[int, Field(ge=-1, lt=1 << 31)]
    held: bool = False
    marked: bool = False
    uri: str = ""
    vcpus: list[_RecordPart]


class _LedgerPart(_Part):
    version: Literal[1]
    domains: list[_EntryPart]


_KEPT: Final = ("affinity", "original", "pending", "held", "resets")
"""What of a record outlives the process."""


class LedgerError(ValueError):
    """A text is no ledger; the error's own says where and why, on one line."""


def parse(text: str) -> Ledger:
    """Read a ledger. Raises LedgerError for anything else."""
    try:
        part = _LedgerPart.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise LedgerError(f"{place(first, 'ledger')}: {message[:1].lower()}{message[1:]}") from None
    entries: dict[DomainUuid, Entry] = {}
    for number, domain in enumerate(part.domains):
        records = {
            each.vcpu: Record(**{key: getattr(each, key) for key in _KEPT}) for each in domain.vcpus
        }
        if len(records) != len(domain.vcpus) or domain.uuid in entries:
            raise LedgerError(f"domains.{number}: the domain or one of its vCPUs is listed twice")
        entries[DomainUuid(domain.uuid)] = Entry(
            domain.name,
            domain.id,
            records,
            held=domain.held,
            marked=domain.marked,
            uri=domain.uri,
            runs_ns={each.vcpu: each.run_ns for each in domain.vcpus},
        )
    return Ledger(entries)


def _entry_as_json(uuid: DomainUuid, entry: Entry) -> str:
    """Return what of an entry outlives the process."""
    # The CPU time of one vCPU at least, to recognise another run of the domain.
    is_whole = entry.held or entry.marked
    part = _EntryPart.model_construct(
        uuid=uuid,
        name=entry.name,
        id=entry.domain_id,
        held=entry.held,
        marked=entry.marked,
        uri=entry.uri,
        vcpus=[
            _RecordPart.model_construct(
                vcpu=vcpu,
                run_ns=entry.runs_ns.get(vcpu, 0),
                **{key: getattr(record, key) for key in _KEPT},
            )
            for vcpu, record in sorted(entry.records.items())
            if is_whole or is_kept(record)
        ],
    )
    return json.dumps(part.model_dump(mode="json", exclude_defaults=True), separators=(",", ":"))


class Store(Protocol):
    """Keeps one text durably."""

    def read(self) -> str | None:
        """Return the text, None when there is none. Raises OSError, and LedgerError for no text."""

    def replace(self, text: str) -> None:
        """Replace the text, durably and all or nothing. Raises OSError."""

    def set_aside(self) -> str:
        """Move what is there out of the way; gives where it is now. Raises OSError."""


class Book:
    """The ledger in memory and in its store, written by one process at a time.

    `uri` is where the libvirt is whose domains are managed; what the store has of another one's
    stays there untouched, and `elsewhere` names it.

    `ledger` may be set to one that need not be kept before anything else happens; others are
    `save`d. It `is_closed` once another process keeps the store. `problem` says on one line what
    was wrong with the store, empty when nothing was. One that can neither be read nor set aside is
    never written, nor one that this book only reads.
    """

    def __init__(self, store: Store, uri: str = "", *, writes: bool = True) -> None:
        self.uri = uri
        self._store = store
        self._lock = threading.Lock()
        self.is_closed = False
        self._is_usable = writes
        self._kept: dict[DomainUuid, tuple[Entry, str]] = {}
        self.ledger = Ledger()
        self.problem = ""
        try:
            text = store.read()
            self.ledger = parse(text) if text is not None else Ledger()
        except LedgerError as error:
            where = self._set_aside(error) if writes else printable(str(error), 200)
            self.problem = f"{where}; pins made before that are not known any more"
        except OSError as error:
            self._is_usable = False
            self.problem = f"The ledger cannot be read ({_text(error)}); no pin is made"
        self._kept = self._rendered(self.ledger)

    def _set_aside(self, error: LedgerError) -> str:
        said = f"The ledger cannot be used ({printable(str(error), 200)})"
        try:
            return f"{said} and is now {self._store.set_aside()}"
        except OSError as failure:
            self._is_usable = False
            return f"{said} nor be set aside ({_text(failure)}); no pin is made"

    def elsewhere(self) -> str:
        """Return on one line what there is of another libvirt's; nothing if there is nothing."""
        entries = self.ledger.entries.values()
        others = Counter(entry.uri for entry in entries if not entry.is_at(self.uri))
        return "; ".join(
            f"Guests at {printable(uri, 200)} in the ledger ({count}) are left as they are:"
            f' "vcpusched restore --uri {printable(uri, 200)}" restores them'
            for uri, count in sorted(others.items())
        )

    def save(self, ledger: Ledger) -> None:
        """Take over a ledger and keep it before this returns.

        Raises NotRecordedError when it cannot be kept; the one before then stays, in memory and in
        the store.
        """
        kept = self._rendered(ledger)
        with self._lock:
            if self.is_closed or not self._is_usable:
                raise NotRecordedError(f"{NOT_WRITTEN}: the ledger is not ours to write")
            text = _document(kept)
            if text != _document(self._kept):
                try:
                    self._store.replace(text)
                except OSError as error:
                    raise NotRecordedError(f"{NOT_WRITTEN}: {error.strerror or error}") from None
            self._kept = kept
        self.ledger = ledger

    def catch_up(self) -> None:
        """Bring the store up to date, where it can be written; the next sample tries again."""
        with contextlib.suppress(NotRecordedError):
            self.save(self.ledger)

    @property
    def is_stale(self) -> bool:
        """Whether the store has anything that is not so any more, but for CPU times."""
        kept = {uuid: entry for uuid, entry in self.ledger.entries.items() if entry.is_kept()}
        return kept != {uuid: entry for uuid, (entry, _text) in self._kept.items()}

    def close(self) -> None:
        """Let nothing more be written: another process keeps the store from now on."""
        with self._lock:
            self.is_closed = True

    def _rendered(self, ledger: Ledger) -> dict[DomainUuid, tuple[Entry, str]]:
        """Return what of a ledger is kept; only entries that are others than before are anew."""
        rendered: dict[DomainUuid, tuple[Entry, str]] = {}
        for uuid, entry in ledger.entries.items():
            if entry.is_kept():
                known = self._kept.get(uuid)
                if known is None or known[0] is not entry:
                    known = entry, _entry_as_json(uuid, entry)
                rendered[uuid] = known
        return rendered


def _document(kept: Mapping[DomainUuid, tuple[Entry, str]]) -> str:
    lines = ",\n".join(text for _uuid, (_entry, text) in sorted(kept.items()))
    return f'{{"version":1,"domains":[\n{lines}\n]}}\n'


def _text(error: OSError) -> str:
    return printable(str(error.strerror or error), 200)
