"""What runs commands inside the machine of tests/system, without the machine."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent
import pytest

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask() -> Iterator[Ask]:
    """Give a function that sends requests, as keywords, and gives the first answer."""
    ours, theirs = socket.socketpair()
    port = theirs.makefile("rwb", buffering=0)
    server = threading.Thread(target=agent.serve, args=(port,), daemon=True)
    server.start()
    lines = ours.makefile("rb")
    unanswered = 0

    def send(*requests: dict[str, Any]) -> dict[str, Any]:
        nonlocal unanswered
        text = "".join(f"{json.dumps(request)}\n" for request in requests)
        ours.sendall(text.encode())
        unanswered += len(requests) - 1
        answer: dict[str, Any] = json.loads(lines.readline())
        return answer

    with ours, theirs, lines:
        ours.settimeout(30)
        yield send
        # A thread that answers into a closed socket would fail in the middle of another test.
        for _ in range(unanswered):
            lines.readline()


def test_a_command(ask: Ask) -> None:
    """Both outputs, apart, and the status; much of it in one piece."""
    script = "seq 100000; echo odd >&2; exit 3"
    answer = ask({"id": 7, "command": ["sh", "-c", script], "limit_s": 20})
    assert (answer["id"], answer["status"], answer["err"]) == (7, 3, "odd\n")
    assert answer["out"].split() == [str(number) for number in range(1, 100_001)]


def test_a_command_that_hangs(ask: Ask) -> None:
    """It is ended, with what it printed before, and what it started is ended, too."""
    mark = f"6{time.monotonic_ns()}"
    began_s = time.monotonic()
    script = f"echo $$; sleep {mark} & wait"
    answer = ask({"id": 0, "command": ["sh", "-c", script], "limit_s": 0.5})
    assert answer["status"] is None
    assert answer["out"].strip().isdecimal()
    assert time.monotonic() - began_s < 10
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert not any(mark.encode() in command for command in commands)


def test_one_that_hangs_delays_no_other(ask: Ask) -> None:
    """The answer to the later request comes first."""
    slow = {"id": 1, "command": ["sleep", "3"], "limit_s": 20}
    quick = {"id": 2, "command": ["true"], "limit_s": 20}
    assert ask(slow, quick)["id"] == 2


def test_what_it_leaves_running_is_not_waited_for(ask: Ask) -> None:
    """As with whatever starts a daemon."""
    began_s = time.monotonic()
    answer = ask({"id": 0, "command": ["sh", "-c", "sleep 30 & echo on"], "limit_s": 20})
    assert (answer["status"], answer["out"]) == (0, "on\n")
    assert time.monotonic() - began_s < 20


def test_no_such_command(ask: Ask) -> None:
    """Told as a shell would."""
    answer = ask({"id": 0, "command": ["/no/such"], "limit_s": 5})
    assert answer["status"] == 127
    assert "/no/such" in answer["err"]


def test_a_file(ask: Ask, tmp_path: Path) -> None:
    """Written with its folders and its mode."""
    path = tmp_path / "a/b"
    content = base64.b64encode(b"\0\xff").decode()
    answer = ask({"id": 0, "path": str(path), "content": content, "mode": 0o600})
    assert answer["status"] == 0
    assert path.read_bytes() == b"\0\xff"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_sign_of_life(ask: Ask) -> None:
    """Given at once, whatever else it does."""
    slow = {"id": 1, "command": ["sleep", "2"], "limit_s": 20}
    assert ask(slow, {"id": 2}) == {"id": 2, "status": 0, "out": "", "err": ""}
