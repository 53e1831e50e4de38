"""What pictures of a host are made of: bars, colours, and its pCPUs as they are built.

Rule: draws values, knows no verb. Colour is never all that tells something: what is hot has a mark
and a figure, too. The three colours differ for the colour-blind, and stand out on dark and light.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vcpusched.model import PPM, PPM_PER_POINT, Cpu, CpuSet, Host, VcpuId
from vcpusched.plan.planner import Plan
from vcpusched.text import printable

BAR_LENGTH: Final = 20
ROWS_MAX: Final = 64
"""Above this many pCPUs they are drawn by node and cache, not each by itself."""

STRIP_LENGTH: Final = 64
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


@dataclass(frozen=True, slots=True)
class Block:
    """pCPUs that share a node and a cache, siblings of a core beside each other."""

    name: str
    cpus: tuple[Cpu, ...]

    @property
    def numbers(self) -> CpuSet:
        """Their numbers."""
        return CpuSet.of(cpu.id for cpu in self.cpus)


def blocks(host: Host) -> list[Block]:
    """Give the managed pCPUs as they are built; what the host does not tell is left out."""
    first_of: dict[int | None, int] = {}
    for host_cpu in host.cpus:
        first_of.setdefault(host_cpu.cpu.core, host_cpu.id)
    ordered = sorted(
        (host_cpu.cpu for host_cpu in host.cpus),
        key=lambda cpu: (_place(cpu), cpu.id if cpu.core is None else first_of[cpu.core], cpu.id),
    )
    found = []
    for (node, cache), cpus in itertools.groupby(ordered, key=_place):
        names = [f"node {node}"] if node >= 0 else []
        names += [f"cache {cache}"] if cache >= 0 else []
        found.append(Block(", ".join(names), tuple(cpus)))
    return found


def _place(cpu: Cpu) -> tuple[int, int]:
    return -1 if cpu.node is None else cpu.node, -1 if cpu.cache is None else cpu.cache


def style_of(load_ppm: int) -> str:
    """Give the colour of a load."""
    return HOT if load_ppm >= _HOT_PPM else WARM if load_ppm >= _WARM_PPM else COOL


def bar(load_ppm: int, length: int = BAR_LENGTH) -> Text:
    """Draw a load, full at one pCPU."""
    eighths = min(max(load_ppm, 0), PPM) * length * 8 // PPM
    drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text(drawn, style_of(load_ppm))


def percent(load_ppm: int) -> Text:
    """Give a load in percent, with a mark where it is hot."""
    hot = load_ppm >= _HOT_PPM
    return Text(f"{load_ppm / PPM_PER_POINT:.0f} %{'!' if hot else ' '}", HOT if hot else "")


def strip(loads_ppm: Iterable[int], length: int = STRIP_LENGTH) -> Text:
    """Draw a level for each pCPU, in lines of at most `length`."""
    drawn = Text()
    for position, load_ppm in enumerate(loads_ppm):
        if position and position % length == 0:
            drawn.append("\n")
        level = LEVELS[min(load_ppm, PPM - 1) * len(LEVELS) // PPM]
        drawn.append(level, style_of(load_ppm))
    return drawn


def table(
    *columns: str, right: Sequence[str] = (), fold: Sequence[str] = (), apart: int = 2
) -> Table:
    """Give a table without lines, whose columns are as wide as they need to be.

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


def fitting(text: str, encoding: str) -> str:
    """Give text with other letters for blocks where a terminal of this encoding has none."""
    return text if "utf" in encoding.lower() else text.translate(PLAINER)


def draw_host(host: Host, loads_ppm: Mapping[int, int], plan: Plan | None = None) -> Table:
    """Draw every pCPU with its load and the vCPUs on it, as the machine is built.

    Where a plan is given, before and after it are beside each other.
    """
    loads = [loads_ppm, dict(plan.loads_after_ppm)] if plan is not None else [loads_ppm]
    if len(host.cpus) > ROWS_MAX:
        return _in_strips(host, loads)
    return _in_rows(host, loads, {move.vcpu: move.to_cpus for move in plan.moves} if plan else {})


