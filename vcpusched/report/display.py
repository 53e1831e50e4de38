"""Draws a host, a plan and the service's state for a person at a terminal.

Rule: draws values, asks nobody. Where the output is no terminal, rich leaves colours out and the
same text stays.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Host, VcpuId
from vcpusched.plan import explain
from vcpusched.plan.explain import Explanation
from vcpusched.plan.planner import Plan, Stop
from vcpusched.report import draw, history
from vcpusched.report.history import Event, History
from vcpusched.report.simulation import About, Result, VcpuResult
from vcpusched.report.snapshot import SavedState
from vcpusched.text import cpus_text, percent, points, printable, vcpu_text

_LINE_LENGTH: Final = 40

LINES_MAX: Final = 40
"""Of the guests that stay and of those that may be moved no more are told to a person."""


def show(*parts: RenderableType) -> None:
    """Print to standard output, as wide as the terminal; plain and unwrapped when piped."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=200)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    text = draw.fitting(capture.get(), console.encoding)
    print("\n".join(line.rstrip() for line in text.splitlines()))


def draw_plan(host: Host, plan: Plan, threshold_ppm: int, source: str) -> Group:
    """Draw the host before and after, and each move with its reason."""
    threshold = f"threshold {threshold_ppm / PPM_PER_POINT:g}"
    before_ppm = dict(plan.loads_before_ppm)
    then: tuple[Mapping[int, int], Mapping[VcpuId, CpuSet]] | tuple[()] = ()
    if plan.moves:
        then = dict(plan.loads_after_ppm), {move.vcpu: move.to_cpus for move in plan.moves}
    parts: list[RenderableType] = [
        Text(source),
        Text(),
        draw.draw_host(host, before_ppm, *then),
        Text(),
        *_treatments(host),
    ]
    if plan.balanced:
        parts.append(f"Balanced: the gap is {points(plan.gap_before_ppm)} ({threshold}).")
    elif not plan.moves and plan.refused:
        gap = points(plan.gap_before_ppm)
        parts.append(
            f"Unbalanced, but what would balance it {plan.refused}: the gap is {gap} ({threshold})."
        )
    elif not plan.moves:
        gap = points(plan.gap_before_ppm)
        parts.append(f"Unbalanced, but no move pays: the gap is {gap} ({threshold}).")
    if not plan.moves:
        return Group(*parts)
    before, after = points(plan.gap_before_ppm), points(plan.gap_after_ppm)
    count = f"{len(plan.moves)} pin change{'' if len(plan.moves) == 1 else 's'}"
    end = {
        Stop.BALANCED: "then it is balanced",
        Stop.NO_GAIN: "no move that pays brings it closer",
        Stop.MOVE_LIMIT: "moves_max allows no more in one plan",
    }[plan.stop]
    if plan.refused:
        end = f"more was planned, but that {plan.refused}"
    parts.append(f"{count}, and the gap goes from {before} to {after} ({threshold}); {end}:")
    digits = len(str(len(plan.moves)))
    for number, move in enumerate(plan.moves, 1):
        whose = vcpu_text(move.vcpu.vcpu, move.domain)
        line = Text(
            f"{whose} from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}", "bold"
        )
        line.append(f": {move.reason}", "not bold")
        parts.append(_hanging(f"  {number:{digits}}. ", line))
    return Group(*parts)


def draw_status(headline: str, state: SavedState, host: Host | None, now_s: float) -> Group:
    """Draw the state of the service."""
    parts: list[RenderableType] = [Text(headline, "bold"), Text(), _facts(state, now_s)]
    if host is not None:
        loads_ppm = {int(cpu): round(load * PPM) for cpu, load in state.loads.items()}
        parts += [Text(), draw.draw_host(host, loads_ppm)]
    alone = [
        f"pCPUs {printable(left.cpus)} are left alone: {left.why}" for left in state.left_alone
    ]
    parts += [Text()] if host is not None or alone else []
    parts += [Text(printable(line, 300)) for line in alone]
    parts += _treatments(host)[:-1] if host is not None else []
    if state.last_pins:
        pins = draw.table("last pins", "vCPU", "_places", "why", fold="why")
        for pin in state.last_pins:
            whose = f"{printable(pin.domain)}/{pin.vcpu}"
            places = f"{printable(pin.from_cpus)} → {printable(pin.to_cpus)}"
            when = draw.clock(pin.at, "%m-%d %H:%M:%S")
            pins.add_row(when, whose, places, Text(printable(pin.reason, 400)))
        parts += [Text(), pins]
    return Group(*parts)


def _facts(state: SavedState, now_s: float) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    age_s = max(0.0, now_s - state.at)

    def fact(name: str, what: str | Text) -> None:
        facts.add_row(name, what if isinstance(what, Text) else Text(what))

    started = draw.clock(state.started_at)
    fact("process", f"{state.pid}, since {started}, at {printable(state.uri, 200)}")
    fact("last cycle", f"number {state.cycle}, {age_s:.0f} s ago; one every {state.period:g} s")
    if age_s > state.age_max_s:
        fact("", "the process lives but has said nothing since then: it hangs, or was stopped")
    if state.dry_run:
        fact("dry run", "nothing is changed")
    if state.gap is not None:
        gap_ppm, threshold_ppm = (
            round(state.gap * PPM),
            round(state.balance_threshold * PPM_PER_POINT),
        )
        gauge = draw.gauge(gap_ppm, threshold_ppm)
        threshold = f" {points(gap_ppm)}, threshold {state.balance_threshold:g}"
        fact("gap", gauge + Text(threshold))
    counts = f"{state.pins_last_hour} in the last hour, {state.pins_last_day} in the last day"
    fact("pins", f"{counts}, {state.pins} since it started")
    if state.untold:
        fact("untold", printable(state.untold, 300))
    for failing in state.pins_failing:
        fact("failing", Text(printable(failing, 300), draw.HOT))
    return facts


