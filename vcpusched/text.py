"""Text of unknown origin, made fit to be shown.

Rule: whatever a guest, a file or another program named passes here before it reaches a terminal or
a log, so that it can forge neither a line nor an escape sequence.
"""

import json
from typing import Any, Final

NAME_MAX: Final = 64
"""Longer names of guests are cut in messages."""


def printable(text: str, length_max: int = NAME_MAX) -> str:
    """Give text without control characters, on one line, no longer than `length_max`."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: length_max + 1])
    return shown if len(shown) <= length_max else shown[: length_max - 1] + "…"


def shown(value: object) -> str:
    """Give a value as the file may have it that it is from, on one line."""
    try:
        return printable(json.dumps(value, ensure_ascii=False, default=str), 100)
    except ValueError:
        return "a number of thousands of digits"


def as_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  whatever JSON takes
    """Give JSON that people can read and terminals cannot obey: control characters as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Outside of strings JSON has none but line ends.
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]
        for letter in text
    )
