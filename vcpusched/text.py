"""Text of unknown origin, made fit to be shown, and the words for what is shown everywhere.

Rule: whatever a guest, a file or another program named passes here before it reaches a terminal or
a log, so that it can forge neither a line nor an escape sequence. A vCPU, pCPUs, percent and points
are worded here and nowhere else.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from vcpusched.model import PPM_PER_POINT, CpuSet

NAME_MAX: Final = 64
"""Longer names of guests are cut in messages."""


def printable(text: str, length_max: int = NAME_MAX) -> str:
    """Give text without control characters, on one line, no longer than `length_max`."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: length_max + 1])
    return shown if len(shown) <= length_max else shown[: length_max - 1] + "…"


def shown(value: object, length_max: int = 100) -> str:
    """Give a value as the file may have it that it is from, on one line."""
    try:
        return printable(json.dumps(value, ensure_ascii=False, default=str), length_max)
    except ValueError:
        return "a number of thousands of digits"


def as_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  whatever JSON takes
    """Give JSON that people can read and terminals cannot obey: control characters as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Outside of strings JSON has none but line ends. Few letters are different, however long it is.
    for letter in {*text} - {"\n"}:
        if not letter.isprintable():
            text = text.replace(letter, json.dumps(letter)[1:-1])
    return text


def vcpu_text(vcpu: int, domain: str) -> str:
    """Name a vCPU in a sentence."""
    return f"vCPU {vcpu} of {printable(domain)}"


def cpus_text(cpus: CpuSet) -> str:
    """Name pCPUs in a sentence."""
    return f"pCPU {cpus}" if len(cpus) == 1 else f"pCPUs {cpus}"


def percent(share_ppm: int, decimals: int = 0) -> str:
    """Word a share or a load."""
    return f"{share_ppm / PPM_PER_POINT:.{decimals}f} %"


def points(load_ppm: int) -> str:
    """Word a difference of loads in percentage points."""
    text = f"{load_ppm / PPM_PER_POINT:.0f}"
    return f"{text} point{'' if text == '1' else 's'}"


def place(problem: Mapping[str, Any], whole: str) -> str:
    """Name the place of a mistake that pydantic found: the keys and numbers that lead there."""
    return ".".join(str(step) for step in problem["loc"]) or whole
