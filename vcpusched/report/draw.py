"""Draws a host: its pCPUs as they are built, with loads and vCPUs, for every command alike.

Rule: draws values, knows no command. Colour never says something alone: what is hot has a mark and
a figure, too. The three colours differ for the colour-blind, and stand out on dark and light.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from vcpusched.model import NO_CPUS, PPM, PPM_PER_POINT, Cpu, CpuSet, Host, VcpuId
from vcpusched.plan.planner import Plan
from vcpusched.text import percent, printable

BAR_LENGTH: Final = 20
NUMBERS_MAX: Final = 16
"""pCPUs of a set are numbered in a row, or every other one, which makes long lists."""

ROWS_MAX: Final = 64
"""Above this many pCPUs they are drawn by node and cache, not each by itself."""

VCPUS_MAX: Final = 5
"""Of the vCPUs that stay on a set, so many are named: where in it they run, the kernel decides."""

STRIP_LENGTH: Final = 32
COOL: Final = "#2980b9"
WARM: Final = "#b8860b"
HOT: Final = "bold #d55e00"
"""Blue, ochre and vermilion, more than 3:1 on black and on white."""

_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
LEVELS: Final = "▁▂▃▄▅▆▇█"
PLAINER: Final = str.maketrans(
    {"█": "#", "┌": "/", "└": "\\", "│": "|", "→": ">", "←": "<", "·": ".", "…": "~"}
    | dict.fromkeys(_EIGHTHS.strip(), ".")
    | {letter: str(level) for level, letter in enumerate(LEVELS[:-1], 1)}
)
"""What stands for blocks and lines on terminals that have none."""

_HOT_PPM: Final = 900_000
_WARM_PPM: Final = 600_000


def blocks(host: Host, sets: Sequence[CpuSet] = (), levels: int = 2) -> dict[str, list[CpuSet]]:
    """Return the managed pCPUs, each by itself, or sets by the node and cache that they share.

    Siblings of a core are beside each other. What the host does not report is not named. With one
    of the two `levels` they are by node alone, as sets always are; with none all are together.
    """
    cpus = {cpu.id: cpu.cpu for cpu in host.cpus}
    first_of = {cpu.core: cpu.id for cpu in reversed(cpus.values()) if cpu.core is not None}

    def order(unit: CpuSet) -> tuple[int, ...]:
        cpu = cpus[_first(unit)]
        core = cpu.id if sets or cpu.core is None else first_of[cpu.core]
        return *_place(cpu), core, cpu.id

    shared = ("node", "cache")[: min(levels, 1) if sets else levels]
    found: dict[str, list[CpuSet]] = {}
    for unit in sorted(sets or [CpuSet.of([cpu]) for cpu in cpus], key=order):
        named = zip(shared, order(unit), strict=False)
        name = ", ".join(f"{level} {number}" for level, number in named if number >= 0)
        found.setdefault(name, []).append(unit)
    return found


def _first(cpus: CpuSet) -> int:
    return next(iter(cpus))


def _place(cpu: Cpu) -> tuple[int, int]:
    return -1 if cpu.node is None else cpu.node, -1 if cpu.cache is None else cpu.cache


def _named(cpus: CpuSet) -> str:
    return printable(str(cpus), NUMBERS_MAX)


def style_of(load_ppm: int) -> str:
    """Return the colour of a load."""
    return HOT if load_ppm >= _HOT_PPM else WARM if load_ppm >= _WARM_PPM else COOL


def bar(load_ppm: int, length: int = BAR_LENGTH) -> Text:
    """Draw a load, full at one pCPU."""
    eighths = min(max(load_ppm, 0), PPM) * length * 8 // PPM
    drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text(drawn, style_of(load_ppm))


def figure(load_ppm: int) -> Text:
    """Return a load in percent, with a mark where it is hot."""
    hot = load_ppm >= _HOT_PPM
    return Text(percent(load_ppm) + ("!" if hot else " "), HOT if hot else "")


def strip(loads_ppm: Sequence[int]) -> Text:
    """Draw a level for each load; where these are too many, for the highest of some in a row."""
    drawn, each = Text(), -(-len(loads_ppm) // STRIP_LENGTH)
    for first in range(0, len(loads_ppm), each):
        load_ppm = max(loads_ppm[first : first + each])
        level = LEVELS[min(load_ppm, PPM - 1) * len(LEVELS) // PPM]
        drawn.append(level, style_of(load_ppm))
    return drawn


def line(text: str | Text, style: str = "") -> Text:
    """Return text that ends with an ellipsis where there is no room for more."""
    drawn = Text(style=style).append(text)
    drawn.no_wrap, drawn.overflow = True, "ellipsis"
    return drawn


@dataclass(frozen=True, slots=True)
class Label:
    """A name that is cut short where there is no room, and what follows it, which is not."""

    name: str
    rest: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name = Text(printable(self.name))
        name.truncate(max(1, options.max_width - cell_len(self.rest)), overflow="ellipsis")
        yield line(name.append(self.rest))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        rest = cell_len(self.rest)
        whole = cell_len(printable(self.name)) + rest
        return Measurement(rest + 1, whole).with_maximum(options.max_width)


def table(
    *columns: str, right: Sequence[str] = (), fold: Sequence[str] = (), apart: int = 2
) -> Table:
    """Return a table without lines, whose columns are as wide as they need to be.

    Names that begin with "_" are not shown; `right` and `fold` say which columns are aligned so;
    `apart` is how many spaces are between them.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, apart, 0, 0))
    for name in columns:
        drawn.add_column(
            "" if name.startswith("_") else name,
            justify="right" if name in right else "left",
            no_wrap=name not in fold,
            overflow="fold" if name in fold else "ellipsis",
        )
    return drawn


