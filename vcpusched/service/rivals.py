"""Finds other programs on this host that pin vCPUs too.

Rule: a hint for a warning. Nothing depends on it; where /proc hides other processes it finds none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TUNED_PROFILE: Final = Path("/etc/tuned/active_profile")

_TUNED_PINNING: Final = ("cpu-partitioning", "realtime")


def find(proc: Path = PROC, tuned_profile: Path = TUNED_PROFILE) -> Iterator[str]:
    """Return one sentence for each program that is found, in a fixed order."""
    try:
        running = {_text(path / "comm").strip() for path in proc.iterdir() if path.name.isdigit()}
    except OSError:
        return
    if "numad" in running:
        yield "numad is running and binds guests too; the two will undo each other's work: stop one"
    profile = _text(tuned_profile).split()
    if "tuned" in running and any(word.startswith(_TUNED_PINNING) for word in profile):
        yield (
            "tuned runs with a profile that moves threads too; blacklist the guests there, or"
            " stop one"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # it ended, or is hidden
