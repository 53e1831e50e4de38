"""Tells how far a long run has come: a bar on a terminal, plain lines when piped.

Rule: results never depend on it; it writes to standard error only.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")

LINE_EVERY_S: Final = 15
"""When piped: the least time between two lines of the same task."""

_console = Console(stderr=True)


def follow(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Give the items on, telling how many of `total` have passed."""
    if _console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=_console) as bar:
            task = bar.add_task(what, total=total)
            for item in items:
                yield item
                bar.advance(task)
        return
    began_s = said_s = time.monotonic()
    say(f"{what}: 0 of {total}")
    for done, item in enumerate(items, 1):
        yield item
        now_s = time.monotonic()
        if now_s - said_s >= LINE_EVERY_S or done == total:
            say(f"{what}: {done} of {total} after {now_s - began_s:.0f} s")
            said_s = now_s


def say(text: str) -> None:
    """Write one line."""
    _console.print(text, highlight=False, markup=False, soft_wrap=True)
