"""Draws what the commands show to a person, plans, states and results, from values.

Rule: draws values, asks nobody. Where the output is no terminal, rich leaves colours out and the
same text stays.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vcpusched.model import PPM, PPM_PER_POINT, Granularity, Host
from vcpusched.plan.explain import Explanation
from vcpusched.plan.planner import Plan, Policy
from vcpusched.report import draw, history, treatments
from vcpusched.report.confidence import CONFIDENCE, Estimate
from vcpusched.report.history import Episode, History
from vcpusched.report.messages import change_text
from vcpusched.report.plan_text import inside_text, plan_text, sets_of
from vcpusched.report.simulation import Result
from vcpusched.report.state_file import SavedPin, SavedState
from vcpusched.report.trial_verdict import POINT, Trial
from vcpusched.text import counted, number, percent, points, printable, vcpu_text

_LINE_LENGTH: Final = 24
"""Two of them and their names fit a terminal of 80 columns."""

_WIDE: Final = 10_000

LINES_MAX: Final = 40
"""Of the guests that stay and of those that may be moved no more are shown to a person."""

SHORT_MAX: Final = 3
"""So many of the last pins, and of reasons for which guests stay, are shown without `verbose`."""

ENDS_MAX: Final = 5
"""So many of the busiest pCPUs, and of the least loaded, where there is no room for all."""

SHORT_LINES: Final = 24
"""So many lines of 80 columns a status has without `verbose`, whatever the host."""


COMPARISON: Final = (
    "The gap is between the sets of a row. Worst served: what share of the CPU time that it wants\n"
    "the vCPU gets that gets the least."
)


def show(*parts: RenderableType) -> None:
    """Print to standard output: as wide as COLUMNS or a terminal says, else without folding."""
    console = Console(highlight=False, markup=False, emoji=False)
    columns = os.environ.get("COLUMNS", "")
    if not console.is_terminal and not (columns.isdecimal() and int(columns)):
        try:  # a pager's output is seen where errors are; a terminal may say 0 columns
            console.width = os.get_terminal_size(2).columns or _WIDE
        except OSError:
            console.width = _WIDE
    with console.capture() as capture:
        console.print(draw.Fitting(Group(*parts)))
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def draw_plan(host: Host, plan: Plan, policy: Policy, source: str) -> Group:
    """Draw what a plan does, first and last in a sentence: the host, and each move's reason."""
    threshold_ppm, who = policy.balance_threshold_ppm, _treatments(host)
    sets, after = sets_of(host, policy.pin_to), plan if plan.moves else None
    text = plan_text(plan, host, policy)
    verdict = Text(f"Plan: {text}" if plan.moves else text, "bold")
    drawn = draw.draw_host(host, dict(plan.loads_before_ppm), sets, after)
    parts: list[RenderableType] = [source, verdict]
    if inside := inside_text(host, sets, threshold_ppm, after):
        parts.append(inside)
    parts += ["", drawn]
    parts += ["", *who] if who else []
    parts += [""] if plan.moves else []
    digits = len(str(len(plan.moves)))
    for at, move in enumerate(plan.moves, 1):
        whose = vcpu_text(move.vcpu.vcpu, move.domain)
        line = Text(f"{whose}, {change_text(move)}", "bold")
        line.append(f": {move.reason}", "not bold")
        parts.append(_hanging(f"  {at:{digits}}. ", line))
    parts += ["", verdict] if plan.moves else []
    return Group(*parts)


def draw_comparison(rows: Sequence[Mapping[str, Any]], source: str) -> Group:
    """Draw what plans for sets of different sizes come to, a row each, as `--json` has them."""
    headings = ("pinned to", "sets", "pins", "gap", "worst served")
    drawn = draw.table(*headings, right=("sets", "pins"))
    for row in rows:
        name = "single pCPUs" if row["pin_to"] == Granularity.CPU else f"{row['pin_to']}s"
        gaps = (number(round(row[f"gap_{when}"] * PPM)) for when in ("before", "after"))
        worst = (percent(round(row[f"worst_served_{when}"] * PPM)) for when in ("before", "after"))
        drawn.add_row(
            name, str(row["sets"] or "-"), str(row["pins"]), _change(*gaps), _change(*worst)
        )
    return Group(source, "", drawn, "", COMPARISON)


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> ~{after}"


def headline(state: SavedState, *, is_healthy: bool) -> str:
    """Word how the service is, and what it says of the host."""
    health = "healthy" if is_healthy else "degraded"
    return f"vcpusched is {health}. {printable(state.status, 1000)}"


