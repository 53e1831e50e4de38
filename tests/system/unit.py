"""The service as systemd and the journal show it, in the container and in the machine."""

import json
import time
from collections.abc import Callable
from typing import Protocol


class Host(Protocol):
    """What runs commands."""

    def say(self, *command: str, check: bool = True) -> str:
        """Run a command; gives what it printed."""
        ...


def wait_for(what: str, condition: Callable[[], bool], limit_s: float = 120) -> float:
    """Wait until a condition holds; gives how long that took, in seconds.

    It rests as long as it asks: to ask loads the host, whose loads the service goes by.
    """
    began_s = asked_s = time.monotonic()
    while not condition():
        answered_s = time.monotonic()
        assert answered_s - began_s < limit_s, what
        time.sleep(max(0.3, answered_s - asked_s))
        asked_s = time.monotonic()
    return time.monotonic() - began_s


def shown(host: Host, key: str) -> str:
    """Give a property of the unit."""
    line = host.say("systemctl", "show", "vcpusched", f"--property={key}")
    return line.strip().partition("=")[2]


def entries(host: Host, message_id: str, unit: str = "vcpusched") -> list[dict[str, str]]:
    """Give the journal's entries with a message ID, of the unit or (empty) of anybody."""
    of_unit = [f"--unit={unit}"] if unit else []
    text = host.say(
        *("journalctl", *of_unit, "--output=json", "--no-pager"), f"MESSAGE_ID={message_id}"
    )
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def said(host: Host) -> str:
    """Give all that the service has said."""
    return host.say("journalctl", "--unit=vcpusched", "--no-pager", "--output=cat")
