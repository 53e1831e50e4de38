"""Command-line arguments that several programs take."""

import argparse
import subprocess
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]


def add_common(parser: argparse.ArgumentParser, against: str, quick: str) -> None:
    """Add where results go, the commit that is measured beside this tree, and how much is."""
    out = TOP / "build" / "benchmark"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--against", metavar="COMMIT", type=_commit, help=against)
    parser.add_argument("--out", type=Path, default=out, help="where results are written")


def count(text: str) -> int:
    """Return a whole number from 1 on."""
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _commit(text: str) -> str:
    git = ["git", "-c", "safe.directory=*", "-C", str(TOP), "rev-parse", "--quiet", "--verify"]
    if subprocess.run(
        [*git, f"{text}^{{commit}}"], check=False, stdout=subprocess.DEVNULL
    ).returncode:
        raise argparse.ArgumentTypeError(f"{text!r} is no commit of this repository")
    return text
