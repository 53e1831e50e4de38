"""The command behind contrib/benchmark/run live: what is claimed of real guests, measured.

Rule: arguments, signals, files and order live here.
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import cycle_cost
import live_accuracy
import live_cost
import results
from image import ImageError
from intervals import PAIRS_MIN
from lab import Lab, LabError
from linux_guest import LinuxGuestError
from live_blocks import Block, Timing, furnish, measure
from live_machine import in_machine
from live_scenarios import Scenario, scenarios
from live_service import LiveError
from live_system import SystemHost
from live_tables import cycles_table, guests_table, live_tables
from live_verdict import Answer, Measure, Verdict, judge
from machine import MachineError
from progress import follow, say
from tables import Table, show
from unchanged import checked_out

from vcpusched.model import CpuSet

FULL: Final = Timing(pairs=12, rest_s=7.0, measure_s=6.0)
QUICK: Final = Timing(pairs=4, rest_s=6.0, measure_s=3.0)

TOP: Final = Path(__file__).resolve().parents[2]

NAMES: Final = ("bad", "floating", "once", "half", "pool")
"""The scenarios: what is measured if nothing is chosen."""

READINGS: Final = ("accuracy", "cost")
"""What is measured of the daemon itself, on emulated guests."""

_FAILURES: Final = (
    LabError,
    LinuxGuestError,
    LiveError,
    ValueError,
    subprocess.CalledProcessError,
)
"""What ends a measurement that was begun."""

_SERVED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: Sequence[str]) -> int:
    """Run the live part; gives the exit status: 1 where a claim does not hold, else 0."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if (chosen.machine or chosen.system) and set(READINGS) & set(chosen.names):
        parser.error(f"{' and '.join(READINGS)} are measured in neither --machine nor --system")
    if chosen.machine:
        return _in_machine(parser, chosen, arguments)
    online = CpuSet.of(os.sched_getaffinity(0))
    try:
        timing = _timing(chosen)
        taken = _taken(chosen, online)
        chosen.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for number in _SERVED:
        signal.signal(number, _interrupted)
    blocks: dict[str, list[Block]] = {}
    verdicts: dict[str, Verdict] = {}
    began_s = time.monotonic()
    try:
        for name in READINGS:
            if name in chosen.names:
                readings, tables = _costs(timing, chosen) if name == "cost" else _accuracy(timing)
                show(tables)
                results.write(chosen.out, name, readings, tables, quick=chosen.quick)
        for name, scenario in taken.items():
            blocks[name] = _measure(scenario, timing, online, system=chosen.system)
            verdicts[name] = judge(scenario, blocks[name], Measure(chosen.by))
            show([guests_table(scenario, verdicts[name])])
    except _FAILURES as error:
        say(f"live: {error}")
        return 1
    if taken:
        tables = live_tables(taken, verdicts, timing)
        show(tables[-1:])
        figures = _figures(taken, timing, blocks, verdicts)
        results.write(chosen.out, "live", figures, tables, quick=chosen.quick)
    took_min = (time.monotonic() - began_s) / 60
    say(f"Done in {took_min:.1f} minutes. Tables and figures are in {chosen.out}")
    return int(any(verdict.answer is Answer.FAILS for verdict in verdicts.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run live",
        description="Measures real guests that count their own work, in interleaved blocks without"
        " and with the daemon; or what the daemon reports (accuracy) and what it costs (cost)."
        " The scenarios take about half an hour, --quick 7 minutes; accuracy as long, cost an"
        " hour, --quick 2 minutes (10 guests of 2 vCPUs alone).",
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=_name,
        metavar="NAME",
        help=f"only these: {', '.join((*NAMES, *READINGS))} (default: {', '.join(NAMES)})",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter blocks")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--machine",
        action="store_true",
        help="in an emulated machine of eight pCPUs with KVM guests (two cores: --groups 1)",
    )
    where.add_argument(
        "--system",
        action="store_true",
        help="on this host's own libvirtd, with KVM guests that quotas hold to what they want;"
        " it must have no guests",
    )
    parser.add_argument(
        "--by",
        choices=list(Measure),
        default=Measure.WORK,
        help="judge guests by the work that they count, or by the time that the kernel gives them:"
        " for emulated pCPUs, which share real ones (default: work; with --machine time)",
    )
    parser.add_argument(
        "--against", metavar="COMMIT", help="measure what the daemon of a commit costs, too"
    )
    parser.add_argument("--pairs", type=_count, help=f"pairs of blocks (default: {FULL.pairs})")
    parser.add_argument(
        "--rest",
        type=_seconds,
        metavar="S",
        help=f"seconds before each measurement (default: {FULL.rest_s:g})",
    )
    parser.add_argument(
        "--measure",
        type=_seconds,
        metavar="S",
        help=f"seconds of each measurement (default: {FULL.measure_s:g})",
    )
    parser.add_argument("--cpus", type=_count, help="use only so many pCPUs (default: all)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="KEY=VALUE",
        help='set the daemon so, with a TOML value (pin_to="cpu"), beyond what a scenario sets',
    )
    parser.add_argument(
        "--groups",
        type=_count,
        help="groups of guests, each with work for two pCPUs (default: as many as fit)",
    )
    parser.add_argument(
        "--out", type=Path, default=TOP / "build" / "benchmark", help="where results are written"
    )
    return parser


def _timing(chosen: argparse.Namespace) -> Timing:
    usual = QUICK if chosen.quick else FULL
    timing = Timing(
        pairs=chosen.pairs or usual.pairs,
        rest_s=chosen.rest or usual.rest_s,
        measure_s=chosen.measure or usual.measure_s,
    )
    if timing.pairs < PAIRS_MIN:
        raise ValueError(f"from less than {PAIRS_MIN} pairs nothing can be said of the noise")
    return timing


def _taken(chosen: argparse.Namespace, online: CpuSet) -> dict[str, Scenario]:
    """Give the scenarios that were asked for, on the pCPUs that were asked for."""
    if chosen.against and "cost" not in chosen.names:
        raise ValueError("--against is for cost")
    count = chosen.cpus or len(online)
    if count > len(online):
        raise ValueError(f"there are {len(online)} pCPUs, not {count}")
    known = scenarios(CpuSet.of(list(online)[:count]), chosen.groups)
    taken = {name: known[name] for name in chosen.names or NAMES if name in known}
    return {
        name: dataclasses.replace(scenario, settings={**scenario.settings, **dict(chosen.set)})
        for name, scenario in taken.items()
    }


def _name(text: str) -> str:
    if text not in {*NAMES, *READINGS}:
        raise argparse.ArgumentTypeError(f"there is no {text!r}")
    return text


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 3600:  # noqa: PLR2004  from one of the daemon's periods to an hour
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 to 3600")
    return value


def _in_machine(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, arguments: Sequence[str]
) -> int:
    """Run it with the same arguments where the pCPUs are."""
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        taken = [word for word in arguments if word != "--machine"]
        return in_machine(taken, chosen.out)
    except (MachineError, ImageError) as error:
        say(f"live: {error}")
        return 1
    except OSError as error:
        parser.error(str(error))


def _measure(scenario: Scenario, timing: Timing, online: CpuSet, *, system: bool) -> list[Block]:
    with SystemHost() if system else Lab() as host:
        furnish(host, scenario, online)
        return list(follow(measure(host, scenario, timing), 2 * timing.pairs, scenario.title))


def _accuracy(timing: Timing) -> tuple[object, Sequence[Table]]:
    """Measure what the daemon reports; gives all readings as JSON values, and a table."""
    total = live_accuracy.GUESTS * timing.pairs
    with Lab() as lab:
        found = list(follow(live_accuracy.measure(lab, timing), total, live_accuracy.TITLE))
    return [dataclasses.asdict(one) for one in found], [live_accuracy.table(found, timing)]


def _costs(timing: Timing, chosen: argparse.Namespace) -> tuple[object, Sequence[Table]]:
    """Measure what the daemon costs, on real guests and in memory, as `_accuracy` does."""
    costs: list[live_cost.Cost] = []
    against: str | None = chosen.against
    most = 1 if chosen.quick else None
    shapes = cycle_cost.SHAPES[:most]
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(checked_out(against)) if against else None
        sides = stack.enter_context(live_cost.sides(tree, against or ""))
        for size in live_cost.SIZES[:most]:
            total, title = len(sides) * timing.pairs, "{} idle guests of {} vCPUs".format(*size)
            with Lab() as lab:
                costs += follow(live_cost.measure(lab, size, sides, timing), total, title)
        trees = {**({against: tree} if against and tree else {}), "now": TOP}
        total = len(shapes) * len(trees)
        cycles = list(follow(cycle_cost.run(trees, shapes), total, "Cycles in memory"))
    figures = {
        "live": [dataclasses.asdict(cost) for cost in costs],
        "memory": [dataclasses.asdict(cost) for cost in cycles],
    }
    return figures, [live_cost.table(costs, timing), cycles_table(cycles)]


def _figures(
    taken: Mapping[str, Scenario],
    timing: Timing,
    blocks: Mapping[str, Sequence[Block]],
    verdicts: Mapping[str, Verdict],
) -> object:
    """Give everything that was measured and concluded as JSON values."""
    return {
        "timing": dataclasses.asdict(timing),
        "scenarios": {
            name: {
                "title": scenario.title,
                "claim": scenario.claim,
                "cpus": str(scenario.cpus),
                "settings": dict(scenario.settings),
                "verdict": _verdict(verdicts[name]),
                "blocks": [dataclasses.asdict(block) for block in blocks[name]],
            }
            for name, scenario in taken.items()
        },
    }


def _verdict(verdict: Verdict) -> object:
    guests = {
        guest.shape.name: {
            "shares": guest.shape.shares,
            "start": str(guest.shape.start),
            "pool": None if guest.shape.pool is None else str(guest.shape.pool),
            "work_per_s": [guest.work_without, guest.work_with],
            "run": [guest.run_without, guest.run_with],
            "wait": [guest.wait_without, guest.wait_with],
            "time_ratio": dataclasses.asdict(guest.time),
            "work_ratio": dataclasses.asdict(guest.work),
        }
        for guest in verdict.guests
    }
    return {**dataclasses.asdict(dataclasses.replace(verdict, guests=())), "guests": guests}


def _interrupted(number: int, _frame: FrameType | None) -> None:
    # Once is enough: another signal must not cut the cleaning up short.
    for served in _SERVED:
        signal.signal(served, lambda _number, _frame: None)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
