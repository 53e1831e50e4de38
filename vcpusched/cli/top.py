"""`vcpusched top`: the host as the running service sees it, live, on a whole terminal.

Rule: reads the state file and nothing else, so that it costs neither libvirt nor the service
anything. What is shown is a pure function of the view, the state, the size and the time (`screen`);
what a key does is one of the view (`pressed`). Only `run` knows of terminals.
"""

import os
import re
import select
import signal
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.text import Text

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Granularity, Host, Vcpu
from vcpusched.report import draw, snapshot, state_file
from vcpusched.report.plan_text import inside_text, sets_of
from vcpusched.report.state_file import SavedPin, SavedState
from vcpusched.service import run_directory
from vcpusched.text import percent, points, printable

LOOK_S: Final = 0.5
"""How often the state is looked at."""

FLASH_S: Final = 5.0
"""So long after a pin was told it stands out."""

FILTER_MAX: Final = 64

_KEY: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)

_CELL: Final = 22
"""What is beside the number of a pCPU."""

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
    """How a person wants to see it; `typing` while a filter is being typed."""

    sort: str = "demand"
    domain: str = ""
    typing: bool = False
    paused: bool = False
    first: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the service last told; `problem` says why there is nothing newer."""

    state: SavedState | None = None
    host: Host | None = None
    problem: str = ""


def pressed(view: View, key: str) -> View | None:
    """Give the view after a key (a letter, or what a terminal sends for another); None: quit."""
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


def screen(view: View, seen: Seen, width: int, height: int, now_s: float) -> list[Text]:
    """Give the lines of a whole screen: `height` of them, none wider than `width`."""
    sets: tuple[CpuSet, ...] = ()
    if seen.host is not None and seen.state is not None:
        sets = sets_of(seen.host, Granularity(seen.state.pin_to))
    head = list(_head(view, seen, sets, now_s))
    if seen.host is not None and seen.state is not None:
        room = max(1, (height - len(head) - 3) // 3)
        loads_ppm = {int(cpu): round(load * PPM) for cpu, load in seen.state.loads.items()}
        head += [Text(), *_machine(draw.blocks(seen.host, sets), loads_ppm, width, room), Text()]
        room = max(1, height - len(head) - 2)
        rows = _rows(view, seen.state, seen.host, room, width, now_s)
    else:
        rows = []
    foot = Text(f"filter: {printable(view.domain)}_" if view.typing else _HELP, "dim")
    lines = (head + rows)[: height - 1]
    lines += [Text()] * (height - 1 - len(lines))
    for line in (*lines, foot):
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return [*lines, foot]


def _head(view: View, seen: Seen, sets: Sequence[CpuSet], now_s: float) -> Iterator[Text]:
    state = seen.state
    if state is None:
        yield Text(printable(seen.problem, 300), "bold")
        return
    age_s = max(0.0, now_s - state.at)
    health = "healthy" if state.is_healthy(age_s) and not seen.problem else "degraded"
    yield Text(f"vcpusched is {health}: {printable(state.status, 400)}", "bold")
    if seen.problem:
        yield Text(printable(seen.problem, 300), draw.HOT)
    line = Text("PAUSED", "bold reverse") + Text(" ") if view.paused else Text()
    threshold_ppm = round(state.balance_threshold * PPM_PER_POINT)
    if state.gap is not None:
        gap_ppm, between = round(state.gap * PPM), " between sets" if sets else ""
        gap = Text(f" {points(gap_ppm)}{between}  ")
        line += Text("gap ") + draw.gauge(gap_ppm, threshold_ppm) + gap
    counts = f"pins {state.pins_last_hour} last hour, {state.pins_last_day} last day"
    line += Text(f"{age_s:.0f}s ago  {counts}")
    yield line
    if seen.host is not None and (inside := inside_text(seen.host, sets, threshold_ppm)):
        yield Text(inside)
    if state.last_pins:
        pin = state.last_pins[-1]
        is_new = _is_new(pin, state, now_s)
        when = draw.clock(pin.at, "%H:%M:%S")
        whose = f"{printable(pin.domain)}/{pin.vcpu} {printable(pin.from_cpus)}"
        text = f"{when} {whose} → {printable(pin.to_cpus)}: {printable(pin.reason, 300)}"
        yield Text(text, "bold reverse" if is_new else "")


def _is_new(pin: SavedPin, state: SavedState, now_s: float) -> bool:
    """Tell whether a pin was told just now, which may be a period after it was made."""
    return now_s - pin.at < FLASH_S + min(state.period, FLASH_S)


def _machine(
    built: Sequence[draw.Block], loads_ppm: Mapping[int, int], width: int, room: int
) -> Iterator[Text]:
    """Draw pCPUs or sets on at most `room` lines: each with a bar, or by block, or by node."""
    units = [unit for block in built for unit in block.units]
    digits = max((len(unit.name) for unit in units), default=0)
    columns = max(1, width // (digits + _CELL))
    count = -(-len(units) // columns)
    if count <= room:
        for line in range(count):
            drawn = Text()
            # Down the columns, so that siblings are below each other.
            for unit in units[line::count]:
                load_ppm = loads_ppm.get(unit.cpu.id, 0)
                drawn += _cell(unit.name, digits, "right") + Text(" ")
                drawn += _cell(draw.bar(load_ppm, _BAR), _BAR)
                drawn += _cell(draw.figure(load_ppm), 7, "right")
                drawn.append(" " * (_CELL - _BAR - 8))
            yield drawn
        return
    blocks = [(block.name, [unit.cpu.id for unit in block.units]) for block in built]
    if len(blocks) > room:
        nodes: dict[str, list[int]] = {}
        for cpu in (unit.cpu for unit in units):
            nodes.setdefault("all" if cpu.node is None else f"node {cpu.node}", []).append(cpu.id)
        blocks = list(nodes.items())
    if len(blocks) > room:
        blocks = [("all", [unit.cpu.id for unit in units])]
    names = max(len(name) for name, _ in blocks)
    length = max(1, width - names - 18)
    for name, numbers in blocks:
        loads = [loads_ppm.get(cpu, 0) for cpu in numbers]
        mean_ppm, most_ppm = sum(loads) // len(loads), max(loads)
        drawn = _cell(name or "all", max(3, names)) + _cell(draw.figure(mean_ppm), 7, "right")
        drawn += _cell(draw.figure(most_ppm), 8, "right") + Text(" ")
        # Where there is no room for each, each letter is the busiest of some.
        each = -(-len(loads) // length)
        busiest = (max(loads[first : first + each]) for first in range(0, len(loads), each))
        yield drawn + draw.strip(busiest, length)


def _rows(  # noqa: PLR0913, PLR0917  what is shown, and how
    view: View, state: SavedState, host: Host, room: int, width: int, now_s: float
) -> list[Text]:
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
    wanted = view.domain.lower()
    found = [vcpu for vcpu in host.vcpus if wanted in vcpu.domain.lower()]
    found.sort(key=lambda vcpu: (sorts[view.sort](vcpu), vcpu.id))
    first = min(view.first, max(0, len(found) - room))
    shown = found[first : first + room]
    new = {(pin.uuid, pin.vcpu): pin for pin in state.last_pins if _is_new(pin, state, now_s)}
    names = [f"{printable(vcpu.domain)}/{vcpu.id.vcpu}" for vcpu in shown]
    name_width = min(max(16, width // 3), max((len(name) for name in names), default=0) + 1, 72)
    what = f"vCPUs {first + 1}-{first + len(shown)} of {len(found)}" if shown else "no vCPU"
    if view.domain:
        what += f' with "{printable(view.domain)}" in its name'
    heading = _cell(f"by {view.sort}", max(name_width, 10)) + _cell("wants", _BAR)
    heading += _cell("", 7) + _cell("waits", 8, "right") + _cell("  on pCPU", 14) + Text(what)
    heading.stylize("bold")
    lines = [heading]
    for vcpu, name in zip(shown, names, strict=True):
        pin = new.get((vcpu.id.uuid, vcpu.id.vcpu))
        line = _cell(name, max(name_width, 10)) + _cell(draw.bar(vcpu.load_ppm, _BAR), _BAR)
        line += _cell(draw.figure(vcpu.load_ppm), 7, "right") + _cell(
            _wait(wait_ppm(vcpu)), 8, "right"
        )
        on = "" if vcpu.is_bound or vcpu.on is None else f" ({vcpu.on})"
        line += _cell(f"  {vcpu.cpus}{on}", 14)
        if pin is not None:
            line.append(f"← pinned from {printable(pin.from_cpus)}")
            line.stylize("bold reverse")
        elif vcpu.fixed:
            line.append(f"stays: {printable(vcpu.why or 'fixed', 200)}", "dim")
        lines.append(line)
    return lines


def _wait(wait_ppm: int) -> Text:
    return Text(percent(wait_ppm) if wait_ppm else "-")


def _cell(content: str | Text, width: int, align: str = "left") -> Text:
    text = content.copy() if isinstance(content, Text) else Text(content)
    text.truncate(width, overflow="ellipsis")
    missing = " " * (width - text.cell_len)
    return Text(missing) + text if align == "right" else text + Text(missing)


# The terminal.


def look_at(directory: Path) -> Callable[[Seen], Seen]:
    """Give a function that brings what was seen up to date, from a run directory.

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
            text = run_directory.read_state(directory)
            state = state_file.parse_state(text or "")
            read = now
            return Seen(state, state_file.saved_host(state))
        except FileNotFoundError:
            return replace(seen, problem="The service has told nothing yet.")
        except (OSError, run_directory.RunDirectoryError, snapshot.SnapshotError) as error:
            return replace(seen, problem=f"The service's state cannot be read: {error}")

    return look


