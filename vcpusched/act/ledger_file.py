"""The ledger as it outlives us: kept before it is relied on, by one hand at a time.

Rule: text, and a `Store` that is passed in; what the ledger means is said in `ledger`.
"""

import json
import threading
from collections import Counter
from typing import Protocol

from vcpusched.act.ledger import Entry, Ledger
from vcpusched.act.ledger_text import VERSION, LedgerError, entry_as_json, parse
from vcpusched.model import DomainUuid
from vcpusched.text import printable


class Store(Protocol):
    """Keeps one text durably."""

    def read(self) -> str | None:
        """Give the text, None when there is none. Raises OSError, and LedgerError for no text."""

    def replace(self, text: str) -> None:
        """Replace the text, durably and all or nothing. Raises OSError."""

    def set_aside(self) -> str:
        """Move what is there out of the way; gives where it is now. Raises OSError."""


class Book:
    """The ledger in memory and in its store, written by one hand at a time.

    `uri` is where the libvirt is whose domains are looked at; what the store has of another one's
    stays there untouched, and `elsewhere` tells of it.

    `written` are the domains in the store. `problem` says on one line what was wrong with it, empty
    when nothing was. A store that can neither be read nor set aside is never written, nor one that
    this book only reads.
    """

    def __init__(self, store: Store, uri: str = "", *, writes: bool = True) -> None:
        self.uri = uri
        self._store = store
        self._lock = threading.Lock()
        self._closed = False
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
        self.written = frozenset(self._texts)

    def _set_aside(self, error: LedgerError) -> str:
        said = f"The ledger cannot be used ({printable(str(error), 200)})"
        try:
            return f"{said} and is now {self._store.set_aside()}"
        except OSError as failure:
            self._is_usable = False
            return f"{said} nor be set aside ({_text(failure)}); no pin is made"

    def elsewhere(self) -> str:
        """Say on one line what there is of another libvirt's; nothing where there is nothing."""
        entries = self.ledger.entries.values()
        others = Counter(entry.uri for entry in entries if not entry.is_at(self.uri))
        return "; ".join(
            f"Domains at {printable(uri, 200)} in the ledger ({count}) are left as they are:"
            f' "vcpusched restore --uri {printable(uri, 200)}" is for them'
            for uri, count in sorted(others.items())
        )

    def note(self, ledger: Ledger) -> None:
        """Take over a ledger that need not be kept before anything else happens."""
        self.ledger = ledger

    def save(self, ledger: Ledger) -> None:
        """Take over a ledger and keep it before this returns.

        Raises OSError when it cannot be kept; the one before then stays, in memory and in the
        store.
        """
        text = self._rendered(ledger)
        with self._lock:
            if self._closed or not self._is_usable:
                raise OSError("the ledger is not ours to write")
            if text != self._kept:
                self._store.replace(text)
                self._kept = text
            self.written = frozenset(self._texts)
        self.ledger = ledger

    @property
    def is_closed(self) -> bool:
        """Whether somebody else keeps the store."""
        return self._closed

    def close(self) -> None:
        """Let nothing more be written: somebody else keeps the store from now on."""
        with self._lock:
            self._closed = True

    def _rendered(self, ledger: Ledger) -> str:
        """Give the text; only entries that are others than the last time are rendered anew."""
        texts: dict[DomainUuid, tuple[Entry, str]] = {}
        for uuid, entry in ledger.entries.items():
            if not entry.is_kept():
                continue
            known = self._texts.get(uuid)
            if known is None or known[0] is not entry:
                known = entry, json.dumps(entry_as_json(uuid, entry), separators=(",", ":"))
            texts[uuid] = known
        self._texts = texts
        lines = ",\n".join(texts[uuid][1] for uuid in sorted(texts))
        return f'{{"version":{VERSION},"domains":[\n{lines}\n]}}\n'


def _text(error: OSError) -> str:
    return printable(str(error.strerror or error), 200)
