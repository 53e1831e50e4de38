"""Draws a host, a plan and the service's state for a person at a terminal.

Rule: the only import of `rich`; draws values, asks nobody. Where the output is no terminal, rich
leaves colours out and the same text stays.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vcpusched import explain
from vcpusched.explain import Explanation
from vcpusched.model import PPM, PPM_PER_POINT, CpuSet, Host, Vcpu
from vcpusched.outcome import Result, VcpuResult
from vcpusched.planner import Plan, Stop
from vcpusched.report import cpus_text, points
from vcpusched.text import printable
from vcpusched.workload import Workload

BAR_LENGTH: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_HOT_PPM: Final = 900_000
_WARM_PPM: Final = 600_000
_LINE_LENGTH: Final = 40
_LEVELS: Final = "▁▂▃▄▅▆▇█"
ROWS_MAX: Final = 64
"""Above this many pCPUs, those without any vCPU are summed up in one row."""


def show(*parts: RenderableType) -> None:
    """Print to standard output, as wide as the terminal; plain and unwrapped when piped."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(*parts, sep="\n")
        return
    wide = Console(highlight=False, width=200)
    with wide.capture() as capture:
        wide.print(*parts, sep="\n")
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def draw_host(host: Host, loads_ppm: Mapping[int, int], moved: Mapping[Any, CpuSet]) -> Table:
    """Draw every pCPU with its load and the vCPUs on it; `moved` are affinities to come."""
    on_cpu: dict[int, list[Text]] = {cpu.id: [] for cpu in host.cpus}
    floating: list[Text] = []
    managed = host.online
    for vcpu in sorted(host.vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        cpus = moved.get(vcpu.id, vcpu.cpus)
        label = _label(vcpu, new=vcpu.id in moved)
        if len(cpus) == 1:
            on_cpu.setdefault(next(iter(cpus)), []).append(label)
        else:
            floating.append(label.append(f" on {cpus}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("pCPU", justify="right")
    table.add_column("load", min_width=BAR_LENGTH, no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("vCPUs pinned here, with their load in percent", overflow="fold")
    empty = 0
    for cpu, labels in on_cpu.items():
        load_ppm = loads_ppm.get(cpu, 0)
        if len(on_cpu) > ROWS_MAX and not labels and load_ppm < PPM_PER_POINT:
            empty += 1
            continue
        percent = f"{load_ppm / PPM_PER_POINT:.0f} %" if cpu in managed else "not managed"
        table.add_row(str(cpu), _bar(load_ppm), percent, Text(", ").join(labels))
    if empty:
        table.add_row("", "", "", f"{empty} more pCPUs are idle")
    if floating:
        table.add_row("float", "", "", Text(", ").join(floating))
    return table


def draw_plan(host: Host, plan: Plan, threshold_ppm: int, source: str) -> Group:
    """Draw the host before, each move with its reason, and the host after."""
    threshold = f"threshold {threshold_ppm / PPM_PER_POINT:g}"
    parts: list[RenderableType] = [
        Text(source),
        Text(),
        draw_host(host, dict(plan.loads_before_ppm), {}),
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
    for number, move in enumerate(plan.moves, 1):
        line = Text(f"  {number}. vCPU {move.vcpu.vcpu} of {printable(move.domain)} ", "bold")
        line.append(f"from {cpus_text(move.from_cpus)} to {cpus_text(move.to_cpus)}", "bold")
        line.append(f": {move.reason}", "not bold")
        parts.append(line)
    moved = {move.vcpu: move.to_cpus for move in plan.moves}
    parts += [
        Text(),
        Text("Then:"),
        Text(),
        draw_host(host, dict(plan.loads_after_ppm), moved),
    ]
    return Group(*parts)


def draw_status(
    headline: str, lines: Sequence[str], host: Host | None, loads_ppm: Mapping[int, int]
) -> Group:
    """Draw the state of the service."""
    parts: list[RenderableType] = [Text(headline, "bold"), *(Text(line) for line in lines)]
    if host is not None:
        parts += [Text(), draw_host(host, loads_ppm, {}), Text(), *_treatments(host)]
    return Group(*parts)


def draw_explanations(domain: str, explanations: Sequence[Explanation], source: str) -> Group:
    """Draw why the vCPUs of a domain are moved, or are not."""
    lines = [Text(f"  {one.text}", "bold" if one.moved else "") for one in explanations]
    return Group(Text(source), Text(), Text(f"{printable(domain)}:", "bold"), *lines)


def _treatments(host: Host) -> list[RenderableType]:
    """Draw who may be moved and who may not, and a blank line, if there is anybody."""
    lines = explain.told(host)
    return [*(Text(line) for line in lines), Text()] if lines else []


def draw_settings(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Draw settings with their values and where they came from."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


@contextlib.contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; what is given advances it by a step."""
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(what, total=steps)
        yield lambda: bar.advance(task)


def draw_simulation(workload: Workload, balanced: Result, unmoved: Result) -> Group:
    """Draw what came of two runs of a workload: with vcpusched, and with nothing moved."""
    period_s, count = balanced.period_ns / 1e9, len(balanced.periods)
    headline = Text(f"{printable(workload.source, 200)}: ", "bold")
    headline.append(
        f"{workload.vcpu_count} vCPUs on {workload.cpu_count} pCPUs, mean load"
        f" {workload.mean_ppm() / PPM_PER_POINT:.0f} %, {count} periods of {period_s:g} s,"
        f" seed {workload.seed}",
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
    """Draw the gap as a line of blocks, each the mean of some periods."""
    gaps_ppm = [period.gap_ppm for period in run.periods]
    length = min(_LINE_LENGTH, len(gaps_ppm))
    line = ""
    for column in range(length):
        first, last = (len(gaps_ppm) * end // length for end in (column, column + 1))
        mean_ppm = sum(gaps_ppm[first:last]) // (last - first)
        line += _LEVELS[mean_ppm * (len(_LEVELS) - 1) // max(1, highest_ppm)]
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


def _label(vcpu: Vcpu, *, new: bool) -> Text:
    name = f"{printable(vcpu.domain)}/{vcpu.id.vcpu} {vcpu.load_ppm / PPM_PER_POINT:.0f}"
    return Text(name + (" ←" if new else ""), "bold" if new else "")


def _bar(load_ppm: int) -> Text:
    eighths = min(load_ppm, PPM) * BAR_LENGTH * 8 // PPM
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    style = "red" if load_ppm >= _HOT_PPM else "yellow" if load_ppm >= _WARM_PPM else "cyan"
    return Text(bar, style)
