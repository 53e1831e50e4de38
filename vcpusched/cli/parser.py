"""The command line: commands, their options, and the texts of `--help`.

Rule: says what may be written, carries out nothing. Manual and completion are generated from it,
so the metavar is the type: FILE, SNAPSHOT and WORKLOAD are files, GUEST is a name or UUID.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vcpusched import __version__

ABOUT: Final = "Balances physical-CPU load on a KVM host by re-pinning as few vCPUs as possible."

GROUPS: Final = {
    "Look": {
        "status": "Show what the service does, and the load of each pCPU.",
        "top": "Show the same live, on the whole terminal.",
        "plan": "Show which pins would change now, and why. Changes nothing.",
        "history": "Show which pins changed, why, and whether it helped.",
    },
    "Act": {
        "run": "Balance this host until stopped (the service).",
        "pause": "Change no pin until resume, or for a time; lasts over restarts.",
        "resume": "End a pause.",
        "restore": "Restore original affinities; the guests are held until release.",
        "release": "End holds, so that the guests may be moved again.",
        "trial": "Measure what guests wait with the service and without, in turn.",
    },
    "Tools": {
        "snapshot": "Save the host as the planner sees it, as JSON.",
        "simulate": "Try the settings on a simulated host. Needs no libvirt.",
        "check-config": "Show the settings, their sources, and what works against them.",
    },
}
"""The commands, each with a sentence, in the groups in which help shows them."""

EXAMPLES: Final = {
    "plan": {
        "vcpusched plan": "what would be done on this host now",
        "vcpusched plan --explain web": "why the vCPUs of web move or stay",
        "vcpusched plan --set min_gain=2": "what another setting would do",
        "vcpusched plan --compare": "single pCPUs, caches and nodes side by side",
        "vcpusched plan --from host.json": "what would be done on a host that was saved",
    },
    "history": {
        "vcpusched history --since 2h": "the last two hours",
        "vcpusched history --domain web --json": "what concerns web, for a program",
    },
    "trial": {
        "vcpusched trial --for 2h": "12 pairs of blocks of five minutes",
    },
    "run": {
        "vcpusched run --dry-run": "decide and report, change nothing",
        "vcpusched run 1 --once": "sample for one second, decide once, exit",
    },
    "pause": {
        "vcpusched pause --for 30m": "for half an hour",
        "vcpusched pause": "until vcpusched resume",
    },
    "restore": {
        "vcpusched restore web": "web, which is then held until release",
        "vcpusched restore": "all guests",
    },
    "release": {
        "vcpusched release web": "web",
        "vcpusched release": "all guests",
    },
    "snapshot": {
        "vcpusched snapshot -o host.json": "for plan --from",
        "vcpusched snapshot --anonymize": "for a bug report",
    },
    "simulate": {
        "vcpusched simulate --generate": "32 made-up vCPUs on 8 pCPUs",
        "vcpusched simulate shop.toml --json": "a workload of your own, for a program",
    },
    "check-config": {
        "vcpusched check-config --config new.toml": "before a file is put in place",
    },
}
"""For each command that has options: command lines, and what they are for."""

SHOWN_FIRST: Final = ("vcpusched plan", "vcpusched pause --for 30m")
"""The examples that help on the whole program shows."""


class _Program(argparse.ArgumentParser):
    """The parser of the whole program: its help shows the commands in groups, with examples."""

    def format_help(self) -> str:
        """Return the help, which fits a terminal of 80 columns and 24 lines."""
        parts = ["usage: vcpusched [--version] COMMAND [OPTIONS]", "", ABOUT, ""]
        for group, commands in GROUPS.items():
            parts += [f"{group}:", *(f"  {name:13} {what}" for name, what in commands.items())]
        every = {line: what for lines in EXAMPLES.values() for line, what in lines.items()}
        parts += ["Examples:", *(f"  {line:28} {every[line]}" for line in SHOWN_FIRST)]
        more = "See also: vcpusched COMMAND --help, man 8 vcpusched, man 5 vcpusched.toml"
        return "\n".join([*parts, more, ""])


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; it gives the command as `name`, and the options of the command."""
    parser = _Program(prog="vcpusched", description=ABOUT)
    parser.add_argument("--version", action="version", version=f"vcpusched {__version__}")
    added = parser.add_subparsers(
        dest="name", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    commands = {
        name: added.add_parser(
            name,
            help=what,
            description=what,
            epilog=_examples(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for group in GROUPS.values()
        for name, what in group.items()
    }
    _add_run_options(commands["run"])
    plan = commands["plan"]
    plan.add_argument(
        "--from", dest="snapshot", metavar="SNAPSHOT", help="plan for a saved snapshot (-: stdin)"
    )
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with this setting instead of the configured one (repeatable)",
    )
    answer = plan.add_mutually_exclusive_group()
    answer.add_argument(
        "--explain", metavar="GUEST", help="say why each vCPU of this guest moves or stays"
    )
    answer.add_argument(
        "--compare", action="store_true", help="compare pinning to single pCPUs, caches and nodes"
    )
    answer.add_argument(
        "--commands", action="store_true", help="print virsh commands that do the same"
    )
    commands["snapshot"].add_argument(
        "-o", dest="output", metavar="FILE", help="write to this file, not to stdout"
    )
    commands["snapshot"].add_argument(
        "--anonymize", action="store_true", help="replace names and UUIDs; plans stay the same"
    )
    history = commands["history"]
    history.add_argument(
        "--since", dest="time", default="1d", metavar="TIME", help="90s, 30m, 2h or 1d (default)"
    )
    history.add_argument(
        "--domain", default="", metavar="GUEST", help="show only this guest (name or UUID)"
    )
    trial = commands["trial"]
    trial.add_argument(
        "--for", dest="time", required=True, metavar="TIME", help="how long, such as 2h"
    )
    trial.add_argument(
        "--block", default="5m", metavar="TIME", help="length of a block (default: 5m)"
    )
    commands["pause"].add_argument(
        "--for", dest="time", metavar="TIME", help="90s, 30m, 2h or 1d (default: until resume)"
    )
    for name in ("restore", "release"):
        commands[name].add_argument(
            "domains", nargs="*", metavar="GUEST", help="name or UUID (default: all guests)"
        )
    _add_simulate_options(commands["simulate"])
    commands["status"].add_argument(
        "-v", dest="verbose", action="store_true", help="show more: pCPUs, guests, recent pins"
    )
    for name in ("plan", "status", "history", "simulate"):
        commands[name].add_argument("--json", action="store_true", help="print JSON")
    for name in ("run", "plan", "snapshot", "restore", "release", "check-config"):
        commands[name].add_argument("--uri", metavar="URI", help="connect to this libvirt")
    readers = ("run", "plan", "snapshot", "restore", "release", "check-config", "simulate", "trial")
    for name in readers:
        commands[name].add_argument(
            "--config", type=Path, metavar="FILE", help="read settings from this file alone"
        )
    return parser


def _examples(name: str) -> str:
    lines = EXAMPLES.get(name, {})
    width = max(map(len, lines), default=0)
    shown = (f"  {line:{width}}  {what}" for line, what in lines.items())
    return "\n".join(["examples:", *shown]) if lines else ""


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "period",
        nargs="?",
        type=float,
        metavar="PERIOD",
        help="sampling period in seconds, 0.5 to 3600 (default: 3, or as configured)",
    )
    parser.add_argument("--once", action="store_true", help="decide once, then exit")
    # None when it is not given, so that it does not outrank the file with a "no".
    parser.add_argument(
        "--dry-run", action="store_const", const=True, help="decide and report, but change no pin"
    )
    parser.add_argument(
        "--exit-when-idle", action="store_true", help="exit at the first cycle without guests"
    )


def _add_simulate_options(parser: argparse.ArgumentParser) -> None:
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument(
        "workload", nargs="?", type=Path, metavar="WORKLOAD", help="guests from a TOML file"
    )
    load.add_argument("--trace", type=Path, metavar="FILE", help="guests from a recorded trace")
    load.add_argument("--generate", action="store_true", help="made-up guests, as clouds have them")
    for name, low, high, metavar, what in (
        ("--cpus", 1, 1024, "N", "number of pCPUs (default: 8)"),
        ("--vcpus", 1, 16_384, "N", "number of vCPUs (default: 32)"),
        ("--mean", 1, 1000, "PERCENT", "scale the mean load of a pCPU to this"),
        ("--periods", 1, 30_000, "N", "number of periods (default: 288)"),
        ("--seed", 0, 1 << 53, "N", "seed of the random numbers (default: 0)"),
    ):
        parser.add_argument(name, type=_whole(low, high), metavar=metavar, help=what)
    parser.add_argument(
        "--place",
        choices=("random", "round-robin", "one", "floating"),
        default="random",
        help="where vCPUs start that the workload does not pin (default: random)",
    )


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not allowed: must be a whole number from {low} to {high}"
            )
        return value

    return parse
