"""Writes what a part of the benchmark found: all figures as JSON, the tables as Markdown."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from tables import Table

from vcpusched import __version__


def write(out: Path, part: str, figures: object, tables: Sequence[Table], *, quick: bool) -> None:
    """Write PART.json and PART.md into a folder; `quick` says that less was measured."""
    made_with = {
        "vcpusched": __version__,
        "python": platform.python_version(),
        "machine": _cpu_model(),
        "pcpus": len(os.sched_getaffinity(0)),
        "quick": quick,
    }
    told = {"version": 1, "made_with": made_with, part: figures}
    (out / f"{part}.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / f"{part}.md").write_text("\n".join(table.markdown() for table in tables))


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
