"""Pauses: a file that anybody may drop, and two verbs."""

import os
import time
from pathlib import Path

import pytest
from builders import MemoryHost
from program import vcpusched

from vcpusched.act.cycle import Rules, Scheduler
from vcpusched.report.messages import Pause
from vcpusched.service import control


def test_an_empty_file_pauses(tmp_path: Path) -> None:
    """Until it is removed."""
    assert control.read_pause(tmp_path) is None
    (tmp_path / "pause").touch()
    assert control.read_pause(tmp_path) == Pause()
    assert control.end_pause(tmp_path)
    assert control.read_pause(tmp_path) is None
    assert not control.end_pause(tmp_path)


def test_a_pause_ends_by_itself(tmp_path: Path) -> None:
    """Its file goes with it."""
    (tmp_path / "pause").write_text("2026-11-24T21:00:00Z\n")
    past = tmp_path / "pause"
    (tmp_path / "pause").write_text("2020-01-01T00:00:00+01:00")
    assert control.read_pause(tmp_path) is None
    assert not past.exists()
    past.write_text("2020-01-01T00:00:00+01:00")
    assert not control.end_pause(tmp_path)
    assert not past.exists()
    begun = control.begin_pause(tmp_path, 60)
    assert begun.until_s is not None
    assert begun.until_s == pytest.approx(time.time() + 60, abs=2)
    assert control.read_pause(tmp_path) == begun
    assert begun.text.startswith("Paused until ")


@pytest.mark.parametrize(
    "content",
    [
        "tomorrow",
        "2026-11-24T21:00:00",
        "\x1b[31m",
        "x" * 5000,
        "9" * 400,
        "0000-00-00T00:00:00Z",
        "9999-12-31T23:59:59-12:00",
    ],
)
def test_a_typo_pauses(tmp_path: Path, content: str) -> None:
    """What is no time pauses until it is removed, and one line says what is wrong."""
    (tmp_path / "pause").write_text(content)
    found = control.read_pause(tmp_path)
    assert found is not None
    assert found.until_s is None
    assert len(found.problem.splitlines()) == 1
    assert found.problem.isprintable()


def test_whatever_is_there_pauses(tmp_path: Path) -> None:
    """A pipe, which must block nobody, a directory, a link."""
    path = tmp_path / "pause"
    os.mkfifo(path)
    assert control.read_pause(tmp_path) is not None
    path.unlink()
    path.mkdir()
    assert control.read_pause(tmp_path) is not None
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    assert control.read_pause(tmp_path) is not None


def test_the_verbs(tmp_path: Path) -> None:
    """Without a service and without libvirt; a time that is none is a usage error."""
    where = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    assert vcpusched("pause", **where).stdout == 'Paused until "vcpusched resume".\n'
    assert vcpusched("pause", "--for", "30m", **where).stdout.startswith("Paused until ")
    found = control.read_pause(tmp_path / "run")
    assert found is not None
    assert found.until_s == pytest.approx(time.time() + 1800, abs=30)
    assert vcpusched("resume", **where).stdout == "Balancing resumed.\n"
    assert vcpusched("resume", **where).stdout == "There was no pause.\n"
    for wrong in ("30", "m", "-3m", "0s", "1.5h", "9999999d", "400d", "٣m"):
        done = vcpusched("pause", f"--for={wrong}", **where)
        assert done.returncode == 2
        assert "must be a time such as" in done.stderr
    blocked = tmp_path / "file"
    blocked.touch()
    done = vcpusched("pause", RUNTIME_DIRECTORY=str(blocked / "run"))
    assert done.returncode == 1
    assert done.stderr == f"vcpusched: {blocked}/run: cannot be written: Not a directory\n"


def test_a_paused_scheduler_moves_nothing() -> None:
    """It plans as ever, and acts as soon as the pause is over."""
    names = ("a", "b", "c", "d")
    host = MemoryHost(2, dict.fromkeys(names, 0.25), dict.fromkeys(names, "0"))
    scheduler = Scheduler()
    for _ in range(6):
        cycle = scheduler.cycle(host, Rules(paused=True))
        host.pass_time()
    assert cycle.plan is not None
    assert cycle.plan.moves
    assert not cycle.executed
    assert host.pins == []
    scheduler.cycle(host, Rules())
    assert len(host.pins) == 2
