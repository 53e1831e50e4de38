"""The command behind contrib/benchmark/run: runs the parts, and shows tables.

Rule: arguments, files and order live here; what is measured lives in the part that measures it.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from arguments import add_common, count
from plans import bars
from progress import say
from replay import competitors, runs
from sides import HERE, Side, beside
from tables import Table, write

PARTS: Final = ("bars", "replay")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark, and return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    out: Path = chosen.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Before half an hour is spent on other parts.
        sets = runs.load_sets(chosen.traces, runs.QUICK if chosen.quick else runs.FULL)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    began_s = time.monotonic()
    with beside(chosen.against) if chosen.against else contextlib.nullcontext() as there:
        for part in [chosen.only] if chosen.only else PARTS:
            figures, tables = _run_part(part, chosen, sets, there)
            print(*(table.markdown() for table in tables), sep="\n")
            write(out, part, figures, tables, quick=chosen.quick)
    files = sorted(path.name for path in out.iterdir())
    say(f"Done in {(time.monotonic() - began_s) / 60:.1f} minutes. In {out}: {', '.join(files)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run",
        description="Measures vcpusched against other rules, against the proven optimum, and on"
        " traces. contrib/benchmark/run --help says how.",
    )
    parser.add_argument("traces", metavar="TRACES", nargs="?", type=Path, help="folder of traces")
    parser.add_argument("--only", choices=PARTS, help="run one part only")
    jobs = len(os.sched_getaffinity(0))
    words = "processes for what is not timed (default: one for each pCPU)"
    parser.add_argument("--jobs", type=count, default=jobs, help=words)
    against = "measure the planner of a commit beside this one"
    add_common(parser, against, "fewer hosts, shorter traces")
    return parser


def _run_part(
    part: str, chosen: argparse.Namespace, sets: Sequence[runs.LoadSet], there: Side | None
) -> tuple[object, Sequence[Table]]:
    """Return the figures of a part, and its tables."""
    if part == "bars":
        sides = [HERE] if there is None else [there, HERE]
        met = bars.run(sides, bars.QUICK if chosen.quick else bars.FULL, chosen.jobs)
        return met, [bars.table(met)]
    found = runs.summaries(runs.run(sets, chosen.jobs, competitors.with_side(there)))
    return found, runs.tables(found)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
