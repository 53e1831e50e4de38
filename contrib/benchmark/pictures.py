"""The results as pictures, each as PNG and as SVG.

Rule: one picture says one thing, in the colours of `methods`; the same results give the same file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import scaling
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from methods import METHODS, OURS, Method
from replay import Competitor, Run
from replay_tables import by_set
from static import Row, of_size, score

BAR_MS: Final = 50
"""What one plan for 10,000 vCPUs on 1,024 pCPUs may take."""

mpl.rcParams["svg.hashsalt"] = "vcpusched"


def draw_static(
    rows: Sequence[Row], folder: Path, methods: Mapping[str, Method] = METHODS
) -> list[Path]:
    """Draw pin changes against the proven fewest, and how often the threshold was reached."""
    sizes = list(dict.fromkeys(row.case.size for row in rows))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(methods)
    for number, (name, method) in enumerate(methods.items()):
        scores = [score(of_size(rows, size), name) for size in sizes]
        at = [place + (number - (len(methods) - 1) / 2) * width for place in range(len(sizes))]
        ratios = [scored.ratio or 0 for scored in scores]
        left.bar(at, ratios, width, color=method.colour, label=name)
        for x, value in zip(at, ratios, strict=True):
            if value:
                left.annotate(
                    f" {value:.2f}", (x, value), ha="center", va="bottom", fontsize=7, rotation=90
                )
        shares = [100 * scored.reached / max(1, scored.reachable) for scored in scores]
        right.bar(at, shares, width, color=method.colour)
    left.axhline(1, color="black", linewidth=0.8)
    left.set_ylabel("pin changes / proven fewest\n(hosts brought below the threshold)")
    figure.legend(loc="outside upper center", ncols=-(-len(methods) // 2), frameon=False)
    left.margins(y=0.1)
    right.set_ylabel("hosts brought below the threshold, %\n(of those where that is possible)")
    right.set_ylim(0, 102)
    for axes in (left, right):
        axes.set_xticks(range(len(sizes)), sizes)
        axes.set_xlabel("vCPUs x pCPUs")
    _tidy(left, right)
    return _save(figure, folder, "static")


def draw_scaling(
    points: Sequence[scaling.Point], folder: Path, methods: Mapping[str, Method] = METHODS
) -> list[Path]:
    """Draw the time for one plan over the size of the host, both logarithmic."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(scaling.KINDS), sharey=True)
    for axes, kind in zip(panels, scaling.KINDS, strict=True):
        for name, colour, style in _lines(methods):
            here = [
                (point.vcpus, point.plan_ns / 1e6)
                for point in points
                if (point.method, point.kind) == (name, kind) and point.plan_ns is not None
            ]
            if here:
                x, y = zip(*here, strict=True)
                axes.plot(x, y, style, color=colour, marker=".", label=name, linewidth=1.3)
        axes.axhline(BAR_MS, color="grey", linewidth=0.8, linestyle=":")
        place = (0.02, BAR_MS)
        axes.annotate(
            f"{BAR_MS} ms",
            place,
            xycoords=("axes fraction", "data"),
            va="top",
            color="grey",
            size=7,
        )
        axes.set(xscale="log", yscale="log", title=kind, xlabel="vCPUs (about 10 for each pCPU)")
    panels[0].set_ylabel("CPU time of one plan, ms (median)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=-(-len(labels) // 2), frameon=False
    )
    _tidy(*panels)
    return _save(figure, folder, "scaling")


def draw_replay(
    runs: Sequence[Run], folder: Path, competitors: Mapping[str, Competitor]
) -> list[Path]:
    """Draw unmet demand over pin changes a period: down and to the left is better."""
    sets = list(by_set(runs))
    figure = Figure(figsize=(4.6 * len(sets), 4.8), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, (name, found) in zip(panels, sets, strict=True):
        for competitor, one in found.items():
            axes.plot(
                one.pins_per_period,
                one.unmet_ppm / 10_000,
                marker="*" if competitor == OURS else "o",
                markersize=14 if competitor == OURS else 7,
                linestyle="",
                color=competitors[competitor].colour,
                label=competitor,
                clip_on=False,
            )
        # No pins at all must have a place, too.
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set(title=name, xlabel="pin changes a period", xlim=(-0.003, 300))
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("unmet demand, %")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    _tidy(*panels)
    return _save(figure, folder, "replay")


def _lines(methods: Mapping[str, Method]) -> list[tuple[str, str, str]]:
    plain = [(name, method.colour, "-") for name, method in methods.items()]
    return [*plain, (scaling.AT_REST, methods[OURS].colour, "--")]


def _tidy(*panels: Axes) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        # Without a date in it the same results give the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
    return paths
