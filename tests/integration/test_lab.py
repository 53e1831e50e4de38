"""The lab leaves nothing behind, however its owner ends (contrib/quickstart runs in it, too)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lab as lab_module
import pytest
from lab import Lab
from lab_processes import lab_processes
from service import wait_for

OWNER = """
import time
from lab import Lab
with Lab() as lab:
    lab.add_guest("abandoned", [0.1])
    lab.freeze_daemon()
    print(lab.directory, flush=True)
    time.sleep(600)
"""


def test_close(lab: Lab) -> None:
    """Also with a frozen daemon: every process ends, and the directory goes."""
    directory = lab.directory
    lab.add_guest("left", [0.1])
    assert len(lab_processes(directory)) >= 2
    lab.freeze_daemon()
    lab.close()
    assert not lab_processes(directory)
    assert not directory.exists()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_the_owner_is_killed(by: signal.Signals) -> None:
    """What it leaves is cleaned up by the process that watches it."""
    search = str(Path(lab_module.__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "PYTHONPATH": search},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        assert len(lab_processes(directory)) >= 2
        owner.send_signal(by)
    wait_for("cleaned up", lambda: not lab_processes(directory) and not directory.exists())