def draw_explanations(domain: str, explanations: Sequence[Explanation], source: str) -> Group:
    """Draw why the vCPUs of a domain are moved, or are not."""
    lines = [Text(f"  {one.text}", "bold" if one.moved else "") for one in explanations]
    return Group(Text(source), Text(), Text(f"{printable(domain)}:", "bold"), *lines)


def _treatments(host: Host) -> list[RenderableType]:
    """Draw who may be moved and who may not, and a blank line, if there is anybody."""
    lines = explain.told(host)
    if len(lines) > LINES_MAX:
        more = f"… and {len(lines) - LINES_MAX} more (--json tells all)"
        lines = [*lines[: LINES_MAX - 1], more, lines[-1]]
    return [*(Text(line) for line in lines), Text()] if lines else []


def draw_settings(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Draw settings with their values and where they came from."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def draw_history(past: History) -> Group:
    """Draw what was moved, why, and whether it helped, the oldest first."""
    parts: list[RenderableType] = []
    for event in past.events:
        parts += [*_event(event, past.until_s), Text()]
    since = draw.clock(past.since_s)
    return Group(*parts, Text(f"{history.summary(past)}, since {since}.", "bold"))


def _event(event: Event, now_s: float) -> Iterator[RenderableType]:
    yield Text(f"{draw.clock(event.at_s)}  {history.headline(event)}", "bold")
    rows = history.figures(event)
    if rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("", min_width=4)
        for heading in ("before", "planned", "measured"):
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        yield Padding(table, (0, 0, 0, 4))
    if came := history.came_of_it(event, now_s):
        yield _hanging("  → ", came)
    for moved in event.moves:
        yield _hanging("  · ", history.sentence(moved))


def _hanging(mark: str, text: str | Text) -> Table:
    """Draw a text beside a mark, so that its further lines are as far in as its first."""
    grid = Table.grid()
    grid.add_column(no_wrap=True, min_width=len(mark))
    grid.add_column(overflow="fold")
    grid.add_row(mark, text if isinstance(text, Text) else Text(text))
    return grid


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; what is given advances it by a step."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=steps)
        yield lambda: bar.advance(task)


def draw_simulation(about: About, balanced: Result, unmoved: Result) -> Group:
    """Draw what came of two runs of a workload: with vcpusched, and with nothing moved."""
    headline = Text(f"{printable(about.workload, 200)}: ", "bold")
    headline.append(
        f"{about.vcpus} vCPUs on {about.cpus} pCPUs, mean load"
        f" {percent(about.mean_ppm)}, {about.periods} periods of"
        f" {about.period_ns / 1e9:g} s, seed {about.seed}",
        "not bold",
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for heading in ("with vcpusched", "without vcpusched"):
        table.add_column(heading, no_wrap=True)
    runs = (balanced, unmoved)
    highest_ppm = max(period.gap_ppm for run in runs for period in run.periods)
    table.add_row("gap over time", *(Text(_line(run, highest_ppm), "cyan") for run in runs))
    table.add_row("gap, mean", *(points(run.gap_ppm) for run in runs))
    table.add_row("demand not met", *(_part(run.unmet_ppm) for run in runs))
    table.add_row("time kept waiting", *(_part(run.waiting_ppm) for run in runs))
    table.add_row("worst vCPU", *(_worst(run) for run in runs))
    table.add_row("pin changes", *(_pins(run) for run in runs))
    return Group(headline, Text(), table)


def _line(run: Result, highest_ppm: int) -> str:
    gaps_ppm = [period.gap_ppm for period in run.periods]
    length = min(_LINE_LENGTH, len(gaps_ppm))
    line = ""
    for column in range(length):
        first, last = (len(gaps_ppm) * end // length for end in (column, column + 1))
        mean_ppm = sum(gaps_ppm[first:last]) // (last - first)
        line += draw.LEVELS[mean_ppm * (len(draw.LEVELS) - 1) // max(1, highest_ppm)]
    return line


def _part(part_ppm: int) -> str:
    return f"{part_ppm / PPM_PER_POINT:.1f} %"


def _worst(run: Result) -> str:
    worst = run.worst
    return "" if worst is None else f"{_part(worst.waiting_ppm)} ({_whose(worst)})"


def _whose(vcpu: VcpuResult) -> str:
    return f"{printable(vcpu.domain)}/{vcpu.vcpu}"


def _pins(run: Result) -> str:
    if not run.pins and not run.refused:
        return "none"
    text = f"{len(run.pins)} in {run.plans} plan{'' if run.plans == 1 else 's'}"
    text += f", {run.moved_back} of them back" if run.moved_back else ""
    return text + (f"; {run.refused} refused" if run.refused else "")
