#!/usr/bin/env python3
"""Write the completion of bash and zsh, from the parser.

usage: packaging/completion.py

Needs shtab. A test holds the files to the parser.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import shtab

from vcpusched.cli.parser import make_parser

HERE: Final = Path(__file__).parent

BASH: Final = """\
# Prints the running guests whose names begin so, quoted, so that none is run as a command.
_vcpusched_guests() {
  local name
  while IFS= read -r name; do
    if [ -n "$name" ] && [[ $name == "$1"* ]]; then printf '%q\\n' "$name"; fi
  done < <(virsh --quiet --readonly --connect qemu:///system list --name 2>/dev/null)
}"""

ZSH: Final = """\
# Offers the running guests; compadd quotes them.
_vcpusched_guests() {
  compadd -- ${(f)"$(virsh --quiet --readonly --connect qemu:///system list --name 2>/dev/null)"}
}"""

BY_METAVAR: Final[dict[str, Any]] = {
    "FILE": shtab.FILE,
    "SNAPSHOT": shtab.FILE,
    "WORKLOAD": shtab.FILE,
    "GUEST": dict.fromkeys(("bash", "zsh"), "_vcpusched_guests"),
}


def generated() -> Iterator[tuple[Path, str]]:
    """Return each file with the text that it should have."""
    parser = make_parser()
    actions = parser._actions  # noqa: SLF001  argparse does not offer them otherwise
    (commands,) = [action.choices for action in actions if isinstance(action.choices, dict)]
    for command in commands.values():
        for action in command._actions:  # noqa: SLF001  likewise
            if action.metavar in BY_METAVAR:
                action.complete = BY_METAVAR[action.metavar]
    for shell, guests in (("bash", BASH), ("zsh", ZSH)):
        yield HERE / f"vcpusched.{shell}", shtab.complete(parser, shell, preamble=guests)


if __name__ == "__main__":
    for path, text in generated():
        path.write_text(text, encoding="utf-8")
