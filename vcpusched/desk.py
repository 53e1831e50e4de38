"""Where requests of other vcpusched processes come in, and their answers go out.

Rule: one at a time; what is asked for is done elsewhere.
"""

from pathlib import Path

from vcpusched.report.messages import Entry, Priority
from vcpusched.service import control
from vcpusched.service.announcer import Announcer
from vcpusched.service.control import Answer, Request


class Desk:
    """The requests in the run directory; what goes wrong with their files is said once."""

    def __init__(self, directory: Path, say: Announcer) -> None:
        self._directory = directory
        self._say = say
        self._name: str | None = None

    def take(self) -> Request | None:
        """Take the next request, if there is one; it must be answered before the next."""
        try:
            self._name, asked = next(control.take(self._directory), (None, None))
        except OSError as error:
            text = f"Could not read requests in the run directory: {error.strerror}"
            self._say.once("requests", Entry(Priority.WARNING, text))
            return None
        return asked

    def answer(self, answer: Answer) -> None:
        """Answer what was taken, if anything was."""
        name, self._name = self._name, None
        if name is None:
            return
        try:
            control.answer(self._directory, name, answer)
        except OSError as error:
            text = f"Could not answer a request in the run directory: {error.strerror}"
            self._say.once("answer", Entry(Priority.WARNING, text))

    def fail(self, status: int, why: str) -> None:
        """Answer what was taken, if anything was, with why it is not done."""
        self.answer(Answer(status, problems=(why,)))