def draw_status(state: SavedState, host: Host | None, now_s: float, *, verbose: bool) -> Group:
    """Draw the state of the service; what is long of it only where it is asked for."""
    headed = headline(state, is_healthy=state.is_healthy(now_s - state.at))
    facts = _facts(state, host, now_s, verbose=verbose)
    who = [one.text for one in state.left_alone]
    who = [printable(line, 300) for line in (who if verbose else who[:SHORT_MAX])]
    if host is not None:
        who += _treatments(host) if verbose else _reasons(host)
    parts: list[RenderableType] = [Text(headed, "bold"), "", facts]
    left = SHORT_LINES - len(headed) // 80 - facts.row_count - len(who) - 4
    if host is not None:
        room = None if verbose else max(SHORT_MAX, left)
        cpus = draw_cpus(state, host, room, ENDS_MAX)
        left -= cpus.row_count + 1
        parts += ["", cpus]
    parts += ["", *who] if who else []
    count = len(state.last_pins) if verbose else min(SHORT_MAX, left - 2)
    pins = _last_pins(state.last_pins[-count:] if count > 0 else [], verbose=verbose)
    parts += ["", pins] if pins.row_count else []
    return Group(*parts)


def _last_pins(last: Sequence[SavedPin], *, verbose: bool) -> Table:
    pins = draw.table("last pins", "_pin", "why", fold=("_pin", "why"))
    for pin in last:
        why = Text(printable(pin.reason, 400), no_wrap=not verbose, overflow="ellipsis")
        whose = draw.Label(pin.domain, pin_text(pin))
        pins.add_row(draw.clock(pin.at, "%m-%d %H:%M:%S"), whose, why)
    return pins


def draw_cpus(state: SavedState, host: Host, room: int | None, ends: int = 0) -> Table:
    """Draw the pCPUs with their loads as the service last reported them; see `draw_host`."""
    loads_ppm = {int(cpu): round(load * PPM) for cpu, load in state.loads.items()}
    sets = sets_of(host, Granularity(state.pin_to))
    return draw.draw_host(host, loads_ppm, sets, None, room, ends)


def gap_texts(state: SavedState, host: Host | None) -> list[Text]:
    """Draw the gap against the threshold, and what there is to say of gaps inside sets."""
    if state.gap is None:
        return [Text("not known yet")]
    sets = sets_of(host, Granularity(state.pin_to)) if host is not None else ()
    gap_ppm, threshold_ppm = round(state.gap * PPM), round(state.balance_threshold * PPM_PER_POINT)
    text = f" {points(gap_ppm)}{' between sets' if sets else ''}"
    text += f" (threshold {state.balance_threshold:g})"
    inside = inside_text(host, sets, threshold_ppm) if host is not None else ""
    return [draw.gauge(gap_ppm, threshold_ppm) + Text(text), *([Text(inside)] if inside else [])]


def pin_text(pin: SavedPin) -> str:
    """Word which vCPU of a guest was pinned, from where and to where."""
    return f"/{pin.vcpu}  {printable(pin.from_cpus)} → {printable(pin.to_cpus)}"


def _facts(state: SavedState, host: Host | None, now_s: float, *, verbose: bool) -> Table:
    age_s = max(0.0, now_s - state.at)
    started = draw.clock(state.started_at)
    facts: list[tuple[str, RenderableType]] = [
        ("process", f"{state.pid}, since {started}, at {printable(state.uri, 200)}"),
        ("last cycle", f"number {state.cycle}, {age_s:.0f}s ago; one every {state.period:g}s"),
    ]
    if age_s > state.age_max_s:
        stuck = "the process is alive but stopped reporting: it hangs, or is suspended"
        facts.append(("", stuck))
    if state.dry_run:
        facts.append(("dry run", "nothing is changed"))
    facts += zip(("gap", ""), gap_texts(state, host), strict=False)
    counts = f"{state.pins_last_hour} in the last hour, {state.pins_last_day} in the last day"
    facts.append(("pins", f"{counts}, {state.pins} since it started"))
    if state.untold:
        facts.append(("not reported", printable(state.untold, 300)))
    failing = state.pins_failing if verbose else state.pins_failing[:SHORT_MAX]
    facts += [("failing", Text(printable(one, 300), draw.HOT)) for one in failing]
    if left := len(state.pins_failing) - len(failing):
        facts.append(("", f"and {left} more"))
    return _beside(facts, apart=2)


def draw_explanations(domain: str, explanations: Sequence[Explanation], source: str) -> Group:
    """Draw why the vCPUs of a domain are moved, or are not."""
    lines = [_hanging("  ", Text(one.text, "bold" if one.moved else "")) for one in explanations]
    return Group(Text(source), Text(), Text(f"{printable(domain)}:", "bold"), *lines)


def _treatments(host: Host) -> list[str]:
    """Return who may be moved and who may not, no more lines than a person reads."""
    lines = treatments.treatment_lines(host)
    if len(lines) > LINES_MAX:
        more = f"… and {len(lines) - LINES_MAX} more (--json lists all)"
        lines = [*lines[: LINES_MAX - 1], more, lines[-1]]
    return lines


def _reasons(host: Host) -> list[str]:
    """Count the vCPUs that may not be moved, by the reason."""
    counts = Counter(vcpu.why or "fixed" for vcpu in host.vcpus if vcpu.fixed).most_common()
    lines = [
        f"{counted(count, 'vCPU')} may not be moved: {printable(why, 300)}"
        for why, count in counts[:SHORT_MAX]
    ]
    if (more := len(counts) - SHORT_MAX) > 0:
        lines.append(f"… and {counted(more, 'more reason')} (status -v)")
    return lines


