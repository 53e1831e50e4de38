"""Where a command gets the host from: a file, the running service, or libvirt.

Rule: errors become one line and an exit status; libvirt is imported only where it is asked.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final, TypeVar

from vcpusched.model import Host
from vcpusched.report import snapshot, state_file
from vcpusched.service import exits, run_directory
from vcpusched.service.run_directory import SIZE_MAX
from vcpusched.settings import Settings
from vcpusched.text import printable

Result = TypeVar("Result")

SAMPLE_TIMEOUT_S: Final = 10.0
"""How long a command waits for libvirt beyond the period that it samples."""


def saved(name: str) -> tuple[Host, str]:
    """Return the host of a snapshot in a file (-: standard input), and where that was.

    Raises Refusal.
    """
    where = "standard input" if name == "-" else name
    try:
        if name == "-" and sys.stdin is None:
            raise exits.Refusal(exits.BAD_INPUT, "standard input: is closed")
        with sys.stdin.buffer if name == "-" else Path(name).open("rb") as file:
            content = file.read(SIZE_MAX + 1)
        if len(content) > SIZE_MAX:
            raise exits.Refusal(exits.BAD_INPUT, f"{where}: larger than {SIZE_MAX >> 20} MiB")
        return snapshot.parse(content.decode("utf-8-sig")), f"As saved in {where}"
    except OSError as error:
        raise exits.Refusal(exits.BAD_INPUT, f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise exits.Refusal(exits.BAD_INPUT, f"{where}: not a snapshot: not UTF-8 text") from None
    except snapshot.SnapshotError as error:
        raise exits.Refusal(exits.BAD_INPUT, f"{where}: {error}") from None


def present(settings: Settings, *, anew: bool = False) -> tuple[Host, str]:
    """Return the host as the running service sees it, else as sampled for one period; and which.

    `anew`: not as the service sees it. Raises Refusal.
    """
    try:
        found = None if anew else live()
    except exits.Refusal:
        found = None  # `status` says what is wrong with it; here it is only a shortcut
    if found is not None:
        _text, state, host = found
        age_s = max(0.0, time.time() - state.at)
        if host is not None and state.uri == settings.uri and age_s <= state.age_max_s:
            return host, f"As the service saw it {age_s:.0f}s ago (process {state.pid})"
    where = f"Sampled {printable(settings.uri, 200)} for {settings.period:g}s"
    if not run_directory.lives(run_directory.locate()):
        where += " (the service is not running here)"
    return _sampled(settings), where


def _sampled(settings: Settings) -> Host:
    # A state or a saved snapshot needs no libvirt.
    from vcpusched.act.ledger_file import Book
    from vcpusched.act.reconciler import Reconciler
    from vcpusched.host.libvirt_host import LibvirtHost
    from vcpusched.observe.observe import observe
    from vcpusched.service.run_directory import LedgerFile

    def sample_twice() -> Host:
        session = LibvirtHost(settings.uri, read_only=True)
        # The last run of the service recorded which vCPUs are held, and which pins are ours.
        book = Book(LedgerFile(run_directory.locate()), settings.uri, writes=False)
        reconciler = Reconciler(session, book)
        before = reconciler.sample()
        time.sleep(settings.period)
        after = reconciler.sample()
        return observe(before, after, rules=settings.placement_rules()).host

    if sys.stderr.isatty():
        exits.say(f"sampling for {settings.period:g}s …")
    with reached(settings.uri):
        return call_within(settings.period + SAMPLE_TIMEOUT_S, sample_twice)


@contextlib.contextmanager
def reached(uri: str) -> Iterator[None]:
    """Run what needs libvirt. Raises Refusal where it answers badly, or not in time."""
    from vcpusched.host.hypervisor import HypervisorError, PermissionDeniedError

    status = exits.UNAVAILABLE
    try:
        yield
    except TimeoutError:
        why = "it does not answer"
    except PermissionDeniedError as error:
        status, why = exits.NOT_PERMITTED, str(error)
    except HypervisorError as error:
        why = str(error)
    else:
        return
    raise exits.Refusal(status, f"libvirt at {uri}: {why}")


def call_within(limit_s: float, function: Callable[[], Result]) -> Result:
    """Run a function that may block for ever; raises TimeoutError after `limit_s` seconds.

    The thread is left behind, and ends with the process.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001  it is raised again by the caller
            result.set_exception(error)

    threading.Thread(target=run, name="libvirt-call", daemon=True).start()
    return result.result(limit_s)


def live() -> tuple[str, state_file.SavedState, Host | None] | None:
    """Return what the running service last wrote, as text and as values; None where none runs.

    Raises Refusal.
    """
    directory = run_directory.locate()
    try:
        text = run_directory.read_state(directory) if run_directory.lives(directory) else None
        if text is None:
            return None
        state = state_file.parse_state(text)
        run_directory.check_writer(directory, state.pid)
        return text, state, state_file.saved_host(state)
    except run_directory.RunDirectoryError as error:
        why = str(error)
    except snapshot.SnapshotError as error:
        why = f"{directory / run_directory.STATE}: {error}"
    raise exits.Refusal(exits.DEGRADED, f"the service's state cannot be read: {why}")
