"""Requests in the run directory: taken once, answered once, and whatever else lies there is not."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from vcpusched.service import control, exits, run_directory
from vcpusched.service.control import Answer, Request, Verb


def test_asked_and_answered(tmp_path: Path) -> None:
    """What is asked for arrives, and the answer comes back; no file stays."""
    asked: list[Request] = []

    def serve() -> None:
        with run_directory.locked(tmp_path):
            ready.set()
            while (found := inbox.take()) is None:
                time.sleep(0.01)
            asked.append(found)
            inbox.answer(Answer(1, ("shop: …",), ("mail\n",)))
            done.wait(10)

    warnings: list[object] = []
    inbox = control.Inbox(tmp_path, lambda *warning: warnings.append(warning))
    ready, done = threading.Event(), threading.Event()
    server = threading.Thread(target=serve)
    server.start()
    ready.wait(10)
    answer = control.ask(tmp_path, Request(Verb.RESTORE, ("shop", "mail\n")))
    done.set()
    server.join()
    assert answer == Answer(1, ("shop: …",), ("mail\n",))
    assert asked == [Request(Verb.RESTORE, ("shop", "mail\n"))]
    assert warnings == []
    assert [path.name for path in tmp_path.iterdir()] == [run_directory.LOCK]


def test_nobody_answers(tmp_path: Path) -> None:
    """Without a service there is no answer, and no file; nor when it ends before it answers."""
    assert control.ask(tmp_path, Request(Verb.RELEASE)) is None
    ready = threading.Event()

    def end() -> None:
        with run_directory.locked(tmp_path):
            ready.set()
            time.sleep(0.5)

    ending = threading.Thread(target=end)
    ending.start()
    ready.wait(10)
    assert control.ask(tmp_path, Request(Verb.RELEASE)) is None
    ending.join()
    assert [path.name for path in tmp_path.iterdir()] == [run_directory.LOCK]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"verb": "restore"}',
        '{"verb": "erase", "domains": []}',
        '{"verb": "restore", "domains": "shop"}',
        '{"verb": "restore", "domains": [1]}',
        '{"verb": "restore", "domains": ["' + "x" * control.REQUEST_SIZE_MAX + '"]}',
    ],
)
def test_what_is_no_request_is_removed(tmp_path: Path, text: str) -> None:
    """It stays nobody's problem for ever."""
    (tmp_path / "request-1.json").write_text(text)
    assert list(control.take(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_removed(tmp_path: Path) -> None:
    """A pipe blocks nobody, and a link is not followed."""
    os.mkfifo(tmp_path / "request-1.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps({"verb": "restore", "domains": []}))
    (tmp_path / "request-2.json").symlink_to(elsewhere)
    assert list(control.take(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_what_cannot_be_removed_is_passed_over(tmp_path: Path) -> None:
    """A directory of that name: others are heard all the same."""
    (tmp_path / "request-0.json").mkdir()
    text = json.dumps({"verb": "restore", "domains": []})
    (tmp_path / "request-1.json").write_text(text)
    assert [name for name, _asked in control.take(tmp_path)] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["request-0.json"]


def test_a_request_that_is_taken_back(tmp_path: Path) -> None:
    """Who asked has gone while others were served."""
    text = json.dumps({"verb": "restore", "domains": []})
    for number in (1, 2, 3):
        (tmp_path / f"request-{number}.json").write_text(text)
    taken = []
    for name, _asked in control.take(tmp_path):
        taken.append(name)
        (tmp_path / "request-2.json").unlink(missing_ok=True)
    assert taken == ["1", "3"]


@pytest.mark.parametrize("name", ["", "x", "a" * 200, "1\n2", "..", "1 2"])
def test_odd_names_are_answered_where_they_asked(tmp_path: Path, name: str) -> None:
    """The name of the answer's file is made of them, and leads nowhere else."""
    text = json.dumps({"verb": "restore", "domains": []})
    (tmp_path / f"request-{name}.json").write_text(text)
    inbox = control.Inbox(tmp_path, lambda *warning: pytest.fail(str(warning)))
    assert inbox.take() == Request(Verb.RESTORE)
    inbox.answer(Answer(exits.OK))
    assert [path.name for path in tmp_path.iterdir()] == [f"answer-{name}.json"]


def test_whatever_the_permissions(tmp_path: Path) -> None:
    """A request that nobody may read or write is taken away like any other, once."""
    path = tmp_path / "request-1.json"
    path.write_text(json.dumps({"verb": "restore", "domains": []}))
    path.chmod(0)
    assert len(list(control.take(tmp_path))) <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"status": "0", "lines": [], "problems": []}',
        '{"status": 0, "lines": "no", "problems": []}',
        '{"status": 0, "lines": [1], "problems": []}',
        None,
    ],
)
def test_what_is_no_answer(tmp_path: Path, text: str | None) -> None:
    """Nobody who asks reads a traceback, or a link to elsewhere, or waits for ever."""
    ready, done = threading.Event(), threading.Event()

    def serve() -> None:
        with run_directory.locked(tmp_path):
            ready.set()
            while not (found := [name for name, _asked in control.take(tmp_path)]):
                time.sleep(0.01)
            answer = tmp_path / f"answer-{found[0]}.json"
            if text is None:
                answer.symlink_to("/dev/zero")
            else:
                answer.write_text(text)
            done.wait(10)

    server = threading.Thread(target=serve)
    server.start()
    ready.wait(10)
    try:
        with pytest.raises(exits.Refusal, match="cannot be read"):
            control.ask(tmp_path, Request(Verb.RESTORE))
    finally:
        done.set()
        server.join()
    assert [path.name for path in tmp_path.iterdir()] == [run_directory.LOCK]


def test_old_requests_are_forgotten(tmp_path: Path) -> None:
    """Who asked them has gone long ago."""
    path = tmp_path / "request-1.json"
    path.write_text(json.dumps({"verb": "restore", "domains": []}))
    long_ago_s = time.time() - control.ANSWER_TIMEOUT_S - 1
    os.utime(path, (long_ago_s, long_ago_s))
    assert list(control.take(tmp_path)) == []


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """A request from the future is one of just now."""
    path = tmp_path / "request-1.json"
    path.write_text(json.dumps({"verb": "restore", "domains": []}))
    later_s = time.time() + 3600
    os.utime(path, (later_s, later_s))
    assert [name for name, _asked in control.take(tmp_path)] == ["1"]


def test_old_answers_are_taken_away(tmp_path: Path) -> None:
    """Who asked was killed before reading it; one of just now is waited for."""
    old, new = tmp_path / "answer-1.json", tmp_path / "answer-2.json"
    for path in (old, new):
        path.touch()
    long_ago_s = time.time() - control.ANSWER_TIMEOUT_S - 1
    os.utime(old, (long_ago_s, long_ago_s))
    assert list(control.take(tmp_path)) == []
    assert list(tmp_path.iterdir()) == [new]
