"""Whether a long run kept all that must be true, and what memory and open files did."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab_processes import resident_mib
from progress import say

SLACK_MIB: Final = 4
"""What the interpreter may take more or less of, whatever it runs."""


@dataclass(frozen=True, slots=True)
class Size:
    """The resident memory and the open files of a process, at some time of the run.

    Once for each thread that runs, its counters do not count: the service keeps those of vCPUs.
    """

    at: str
    resident_mib: float
    files: int

    @classmethod
    def of(cls, pid: int, at: str) -> "Size":
        """Measure a process."""
        files = []
        for _ in range(5):  # a file that is open for a moment does not count
            files.append(_open_files(pid))
            time.sleep(0.1)
        return cls(at, resident_mib(pid), min(files))


def _open_files(pid: int) -> int:
    paths: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            paths[str(link.readlink())] += 1
    running = {path for path in paths if path.endswith("/schedstat") and Path(path).exists()}
    return paths.total() - len(running)


def verdict(
    seen: Counter[str], sizes: Sequence[Size], broken: Sequence[str], slack_files: int = 0
) -> bool:
    """Say what happened, how memory and files grew, and what was broken; return whether nothing."""
    for what, count in seen.most_common():
        say(f"  {count:>7,}  {what}")
    for size in sizes:
        say(f"after {size.at}: {size.resident_mib:.1f} MiB resident, {size.files} open files")
    problems = list(broken)
    if sizes and sizes[-1].files - sizes[0].files > slack_files:
        problems.append("open files grew")
    if sizes and sizes[-1].resident_mib - sizes[0].resident_mib > SLACK_MIB:
        problems.append("memory grew")
    for problem in problems:
        say(f"BROKEN: {problem}")
    say("Not all that must be true was." if problems else "All that must be true was.")
    return not problems
