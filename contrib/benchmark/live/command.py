"""The command behind contrib/benchmark/run live: what is claimed of real guests, measured.

Rule: arguments, files and order live here.
"""

import argparse
import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from arguments import add_common, count
from image import ImageError
from lab import Lab, LabError
from lab_processes import end_on_signals
from live import accuracy, cost, cycle_cost, trial
from live.blocks import Block, Timing, furnish, measure
from live.in_machine import in_machine
from live.scenarios import BY_QUOTAS, NAMES, Scenario, scenarios
from live.service import LiveError
from live.system import SystemHost
from live.tables import guests_table, live_tables
from live.verdict import Answer, Measure, Verdict, judge
from machine import MachineError
from progress import follow, say
from sides import checked_out
from tables import Table, write

from vcpusched.model import CpuSet
from vcpusched.report.confidence import PAIRS_MIN

FULL: Final = Timing(pairs=12, rest_s=7.0, measure_s=6.0)
QUICK: Final = Timing(pairs=4, rest_s=6.0, measure_s=3.0)

READINGS: Final = ("accuracy", "cost", "trial")
"""What is measured of the daemon itself, on emulated guests, or by it."""

_FAILURES: Final = (
    AssertionError,
    TimeoutError,
    LabError,
    LiveError,
    MachineError,
    ImageError,
    ValueError,
    subprocess.SubprocessError,
)
"""What ends a measurement that was begun."""


def main(arguments: Sequence[str]) -> int:
    """Run the live part, and return the exit status: 1 where a claim does not hold, else 0."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if (chosen.machine or chosen.system) and set(READINGS) & set(chosen.names):
        parser.error(f"{' and '.join(READINGS)} are measured in neither --machine nor --system")
    if set(BY_QUOTAS) & set(chosen.names) and not (chosen.machine or chosen.system):
        parser.error(f"{' and '.join(BY_QUOTAS)} needs --machine or --system")
    online = CpuSet.of(os.sched_getaffinity(0))
    try:
        timing = _timing(chosen)
        # The machine has pCPUs of its own, and chooses among them itself.
        taken = {} if chosen.machine else _taken(chosen, online)
        chosen.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    end_on_signals()
    began_s = time.monotonic()
    try:
        if chosen.machine:
            return in_machine([word for word in arguments if word != "--machine"], chosen.out)
        if "trial" in chosen.names:
            said = trial.run(timing)
            print(said, flush=True)
            (chosen.out / "trial.md").write_text(said)
        for name in ("accuracy", "cost"):
            if name in chosen.names:
                readings, tables = (_costs if name == "cost" else _accuracy)(timing, chosen)
                _show(tables)
                write(chosen.out, name, readings, tables, quick=chosen.quick)
        verdicts = _verdicts(taken, timing, online, chosen)
    except _FAILURES as error:
        say(f"live: {error}")
        return 1
    took_min = (time.monotonic() - began_s) / 60
    say(f"Done in {took_min:.1f} minutes. Tables and figures are in {chosen.out}")
    return int(any(verdict.answer is Answer.FAILS for verdict in verdicts))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run live",
        description="Measures real guests without and with the daemon; or what the daemon reports"
        " and costs, and what its own trial says. contrib/benchmark/run --help says how.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=_name,
        metavar="NAME",
        help=f"only these: {', '.join((*NAMES, *READINGS))} (default: {', '.join(NAMES)})",
    )
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
        " it must have no guests; judged by the time that the kernel gives them",
    )
    parser.add_argument("--pairs", type=count, help=f"pairs of blocks (default: {FULL.pairs})")
    for name, default_s, where_in in (
        ("--rest", FULL.rest_s, "before"),
        ("--measure", FULL.measure_s, "of"),
    ):
        words = f"seconds {where_in} each measurement (default: {default_s:g})"
        parser.add_argument(name, type=_seconds, metavar="S", help=words)
    parser.add_argument("--cpus", type=count, help="use only so many pCPUs (default: all)")
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
        type=count,
        help="groups of guests, each with work for two pCPUs (default: as many as fit)",
    )
    add_common(parser, "measure what the daemon of a commit costs, too", "fewer and shorter blocks")
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
    """Return the scenarios that were asked for, on the pCPUs that were asked for."""
    if chosen.against and "cost" not in chosen.names:
        raise ValueError("--against is for cost")
    count = chosen.cpus or len(online)
    if count > len(online):
        raise ValueError(f"there are {len(online)} pCPUs, not {count}")
    known = scenarios(CpuSet.of(list(online)[:count]), chosen.groups)
    usual = NAMES if chosen.system else [name for name in NAMES if name not in BY_QUOTAS]
    taken = {name: known[name] for name in chosen.names or usual if name in known}
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


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 1 <= (value := float(text)) <= 3600:  # noqa: PLR2004  one period of the daemon, an hour
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 1 to 3600")


def _verdicts(
    taken: Mapping[str, Scenario], timing: Timing, online: CpuSet, chosen: argparse.Namespace
) -> Sequence[Verdict]:
    """Measure and judge the scenarios, and keep all that was measured and concluded."""
    blocks: dict[str, list[Block]] = {}
    verdicts: dict[str, Verdict] = {}
    measure_by = Measure.TIME if chosen.system else Measure.WORK
    for name, scenario in taken.items():
        with SystemHost() if chosen.system else Lab() as host:
            furnish(host, scenario, online)
            measuring = follow(measure(host, scenario, timing), 2 * timing.pairs, scenario.title)
            blocks[name] = list(measuring)
        verdicts[name] = judge(scenario, blocks[name], measure_by)
        _show([guests_table(scenario, verdicts[name])])
    if taken:
        tables = live_tables(taken, verdicts, timing)
        _show(tables[-1:])
        found = {
            name: {"scenario": taken[name], "verdict": verdicts[name], "blocks": blocks[name]}
            for name in taken
        }
        figures = {"timing": timing, "scenarios": found}
        write(chosen.out, "live", figures, tables, quick=chosen.quick)
    return list(verdicts.values())


def _accuracy(timing: Timing, _chosen: argparse.Namespace) -> tuple[object, Sequence[Table]]:
    """Measure what the daemon reports, and return all readings and a table."""
    total = accuracy.GUESTS * timing.pairs
    with Lab() as lab:
        found = list(follow(accuracy.measure(lab, timing), total, accuracy.TITLE))
    return found, [accuracy.table(found, timing)]


def _costs(timing: Timing, chosen: argparse.Namespace) -> tuple[object, Sequence[Table]]:
    """Measure what the daemon costs, on real guests and in memory, as `_accuracy` does."""
    costs: list[cost.Cost] = []
    against: str | None = chosen.against
    most = 1 if chosen.quick else None
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(checked_out(against)) if against else None
        sides = stack.enter_context(cost.sides(tree, against or ""))
        for size in cost.SIZES[:most]:
            total, title = len(sides) * timing.pairs, "{} idle guests of {} vCPUs".format(*size)
            with Lab() as lab:
                costs += follow(cost.measure(lab, size, sides, timing), total, title)
    shapes = cycle_cost.SHAPES[:most]
    cycles = list(follow(cycle_cost.run(shapes), len(shapes), "Cycles in memory"))
    figures = {"live": costs, "memory": cycles}
    return figures, [cost.table(costs, timing), cycle_cost.table(cycles)]


def _show(tables: Sequence[Table]) -> None:
    print(*(table.markdown() for table in tables), sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