def _in_rows(
    host: Host, loads: Sequence[Mapping[int, int]], moved: Mapping[VcpuId, CpuSet]
) -> Table:
    bars, figures, what = ["load"], ["_load"], "vCPUs pinned here, load in %"
    if len(loads) > 1:
        bars, figures = ["before", "after"], ["_before", "_after"]
        what = "vCPUs here, load in %; + comes, - leaves"
    columns = itertools.chain.from_iterable(zip(bars, figures, strict=True))
    drawn = table("pCPU", *columns, what, right=("pCPU", *figures), fold=(what,))
    length = BAR_LENGTH // len(loads)
    for column in drawn.columns[1:-1:2]:
        column.min_width = length  # so that a bar shows what is not used, too
    there, floating = _places(host, moved)
    built = blocks(host)
    marks = _marks(cpu for block in built for cpu in block.cpus)

    def row(cpu: int, name: str) -> None:
        cells: list[RenderableType] = []
        for ppm in loads:
            figure = percent(ppm[cpu]) if cpu in ppm else Text("not managed")
            cells += [bar(ppm.get(cpu, 0), length), figure]
        drawn.add_row(name, *cells, Text(", ").join(there.pop(cpu, [])))

    for block in built:
        if block.name:
            drawn.add_row("", Text(block.name, "italic"))
        for cpu in block.cpus:
            row(cpu.id, f"{marks.get(cpu.id, '  ' if marks else '')}{cpu.id}")
    for left in sorted(there):
        row(left, str(left))
    if floating:
        drawn.add_row("float", *[""] * (len(drawn.columns) - 2), Text(", ").join(floating))
    return drawn


def _marks(cpus: Iterable[Cpu]) -> dict[int, str]:
    """Give what binds the pCPUs together that share a core, and nothing for the others."""
    marks: dict[int, str] = {}
    for (_, core), siblings in itertools.groupby(cpus, key=lambda cpu: (_place(cpu), cpu.core)):
        first, *others = (cpu.id for cpu in siblings)
        if core is not None and others:
            marks |= dict.fromkeys(others, "│ ") | {first: "┌ ", others[-1]: "└ "}
    return marks


def _places(host: Host, moved: Mapping[VcpuId, CpuSet]) -> tuple[dict[int, list[Text]], list[Text]]:
    """Give who is pinned to each pCPU, the largest first, and who floats."""
    there: defaultdict[int, list[Text]] = defaultdict(list)
    floating: list[Text] = []
    for vcpu in sorted(host.vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        label = f"{printable(vcpu.domain)}/{vcpu.id.vcpu} {vcpu.load_ppm / PPM_PER_POINT:.0f}"
        text, cpus = Text(label), vcpu.cpus
        if vcpu.id in moved:
            if vcpu.is_bound:
                there[next(iter(cpus))].append(Text(f"-{label}", "dim"))
            text, cpus = Text(f"+{label}", "bold"), moved[vcpu.id]
        if len(cpus) == 1:
            there[next(iter(cpus))].append(text)
        else:
            floating.append(text.append(f" on {cpus}"))
    return there, floating


def _in_strips(host: Host, loads: Sequence[Mapping[int, int]]) -> Table:
    """Draw a level for each pCPU, a row for each node and cache; with a plan those it changes."""
    # 16 pCPUs to a cache, with numbers of three digits, fit into 80 columns.
    figures = ("least", "mean", "most")
    drawn = table("_where", "pCPUs", "_when", *figures, "each pCPU", right=figures, apart=1)
    alike = 0
    for block in blocks(host):
        each = [[ppm.get(cpu.id, 0) for cpu in block.cpus] for ppm in loads]
        if len(each) > 1 and each[0] == each[1]:
            alike += 1
            continue
        where = [block.name or "all", str(block.numbers)]
        for when, here_ppm in zip(
            ("before", "after") if len(each) > 1 else ("",), each, strict=True
        ):
            shown = (min(here_ppm), sum(here_ppm) // len(here_ppm), max(here_ppm))
            drawn.add_row(*where, when, *map(percent, shown), strip(here_ppm))
            where = ["", ""]
    if alike:
        drawn.add_row(f"{alike} more", *[""] * 5, Text("stay as they are"))
    floating = sum(not vcpu.is_bound for vcpu in host.vcpus)
    if floating:
        drawn.add_row("float", f"{floating} vCPUs")
    return drawn


def gauge(gap_ppm: int, threshold_ppm: int) -> Text:
    """Draw a gap against the threshold, which is marked in the middle."""
    filled = min(BAR_LENGTH, gap_ppm * BAR_LENGTH // max(1, 2 * threshold_ppm))
    style = HOT if gap_ppm >= threshold_ppm else COOL
    drawn = Text("█" * filled, style) + Text("·" * (BAR_LENGTH - filled), "dim")
    middle = BAR_LENGTH // 2
    return drawn[:middle] + Text("│") + drawn[middle:]


def clock(at_s: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Give a time as a person here reads the clock."""
    return time.strftime(form, time.localtime(at_s))
