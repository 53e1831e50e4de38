"""Files of the kernel in /proc, /sys and cgroups, which may be missing.

Rule: everybody may read them. What cannot be read is None or empty: nothing here raises.
"""

from pathlib import Path

from vcpusched.model import CpuSet


def read_cpus(path: Path) -> CpuSet:
    """Return the pCPUs that a file lists."""
    return CpuSet.read((read_text(path) or "").replace("(null)", "").strip())


def read_number(path: Path) -> int | None:
    """Return the number that a file holds."""
    text = (read_text(path) or "").strip()
    # As many digits as 64 bits have at most: int() refuses thousands of them.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # noqa: PLR2004


def read_text(path: Path) -> str | None:
    """Return what is in a file."""
    try:
        # A cycle reads thousands of them: text and buffers in between double what that takes.
        with path.open("rb", buffering=0) as file:
            return file.readall().decode(errors="replace")
    except OSError:
        return None
