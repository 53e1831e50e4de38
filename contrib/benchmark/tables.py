"""Tables of results, as values, and how they are shown: on a terminal, or as Markdown.

Rule: a table says what its columns mean in its notes; nothing is computed here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `notes` are sentences below it; an empty first cell continues the row above."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Give the table for a README or a pipe."""
        widths = [
            max(len(cell) for cell in cells) for cells in zip(self.columns, *self.rows, strict=True)
        ]
        lines = [f"### {self.title}", "", _line(self.columns, widths)]
        lines.append("|" + "|".join("-" * (width + 2) for width in widths) + "|")
        lines += [_line(row, widths) for row in self.rows]
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"


def show(tables: Iterable[Table]) -> None:
    """Print tables on standard output, for a person or for a pipe."""
    console = Console()
    for table in tables:
        if not console.is_terminal:
            print(table.markdown())
            continue
        shown = RichTable(
            title=table.title,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number < 1 else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        for note in table.notes:
            console.print(note, highlight=False, markup=False)


def ratio(value: float | None) -> str:
    """Show a ratio, or that there is none."""
    return "-" if value is None else f"{value:.2f}"


def milliseconds(value_ns: int | None) -> str:
    """Show a time in milliseconds with three digits that count."""
    if value_ns is None:
        return "not run"
    value = value_ns / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004  three digits


def share(part: float, whole: float) -> str:
    """Show a share in percent, or that there is none."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if number == 0 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"
