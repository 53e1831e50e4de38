"""The command behind contrib/benchmark/run: runs the parts, shows tables, draws pictures.

Rule: arguments, files and order live here; what is measured lives in the part that measures it.
"""

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import bars
import defaults
import methods
import pictures
import replay
import results
import scaling
import static
from progress import say
from replay_tables import replay_tables
from sides import HERE, Side, beside
from static_tables import scaling_tables, static_tables
from tables import Table, show

PARTS: Final = ("bars", "static", "scaling", "replay")
BY_NAME: Final = "defaults"
"""What runs only when it is asked for."""

TOP: Final = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a part gives: its figures for the JSON file, its tables and its pictures."""

    figures: object
    tables: Sequence[Table]
    pictures: Sequence[Path]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; gives the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    out: Path = chosen.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Before half an hour is spent on other parts.
        sets = replay.load_sets(chosen.traces, replay.QUICK if chosen.quick else replay.FULL)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    began_s = time.monotonic()
    found: dict[str, Result] = {}
    with beside(chosen.against) if chosen.against else contextlib.nullcontext() as there:
        for part in [chosen.only] if chosen.only else PARTS:
            found[part] = _run_part(part, chosen, sets, there)
            show(found[part].tables)
    for part, result in found.items():
        results.write(out, part, result.figures, result.tables, quick=chosen.quick)
    files = sorted(path.name for path in out.iterdir())
    say(f"Done in {(time.monotonic() - began_s) / 60:.1f} minutes. In {out}: {', '.join(files)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run",
        description="Measures vcpusched against other rules, against the proven optimum, and on"
        " traces. A full run takes three quarters of an hour on two slow pCPUs, --quick four"
        " minutes.",
    )
    parser.add_argument("traces", metavar="TRACES", nargs="?", type=Path, help="folder of traces")
    parser.add_argument("--quick", action="store_true", help="fewer hosts, shorter traces")
    parser.add_argument("--only", choices=[*PARTS, BY_NAME], help="run one part only")
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        type=_commit,
        help="measure the planner of a commit beside this one",
    )
    parser.add_argument(
        "--out", type=Path, default=TOP / "build" / "benchmark", help="where results are written"
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        default=len(os.sched_getaffinity(0)),
        help="processes for what is not timed (default: one for each pCPU)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes from 1 on")
    return int(text)


def _commit(text: str) -> str:
    git = ["git", "-c", "safe.directory=*", "-C", str(TOP), "rev-parse", "--quiet", "--verify"]
    if subprocess.run(
        [*git, f"{text}^{{commit}}"], check=False, stdout=subprocess.DEVNULL
    ).returncode:
        raise argparse.ArgumentTypeError(f"{text!r} is no commit of this repository")
    return text


def _run_part(
    part: str, chosen: argparse.Namespace, sets: Sequence[replay.LoadSet], there: Side | None
) -> Result:
    out: Path = chosen.out
    competitors = methods.with_side(there)
    if part == "bars":
        sides = [HERE] if there is None else [there, HERE]
        met = bars.run(sides, bars.QUICK if chosen.quick else bars.FULL, chosen.jobs)
        return Result([dataclasses.asdict(row) for row in met], [bars.table(met)], [])
    if part == "static":
        scale = static.QUICK if chosen.quick else static.FULL
        rows = static.run(scale, chosen.jobs, competitors)
        return Result(
            [_without_places(row) for row in rows],
            static_tables(rows),
            pictures.draw_static(rows, out, competitors),
        )
    if part == BY_NAME:
        runs = defaults.replayed(sets, chosen.jobs)
        at_rest = bars.QUICK if chosen.quick else bars.FULL
        return Result(
            [dataclasses.asdict(one) for one in runs],
            defaults.tables(runs, at_rest, chosen.jobs),
            [],
        )
    if part == "replay":
        rivals = replay.with_side(there)
        runs = replay.run(sets, chosen.jobs, rivals)
        return Result(
            [dataclasses.asdict(one) for one in runs],
            replay_tables(runs),
            pictures.draw_replay(runs, out, rivals),
        )
    points = scaling.run(scaling.QUICK if chosen.quick else scaling.FULL, competitors)
    return Result(
        [dataclasses.asdict(point) for point in points],
        scaling_tables(points),
        pictures.draw_scaling(points, out, competitors),
    )


def _without_places(row: static.Row) -> Mapping[str, object]:
    optimum = dataclasses.replace(row.optimum, places={})
    return dataclasses.asdict(dataclasses.replace(row, optimum=optimum))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