@dataclass(frozen=True, slots=True)
class Fitting:
    """Something drawn with the letters that a terminal has: others where it has no blocks."""

    drawn: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.drawn, options):
            if "utf" in console.encoding.lower():
                yield segment
            else:
                yield Segment(segment.text.translate(PLAINER), segment.style, segment.control)


def draw_host(  # noqa: PLR0913, PLR0917  each is a choice of its own
    host: Host,
    loads_ppm: Mapping[int, int],
    sets: Sequence[CpuSet] = (),
    plan: Plan | None = None,
    room: int | None = None,
    ends: int = 0,
) -> Table:
    """Draw the pCPUs, or sets, with their loads and vCPUs, as the machine is built.

    With a plan, before and after are beside each other. In the lines that there are, `room` or any
    number, a row is a pCPU or set. Where these are too many there are only so many of both `ends`,
    the busiest and the least loaded; without any, a row is a cache, a node, or all.
    """
    loads = [loads_ppm, dict(plan.loads_after_ppm)] if plan is not None else [loads_ppm]
    built = blocks(host, sets)
    units = list(itertools.chain.from_iterable(built.values()))
    if len(units) <= ROWS_MAX and (room is None or len(units) + len(built) < room):
        moved = {move.vcpu: move.to_cpus for move in plan.moves} if plan else {}
        return _in_rows(host, built, units, loads, moved, fold=room is None)
    if room is not None and (each := min(ends, (room - 3) // 2)) > 0:
        ordered = sorted(units, key=lambda unit: -loads_ppm.get(_first(unit), 0))
        built = {"busiest": ordered[:each], "least loaded": ordered[each:][-each:]}
        return _in_rows(host, built, units, loads, {}, fold=False)
    for levels in (1, 0):
        if room is not None and len(built) >= room:
            built = blocks(host, sets, levels)
    return _in_strips(host, built, loads)


def _columns(has_plan: bool, are_sets: bool) -> Table:  # noqa: FBT001  of one function
    which = "pCPUs" if are_sets else "pCPU"
    loads, what = ["load", "_load"], "vCPUs, ~load in %"
    if has_plan:
        loads, what = ["before", "_before", "after", "_after"], f"{what}; + comes, - leaves"
    right = loads[1::2] if are_sets else [which, *loads[1::2]]
    drawn = table(which, *loads, what, right=right, fold=(what,))
    for column in drawn.columns[1:-1:2]:
        column.min_width = BAR_LENGTH * 2 // len(loads)  # so that a bar shows what is not used
    return drawn


def _in_rows(  # noqa: PLR0913  of one function
    host: Host,
    built: Mapping[str, Sequence[CpuSet]],
    units: Sequence[CpuSet],
    loads: Sequence[Mapping[int, int]],
    moved: Mapping[VcpuId, CpuSet],
    *,
    fold: bool,
) -> Table:
    are_sets = any(len(unit) > 1 for unit in units)
    drawn, length = _columns(len(loads) > 1, are_sets), BAR_LENGTH // len(loads)
    there, floating = _places(host, units, moved)
    shown = list(itertools.chain.from_iterable(built.values()))
    marks = {} if are_sets or shown != units else _marks(host, units)

    def listed(vcpus: Sequence[Text]) -> Text:
        return Text(", ", no_wrap=not fold, overflow="fold" if fold else "ellipsis").join(vcpus)

    def row(cpus: CpuSet, name: str) -> None:
        cells: list[RenderableType] = []
        for ppm in loads:
            load_ppm = ppm.get(_first(cpus))
            cells.append(bar(load_ppm or 0, length))
            cells.append("not managed" if load_ppm is None else figure(load_ppm))
        vcpus = there.pop(cpus, [])
        drawn.add_row(name, *cells, listed(_shortened(vcpus) if are_sets else vcpus))

    for name, those in built.items():
        if name and (len(those) > 1 or not are_sets):
            drawn.add_row("", Text(name, "italic"))
        for unit in those:
            row(unit, marks.get(unit, "  " if marks else "") + _named(unit))
    for left in sorted(there.keys() - set(units), key=lambda cpus: cpus.bits):
        row(left, str(left))
    if floating and len(shown) == len(units):
        drawn.add_row("float", *[""] * (len(drawn.columns) - 2), listed(floating))
    return drawn


def _shortened(vcpus: Sequence[Text]) -> list[Text]:
    """Return those that change, which have a style, and the largest of the others."""
    changed, others = [one for one in vcpus if one.style], [one for one in vcpus if not one.style]
    more = [Text(f"{len(others) - VCPUS_MAX} more")] if len(others) > VCPUS_MAX else []
    return [*changed, *others[:VCPUS_MAX], *more]


def _marks(host: Host, units: Sequence[CpuSet]) -> dict[CpuSet, str]:
    """Return what binds the pCPUs together that share a core, and nothing for the others."""
    core = {CpuSet.of([cpu.id]): (_place(cpu.cpu), cpu.cpu.core) for cpu in host.cpus}
    marks: dict[CpuSet, str] = {}
    for (_, number), siblings in itertools.groupby(units, key=lambda unit: core[unit]):
        first, *others = siblings
        if number is not None and others:
            marks |= dict.fromkeys(others, "│ ") | {first: "┌ ", others[-1]: "└ "}
    return marks


def _places(
    host: Host, units: Iterable[CpuSet], moved: Mapping[VcpuId, CpuSet]
) -> tuple[dict[CpuSet, list[Text]], list[Text]]:
    """Return who is bound to each pCPU or set, the largest first, and who floats."""
    of_cpu = {cpu: unit for unit in units for cpu in unit}
    there: defaultdict[CpuSet, list[Text]] = defaultdict(list)
    floating: list[Text] = []
    for vcpu in sorted(host.vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        label = f"{printable(vcpu.domain)}/{vcpu.id.vcpu} {vcpu.load_ppm / PPM_PER_POINT:.0f}"
        source, to_cpus = _bound_to(vcpu.cpus, of_cpu), moved.get(vcpu.id, vcpu.cpus)
        target = _bound_to(to_cpus, of_cpu)
        text = Text(label)
        if source is not None and target == source and to_cpus != vcpu.cpus:
            text = Text(f"{label} on {vcpu.cpus} → all", "bold")
        elif vcpu.id in moved:
            if source is not None:
                there[source].append(Text(f"-{label}", "dim"))
            text = Text(f"+{label}", "bold")
        elif target is None or not target.is_within(to_cpus):
            text.append(f" on {to_cpus}")
        (floating if target is None else there[target]).append(text)
    return there, floating


def _bound_to(cpus: CpuSet, of_cpu: Mapping[int, CpuSet]) -> CpuSet | None:
    """Return the pCPU or set that a vCPU of this affinity stays on, None where it floats."""
    if len(cpus) == 1:
        return of_cpu.get(next(iter(cpus)), cpus)
    found = {of_cpu[cpu] for cpu in cpus if cpu in of_cpu}
    one = found.pop() if len(found) == 1 else NO_CPUS
    return one if len(one) > 1 else None


def _in_strips(
    host: Host, built: Mapping[str, Sequence[CpuSet]], loads: Sequence[Mapping[int, int]]
) -> Table:
    """Draw a row for each block, a level for each pCPU or set; with a plan those it changes."""
    # 16 pCPUs to a cache, with numbers of three digits, fit into 80 columns.
    figures = ("least", "mean", "most")
    units = list(itertools.chain.from_iterable(built.values()))
    each_of = "each set" if any(len(unit) > 1 for unit in units) else "each pCPU"
    drawn = table("_where", "pCPUs", "_when", *figures, each_of, right=figures, apart=1)
    alike = 0
    for name, those in built.items():
        each = [[ppm.get(_first(unit), 0) for unit in those] for ppm in loads]
        if len(each) > 1 and each[0] == each[1]:
            alike += 1
            continue
        where = [name or "all", _named(CpuSet(sum(unit.bits for unit in those)))]
        whens = ("before", "after") if len(each) > 1 else ("",)
        for when, here_ppm in zip(whens, each, strict=True):
            shown = (min(here_ppm), sum(here_ppm) // len(here_ppm), max(here_ppm))
            drawn.add_row(*where, when, *map(figure, shown), strip(here_ppm))
            where = ["", ""]
    if alike:
        drawn.add_row(f"{alike} more", *[""] * 5, Text("stay as they are"))
    of_cpu = {cpu: unit for unit in units for cpu in unit}
    if floating := sum(_bound_to(vcpu.cpus, of_cpu) is None for vcpu in host.vcpus):
        drawn.add_row("float", f"{floating} vCPUs")
    return drawn


def gauge(gap_ppm: int, threshold_ppm: int) -> Text:
    """Draw a gap, full at 100 points, with a mark at the threshold."""
    filled = min(gap_ppm, PPM) * BAR_LENGTH // PPM
    style = HOT if gap_ppm >= threshold_ppm else COOL
    drawn = Text("█" * filled, style) + Text("·" * (BAR_LENGTH - filled), "dim")
    at = min(threshold_ppm, PPM) * BAR_LENGTH // PPM
    return drawn[:at] + Text("│") + drawn[at:]


def clock(at_s: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time as a person here reads the clock."""
    return time.strftime(form, time.localtime(at_s))
