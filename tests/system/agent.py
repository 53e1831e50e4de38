r"""Runs inside the machine: carries out commands that come in over a virtio-serial port.

A request and its answer are one line of JSON each. Requests run beside each other, so one that
hangs delays none; each has a limit, after which it is killed with all that it started.

    {"id": 7, "command": ["ls", "/"], "limit_s": 60}
    {"id": 7, "status": 0, "out": "bin\nboot\n", "err": ""}
    {"id": 8, "path": "/etc/motd", "content": "aGVsbG8=", "mode": 420}
    {"id": 8, "status": 0, "out": "", "err": ""}
    {"id": 9}
    {"id": 9, "status": 0, "out": "", "err": ""}

The last asks for nothing but a sign of life. `status` is that of subprocess: negative for a signal;
null where the limit ended it. A file is written with its folders; its content comes in base64.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

ENVIRONMENT = {
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "dumb",
    # The machine has no network: what pip installs lies on its disk.
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/usr/local/share/wheels",
}
PAUSE_S = 0.2


def serve(port: BinaryIO) -> None:
    """Answer requests until the machine goes down."""
    answering = threading.Lock()

    def answer(line: bytes) -> None:
        request = json.loads(line)
        try:
            done = _do(request)
        except OSError as error:
            done = {"status": 127, "out": "", "err": str(error)}
        left = memoryview((json.dumps({"id": request["id"], **done}) + "\n").encode())
        with answering:
            while left:  # the port takes no more than 32 KiB at once
                left = left[port.write(left) :]

    pending = b""
    while True:
        read = port.read(65536)
        if not read:  # nobody is at the other end
            time.sleep(PAUSE_S)
            continue
        *lines, pending = (pending + read).split(b"\n")
        for line in filter(None, lines):
            threading.Thread(target=answer, args=(line,), daemon=True).start()


def _do(request: dict[str, Any]) -> dict[str, Any]:
    if "path" in request:
        return _write(request)
    if "command" in request:
        return _run(request)
    return {"status": 0, "out": "", "err": ""}


def _write(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(request["content"]))
    path.chmod(request["mode"])
    return {"status": 0, "out": "", "err": ""}


def _run(request: dict[str, Any]) -> dict[str, Any]:
    # Files, not pipes: what a command leaves running would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            request["command"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
        status: int | None
        try:
            status = process.wait(request["limit_s"])
        except subprocess.TimeoutExpired:
            status = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return {
            "status": status,
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
        }


if __name__ == "__main__":
    with Path(sys.argv[1]).open("r+b", buffering=0) as opened:
        serve(opened)
