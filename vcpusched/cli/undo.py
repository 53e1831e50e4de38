"""The commands that undo what the service did, or keep it from doing more.

Rule: through the running service, which answers requests in its run directory; under its lock where
none runs. Errors become one line and an exit status.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vcpusched.service import control, exits, run_directory
from vcpusched.service.control import Answer, Request, Verb
from vcpusched.text import printable

if TYPE_CHECKING:
    from vcpusched.settings import Settings

CONNECT_TIMEOUT_S: Final = 10.0
WORK_TIMEOUT_S: Final = 600.0
"""Each guest that is busy may take 30 s."""

LINE_MAX: Final = 10_000
"""A line on a domain of 500 vCPUs."""


def pause(duration: str | None) -> int:
    """Begin a pause, whether a service runs or not. Raises Refusal."""
    directory = run_directory.locate()
    seconds = None if duration is None else control.seconds_of("--for", duration)
    try:
        begun = control.begin_pause(directory, seconds)
    except OSError as error:
        raise unwritable(directory, error) from None
    print(f"{begun.text}.")
    return exits.OK


def resume() -> int:
    """End a pause. Raises Refusal."""
    directory = run_directory.locate()
    try:
        was_paused = control.end_pause(directory)
    except OSError as error:
        raise unwritable(directory, error) from None
    print("Balancing resumed." if was_paused else "There was no pause.")
    return exits.OK


def carry_out(settings: "Callable[[], Settings]", verb: str, domains: Sequence[str]) -> int:
    """Restore original affinities, or end holds; return the exit status. Raises Refusal.

    Settings are only asked for where no service runs.
    """
    asked = Request(Verb(verb), tuple(domains))
    directory = run_directory.locate()
    try:
        answer = control.ask(directory, asked)
        if answer is None:
            answer = _do_alone(directory, settings(), asked)
    except run_directory.AlreadyRunningError:
        line = "the service started just now: try again"
        raise exits.Refusal(exits.FAILURE, line) from None
    except run_directory.RunDirectoryError as error:
        raise unusable(str(error), error.__cause__) from None
    except OSError as error:
        raise unwritable(directory, error) from None
    # Anyone who may write into the run directory may have answered.
    for line in answer.lines:
        print(printable(line, LINE_MAX))
    sys.stdout.flush()
    for line in answer.problems:
        exits.say(printable(line, LINE_MAX))
    return answer.status


def unwritable(directory: Path, error: OSError) -> exits.Refusal:
    """Return what to say where the run directory cannot be written."""
    return unusable(f"{directory}: cannot be written: {error.strerror}", error)


def unusable(what: str, error: BaseException | None) -> exits.Refusal:
    """Return what to say where the run directory cannot be used for an error."""
    if isinstance(error, PermissionError):
        return exits.Refusal(exits.NOT_PERMITTED, f"{what}; run it as root")
    return exits.Refusal(exits.FAILURE, what)


def _do_alone(directory: Path, settings: "Settings", asked: Request) -> Answer:
    from vcpusched.act.ledger_file import Book
    from vcpusched.act.reconciler import Reconciler
    from vcpusched.cli.sources import call_within, reached
    from vcpusched.host.libvirt_host import LibvirtHost
    from vcpusched.service.restore import carry_out
    from vcpusched.service.run_directory import LEDGER, LedgerFile

    if asked.verb is Verb.RELEASE and not asked.domains and not (directory / LEDGER).exists():
        # Pins can be read off the guests, by their marks; holds are in the ledger alone.
        return Answer(exits.OK, ("No vCPU is held.",))
    with run_directory.locked(directory):
        book = Book(LedgerFile(directory), settings.uri)
        if book.problem:
            return Answer(exits.FAILURE, problems=(book.problem,))
        with reached(settings.uri):
            session = call_within(CONNECT_TIMEOUT_S, lambda: LibvirtHost(settings.uri))
            reconciler = Reconciler(session, book)
            answer: Answer = call_within(
                WORK_TIMEOUT_S, lambda: carry_out(reconciler, asked, beside_service=False)
            )
        return answer
