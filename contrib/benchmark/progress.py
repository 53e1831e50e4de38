"""Shows on standard error how far a long run has come; results never depend on it."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

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


def say(text: str) -> None:
    """Write one line."""
    print(text, file=sys.stderr, flush=True)
