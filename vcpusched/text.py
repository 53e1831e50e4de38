"""Text of unknown origin, made fit to be shown, and the words for what is shown everywhere.

Rule: names that guests, files and other programs chose pass here before they reach a terminal or a
log, so that none can forge a line or an escape sequence. A vCPU, pCPUs, percent and points are
worded here and nowhere else.
"""

import contextlib
import json
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from vcpusched.model import PPM_PER_POINT, CpuSet

NAME_MAX: Final = 64
"""Longer names of guests are cut in messages."""


def printable(text: str, length_max: int = NAME_MAX) -> str:
    """Return text without control characters, on one line, no longer than `length_max`."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[: length_max + 1])
    return shown if len(shown) <= length_max else shown[: length_max - 1] + "…"


def shown(value: object, length_max: int = 100) -> str:
    """Return a value as the file that it is from may have it, on one line."""
    try:
        return printable(json.dumps(value, ensure_ascii=False, default=str), length_max)
    except ValueError:
        return "a number of thousands of digits"


def as_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401  whatever JSON takes
    """Return JSON that people can read, with control characters as escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Outside of strings JSON has none but line ends. Few letters are different, however long it is.
    for letter in {*text} - {"\n"}:
        if not letter.isprintable():
            text = text.replace(letter, json.dumps(letter)[1:-1])
    return text


def listed(text: str) -> list[str]:
    """Return the items of a text with commas, or of a list of texts as a TOML file has it."""
    text = text.strip()
    if text.startswith("["):  # as a glob may, too
        with contextlib.suppress(ValueError, RecursionError):
            found = tomllib.loads(f"list = {text}")["list"]
            if all(isinstance(item, str) for item in found):
                return list(found)
    return [item.strip() for item in text.split(",")] if text else []


def vcpu_text(vcpu: int, domain: str) -> str:
    """Name a vCPU in a sentence."""
    return f"vCPU {vcpu} of {printable(domain)}"


def cpus_text(cpus: CpuSet) -> str:
    """Name pCPUs in a sentence."""
    return f"pCPU {cpus}" if len(cpus) == 1 else f"pCPUs {cpus}"


def percent(share_ppm: int, decimals: int = 0) -> str:
    """Word a share or a load."""
    return f"{share_ppm / PPM_PER_POINT:.{decimals}f}%"


def number(load_ppm: int) -> str:
    """Word the first of two gaps whose unit follows the second."""
    return f"{load_ppm // PPM_PER_POINT}"


def points(load_ppm: int) -> str:
    """Word a gap in percentage points: whole ones, so that one below a threshold looks so."""
    return counted(load_ppm // PPM_PER_POINT, "point")


def counted(count: int, one: str, many: str = "") -> str:
    """Word a number of things; without `many` an "s" makes them more."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def place(problem: Mapping[str, Any], whole: str) -> str:
    """Return the place of a mistake that pydantic found: the keys and numbers that lead there."""
    return printable(".".join(str(step) for step in problem["loc"]), 200) or whole
