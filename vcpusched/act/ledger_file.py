"""The ledger as it outlives us: kept before it is relied on, by one process at a time.

Rule: JSON of version 1, and a `Store` that is passed in; what the ledger means is said in `ledger`.
What is no ledger becomes a `LedgerError` of one line; keys that it does not know are passed over.
"""

import json
import threading
from collections import Counter
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcpusched.act.ledger import RESETS_MAX, Entry, Hold, Ledger, Record, is_kept
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.text import place, printable

VERSION: Final = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _RecordPart(_Part):
    vcpu: int = Field(ge=0, le=65_535)
    run_ns: int = Field(ge=0, lt=1 << 63)
    affinity: str
    original: str | None = None
    pending: str | None = None
    held: Literal["pinned", "reset"] | None = None
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


class LedgerError(ValueError):
    """A text is no ledger; the error's own says where and why, on one line."""


def parse(text: str) -> Ledger:
    """Read a ledger. Raises LedgerError for anything else."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON: {error}"
        raise LedgerError(what) from None
    try:
        part = _LedgerPart.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LedgerError(f"{place(first, 'ledger')}: {first['msg'].lower()}") from None
    entries: dict[DomainUuid, Entry] = {}
    for number, domain in enumerate(part.domains):
        records = {
            entry.vcpu: _record(entry, f"domains.{number}.vcpus.{place}")
            for place, entry in enumerate(domain.vcpus)
        }
        if len(records) != len(domain.vcpus) or domain.uuid in entries:
            raise LedgerError(f"domains.{number}: the domain or one of its vCPUs is listed twice")
        entries[DomainUuid(domain.uuid)] = Entry(
            domain.name, domain.id, records, held=domain.held, marked=domain.marked, uri=domain.uri
        )
    return Ledger(entries)


def _record(part: _RecordPart, where: str) -> Record:
    def cpus(text: str) -> CpuSet:
        try:
            found = CpuSet.parse(text)
        except ValueError as error:
            raise LedgerError(f"{where}: {error}") from None
        if not found:
            raise LedgerError(f"{where}: an affinity must name at least one pCPU")
        return found

    return Record(
        run_ns=part.run_ns,
        affinity=cpus(part.affinity),
        original=None if part.original is None else cpus(part.original),
        pending=None if part.pending is None else cpus(part.pending),
        held=None if part.held is None else Hold(part.held),
        resets=part.resets,
    )


def _entry_as_json(uuid: DomainUuid, entry: Entry) -> dict[str, Any]:
    """Return what of an entry outlives the process."""
    # The CPU time of one vCPU at least, to recognise another run of the domain.
    is_whole = entry.held or entry.marked
    kept = {vcpu: record for vcpu, record in entry.records.items() if is_whole or is_kept(record)}
    return {
        "uuid": uuid,
        "name": entry.name,
        "id": entry.domain_id,
        **({"held": True} if entry.held else {}),
        **({"marked": True} if entry.marked else {}),
        **({"uri": entry.uri} if entry.uri else {}),
        "vcpus": [
            {
                "vcpu": vcpu,
                "run_ns": record.run_ns,
                "affinity": str(record.affinity),
                **({} if record.original is None else {"original": str(record.original)}),
                **({} if record.pending is None else {"pending": str(record.pending)}),
                **({} if record.held is None else {"held": record.held.value}),
                **({"resets": record.resets} if record.resets else {}),
            }
            for vcpu, record in sorted(kept.items())
        ],
    }


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
        self._texts: dict[DomainUuid, tuple[Entry, str]] = {}
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
        self._saved = self._entries()

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

        Raises OSError when it cannot be kept; the one before then stays, in memory and in the
        store.
        """
        text = self._rendered(ledger)
        with self._lock:
            if self.is_closed or not self._is_usable:
                raise OSError("the ledger is not ours to write")
            if text != self._kept:
                self._store.replace(text)
                self._kept = text
            self._saved = self._entries()
        self.ledger = ledger

    @property
    def is_stale(self) -> bool:
        """Whether the store has anything that is not so any more, but for CPU times."""
        kept = {uuid: entry for uuid, entry in self.ledger.entries.items() if entry.is_kept()}
        return kept != self._saved

    def close(self) -> None:
        """Let nothing more be written: another process keeps the store from now on."""
        with self._lock:
            self.is_closed = True

    def _entries(self) -> dict[DomainUuid, Entry]:
        return {uuid: entry for uuid, (entry, _text) in self._texts.items()}

    def _rendered(self, ledger: Ledger) -> str:
        """Return the text; only entries that are others than the last time are rendered anew."""
        texts: dict[DomainUuid, tuple[Entry, str]] = {}
        for uuid, entry in ledger.entries.items():
            if not entry.is_kept():
                continue
            known = self._texts.get(uuid)
            if known is None or known[0] is not entry:
                known = entry, json.dumps(_entry_as_json(uuid, entry), separators=(",", ":"))
            texts[uuid] = known
        self._texts = texts
        lines = ",\n".join(texts[uuid][1] for uuid in sorted(texts))
        return f'{{"version":{VERSION},"domains":[\n{lines}\n]}}\n'


def _text(error: OSError) -> str:
    return printable(str(error.strerror or error), 200)
