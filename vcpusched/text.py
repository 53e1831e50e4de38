"""Text of unknown origin, made fit to be shown.

Rule: whatever a guest, a file or another program named passes here before it reaches a terminal or
a log, so that it can forge neither a line nor an escape sequence.
"""

from typing import Final

NAME_MAX: Final = 64
"""Longer names of guests are cut in messages."""


def printable(text: str, length_max: int = NAME_MAX) -> str:
    """Give text without control characters, on one line, no longer than `length_max`."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: length_max + 1])
    return shown if len(shown) <= length_max else shown[: length_max - 1] + "…"
