"""How many pins there were in the last hour and the last day, for the state file.

Rule: pure; the caller passes the time.
"""

from collections import Counter


class Recent:
    """Pins of the last day, to the minute."""

    def __init__(self) -> None:
        self._by_minute: Counter[int] = Counter()

    def add(self, now_s: float) -> None:
        """Count one pin, now."""
        self._by_minute[int(now_s // 60)] += 1

    def counts(self, now_s: float) -> tuple[int, int]:
        """Return the pins of the last hour and of the last day, and forget what is older."""
        minute = int(now_s // 60)
        for old in [key for key in self._by_minute if key <= minute - 24 * 60]:
            del self._by_minute[old]
        hour = sum(n for key, n in self._by_minute.items() if key > minute - 60)
        return hour, self._by_minute.total()
