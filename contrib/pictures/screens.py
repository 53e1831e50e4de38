"""The pictures of the documents, from what vcpusched shows of real guests in a real terminal.

Rule: nothing is drawn here: each verb runs in a pseudo-terminal, an emulator (pyte) works out what
that shows, and rich writes it down as SVG.
"""

import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyte
from lab import Lab, LabError
from quickstart import GUESTS, environment_of, service
from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH: Final = 110
HEIGHT: Final = 48
TOP_HEIGHT: Final = 16

DIRECTORY: Final = Path("/run/lab")
"""A short one: its name is in the URI, which the pictures show."""

SETTLED_S: Final = 25.0
TOP_S: Final = 4.0
LIMIT_S: Final = 60.0

SVG: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Fonts are the reader's own: a picture that fetches something is none."""

COLOURS: Final = {"brown": "yellow", "brightbrown": "bright_yellow"}
"""What the emulator calls a colour and rich calls otherwise; both know the rest."""


def main(program: str, out: Path) -> int:
    """Make all pictures; gives the exit status."""
    try:
        with Lab(DIRECTORY) as lab:
            for name, shares in GUESTS.items():
                lab.add_guest(name, shares, pin=0)
            time.sleep(2)
            environment = environment_of(lab)
            with service(lab.command([program, "run", "2"]), environment):
                time.sleep(SETTLED_S)
                _save(out, "status", shown(lab.command([program, "status"]), environment, HEIGHT))
                looked_at = shown(
                    lab.command([program, "top"]), environment, TOP_HEIGHT, for_s=TOP_S, then=b"q"
                )
                _save(out, "top", looked_at)
    except (LabError, TimeoutError) as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 1
    return 0


def shown(
    command: Sequence[str],
    environment: dict[str, str],
    height: int,
    *,
    for_s: float = LIMIT_S,
    then: bytes = b"",
) -> pyte.Screen:
    """Return what a command shows on a terminal when it has ended, or after a time.

    With keys for `then` the screen is the one after `for_s`; they are to end the command. Raises
    TimeoutError.
    """
    screen = pyte.Screen(WIDTH, height)
    stream = pyte.ByteStream(screen)
    with _terminal(command, environment, height) as (process, terminal):
        deadline_s = time.monotonic() + for_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not select.select([terminal], [], [], left_s)[0]:
                break
            try:
                stream.feed(os.read(terminal, 1 << 16))
            except OSError:  # the other end has closed: it has ended
                break
        if then:
            os.write(terminal, then)
        try:
            process.wait(LIMIT_S if then else max(1.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{' '.join(command)} does not end") from None
    return screen


@contextlib.contextmanager
def _terminal(
    command: Sequence[str], environment: dict[str, str], height: int
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command in a terminal of its own."""
    ours, its = pty.openpty()
    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", height, WIDTH, 0, 0))
        process = subprocess.Popen(
            command,
            env={**environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
            stdin=its,
            stdout=its,
            stderr=subprocess.DEVNULL,  # "sampling for …" is no part of the answer
            start_new_session=True,
        )
        os.close(its)
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(ours)


def _save(out: Path, verb: str, screen: pyte.Screen) -> None:
    """Write the screen as a picture, without the empty lines at its end."""
    lines = [_line(screen, row) for row in range(screen.lines)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    console.print(*lines, sep="\n", end="")
    text = console.export_svg(title=f"vcpusched {verb}", code_format=SVG, unique_id=verb)
    (out / f"{verb}.svg").write_text(text, encoding="utf-8")
    print(f"{verb}.svg: {len(lines)} lines")


def _line(screen: pyte.Screen, row: int) -> Text:
    line = Text(no_wrap=True)
    for column in range(WIDTH):
        cell = screen.buffer[row][column]
        style = Style(
            color=_colour(cell.fg), bgcolor=_colour(cell.bg), bold=cell.bold, reverse=cell.reverse
        )
        line.append(cell.data, style)
    return line


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if len(name) == 6 and all(digit in "0123456789abcdef" for digit in name):  # noqa: PLR2004
        return f"#{name}"
    return COLOURS.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
