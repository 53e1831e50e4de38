"""Ends a measurement cleanly on a signal."""

import signal
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def end_on_signals() -> None:
    """Have SIGTERM, SIGINT and SIGHUP raise SystemExit, so that guests and files are removed."""
    for number in _SIGNALS:
        signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    # Another signal must not cut the cleaning up short.
    for served in _SIGNALS:
        signal.signal(served, lambda _number, _frame: None)
    raise SystemExit(128 + number)
