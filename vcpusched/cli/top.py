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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vcpusched.model import PPM, Host, Vcpu
from vcpusched.report import display, draw, state_file
from vcpusched.report.snapshot import SnapshotError
from vcpusched.report.state_file import SavedPin, SavedState
from vcpusched.service import run_directory
from vcpusched.text import percent, printable

REFRESH_S: Final = 0.5
"""How often the state file is read."""

FLASH_S: Final = 5.0
"""So long after a pin is reported it stands out."""

FILTER_MAX: Final = 64

_KEY: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)

_BAR: Final = 10
_SORTS: Final = {"d": "demand", "w": "wait", "p": "place", "n": "name"}
_QUITS: Final = {"q", "Q", "\x04"}
_ESCAPE: Final = "\x1b"
_HELP: Final = "q quit  d demand  w wait  p place  n name  / filter  space pause  arrows scroll"
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
    "\x1b[H": -(1 << 30),
}


@dataclass(frozen=True, slots=True)
class View:
    """What the user chose to see; `typing` while a filter is being typed."""

    sort: str = "demand"
    domain: str = ""
    typing: bool = False
    paused: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the service last wrote; `problem` says why there is nothing newer."""

    state: SavedState | None = None
    host: Host | None = None
    problem: str = ""


def pressed(view: View, key: str) -> View | None:
    """Return the view after a key (a letter, or a terminal's sequence for another); None: quit."""
    if view.typing:
        return _typed(view, key)
    if key in _QUITS:
        return None
    changes: dict[str, Any] = {}
    if key in _SORTS:
        changes = {"sort": _SORTS[key], "first": 0}
    elif key in _SCROLLS:
        changes = {"first": max(0, view.first + _SCROLLS[key])}
    elif key == " ":
        changes = {"paused": not view.paused}
    elif key == "/":
        changes = {"typing": True}
    elif key == _ESCAPE:
        changes = {"domain": "", "first": 0}
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
    if seen.host is not None and seen.state is not None:
        room = max(2, (height - len(parts) + 1) // 2)
        cpus = display.draw_cpus(seen.state, seen.host, room)
        used = len(parts) + cpus.row_count + 5  # with headings, empty lines, and the last line
        vcpus = _vcpus(view, seen.state, seen.host, max(1, height - used), now_s)
        parts += [Text(), cpus, Text(), vcpus]
    foot = f"filter: {printable(view.domain)}_" if view.typing else _HELP
    layout = Layout()
    layout.split_column(Layout(Group(*parts)), Layout(_line(foot, "dim"), size=1))
    return layout


def _line(text: str | Text, style: str = "") -> Text:
    line = Text(style=style).append(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _head(view: View, seen: Seen, now_s: float) -> Iterator[RenderableType]:
    state = seen.state
    if state is None:
        yield _line(printable(seen.problem, 300), "bold")
        return
    age_s = max(0.0, now_s - state.at)
    is_healthy = state.is_healthy(age_s) and not seen.problem
    yield _line(display.headline(state, is_healthy=is_healthy), "bold")
    if seen.problem:
        yield _line(printable(seen.problem, 300), draw.HOT)
    line = Text("PAUSED", "bold reverse") + Text(" ") if view.paused else Text()
    gap, *inside = display.gap_texts(state, seen.host)
    yield _line(line + Text("gap ") + gap + Text(f"  {age_s:.0f}s ago"))
    yield from map(_line, inside)
    text, style = f"pins {state.pins_last_hour} last hour, {state.pins_last_day} last day", ""
    if state.last_pins:
        pin = state.last_pins[-1]
        text += f"; {draw.clock(pin.at, '%H:%M:%S')} {display.pin_text(pin)}"
        text += f": {printable(pin.reason, 300)}"
        style = "bold reverse" if _is_new(pin, state, now_s) else ""
    yield _line(text, style)


def _is_new(pin: SavedPin, state: SavedState, now_s: float) -> bool:
    """Return whether a pin was reported just now, which may be a period after it was made."""
    return now_s - pin.at < FLASH_S + min(state.period, FLASH_S)


def _vcpus(view: View, state: SavedState, host: Host, room: int, now_s: float) -> Table:
    waits = {(one.uuid, one.id, one.vcpu): round(one.wait * PPM) for one in state.waits}

    def wait_ppm(vcpu: Vcpu) -> int:
        return waits.get((vcpu.id.uuid, vcpu.id.domain_id, vcpu.id.vcpu), 0)

    def place(vcpu: Vcpu) -> tuple[int, ...]:
        first = next(iter(vcpu.cpus), 0)
        return len(vcpu.cpus) > 1, first if vcpu.is_bound or vcpu.on is None else vcpu.on

    sorts: Mapping[str, Callable[[Vcpu], Any]] = {
        "demand": lambda vcpu: -vcpu.load_ppm,
        "wait": lambda vcpu: (-wait_ppm(vcpu), -vcpu.load_ppm),
        "place": lambda vcpu: (*place(vcpu), -vcpu.load_ppm),
        "name": lambda vcpu: (vcpu.domain, vcpu.id.vcpu),
    }
    found = [vcpu for vcpu in host.vcpus if view.domain.lower() in vcpu.domain.lower()]
    found.sort(key=lambda vcpu: (sorts[view.sort](vcpu), vcpu.id))
    first = min(view.first, max(0, len(found) - room))
    shown = found[first : first + room]
    what = f"vCPUs {first + 1}-{first + len(shown)} of {len(found)}" if shown else "no vCPU"
    if view.domain:
        what += f' with "{printable(view.domain)}" in its name'
    columns = (f"by {view.sort}", "~wants", "_wants", "waits", "on pCPU")
    table = draw.table(*columns, what, right=("_wants", "waits"), fold=(what,))
    table.columns[0].min_width, table.columns[0].max_width = 10, 40
    table.columns[1].min_width = _BAR
    new = {(pin.uuid, pin.vcpu): pin for pin in state.last_pins if _is_new(pin, state, now_s)}
    for vcpu in shown:
        pin, wait = new.get((vcpu.id.uuid, vcpu.id.vcpu)), wait_ppm(vcpu)
        stays = f"stays: {printable(vcpu.why or 'fixed', 200)}" if vcpu.fixed else ""
        table.add_row(
            f"{printable(vcpu.domain)}/{vcpu.id.vcpu}",
            draw.bar(vcpu.load_ppm, _BAR),
            draw.figure(vcpu.load_ppm),
            percent(wait) if wait else "-",
            f"{vcpu.cpus}" + ("" if vcpu.is_bound or vcpu.on is None else f" ({vcpu.on})"),
            _line(f"← pinned from {printable(pin.from_cpus)}" if pin else stays),
            style="bold reverse" if pin else "",
        )
    return table


# The terminal.


def look_at(directory: Path) -> Callable[[Seen], Seen]:
    """Return a function that brings what was seen up to date, from a run directory.

    It reads the state only when it was replaced.
    """
    read: tuple[int, int] | None = None

    def look(seen: Seen) -> Seen:
        nonlocal read
        try:
            if not run_directory.lives(directory):
                read = None
                return Seen(problem=f"vcpusched is not running on this host ({directory}).")
            status = (directory / run_directory.STATE).stat()
            now = status.st_ino, status.st_mtime_ns
            if now == read:
                return seen
            state = state_file.parse_state(run_directory.read_state(directory) or "")
            read = now
            return Seen(state, state_file.saved_host(state))
        except FileNotFoundError:
            return replace(seen, problem="The service has reported nothing yet.")
        except (OSError, run_directory.RunDirectoryError, SnapshotError) as error:
            return replace(seen, problem=f"The service's state cannot be read: {error}")

    return look


def run(seen: Seen, look: Callable[[Seen], Seen], stdin: int) -> None:
    """Show the screen until the user quits; `stdin` has the keys.

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
                seen = seen if view.paused else look(seen)
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
