"""Files of the kernel in /proc, /sys and cgroups, which may be missing.

Rule: everybody may read them. What cannot be read is None or empty: nothing here raises.
"""

import contextlib
import os
import resource
from pathlib import Path
from typing import Final

from vcpusched.model import CpuSet

TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""What the kernel counts the time of pCPUs, and the starts of threads, in."""

_PIECE: Final = 65_536


def read_cpus(path: Path | str) -> CpuSet:
    """Return the pCPUs that a file lists."""
    return CpuSet.read(read_text(path) or "")


def read_number(path: Path | str) -> int | None:
    """Return the number that a file holds."""
    numbers = read_numbers(path)
    return numbers[0] if len(numbers) == 1 else None


def read_numbers(path: Path | str) -> list[int]:
    """Return the numbers in a file, 0 and above; none of them where there is anything else."""
    parts = (read_text(path) or "").split()
    # As many digits as 64 bits have at most: int() refuses thousands of them.
    if not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):  # noqa: PLR2004
        return []
    return [int(part) for part in parts]


def read_text(path: Path | str) -> str | None:
    """Return what is in a file."""
    found = read_bytes(path)
    return found.decode(errors="replace") if found is not None else None


def read_bytes(path: Path | str, *, is_line: bool = False) -> bytes | None:
    """Return what is in a file; of one that is a single line, the kernel gives all at once.

    A cycle reads thousands of them: a file object around the descriptor costs three times as much
    as all calls to the kernel.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        found = piece = os.read(descriptor, _PIECE)
        while piece and not is_line:
            piece = os.read(descriptor, _PIECE)
            found += piece
    except OSError:
        return None  # it ended meanwhile
    finally:
        os.close(descriptor)
    return found


class OpenFile:
    """A file of a single line that is read in every cycle, open for as long as this is there.

    In /proc it stays that of its thread: once that has ended nothing is read of whoever has its
    number by then. Half of the descriptors that the process may have are left to others: where
    there is none any more the file is opened for each reading.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            # The lowest number that was free.
            if descriptor < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def __del__(self) -> None:
        """Close it."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def read(self) -> bytes | None:
        """Return what is in it now."""
        if self._descriptor is None:
            return read_bytes(self._path, is_line=True)
        try:
            return os.pread(self._descriptor, _PIECE, 0)
        except OSError:
            return None  # it ended meanwhile