def draw_settings(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Draw settings with their values and where they came from."""
    headings = ("setting", "value", "from")
    table = draw.table(*headings, fold=headings)
    for row in rows:
        table.add_row(*row)
    return table


def draw_history(past: History) -> Group:
    """Draw which pins changed, why, and whether it helped, the oldest first."""
    parts: list[RenderableType] = []
    for episode in past.episodes:
        parts += [*_episode(episode, past.until_s), Text()]
    return Group(*parts, Text(f"Since {draw.clock(past.since_s)}: {history.summary(past)}", "bold"))


def _episode(episode: Episode, now_s: float) -> Iterator[RenderableType]:
    yield Text(f"{draw.clock(episode.at_s)}  {history.headline(episode)}", "bold")
    if outcome := history.outcome(episode, now_s):
        yield _hanging("  → ", outcome)
    for moved in episode.moves:
        yield _hanging("  · ", moved.message)


def _hanging(mark: str, text: str | Text) -> Table:
    """Draw a text beside a mark, so that its further lines are as far in as its first."""
    return _beside([(mark, text)], apart=0)


def _beside(rows: Sequence[tuple[str, RenderableType]], apart: int) -> Table:
    grid = Table.grid(padding=(0, apart, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if that is a terminal; what is given advances it by steps."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        console.show_cursor()  # which a signal that ends the process would leave hidden
        task = bar.add_task(what, total=steps)
        yield lambda steps: bar.advance(task, steps)


def draw_trial(trial: Trial, where: str) -> Group:
    """Draw what came of a trial, the verdict last; `where` says of what."""
    counts = (
        counted(trial.pairs, "pair of blocks", "pairs of blocks"),
        counted(trial.guests, "guest"),
        counted(trial.pins, "pin"),
    )
    table = draw.table("_what", "without", "with", f"difference ({CONFIDENCE:.0%} interval)")
    for what, wait in (("wait of a vCPU", trial.wait), ("longest wait", trial.longest)):
        table.add_row(what, f"{wait.without:.1%}", f"{wait.having:.1%}", _points(wait.more))
    run, more = trial.run, trial.run.more
    change = f"{more.value:+.2f} pCPUs ({more.low:+.2f} to {more.high:+.2f})"
    table.add_row("run of all guests", f"{run.without:.2f}", f"{run.having:.2f}", change)
    lines = [
        f"{printable(name)} waits longer: {wait.without:.1%} -> {wait.having:.1%},"
        f" {_points(wait.more)}"
        for (name, _number), wait in trial.lost.items()
    ]
    lost = lines or [f"No guest waits {POINT:.0%} of its time longer beyond the noise."]
    headed = f"Trial of {where}: {', '.join(counts)}"
    return Group(headed, "", table, "", *lost, Text(f"Verdict: {trial.verdict}.", "bold"))


def _points(more: Estimate) -> str:
    value, low, high = (part / POINT for part in (more.value, more.low, more.high))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def draw_simulation(about: Mapping[str, Any], balanced: Result, unmoved: Result) -> Group:
    """Draw what came of two runs of a workload: with vcpusched, and with nothing moved.

    `about` says what was run, as `--json` has it.
    """
    headline = Text(f"{printable(about['workload'], 200)}: ", "bold")
    headline.append(
        f"{counted(about['vcpus'], 'vCPU')} on {counted(about['cpus'], 'pCPU')}, mean load"
        f" {percent(round(about['mean_load'] * PPM))}, {counted(about['periods'], 'period')} of"
        f" {about['period_s']:g}s, seed {about['seed']}",
        "not bold",
    )
    highest_ppm = max(period.gap_ppm for run in (balanced, unmoved) for period in run.periods)
    rows: dict[str, Callable[[Result], str | Text]] = {
        "gap over time": lambda run: Text(_line(run, highest_ppm), draw.COOL),
        "gap, mean": lambda run: points(run.gap_ppm),
        "demand not met": lambda run: percent(run.unmet_ppm, decimals=1),
        "time kept waiting": lambda run: percent(run.waiting_ppm, decimals=1),
        "worst vCPU": _worst,
        "pin changes": _pins,
    }
    columns = ("with vcpusched", "without vcpusched")
    table = draw.table("_what", *columns, fold=columns, apart=3)
    for name, cell in rows.items():
        table.add_row(name, cell(balanced), cell(unmoved))
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


def _worst(run: Result) -> str:
    if (worst := run.worst) is None:
        return ""
    share = percent(worst.waiting_ppm, decimals=1)
    return f"{share} ({printable(worst.domain)}/{worst.vcpu})"


def _pins(run: Result) -> str:
    if not run.pins and not run.refused:
        return "none"
    text = f"{len(run.pins)} in {counted(run.plans, 'plan')}"
    text += f", {run.moved_back} of them back" if run.moved_back else ""
    return text + (f"; {run.refused} refused" if run.refused else "")
