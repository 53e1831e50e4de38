"""Results as tables, and how they are shown and kept: Markdown, and all figures as JSON.

Rule: a table says what its columns mean in its notes; nothing is computed here.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vcpusched import __version__
from vcpusched.model import CpuSet


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `notes` are sentences below it; an empty first cell continues the row above."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table as a README or a terminal shows it."""
        widths = [
            max(len(cell) for cell in cells) for cells in zip(self.columns, *self.rows, strict=True)
        ]
        lines = [f"### {self.title}", "", _line(self.columns, widths)]
        lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
        lines += [_line(row, widths) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def write(out: Path, part: str, figures: object, tables: Sequence[Table], *, quick: bool) -> None:
    """Write PART.json and PART.md into a folder; `quick` says that less was measured."""
    made_with = {
        "vcpusched": __version__,
        "python": platform.python_version(),
        "machine": _cpu_model(),
        "pcpus": len(os.sched_getaffinity(0)),
        "quick": quick,
    }
    kept = {"version": 1, "made_with": made_with, part: figures}
    (out / f"{part}.json").write_text(json.dumps(kept, indent=1, default=_plain) + "\n")
    (out / f"{part}.md").write_text("\n".join(table.markdown() for table in tables))


def _plain(value: object) -> object:
    """Return the fields of a value for JSON; sets of pCPUs become text."""
    if isinstance(value, CpuSet):
        return str(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]


def ratio(value: float | None) -> str:
    """Show a ratio, or that there is none."""
    return "-" if value is None else f"{value:.2f}"


def milliseconds(value_ns: float) -> str:
    """Show a time in milliseconds with three significant digits."""
    value = value_ns / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004  three digits


def share(part: float, whole: float) -> str:
    """Show a share in percent, or that there is none."""
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(padded) + " |"
