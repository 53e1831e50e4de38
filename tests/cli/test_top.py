"""`top`: what its screen shows, what its keys do, and that it leaves a terminal as it was."""

import dataclasses
import io
import json
import os
import pty
import select
import signal
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import host
from hypothesis import given, settings
from hypothesis import strategies as st
from program import PROGRAM, environment, vcpusched, without_the_lock
from rich.console import Console
from rich.screen import Screen
from rich.segment import Segment
from test_status import DRAWN, HOSTILE, SETS, machine, service

from vcpusched.cli.top import Seen, keys_in, look, pressed, screen
from vcpusched.cli.top_rows import View
from vcpusched.model import Granularity, Host
from vcpusched.report import state_file
from vcpusched.service import run_directory

NOW_S = 1_790_000_000.0
UP, PAGE_DOWN = "\x1b[A", "\x1b[6~"


def seen(drawn: Host = DRAWN, granularity: Granularity = Granularity.CPU) -> Seen:
    """Give what is seen of a service."""
    said = json.dumps(state_file.state_as_json(service(drawn, granularity), NOW_S))
    state = state_file.parse_state(said)
    return Seen(state, state_file.saved_host(state))


def drawn(
    view: View, of: Seen, width: int = 80, height: int = 24, now_s: float = NOW_S
) -> list[list[Segment]]:
    """Draw a screen as a terminal of this size has it."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    picture = Screen(screen(view, of, height, now_s))
    return console.render_lines(picture, console.options.update(height=height))


def lines(view: View, of: Seen, width: int = 80, height: int = 24) -> list[str]:
    """Return a screen as plain text, without what fills it up at the right."""
    found = drawn(view, of, width, height)
    return ["".join(segment.text for segment in line).rstrip() for line in found]


def after(*keys: str, view: View | None = None) -> View:
    """Give the view after some keys, none of which quits."""
    view = view or View()
    for key in keys:
        changed = pressed(view, key)
        assert changed is not None
        view = changed
    return view


@given(
    st.integers(min_value=1, max_value=220),
    st.integers(min_value=1, max_value=70),
    st.sampled_from([DRAWN, host([]), host([50] * 40, *[[]] * 7)]),
    st.sampled_from(["web", HOSTILE, "界" * 80, "a" * 300]),
    st.integers(min_value=0, max_value=50),
)
@settings(deadline=None)
def test_it_fits_any_terminal(width: int, height: int, of: Host, name: str, first: int) -> None:
    """As many lines as there are, none wider, and nothing in it that a terminal would obey."""
    vcpus = tuple(dataclasses.replace(vcpu, domain=name) for vcpu in of.vcpus)
    view = View(first=first, domain=name[:2], typing=bool(first % 2))
    found = drawn(view, seen(dataclasses.replace(of, vcpus=vcpus)), width, height)
    assert len(found) == height
    assert {Segment.get_line_length(line) for line in found} == {width}
    text = "".join(segment.text for line in found for segment in line)
    assert all(letter.isprintable() for letter in text.replace("\n", ""))


def test_what_it_shows() -> None:
    """Health, gap, the last pin, every pCPU, and the vCPUs by what they want."""
    found = lines(View(), seen())
    assert found[0].startswith("vcpusched is healthy. Unbalanced, nothing worth a pin (vCPU 0")
    assert found[1].endswith("95 points (threshold 10)  0s ago")
    assert found[2].startswith("pins 1 last hour, 7 last day; ")
    assert " g0/0  0 → 1: pCPU 0 was" in found[2]
    assert [line.split()[1] for line in found[6:10]] == ["0", "4", "1", "5"]
    table = next(number for number, line in enumerate(found) if line.startswith("by demand"))
    assert [line.split()[0] for line in found[table + 1 : table + 4]] == ["g1/0", "g0/0", "g2/0"]
    assert "← pinned from 0" in found[table + 2]
    assert "12%  0" in found[table + 2]
    assert found[-1].startswith("q quit")


def test_long_names_leave_room() -> None:
    """On 80 columns for the number of the vCPU, which is whole, and for why it stays."""
    vcpus = tuple(
        dataclasses.replace(vcpu, domain="a" * 64, fixed=True, why="realtime")
        for vcpu in DRAWN.vcpus
    )
    found = lines(View(), seen(dataclasses.replace(DRAWN, vcpus=vcpus)), 80)
    table = next(number for number, line in enumerate(found) if line.startswith("by demand"))
    rows = [line for line in found[table + 1 :] if line.startswith("a")]
    assert found[table].endswith(f"vCPUs 1-{len(rows)} of {len(DRAWN.vcpus)}")
    assert all("…/0  " in row for row in rows)
    assert rows[0].endswith("  stays: realtime")


def test_sets_are_shown_as_such() -> None:
    """A bar for each set, the gap between sets, and apart from it that inside them."""
    found = lines(View(), seen(SETS, Granularity.AUTO))
    assert " 2 points between sets " in found[1]
    assert found[2] == "Largest gap inside a set: ~90 points (pCPUs 0-3)"
    first = next(number for number, line in enumerate(found) if line.startswith("0-3 "))
    assert found[first + 1].startswith("4-7 ")
    assert not any("set" in line for line in lines(View(), seen(SETS)))


def test_pins_stand_out_for_a_while() -> None:
    """In the line of the last pin and in the row of the vCPU; then no more."""
    for later_s, stands_out in ((-5.0, True), (60.0, False)):
        found = drawn(View(), seen(), now_s=time.time() + later_s)
        styles = [segment.style for line in found for segment in line]
        assert any(style is not None and style.reverse for style in styles) is stands_out


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("d", ["g1/0", "g0/0", "g2/0"]),
        ("w", ["g0/0", "g1/0", "g2/0"]),
        ("p", ["g0/0", "g1/0", "g2/0"]),
        ("n", ["g0/0", "g1/0", "g2/0"]),
    ],
)
def test_sorting(key: str, order: list[str]) -> None:
    """By demand, wait, place or name."""
    found = lines(after(key), seen())
    start = next(number for number, line in enumerate(found) if line.startswith("by "))
    assert [line.split()[0] for line in found[start + 1 : start + 4]] == order


def test_filtering() -> None:
    """Typed after a slash, in any case; escape takes it away, and letters are no commands in it."""
    view = after("/", "G", "q", "\x7f", "2")
    assert (view.domain, view.typing) == ("G2", True)
    found = lines(view, seen())
    assert found[-1] == "filter: G2_"
    assert sum(line.startswith("g2/0") for line in found) == 1
    assert not any(line.startswith(("g0/0", "g1/0")) for line in found)
    assert after("\r", "d", view=view).domain == "G2"
    assert after("\r", "\x1b", view=view).domain == ""
    assert pressed(after("\r", view=view), "q") is None


def test_scrolling() -> None:
    """It ends at both ends."""
    many = seen(host(*[[1] * 10] * 8))
    assert "vCPUs 1-" in "\n".join(lines(after(UP), many))
    text = "\n".join(lines(after(*[PAGE_DOWN] * 20), many))
    assert "-80 of 80" in text


def test_from_the_end() -> None:
    """End shows the last rows, up goes back from there, Home to the first."""
    many = seen(host(*[[1] * 10] * 8))
    room = next(line for line in lines(View(), many) if "vCPUs 1-" in line).split("-")[1].split()[0]
    for keys, last in ((("G",), 80), (("G", UP, UP), 78), (("G", UP, "j", "j"), 80)):
        assert f"-{last} of 80" in "\n".join(lines(after(*keys), many))
    for end, home in (("\x1b[F", "\x1b[H"), ("\x1bOF", "\x1bOH"), ("\x1b[4~", "\x1b[1~")):
        assert "-80 of 80" in "\n".join(lines(after(end), many))
        assert f"vCPUs 1-{room} of 80" in "\n".join(lines(after(end, home), many))
    assert f"vCPUs 1-{room} of 80" in "\n".join(lines(after("G", *[UP] * 200), many))


def test_by_guest() -> None:
    """A row has what its vCPUs want together, the longest wait, and who of them stays."""
    vcpus = [dataclasses.replace(vcpu, domain="web") for vcpu in DRAWN.vcpus]
    vcpus[0] = dataclasses.replace(vcpus[0], fixed=True, why="held")
    named = dataclasses.replace(DRAWN, vcpus=tuple(vcpus))
    found = lines(after("g"), seen(named), 120)
    start = next(number for number, line in enumerate(found) if line.startswith("by "))
    assert "guests 1-1 of 1" in found[start]
    (row,) = [line for line in found[start + 1 :] if line.startswith("web")]
    total = sum(vcpu.load_ppm for vcpu in named.vcpus)
    assert row.split()[2] == f"{total / 10_000:.0f}%"
    assert "12%" in row
    assert f"{len(named.vcpus)} vCPUs, 1 of which may not be moved" in row
    assert "vCPUs 1-" in "\n".join(lines(after("g", "g"), seen(named)))


def test_help() -> None:
    """It explains keys and columns on the smallest usual terminal; any key but q leads back."""
    found = lines(after("?"), seen())
    assert found[0].startswith("vcpusched is healthy")
    assert any(line.startswith("waits    for how much of the last period") for line in found)
    assert found[-2].startswith("Any key") or "Any key leads back." in found
    assert after("h", "d") == View()
    assert pressed(after("?"), "q") is None


def test_512_pcpus() -> None:
    """By node and cache where there is room, else by node, else a row for all."""
    large = dataclasses.replace(DRAWN, cpus=machine(4, 16, 4))
    assert sum(line.startswith("node ") for line in lines(View(), seen(large), 80, 24)) == 4
    tall = lines(View(), seen(large), 120, 220)
    assert sum(line.startswith("node ") for line in tall) == 64


def test_keys() -> None:
    """What terminals send for arrows is one key; an escape by itself is one, too."""
    assert list(keys_in("q\x1b[A\x1bOB\x1b[6~é\x1b")) == ["q", UP, "\x1bOB", PAGE_DOWN, "é", "\x1b"]


def test_looking(tmp_path: Path) -> None:
    """A state is read when it was replaced; one that is damaged leaves the last one to see."""
    assert look(tmp_path, Seen()).problem.startswith("vcpusched is not running on this host (")
    with run_directory.locked(tmp_path):
        assert look(tmp_path, Seen()).problem == "The service has reported nothing yet."
        run_directory.write_state(tmp_path, state_file.state_as_json(service(), NOW_S))
        first = look(tmp_path, Seen())
        assert first.host is not None
        assert look(tmp_path, first) is first
        (tmp_path / run_directory.STATE).write_text("{")
        damaged = look(tmp_path, first)
        assert damaged.problem.startswith("The service's state cannot be read: not JSON")
        assert damaged.host is first.host
        assert "degraded" in lines(View(), damaged)[0]
    assert look(tmp_path, first).state is None


def test_looking_without_privilege() -> None:
    """Who may not open the lock sees the service all the same."""
    with tempfile.TemporaryDirectory() as name, run_directory.locked(Path(name)):
        Path(name).chmod(0o755)
        run_directory.write_state(Path(name), state_file.state_as_json(service(), NOW_S))
        assert without_the_lock(Path(name), lambda: look(Path(name), Seen()).host is not None)


def test_it_needs_a_terminal_and_a_service(tmp_path: Path) -> None:
    """Exit status 2 without a terminal."""
    done = vcpusched("top", RUNTIME_DIRECTORY=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == 'vcpusched: top: needs a terminal; "vcpusched status" does not\n'


class Terminal:
    """A terminal with `top` on it."""

    def __init__(self, directory: Path, kind: str = "xterm-256color") -> None:
        self._ours, theirs = pty.openpty()
        self.theirs = theirs
        termios.tcsetwinsize(theirs, (24, 80))
        self.before = termios.tcgetattr(theirs)
        self.text = ""
        self.program = subprocess.Popen(
            [*PROGRAM, "top"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment({"RUNTIME_DIRECTORY": str(directory), "TERM": kind}),
        )

    def wait_for(self, condition: Callable[[str], bool]) -> None:
        """Read until what was drawn is as it should be."""
        deadline_s = time.monotonic() + 60
        while not condition(self.text):
            assert time.monotonic() < deadline_s, self.text
            if select.select([self._ours], [], [], 0.2)[0]:
                self.text += os.read(self._ours, 65536).decode()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """Take it away."""
        if self.program.poll() is None:
            self.program.kill()
        self.program.wait()
        os.close(self._ours)
        os.close(self.theirs)


def test_it_needs_a_terminal_that_can_be_drawn_on(tmp_path: Path) -> None:
    """On one that only writes lines it says so, as without one."""
    opened = Terminal(tmp_path, "dumb")
    try:
        opened.wait_for(lambda text: text.endswith("\n"))
        assert opened.text.startswith("vcpusched: top: needs a terminal")
        assert opened.program.wait(30) == 2
    finally:
        opened.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """Give a terminal on which `top` shows a service."""
    with run_directory.locked(tmp_path):
        run_directory.write_state(tmp_path, state_file.state_as_json(service(), time.time()))
        opened = Terminal(tmp_path)
        try:
            opened.wait_for(lambda text: "by demand" in text)
            yield opened
        finally:
            opened.close()


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda one: one.type("q"), 0),
        (lambda one: one.program.send_signal(signal.SIGINT), 0),
        (lambda one: one.program.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
    ],
)
def test_it_leaves_the_terminal_as_it_was(
    terminal: Terminal, end: Callable[[Terminal], None], status: int
) -> None:
    """However it ends: the screen of before, the cursor, and echo."""
    terminal.type("w")
    terminal.wait_for(lambda text: "by wait" in text)
    assert not termios.tcgetattr(terminal.theirs)[3] & termios.ECHO
    end(terminal)
    terminal.wait_for(lambda text: "\x1b[?1049l" in text)
    assert terminal.program.wait(30) == status
    assert "\x1b[?25h" in terminal.text
    assert "Traceback" not in terminal.text
    assert termios.tcgetattr(terminal.theirs) == terminal.before


def test_it_steps_aside(terminal: Terminal) -> None:
    """Ctrl-Z gives the terminal back, and it comes back when it is continued."""
    terminal.program.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(terminal.program.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    drawn = terminal.text.count("by demand")
    terminal.program.send_signal(signal.SIGCONT)
    terminal.wait_for(lambda text: text.count("by demand") > drawn)
