"""The run directory: the lock that makes one daemon per host, and files replaced atomically.

Rule: files only; what is in them is for others to know.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vcpusched.act.ledger_file import LedgerError

DEFAULT: Final = Path("/run/vcpusched")
LOCK: Final = "lock"
STATE: Final = "state.json"
LEDGER: Final = "affinity.json"
SET_ASIDE: Final = "affinity.unusable-{}.json"
SIZE_MAX: Final = 256 << 20
"""Ten times what the state of 10,000 vCPUs takes, and more; the ledger and answers take less."""

LOCK_TIMEOUT_S: Final = 1.0
"""`status` holds the lock for an instant to see whether it is free: a starting daemon waits."""


class RunDirectoryError(Exception):
    """The run directory cannot be used; the text says why, on one line."""


class AlreadyRunningError(Exception):
    """Another vcpusched holds the lock; the text says which."""


def locate() -> Path:
    """Return the run directory: the one systemd made for us, else the packaged one."""
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
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with contextlib.suppress(PermissionError):
            # Who can open it can lock it, and keep the service from starting.
            os.fchmod(lock, 0o600)
        _give_to_owner(lock, directory)
        _acquire(lock, path)
        with contextlib.suppress(OSError):  # a full disk must not keep pins from being restored
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two daemons lock two files of one name.
        os.close(lock)


def _give_to_owner(lock: int, directory: Path) -> None:
    """Let the service use what root may have made in its directory."""
    if os.geteuid() == 0 and os.fstat(lock).st_uid != (owner := directory.stat()).st_uid:
        os.fchown(lock, owner.st_uid, owner.st_gid)


def _acquire(lock: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise AlreadyRunningError(
                    f"vcpusched already runs on this host, as process {holder(path.parent) or '?'}"
                    f" (it holds {path})"
                ) from None
            time.sleep(0.05)
        else:
            return


def holder(directory: Path) -> int | None:
    """Return the process that locked last; None where that cannot be read."""
    try:
        return int(read_file(directory / LOCK, 32))
    except (OSError, ValueError):
        return None


def lives(directory: Path) -> bool:
    """Return whether a daemon lives. Needs no privilege. Raises RunDirectoryError.

    The lock is certain; where it may not be opened, the process that wrote the state says so.
    """
    path = directory / LOCK
    try:
        with _opened(path, os.O_RDONLY | os.O_NONBLOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except PermissionError:
        return _is_process(*_writer(directory))
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read: {error.strerror}") from error
    return False


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    opened = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield opened
    finally:
        os.close(opened)


def replace_file(path: Path, text: str, *, durable: bool = False) -> None:
    """Replace a file of our own atomically: a reader sees the old one or the new one.

    A durable one is on disk, name and all, when this returns. Raises OSError, and
    UnicodeEncodeError for text that is none.
    """
    written, temporary = text.encode(), path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # follows no link
    try:
        temporary.unlink(missing_ok=True)  # a namesake left it when it was killed
        with os.fdopen(os.open(temporary, flags, 0o644), "wb") as file:
            # Whatever the umask and the writing user: the service and any user's `status` read it.
            os.fchmod(file.fileno(), 0o644)
            _give_to_owner(file.fileno(), path.parent)
            file.write(written)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            with _opened(path.parent, os.O_RDONLY | os.O_DIRECTORY) as directory:
                os.fsync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_file(path: Path, size_max: int = SIZE_MAX) -> str:
    """Read a file of any origin: no link, no pipe, no more than so many bytes.

    Raises OSError, and ValueError for what is no such file or no UTF-8 text.
    """
    with _opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as opened:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode) or found.st_size > size_max:
            raise ValueError(f"not a file of at most {size_max} bytes")
        with os.fdopen(opened, "rb", closefd=False) as file:
            read = file.read(size_max)
    try:
        return read.decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


def write_state(directory: Path, state: Mapping[str, Any]) -> None:
    """Replace the state file, and say which process wrote it. Raises OSError."""
    pid = os.getpid()
    written = {**state, "pid": pid, "process_start": _process_start(pid)}
    replace_file(directory / STATE, json.dumps(written, separators=(",", ":")) + "\n")


def read_state(directory: Path) -> str | None:
    """Return the text of the state file, None where there is none. Raises RunDirectoryError."""
    path = directory / STATE
    try:
        return read_file(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunDirectoryError(f"{path}: cannot be read: {why}") from None


def check_writer(directory: Path, pid: int) -> None:
    """Raise RunDirectoryError unless the state may be that of the process that holds the lock."""
    if (now := holder(directory)) not in {None, pid}:
        raise RunDirectoryError(
            f"{directory / STATE}: is of process {pid}, and process {now} holds the lock, which"
            " restores without a service, or cannot write its state"
        )


def _writer(directory: Path) -> tuple[int, int]:
    """Return the process that wrote the state file and when that began; 0 and 0 if unknown."""
    try:
        state = json.loads(read_state(directory) or "{}")
        pid, start = state["pid"], state["process_start"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return 0, 0
    return (pid, start) if isinstance(pid, int) and isinstance(start, int) else (0, 0)


def _is_process(pid: int, start: int) -> bool:
    if pid <= 0:
        return False
    try:
        return _process_start(pid) == start
    except OSError:
        pass  # it ended, or /proc is mounted so that it does not show others' processes
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _process_start(pid: int) -> int:
    """Return when a process began, in ticks since the machine came up. Raises OSError."""
    # Field 22 of proc(5); the second one is a name in parentheses, which may hold any letter.
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[19])


class LedgerFile:
    """The file that keeps the ledger.

    It is in the run directory, so that it lives exactly as long as the machine is up, as the
    affinities do. One that is no ledger is set aside under another name and never overwritten: the
    original affinities may still be read from it by a person.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LEDGER

    def read(self) -> str | None:
        """Return the text of the file."""
        try:
            return read_file(self.path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise LedgerError(str(error)) from None

    def replace(self, text: str) -> None:
        """Replace the file; it and its name are on disk when this returns."""
        replace_file(self.path, text, durable=True)

    def set_aside(self) -> str:
        """Return the file a name that is free."""
        number = 1
        while os.path.lexists(there := self.path.with_name(SET_ASIDE.format(number))):
            number += 1
        self.path.rename(there)
        return str(there)
