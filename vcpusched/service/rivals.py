"""Finds other programs on this host that pin vCPUs too.

Rule: a hint for a warning. Nothing depends on it; where /proc hides other processes it finds none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
TUNED_PROFILE: Final = Path("/etc/tuned/active_profile")

_TUNED_PINNING: Final = ("cpu-partitioning", "realtime")


def find(proc: Path = PROC, tuned_profile: Path = TUNED_PROFILE) -> list[str]:
    """Give one sentence for each program that is found, in a fixed order."""
    running = _process_names(proc)
    return [
        sentence
        for name, (applies, sentence) in sorted(_KNOWN.items())
        if name in running and applies(tuned_profile)
    ]


def _process_names(proc: Path) -> set[str]:
    names = set()
    try:
        for process in proc.iterdir():
            if process.name.isdigit():
                try:
                    names.add((process / "comm").read_text(encoding="utf-8").strip())
                except (OSError, UnicodeDecodeError):
                    continue  # it ended, or is hidden
    except OSError:
        pass
    return names


def _tuned_pins(tuned_profile: Path) -> bool:
    try:
        profile = tuned_profile.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return any(word.startswith(_TUNED_PINNING) for word in profile.split())


_KNOWN: Final[dict[str, tuple[Callable[[Path], bool], str]]] = {
    "numad": (
        lambda _profile: True,
        "numad is running and binds guests too; the two will undo each other's work: stop one",
    ),
    "tuned": (
        _tuned_pins,
        "tuned runs with a profile that moves threads too; blacklist the guests there, or stop one",
    ),
}
