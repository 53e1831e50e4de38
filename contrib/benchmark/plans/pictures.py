"""The comparison with the proven optimum as a picture.

Rule: the same results give the same file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from plans.methods import METHODS, Method
from plans.static import Row, by_size, score

mpl.rcParams["svg.hashsalt"] = "vcpusched"


def draw(rows: Sequence[Row], folder: Path, methods: Mapping[str, Method] = METHODS) -> None:
    """Draw pin changes against the proven fewest, and how often the threshold was reached."""
    sizes = by_size(rows)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(methods)
    for number, (name, method) in enumerate(methods.items()):
        scores = [score(chosen, name) for chosen in sizes.values()]
        at = [group + (number - (len(methods) - 1) / 2) * width for group in range(len(sizes))]
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
    figure.legend(loc="outside upper center", ncols=len(methods), frameon=False)
    left.margins(y=0.1)
    right.set_ylabel("hosts brought below the threshold, %\n(of those where that is possible)")
    right.set_ylim(0, 102)
    for axes in (left, right):
        axes.set_xticks(range(len(sizes)), list(sizes))
        axes.set_xlabel("vCPUs x pCPUs")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.set_axisbelow(True)
    # Without a date in it the same results give the same file.
    figure.savefig(folder / "static.svg", metadata={"Date": None})