def run(seen: Seen, look: Callable[[Seen], Seen], stdin: int) -> None:
    """Show it until a person quits; `look` brings what was seen up to date, `stdin` has the keys.

    Raises SystemExit when told to end by a signal; the terminal is given back first. It is for a
    program that ends then: signals stay as this has them handled.
    """
    view = View()
    terminal = _Terminal(stdin)
    try:
        terminal.take()
        while True:
            if not view.paused:
                seen = look(seen)
            terminal.show(view, seen)
            for key in terminal.keys(LOOK_S):
                changed = pressed(view, key)
                if changed is None:
                    return
                view = changed
    finally:
        terminal.give_back()


class _Terminal:
    """A terminal that can be taken over as a whole, and steps aside when told to."""

    def __init__(self, stdin: int) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._stdin = stdin
        self._before = termios.tcgetattr(stdin)
        self._is_suspended = False
        # Python runs these between two of its steps; the pipe ends the wait for keys.
        self._woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _end)
        signal.signal(signal.SIGTSTP, self._suspend)
        signal.signal(signal.SIGWINCH, lambda *_told: None)

    def take(self) -> None:
        """Take the whole screen, and each key when it is pressed."""
        tty.setcbreak(self._stdin)
        self._console.set_alt_screen(True)
        self._console.show_cursor(show=False)

    def give_back(self) -> None:
        """Leave the terminal as it was."""
        self._console.show_cursor()
        self._console.set_alt_screen(False)
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._before)

    def show(self, view: View, seen: Seen) -> None:
        """Draw the whole screen, as large as it is now."""
        if self._is_suspended:
            self._is_suspended = False
            self.give_back()
            os.kill(os.getpid(), signal.SIGSTOP)
            self.take()
        lines = screen(view, seen, *self._console.size, time.time())
        for line in lines:
            line.plain = draw.fitting(line.plain, self._console.encoding)
        self._console.update_screen(Group(*lines))

    def keys(self, patience_s: float) -> Iterator[str]:
        """Give the keys that were pressed, if there are any before so long."""
        ready, _, _ = select.select([self._stdin, self._woken], [], [], patience_s)
        if self._woken in ready:
            os.read(self._woken, 4096)
        if self._stdin in ready:
            text = os.read(self._stdin, 4096).decode(errors="replace")
            # Nobody is there any more.
            yield from keys_in(text) if text else ["q"]

    def _suspend(self, *_told: object) -> None:
        self._is_suspended = True


def keys_in(text: str) -> Iterator[str]:
    """Give the keys in what a terminal sent: letters, and sequences that stand for one key."""
    yield from (found[0] for found in _KEY.finditer(text))


def _end(number: int, _frame: object) -> None:
    """End as told; at the keyboard Ctrl-C is just another way to quit."""
    raise SystemExit(0 if number == signal.SIGINT else 128 + number)
