"""What a Linux guest prints on its console, without a guest."""

import pytest
from lab_image import LabError
from linux_guest import parse_console, usage_between

CONSOLE = (
    "[    0.0] Linux\r\n"
    "STAT 10.00 cpu0 100 0 20 700 30 0 0 0 0 0 cpu1 5 0 0 950 0 0 0 0 0 0\r\n"
    "STAT 12.00 cpu0 200 0 20 705 35 0 0 0 0 0 cpu1 5 0 0 1150 0 0 0 0 0 0\r\n"
    "STAT 14.00 cpu0 300 0 2"
)


def test_the_console() -> None:
    """Of 2 s, vCPU 0 idles for 0.05 s and awaits a disk as long; a line cut short is none."""
    first, last = parse_console(CONSOLE)
    assert (first.uptime_s, first.busy_s) == (10.0, {0: 2.7, 1: 0.5})
    assert usage_between(first, last) == pytest.approx({0: 0.95, 1: 0.0})
    with pytest.raises(LabError):
        usage_between(last, first)
