"""What pictures of a host are made of: bars, colours, and its pCPUs as they are built.

Rule: draws values, knows no verb. Colour is never all that tells something: what is hot has a mark
and a figure, too. The three colours differ for the colour-blind, and stand out on dark and light.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vcpusched.model import PPM, PPM_PER_POINT, Cpu, CpuSet, Host, Vcpu, VcpuId
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

    def place(cpu: Cpu) -> tuple[int, int]:
        return -1 if cpu.node is None else cpu.node, -1 if cpu.cache is None else cpu.cache

    first_of: dict[int | None, int] = {}
    for host_cpu in host.cpus:
        first_of.setdefault(host_cpu.cpu.core, host_cpu.id)
    ordered = sorted(
        (host_cpu.cpu for host_cpu in host.cpus),
        key=lambda cpu: (place(cpu), cpu.id if cpu.core is None else first_of[cpu.core], cpu.id),
    )
    found = []
    for (node, cache), cpus in itertools.groupby(ordered, key=place):
        names = [f"node {node}"] if node >= 0 else []
        names += [f"cache {cache}"] if cache >= 0 else []
        found.append(Block(", ".join(names), tuple(cpus)))
    return found


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


def table(*columns: str, right: Sequence[str] = (), fold: str = "", apart: int = 2) -> Table:
    """Give a table without lines, whose columns are as wide as they need to be.

    Names that begin with "_" are not shown; `right` and `fold` say which columns are aligned so;
    `apart` is how many spaces are between them.
    """
    drawn = Table(box=None, pad_edge=False, padding=(0, apart, 0, 0))
    for name in columns:
        drawn.add_column(
            "" if name.startswith("_") else name,
            justify="right" if name in right else "left",
            no_wrap=name != fold,
            overflow="fold" if name == fold else "ellipsis",
        )
    return drawn


def fitting(text: str, encoding: str) -> str:
    """Give text with other letters for blocks where a terminal of this encoding has none."""
    return text if "utf" in encoding.lower() else text.translate(PLAINER)


def draw_host(
    host: Host,
    loads_ppm: Mapping[int, int],
    then_ppm: Mapping[int, int] | None = None,
    moved: Mapping[VcpuId, CpuSet] | None = None,
) -> RenderableType:
    """Draw every pCPU with its load and the vCPUs on it, as the machine is built.

    Where a plan is given, by the loads and affinities to come, before and after beside each other.
    """
    built = blocks(host)
    if len(host.cpus) > ROWS_MAX:
        return _in_strips(host, built, loads_ppm, then_ppm)
    return _in_rows(host, built, loads_ppm, then_ppm, moved or {})


def _in_rows(
    host: Host,
    built: Sequence[Block],
    loads_ppm: Mapping[int, int],
    then_ppm: Mapping[int, int] | None,
    moved: Mapping[VcpuId, CpuSet],
) -> Table:
    loads = [loads_ppm] if then_ppm is None else [loads_ppm, then_ppm]
    length = BAR_LENGTH // len(loads)
    drawn = _empty_rows(is_plan=then_ppm is not None, length=length)
    there, floating = _places(host, moved)
    names = {cpu.id: str(cpu.id) for cpu in (cpu.cpu for cpu in host.cpus)}
    marks = {cpu.id: mark for block in built for cpu, mark in _cores(block.cpus)}
    if any(mark.strip() for mark in marks.values()):
        names = {cpu: marks[cpu] + name for cpu, name in names.items()}

    def row(cpu: int) -> None:
        cells: list[RenderableType] = []
        for ppm in loads:
            figure = percent(ppm[cpu]) if cpu in ppm else Text("not managed")
            cells += [bar(ppm.get(cpu, 0), length), figure]
        drawn.add_row(names.get(cpu, str(cpu)), *cells, Text(", ").join(there.pop(cpu, [])))

    for block in built:
        if block.name:
            drawn.add_row("", Text(block.name, "italic"))
        for built_here in block.cpus:
            row(built_here.id)
    for left in sorted(there):
        row(left)
    if floating:
        drawn.add_row("float", *[""] * (len(drawn.columns) - 2), Text(", ").join(floating))
    return drawn


def _empty_rows(*, is_plan: bool, length: int) -> Table:
    if is_plan:
        what = "vCPUs here, load in %; + comes, - leaves"
        columns: tuple[str, ...] = ("pCPU", "before", "_before", "after", "_after", what)
    else:
        what = "vCPUs pinned here, load in %"
        columns = ("pCPU", "load", "_load", what)
    drawn = table(*columns, right=("pCPU", "_before", "_after", "_load"), fold=what)
    for column in drawn.columns[1:-1:2]:
        column.min_width = length  # so that a bar shows what is not used, too
    return drawn


def _cores(cpus: Sequence[Cpu]) -> Iterable[tuple[Cpu, str]]:
    for core, siblings in itertools.groupby(cpus, key=lambda cpu: cpu.core):
        group = list(siblings)
        for position, cpu in enumerate(group):
            if core is None or len(group) == 1:
                mark = "  "
            else:
                mark = "┌ " if not position else "└ " if position == len(group) - 1 else "│ "
            yield cpu, mark


def _places(host: Host, moved: Mapping[VcpuId, CpuSet]) -> tuple[dict[int, list[Text]], list[Text]]:
    """Give who is pinned to each pCPU, the largest first, and who floats."""
    there: dict[int, list[Text]] = {}
    floating: list[Text] = []
    for vcpu in sorted(host.vcpus, key=lambda vcpu: (-vcpu.load_ppm, vcpu.id)):
        then = moved.get(vcpu.id)
        if then is not None and vcpu.is_bound:
            leaves = Text("-", "dim").append_text(label(vcpu, "dim"))
            there.setdefault(next(iter(vcpu.cpus)), []).append(leaves)
        text = label(vcpu)
        cpus = vcpu.cpus
        if then is not None:
            text, cpus = Text("+", "bold").append_text(label(vcpu, "bold")), then
        if len(cpus) == 1:
            there.setdefault(next(iter(cpus)), []).append(text)
        else:
            floating.append(text.append(f" on {cpus}"))
    return there, floating


def label(vcpu: Vcpu, style: str = "") -> Text:
    """Name a vCPU with its load in percent."""
    name = f"{printable(vcpu.domain)}/{vcpu.id.vcpu} {vcpu.load_ppm / PPM_PER_POINT:.0f}"
    return Text(name, style)


def _in_strips(
    host: Host,
    built: Sequence[Block],
    loads_ppm: Mapping[int, int],
    then_ppm: Mapping[int, int] | None,
) -> Table:
    """Draw a level for each pCPU, a row for each node and cache; with a plan those it changes."""
    # 16 pCPUs to a cache, with numbers of three digits, fit into 80 columns.
    figures = ("least", "mean", "most")
    drawn = table("_where", "pCPUs", "_when", *figures, "each pCPU", right=figures, apart=1)
    alike = 0
    for block in built:
        before = [loads_ppm.get(cpu.id, 0) for cpu in block.cpus]
        after = [then_ppm.get(cpu.id, 0) for cpu in block.cpus] if then_ppm is not None else before
        if then_ppm is not None and before == after:
            alike += 1
            continue
        name = block.name or "all"
        drawn.add_row(
            name, str(block.numbers), "" if then_ppm is None else "before", *_figures(before)
        )
        if then_ppm is not None:
            drawn.add_row("", "", "after", *_figures(after))
    if alike:
        drawn.add_row(f"{alike} more", "", "", "", "", "", Text("stay as they are"))
    floating = sum(not vcpu.is_bound for vcpu in host.vcpus)
    if floating:
        drawn.add_row("float", f"{floating} vCPUs")
    return drawn


def _figures(loads_ppm: Sequence[int]) -> list[RenderableType]:
    mean_ppm = sum(loads_ppm) // max(1, len(loads_ppm))
    figures = (min(loads_ppm, default=0), mean_ppm, max(loads_ppm, default=0))
    return [*(percent(load_ppm) for load_ppm in figures), strip(loads_ppm)]


def gauge(gap_ppm: int, threshold_ppm: int, length: int = BAR_LENGTH) -> Text:
    """Draw a gap against the threshold, which is marked in the middle."""
    most_ppm = max(1, 2 * threshold_ppm)
    filled = min(length, gap_ppm * length // most_ppm)
    style = HOT if gap_ppm >= threshold_ppm else COOL
    drawn = Text("█" * filled, style) + Text("·" * (length - filled), "dim")
    middle = length // 2
    return drawn[:middle] + Text("│") + drawn[middle:]


def clock(at_s: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Give a time as a person here reads the clock."""
    return time.strftime(form, time.localtime(at_s))
