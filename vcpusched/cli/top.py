"""`vcpusched top`: the host as the running service sees it, live, on the whole terminal.

Rule: reads the state file and nothing else, so it costs neither libvirt nor the service anything.
What is shown is a pure function of the view, the state, the height and the time (`screen`); what a
key does is one of the view (`pressed`). Only `run` knows of terminals.
"""

import os
import re
import select
import signal
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.text import Text

from vcpusched.cli.top_rows import View, draw_rows, is_new
from vcpusched.model import Host
from vcpusched.report import display, draw, state_file
from vcpusched.report.snapshot import SnapshotError
from vcpusched.report.state_file import SavedState
from vcpusched.service import run_directory
from vcpusched.text import printable

REFRESH_S: Final = 0.5
"""How often the state file is read."""

FILTER_MAX: Final = 64

_KEY: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)

_QUITS: Final = {"q", "Q", "\x04"}
_ESCAPE: Final = "\x1b"
_CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "d": {"sort": "demand", "first": 0},
    "w": {"sort": "wait", "first": 0},
    "p": {"sort": "place", "first": 0},
    "n": {"sort": "name", "first": 0},
    "/": {"typing": True},
    _ESCAPE: {"domain": "", "first": 0},
    "?": {"legend": True},
    "h": {"legend": True},
    **{home: {"first": 0} for home in ("\x1b[H", "\x1bOH", "\x1b[1~")},
    **{end: {"first": -1} for end in ("G", "\x1b[F", "\x1bOF", "\x1b[4~")},
}
_HELP: Final = "q quit  ? help  d demand  w wait  p place  n name  g guests  / filter"
_LEGEND: Final = """\
d w p n  sort by demand, wait, place or name
g        guests instead of vCPUs, and back
/        show only names with this text in them (Enter: done, Escape: all)
space    stop the picture
arrows   scroll, as do j, k, page keys, Home, and End or G
q        quit

~wants   what it would run if it never waited, in percent of a pCPU; on a
         crowded one an estimate, and a high one
waits    for how much of the last period it wanted to run and did not; of a
         guest, the vCPU that waits longest
on pCPU  where it may run; in brackets where it last ran

Any key leads back."""
_PAGE: Final = 10
_SCROLLS: Final = {
    "j": 1,
    "\x1b[B": 1,
    "\x1bOB": 1,
    "k": -1,
    "\x1b[A": -1,
    "\x1bOA": -1,
    "\x1b[6~": _PAGE,
    "\x1b[5~": -_PAGE,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the service last wrote, in which `file`; `problem` says why there is nothing newer."""

    state: SavedState | None = None
    host: Host | None = None
    problem: str = ""
    file: tuple[int, int] | None = None


def pressed(view: View, key: str) -> View | None:
    """Return the view after a key (a letter, or a terminal's sequence for another); None: quit."""
    if view.typing:
        return _typed(view, key)
    if key in _QUITS:
        return None
    if view.legend:
        return replace(view, legend=False)
    changes = _CHANGES.get(key, {})
    if key in _SCROLLS:
        moved = view.first + _SCROLLS[key]
        changes = {"first": max(0, moved) if view.first >= 0 else min(-1, moved)}
    elif key == "g":
        changes = {"guests": not view.guests, "first": 0}
    elif key == " ":
        changes = {"paused": not view.paused}
    return replace(view, **changes)


def _typed(view: View, key: str) -> View:
    changes: dict[str, Any] = {}
    if key in {"\r", "\n"}:
        changes = {"typing": False}
    elif key == _ESCAPE:
        changes = {"typing": False, "domain": "", "first": 0}
    elif key in {"\x7f", "\x08"}:
        changes = {"domain": view.domain[:-1], "first": 0}
    elif len(key) == 1 and key.isprintable() and len(view.domain) < FILTER_MAX:
        changes = {"domain": view.domain + key, "first": 0}
    return replace(view, **changes)


def screen(view: View, seen: Seen, height: int, now_s: float) -> Layout:
    """Return what a screen of so many lines shows."""
    parts = list(_head(view, seen, now_s))
    if view.legend:
        parts += [Text(), _LEGEND]
    elif seen.host is not None and seen.state is not None:
        room = max(2, (height - len(parts) + 1) // 2)
        cpus = display.draw_cpus(seen.state, seen.host, room)
        used = len(parts) + cpus.row_count + 5  # with headings, empty lines, and the last line
        table = draw_rows(view, seen.state, seen.host, max(1, height - used), now_s)
        parts += [Text(), cpus, Text(), table]
    foot = f"filter: {printable(view.domain)}_" if view.typing else _HELP
    layout = Layout()
    layout.split_column(Layout(Group(*parts)), Layout(draw.line(foot, "dim"), size=1))
    return layout


def _head(view: View, seen: Seen, now_s: float) -> Iterator[RenderableType]:
    state = seen.state
    if state is None:
        yield draw.line(printable(seen.problem, 300), "bold")
        return
    age_s = max(0.0, now_s - state.at)
    is_healthy = state.is_healthy(age_s) and not seen.problem
    yield draw.line(display.headline(state, is_healthy=is_healthy), "bold")
    if seen.problem:
        yield draw.line(printable(seen.problem, 300), draw.HOT)
    line = Text("PAUSED", "bold reverse") + Text(" ") if view.paused else Text()
    gap, *inside = display.gap_texts(state, seen.host)
    yield draw.line(line + Text("gap ") + gap + Text(f"  {age_s:.0f}s ago"))
    yield from map(draw.line, inside)
    text, style = f"pins {state.pins_last_hour} last hour, {state.pins_last_day} last day", ""
    if state.last_pins:
        pin = state.last_pins[-1]
        text += f"; {draw.clock(pin.at, '%H:%M:%S')} {printable(pin.domain)}{display.pin_text(pin)}"
        text += f": {printable(pin.reason, 300)}"
        style = "bold reverse" if is_new(pin, state, now_s) else ""
    yield draw.line(text, style)


# The terminal.


def look(directory: Path, seen: Seen) -> Seen:
    """Bring what was seen up to date, from a run directory; read the state if it was replaced."""
    try:
        if not run_directory.lives(directory):
            return Seen(problem=f"vcpusched is not running on this host ({directory}).")
        status = (directory / run_directory.STATE).stat()
        file = status.st_ino, status.st_mtime_ns
        if file == seen.file:
            return seen
        state = state_file.parse_state(run_directory.read_state(directory) or "")
        run_directory.check_writer(directory, state.pid)
        return Seen(state, state_file.saved_host(state), file=file)
    except FileNotFoundError:
        return replace(seen, problem="The service has reported nothing yet.")
    except (OSError, run_directory.RunDirectoryError, SnapshotError) as error:
        return replace(seen, problem=f"The service's state cannot be read: {error}")


def run(directory: Path, seen: Seen, stdin: int) -> None:
    """Show a run directory's service until the user quits; `stdin` has the keys.

    Raises SystemExit on a signal that ends it, with the terminal as it was. It is for a program
    that ends then: signals stay as this has them handled.
    """
    view, console = View(), Console(highlight=False, markup=False, emoji=False)
    before, suspended = termios.tcgetattr(stdin), list[int]()
    # Python runs these between two of its steps; the pipe ends the wait for keys.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    signal.signal(signal.SIGTSTP, lambda number, _frame: suspended.append(number))
    signal.signal(signal.SIGWINCH, lambda *_ignored: None)
    live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False)
    try:
        while True:
            tty.setcbreak(stdin)
            live.start()
            while not suspended:
                seen = seen if view.paused else look(directory, seen)
                picture = screen(view, seen, console.height, time.time())
                live.update(draw.Fitting(picture), refresh=True)
                for key in _keys(stdin, woken):
                    changed = pressed(view, key)
                    if changed is None:
                        return
                    view = changed
            suspended.clear()
            live.stop()
            termios.tcsetattr(stdin, termios.TCSADRAIN, before)
            os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        live.stop()
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _keys(stdin: int, woken: int) -> Iterator[str]:
    """Yield the keys that are pressed before the next refresh, or a signal."""
    ready, _, _ = select.select([stdin, woken], [], [], REFRESH_S)
    if woken in ready:
        os.read(woken, 4096)
    if stdin in ready:
        text = os.read(stdin, 4096).decode(errors="replace")
        # An end of input means that the terminal is gone.
        yield from keys_in(text) if text else ["q"]


def keys_in(text: str) -> Iterator[str]:
    """Return the keys in what a terminal sent: letters, and sequences that stand for one key."""
    yield from (found[0] for found in _KEY.finditer(text))


def _end(number: int, _frame: object) -> None:
    """End by a signal; at the keyboard Ctrl-C is just another way to quit."""
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)
