"""The rows of `vcpusched top`: the vCPUs, or the guests, that the user chose to see.

Rule: pure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.table import Table

from vcpusched.model import PPM, Host
from vcpusched.report import draw
from vcpusched.report.state_file import SavedPin, SavedState
from vcpusched.text import counted, percent, printable

FLASH_S: Final = 5.0
"""So long after a pin is reported it stands out."""

_BAR: Final = 10


@dataclass(frozen=True, slots=True)
class View:
    """What the user chose to see; `typing` while a filter is being typed.

    `first` is the first row that is shown, or, below 0, how far from the end the last one is;
    `guests` are shown instead of vCPUs, and the `legend` instead of both.
    """

    sort: str = "demand"
    domain: str = ""
    typing: bool = False
    paused: bool = False
    first: int = 0
    guests: bool = False
    legend: bool = False


def is_new(pin: SavedPin, state: SavedState, now_s: float) -> bool:
    """Return whether a pin was reported just now, which may be a period after it was made."""
    return now_s - pin.at < FLASH_S + min(state.period, FLASH_S)


@dataclass(frozen=True, slots=True)
class _Row:
    """A vCPU, or all vCPUs of a guest: what they want together, and the longest that one waits.

    `stay` counts those that may not be moved; `place` is what it is sorted by: whether it floats,
    and the first pCPU it is on.
    """

    domain: str
    number: int
    vcpus: int
    stay: int
    load_ppm: int
    wait_ppm: int
    place: tuple[int, ...]
    where: str
    note: str
    is_new: bool


_SORTED_BY: Final[Mapping[str, Callable[[_Row], tuple[Any, ...]]]] = {
    "demand": lambda row: (-row.load_ppm,),
    "wait": lambda row: (-row.wait_ppm, -row.load_ppm),
    "place": lambda row: (*row.place, -row.load_ppm),
    "name": lambda row: (row.domain, row.number),
}


def draw_rows(view: View, state: SavedState, host: Host, room: int, now_s: float) -> Table:
    """Draw the vCPUs or guests that are chosen, as many as there is room for."""
    rows = [row for row in _rows(state, host, now_s) if view.domain.lower() in row.domain.lower()]
    if view.guests:
        by_domain: dict[str, list[_Row]] = {}
        for row in rows:
            by_domain.setdefault(row.domain, []).append(row)
        rows = list(map(_guest, by_domain.values()))
    rows.sort(key=lambda row: (_SORTED_BY[view.sort](row), row.domain, row.number))
    last = max(0, len(rows) - room)
    first = min(view.first, last) if view.first >= 0 else max(0, last + 1 + view.first)
    shown = rows[first : first + room]
    kind = "guest" if view.guests else "vCPU"
    what = f"{kind}s {first + 1}-{first + len(shown)} of {len(rows)}" if shown else f"no {kind}"
    if view.domain:
        what += f' with "{printable(view.domain)}" in its name'
    columns = (f"by {view.sort}", "~wants", "_wants", "waits", "on pCPU")
    table = draw.table(*columns, what, right=("_wants", "waits"), fold=(columns[0], what))
    table.columns[0].min_width, table.columns[0].max_width = 10, 40
    table.columns[1].min_width = _BAR
    for row in shown:
        mean_ppm = row.load_ppm // row.vcpus
        table.add_row(
            draw.Label(row.domain, "" if view.guests else f"/{row.number}"),
            draw.bar(mean_ppm, _BAR),
            percent(row.load_ppm) + " " if view.guests else draw.figure(mean_ppm),
            percent(row.wait_ppm) if row.wait_ppm else "-",
            row.where,
            draw.line(row.note),
            style="bold reverse" if row.is_new else "",
        )
    return table


def _rows(state: SavedState, host: Host, now_s: float) -> Iterator[_Row]:
    waits = {(one.uuid, one.id, one.vcpu): round(one.wait * PPM) for one in state.waits}
    new = {(pin.uuid, pin.vcpu): pin for pin in state.last_pins if is_new(pin, state, now_s)}
    for vcpu in host.vcpus:
        pin = new.get((vcpu.id.uuid, vcpu.id.vcpu))
        on = None if vcpu.is_bound else vcpu.on
        stays = f"stays: {printable(vcpu.why or 'fixed', 200)}" if vcpu.fixed else ""
        yield _Row(
            domain=vcpu.domain,
            number=vcpu.id.vcpu,
            vcpus=1,
            stay=int(vcpu.fixed),
            load_ppm=vcpu.load_ppm,
            wait_ppm=waits.get((vcpu.id.uuid, vcpu.id.domain_id, vcpu.id.vcpu), 0),
            place=(len(vcpu.cpus) > 1, next(iter(vcpu.cpus), 0) if on is None else on),
            where=f"{vcpu.cpus}" + ("" if on is None else f" ({on})"),
            note=f"← pinned from {printable(pin.from_cpus)}" if pin else stays,
            is_new=pin is not None,
        )


def _guest(rows: Sequence[_Row]) -> _Row:
    """Return the row of a guest that has these of its vCPUs."""
    stay = sum(row.stay for row in rows)
    return replace(
        rows[0],
        number=0,
        vcpus=len(rows),
        stay=stay,
        load_ppm=sum(row.load_ppm for row in rows),
        wait_ppm=max(row.wait_ppm for row in rows),
        place=min(row.place for row in rows),
        where=", ".join(dict.fromkeys(row.where for row in rows)),
        note=counted(len(rows), "vCPU") + (f", {stay} of which may not be moved" if stay else ""),
        is_new=any(row.is_new for row in rows),
    )
