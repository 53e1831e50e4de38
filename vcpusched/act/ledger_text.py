"""The ledger as text: what of it outlives the process, as JSON of version 1.

Rule: pure. What is no ledger becomes a `LedgerError` of one line; keys that it does not know are
passed over.
"""

import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcpusched.act.ledger import RESETS_MAX, Entry, Hold, Ledger, Record, is_kept
from vcpusched.model import CpuSet, DomainUuid
from vcpusched.text import place

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


def entry_as_json(uuid: DomainUuid, entry: Entry) -> dict[str, Any]:
    """Give what of an entry outlives the process."""
    # The CPU time of one vCPU at least, to tell another run of the domain.
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
