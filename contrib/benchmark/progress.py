"""Runs what takes long, on several processes where asked, and shows how far it has come.

Rule: results never depend on the number of processes; progress goes to standard error only.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LINE_EVERY_S: Final = 15
"""The least time between two lines of the same task."""


def follow(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Pass the items on, and say how many of `total` have passed."""
    began_s = said_s = time.monotonic()
    say(f"{what}: 0 of {total}")
    for done, item in enumerate(items, 1):
        yield item
        now_s = time.monotonic()
        if now_s - said_s >= LINE_EVERY_S or done == total:
            say(f"{what}: {done} of {total} after {now_s - began_s:.0f} s")
            said_s = now_s


def in_processes(work: Callable[[T], R], tasks: Sequence[T], jobs: int, what: str) -> list[R]:
    """Return the results of all tasks in their order, worked on by so many processes."""
    if jobs == 1:
        return list(follow(map(work, tasks), len(tasks), what))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        return list(follow(pool.map(work, tasks), len(tasks), what))


def say(text: str) -> None:
    """Write one line."""
    print(text, file=sys.stderr, flush=True)
