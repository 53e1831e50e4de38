"""The run directory: the lock that makes one daemon per host, and files replaced atomically.

Rule: files only; nothing here knows what is in them.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

DEFAULT: Final = Path("/run/vcpusched")
LOCK: Final = "lock"
STATE: Final = "state.json"

LOCK_PATIENCE_S: Final = 1.0
"""`status` holds the lock for an instant to see whether it is free: a starting daemon waits."""


class RunDirectoryError(Exception):
    """The run directory cannot be used; the text says why, on one line."""


class AlreadyRunningError(Exception):
    """Another vcpusched holds the lock; the text says which."""


def locate() -> Path:
    """Give the run directory: the one systemd made for us, else the packaged one."""
    named = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(named) if named else DEFAULT


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock: one daemon per host, since two would take each other's pins for a human's.

    Raises RunDirectoryError, and AlreadyRunningError.
    """
    path = directory / LOCK
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        _acquire(lock, path)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two daemons lock two files of one name.
        os.close(lock)


def _acquire(lock: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
                raise AlreadyRunningError(
                    f"vcpusched already runs on this host, as process {holder or '?'}"
                    f" (it holds {path})"
                ) from None
            time.sleep(0.05)
        else:
            return


def is_locked(directory: Path) -> bool:
    """Tell whether a daemon lives. Needs no privilege. Raises RunDirectoryError."""
    try:
        lock = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunDirectoryError(f"{directory / LOCK}: cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def replace_file(path: Path, text: str) -> None:
    """Replace a file of our own atomically: a reader sees the old one or the new one.

    Raises OSError, and UnicodeEncodeError for text that is none.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)  # a namesake left it when it was killed
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file. Raises OSError."""
    replace_file(directory / STATE, json.dumps(state, separators=(",", ":")) + "\n")


def read_state(directory: Path) -> str | None:
    """Give the text of the state file, None where there is none. Raises RunDirectoryError."""
    path = directory / STATE
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error}") from None
