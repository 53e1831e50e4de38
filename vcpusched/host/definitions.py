"""The definitions of running guests, remembered for a minute.

Rule: no I/O and no clock: what libvirt says and the time are passed in.
"""

import pwd
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final
from xml.etree import ElementTree as ET

from vcpusched.host import libvirt_xml
from vcpusched.host.cgroups import Limits
from vcpusched.host.hypervisor import HypervisorError
from vcpusched.model import DomainUuid
from vcpusched.sample import Definition, Origin

Key = tuple[DomainUuid, int]
"""One run of a guest: its UUID, and the number that libvirt gives each run."""

FirstSeen = dict[Key, Definition]
"""The definition of each run when it was first seen, the live one where there is no other."""

MAX_AGE_NS: Final = 60 * 1_000_000_000
"""How long a definition is trusted: a change of it is obeyed after this at the latest."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The definition in force, and what of it libvirt `said`, in texts of this hash."""

    due_ns: int
    definition: Definition
    said: Definition
    user: int | None = None
    texts: int | None = None


_UNKNOWN: Final = Definition(is_cpuset_known=False)
_NOTHING: Final = _Known(0, _UNKNOWN, _UNKNOWN)


class Definitions:
    """What is known of the definitions of all guests that run.

    `first_seen` outlives connections: nobody else remembers where a transient guest was allowed to
    run before we pinned it, and what others began with. `usual_shares` is the weight of a guest
    whose definition says nothing.
    """

    def __init__(self, first_seen: FirstSeen, usual_shares: int) -> None:
        self._first_seen = first_seen
        self._usual_shares = usual_shares
        self._known: dict[Key, _Known] = {}

    def forget_all_but(self, running: Collection[Key]) -> None:
        """Forget guests that do not run any more."""
        self._known = {key: known for key, known in self._known.items() if key in running}
        for key in self._first_seen.keys() - set(running):
            self._first_seen.pop(key, None)

    def is_due(self, key: Key, now_ns: int) -> bool:
        """Return whether a guest's definition was never read, or its moment has come since.

        Each guest has a moment of its own in every minute, so that a host full of them is not read
        all at once.
        """
        return now_ns >= self._known.get(key, _NOTHING).due_ns

    def of(self, key: Key) -> Definition:
        """Return a guest's definition, an empty one where it is not known."""
        return self._known.get(key, _NOTHING).definition

    def user_of(self, key: Key) -> int | None:
        """Return which user libvirt runs a guest's QEMU as, where its XML names one."""
        return self._known.get(key, _NOTHING).user

    def learn(self, key: Key, live_xml: str, stated_xml: str | None, now_ns: int) -> None:
        """Take in what libvirt says: the live XML, and the persistent one of a guest that has one.

        Raises HypervisorError where it cannot be understood.
        """
        known, texts = self._known.get(key, _NOTHING), hash((live_xml, stated_xml))
        if known.texts != texts:  # as it seldom is: to read XML takes longer than to ask for it
            said, user = self._combined(key, live_xml, stated_xml), _user(live_xml)
            known = _Known(0, said, said, user, texts)
        due_ns = _due_ns(key, now_ns)
        self._known[key] = replace(known, due_ns=due_ns, definition=known.said)

    def _combined(self, key: Key, live_xml: str, stated_xml: str | None) -> Definition:
        live = self._parsed(live_xml)
        stated = self._parsed(stated_xml) if stated_xml is not None else None
        first = self._first_seen.setdefault(key, stated or live)
        # A transient guest has no persistent definition. The live one stands in for it, as it was
        # when the guest was first seen, because later our own pins are in it.
        found = libvirt_xml.combined(live, stated or replace(first, wish=None))
        began = libvirt_xml.combined(live, first).allowed
        return replace(found, began=began, is_cpuset_known=False)

    def bound(self, key: Key, limits: Limits) -> None:
        """Take in what the kernel lets a guest have, which outranks its definition."""
        known = self._known[key]
        definition = replace(
            known.definition,
            cpuset=limits.cpuset,
            is_cpuset_known=True,
            shares=limits.shares or known.definition.shares,
            quota_ppm=min(known.definition.quota_ppm, limits.quota_ppm),
        )
        self._known[key] = replace(known, definition=definition)

    def marked(self, key: Key, origin: Mapping[int, Origin]) -> None:
        """Take in the mark that was written into a guest."""
        if (known := self._known.get(key)) is not None:
            definition = replace(known.definition, origin=dict(origin))
            self._known[key] = replace(known, definition=definition)

    def postpone(self, key: Key, now_ns: int) -> None:
        """Keep what is known until the guest's next moment, because it was not reported now."""
        known = self._known.get(key, _NOTHING)
        unbound = replace(known.definition, is_cpuset_known=False)
        self._known[key] = replace(known, due_ns=_due_ns(key, now_ns), definition=unbound)

    def _parsed(self, xml: str) -> Definition:
        try:
            return libvirt_xml.read_definition(xml, self._usual_shares)
        except ValueError as error:
            raise HypervisorError(f"its definition cannot be understood: {error}") from None


def _due_ns(key: Key, now_ns: int) -> int:
    """Return when a guest's next moment comes, once in each minute."""
    moment_ns = zlib.crc32(key[0].encode()) * MAX_AGE_NS >> 32
    return now_ns + MAX_AGE_NS - (now_ns + moment_ns) % MAX_AGE_NS


def _user(live_xml: str) -> int | None:
    """Return the user of libvirt's DAC label: "+107:+107", "107:107" or "qemu:qemu"."""
    root = ET.fromstring(live_xml)  # noqa: S314  read before by `_parsed`, which refuses what is dangerous
    label = root.findtext("seclabel[@model='dac']/label") or ""
    name = label.partition(":")[0]
    number = name.removeprefix("+")
    try:
        return int(number) if number.isdecimal() else pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None
