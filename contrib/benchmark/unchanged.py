"""Compares what two commits decide: plans of drawn hosts, and pins of simulations with faults.

Rule: each side runs in a process of its own, on the package of its own commit, and gets the same
hosts and faults (`decisions`). Equal means byte for byte.

Problem: a change of the tree must change no decision, and a change of a decision must be seen.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

TOP: Final = Path(__file__).parents[2]
SHOWN_MAX: Final = 2000
"""Characters of a line that differs which are shown."""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Unpack the package of a commit into a folder, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="vcpusched-against-") as directory:
        git = ["git", "-c", "safe.directory=*", "-C", str(TOP), "archive", commit, "vcpusched"]
        archive = subprocess.run(git, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", directory], check=True, input=archive)
        yield Path(directory)


def started(tree: Path, said: Path, asked: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start one side on the package in `tree`."""
    command = [sys.executable, str(Path(__file__).with_name("decisions.py"))]
    with said.open("wb") as out:
        return subprocess.Popen(
            [*command, str(asked.hosts), str(asked.simulations)],
            stdout=out,
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "random"},
        )


def quality(lines: Sequence[str]) -> str:
    """Say in one line what all plans of one side come to."""
    plans = [said for said in map(json.loads, lines) if "plan" in said]
    pins = sum(len(plan["moves"]) for plan in plans)
    balanced = sum(plan["stop"] == "balanced" for plan in plans)
    gap = sum(plan["gap_after"] for plan in plans) // max(1, len(plans)) / 10_000
    return f"{len(plans):,} plans, {balanced:,} end balanced, {pins:,} pins, mean gap {gap:.2f}"


def each(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Say in one line how two plans for one host differ in what they reach."""
    sides = (
        f"gap {it['gap_after'] / 10_000:.2f} with {len(it['moves'])} pins" for it in (one, other)
    )
    return f"  host {one['plan']}: " + ", here ".join(sides)


def compare(there: Sequence[str], here: Sequence[str], *, details: bool) -> bool:
    """Print hashes, counts and the first difference; returns whether all is equal."""
    for name, lines in (("there", there), ("here", here)):
        print(f"{name:>5}: sha256 {hashlib.sha256(''.join(lines).encode()).hexdigest()}")
        print(f"       {quality(lines)}")
    pairs = list(zip(there, here, strict=True))
    different = [(json.loads(one), json.loads(other)) for one, other in pairs if one != other]
    print(f"{len(pairs) - len(different):,} of {len(pairs):,} lines are equal")
    if details:
        for one, other in different:
            if "plan" in one:
                print(each(one, other))
    for one, other in different[:1]:
        print(f"there: {json.dumps(one)[:SHOWN_MAX]}\n here: {json.dumps(other)[:SHOWN_MAX]}")
    return not different


def main() -> int:
    """Read the command line; returns the exit status: 1 where a decision differs."""
    parser = argparse.ArgumentParser(
        prog="contrib/benchmark/run unchanged", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--against", required=True, metavar="COMMIT")
    parser.add_argument("--hosts", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--simulations", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--quality", action="store_true", help="show each host that differs")
    asked = parser.parse_args()
    with checked_out(asked.against) as tree, tempfile.TemporaryDirectory() as directory:
        files = {tree: Path(directory) / "there", TOP: Path(directory) / "here"}
        sides = [started(root, said, asked) for root, said in files.items()]
        if sum(side.wait() for side in sides):
            return 2
        there, here = (said.read_text().splitlines(keepends=True) for said in files.values())
    return 0 if compare(there, here, details=asked.quality) else 1


if __name__ == "__main__":
    sys.exit(main())
