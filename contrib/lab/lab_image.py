"""The floppy image that gives a guest's vCPUs their loads."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE = Path(__file__).with_name("duty.S")
MARKER = b"duty"
PERIOD_S = 0.02
FULL_SHARE = 1000
HALTS = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"  # cli; hlt; and again, if woken
# Administrators' tools live outside an ordinary user's PATH.
MORE_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/libexec", "/usr/lib/libvirt")

_STEP = struct.Struct("<I")
_SHARES = struct.Struct("<HH")


class LabError(Exception):
    """The lab cannot do what it was asked to; the text says why in one sentence."""


def program(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed."""
    paths = os.pathsep.join([os.environ.get("PATH", os.defpath), *MORE_PATHS])
    return next((path for name in names if (path := shutil.which(name, path=paths))), None)


def boot_image(
    shares: Sequence[float],
    later: Sequence[float] | None = None,
    step_after_s: float = 0.0,
) -> bytes:
    """Return the boot sectors of a guest whose vCPU N demands `shares[N]` (0 to 1) of a CPU.

    From `step_after_s` seconds after its boot on (in steps of 0.02 s), vCPU N demands `later[N]`
    instead. Neither or both are given. A guest that never demands anything halts for good.
    """
    template = bytearray(_template())
    table = template.index(MARKER) + len(MARKER)
    most = (len(template) - table - _STEP.size) // _SHARES.size
    if not 1 <= len(shares) <= most:
        raise LabError(f"A guest of the lab has 1 to {most} vCPUs, not {len(shares)}.")
    if (later is None) != (step_after_s == 0):
        raise LabError("Later shares and the time from which they hold go together.")
    after = shares if later is None else later
    if bad := [share for share in (*shares, *after) if not 0 <= share <= 1]:
        raise LabError(f"A share is 0 to 1 of a CPU, not {bad[0]}.")
    if not any((*shares, *after)):
        return HALTS
    # 0 means never, so that the shortest time is one period.
    periods = max(1, round(step_after_s / PERIOD_S)) if later is not None else 0
    _STEP.pack_into(template, table, periods)
    for number, pair in enumerate(zip(shares, after, strict=True)):
        first, second = (round(share * FULL_SHARE) for share in pair)
        offset = table + _STEP.size + number * _SHARES.size
        _SHARES.pack_into(template, offset, first, second)
    return bytes(template)


@functools.cache
def _template() -> bytes:
    """Assemble the boot sectors with an empty table."""
    assembler, linker = program("as"), program("ld")
    if assembler is None or linker is None:
        raise LabError("The lab needs the programs as and ld of binutils.")
    with tempfile.TemporaryDirectory(prefix="duty-") as directory:
        unlinked, image = Path(directory, "duty.o"), Path(directory, "duty.img")
        _build([assembler, "--32", "-o", str(unlinked), str(SOURCE)])
        layout = ["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00"]
        _build([linker, *layout, "-o", str(image), str(unlinked)])
        built = image.read_bytes()
    if built.count(MARKER) != 1 or built[510:512] != b"\x55\xaa":
        raise LabError(f"What {assembler} and {linker} made of {SOURCE} is no boot sector.")
    return built


def _build(command: Sequence[str]) -> None:
    """Run an assembler or linker."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{command[0]} failed on {SOURCE.name}: {result.stderr.strip()}")
