#!/bin/sh
""":"
# Gives guests that arrive by migration, or wake from a saved state, their original affinities.
#
# Rule: this one file, with nothing but sh and the standard library of Python 3.9, is all it takes: a
# guest waits for it, and a host without vcpusched may have it, too. What is not ours stays, byte for
# byte.
#
# libvirt runs it as /etc/libvirt/hooks/qemu.d/vcpusched and takes what it prints for the guest's XML;
# where it prints nothing the XML stays as it is. A status other than 0 would fail the migration, so
# whatever goes wrong, also with Python, ends with 0 and in silence.
#
# The mark in the XML (see ORIGIN in vcpusched/host/libvirt_xml.py) has the original affinity of each
# vCPU and the pins that are ours. A pin that it does not name is a person's and stays. So does one of
# ours, and the mark with it, where this host could take the pin but not the original: a vcpusched
# that runs here knows it by that.
case "$2 $3" in "migrate begin" | "restore begin") ;; *) exit 0 ;; esac
printed=$(
  exec /usr/bin/python3 -I -S "$0" "$@" 2>/dev/null
) && printf '%s' "$printed"
exit 0
":"""

import os
import sys
from xml.parsers import expat

ORIGIN = "urn:vcpusched:origin:1"
"""The namespace of the mark."""

ANYWHERE = "all"
"""What the mark says of a vCPU that might run on any pCPU."""

SEPARATOR = "\n"
"""What expat puts between a namespace and a name: no name holds it."""

MARK = ["domain", "metadata", f"{ORIGIN}{SEPARATOR}origin"]
MARKED = [*MARK, f"{ORIGIN}{SEPARATOR}vcpu"]
PIN = ["domain", "cputune", "vcpupin"]

CPU_ID_MAX = 65_535
"""The largest pCPU number taken for one: bounds what a list can make us allocate."""


class _Reader:
    """Where mark and pins are in the bytes of a domain's XML, and what they say.

    `origins` has of each vCPU its original, in the mark's words and as pCPUs, and the pins that are
    ours; `pins` has of each `<vcpupin>` where it begins and ends, its vCPU and its pCPUs. Raises
    ValueError, KeyError and expat's errors for what libvirt and vcpusched do not write.
    """

    def __init__(self, xml: bytes) -> None:
        self.origins: dict[int, tuple[str, frozenset[int], list[frozenset[int]]]] = {}
        self.marks: list[tuple[int, int]] = []
        self.pins: list[tuple[int, int, int, frozenset[int]]] = []
        self._xml = xml
        self._path: list[str] = []
        self._begun: list[tuple[int, dict[str, str]]] = []
        self._parser = expat.ParserCreate("utf-8", SEPARATOR)
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.Parse(xml, True)  # noqa: FBT003  expat takes no keywords

    def _refuse(self, *_ignored: object) -> None:
        raise ValueError("it has a document type, as no XML of libvirt's has")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        self._begun.append((self._parser.CurrentByteIndex, attributes))
        if self._path == MARKED:
            named, pins = attributes["cpus"], attributes["pins"].split()
            cpus = frozenset() if named == ANYWHERE else cpus_of(named)
            self.origins[int(attributes["id"])] = named, cpus, list(map(cpus_of, pins))

    def _end(self, _name: str) -> None:
        begin, attributes = self._begun.pop()
        if self._path == MARK:
            self.marks.append((begin, self._end_of(begin)))
        elif self._path == PIN:
            vcpu, cpus = int(attributes["vcpu"]), cpus_of(attributes["cpuset"])
            self.pins.append((begin, self._end_of(begin), vcpu, cpus))
        self._path.pop()

    def _end_of(self, begin: int) -> int:
        end = _end_of_tag(self._xml, begin)
        if self._xml[end - 2 : end] == b"/>":
            return end
        return _end_of_tag(self._xml, self._parser.CurrentByteIndex)


def _end_of_tag(xml: bytes, begin: int) -> int:
    """Return where the tag ends that begins there; an attribute may hold its last character."""
    quote = 0
    for index in range(begin, len(xml)):
        byte = xml[index]
        if quote:
            quote = 0 if byte == quote else quote
        elif byte in b"'\"":
            quote = byte
        elif byte == ord(">"):
            return index + 1
    raise ValueError("a tag without an end")


def cpus_of(text: str) -> frozenset[int]:
    """Return the pCPUs of a list such as "0-3,^2,8". Raises ValueError for anything else."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().removeprefix("^").partition("-")
        if not all(one.isascii() and one.isdigit() for one in (first, last if dash else first)):
            raise ValueError(f"{text[:80]!r} is no list of pCPUs")
        span = range(int(first), int(last if dash else first) + 1)
        if not span or span[-1] > CPU_ID_MAX:
            raise ValueError(f"{text[:80]!r} is no list of pCPUs")
        cpus = cpus.difference(span) if part.strip().startswith("^") else cpus.union(span)
    return frozenset(cpus)


def rewritten(xml: bytes, usable: frozenset[int], takes: frozenset[int]) -> bytes:
    """Return the XML with originals in place of our pins; nothing where it is to stay as it is.

    An affinity is possible on this host when one of its pCPUs is `usable` and all are among those
    that it `takes`.
    """

    def is_possible(cpus: frozenset[int]) -> bool:
        return bool(cpus & usable) and cpus <= takes

    read = _Reader(xml)
    edits: list[tuple[int, int, bytes]] = []
    stays = False
    for begin, end, vcpu, cpus in read.pins:
        named, original, ours = read.origins.get(vcpu, ("", frozenset(), []))
        if cpus not in ours:
            continue
        if named == ANYWHERE:
            edits.append((begin, end, b""))
        elif is_possible(original) or not is_possible(cpus):
            edits.append((begin, end, f"<vcpupin vcpu='{vcpu}' cpuset='{named}'/>".encode()))
        else:
            stays = True
    if not stays:
        edits += [(begin, end, b"") for begin, end in read.marks]
    for begin, end, text in sorted(edits, reverse=True):
        xml = xml[:begin] + text + xml[end:]
    return xml if edits else b""


def listed(path: str) -> frozenset[int]:
    """Return the pCPUs that a file of the kernel lists."""
    with open(path) as file:
        return cpus_of(file.read())


def host_cpus(root: str) -> tuple[frozenset[int], frozenset[int]]:
    """Return on which pCPUs guests may run here, and which ones an affinity may name."""
    usable = takes = listed(f"{root}/devices/system/cpu/online")
    groups = f"{root}/fs/cgroup"
    # Control groups of version 1 take no pCPU that is offline.
    if os.path.exists(f"{groups}/cgroup.controllers"):
        takes = listed(f"{root}/devices/system/cpu/possible")
        # The kernel refuses an affinity without one of these (AllowedCPUs=).
        allowed = f"{groups}/machine.slice/cpuset.cpus.effective"
        if os.path.exists(allowed):
            usable &= listed(allowed)
    return usable, takes


def main() -> None:
    """Rewrite standard input to standard output as this host asks for."""
    sys.stdout.buffer.write(rewritten(sys.stdin.buffer.read(), *host_cpus("/sys")))


if __name__ == "__main__":
    main()
