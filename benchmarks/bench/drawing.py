"""The picture of what was found: ratios with their goals, then a panel a group of curves."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench.curves import Curve
from benchmarks.bench.ratios import WAYS, Ways, against, goal
from benchmarks.telling import device_name, method_name
from ttc_core.presets import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    folder: Path,
    by_side: Mapping[int, Mapping[str, Ways]],
    curves: Mapping[str, Sequence[Curve]],
) -> None:
    """Write bench.svg and bench.png.

    Args:
        by_side: size of the images -> method -> what was found.
        curves: what is on a group's x axis -> its curves.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "bench"})
    panels = len(by_side) + len(curves)
    figure, axes = plt.subplots(math.ceil(panels / 2), 2, figsize=(10, 3.2 * math.ceil(panels / 2)))
    left = iter(axes.flat)
    for side, methods in by_side.items():
        _draw_ratios(next(left), side, methods)
    for head, group in curves.items():
        _draw_curves(next(left), head, group)
    for axis in left:
        axis.set_axis_off()
    figure.suptitle(device_name())
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(
            folder / f"bench.{kind}", dpi=100, metadata={"Date": None} if kind == "svg" else None
        )
    plt.close(figure)


def _draw_curves(axis: "Axes", head: str, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import LogLocator

    for curve in curves:
        places = list(curve.rates)
        middle, low, high = (
            [pick(rates) for rates in curve.rates.values()]
            for pick in (statistics.median, min, max)
        )
        (line,) = axis.plot(places, middle, marker="o", markersize=3, label=curve.name)
        axis.fill_between(places, low, high, color=line.get_color(), alpha=0.15)
    axis.set(xscale="log", yscale="log", xlabel=head, ylabel="images/s")
    places = sorted({place for curve in curves for place in curve.rates})
    axis.set_xticks(places, [f"{each:,}" for each in places])
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.legend(frameon=False)


def _draw_ratios(axis: "Axes", side: int, methods: Mapping[str, Ways]) -> None:
    width = 0.8 / len(WAYS[1:])
    for place, way in enumerate(WAYS[1:]):
        for number, (method, ways) in enumerate(methods.items()):
            shares, at = against(ways, way), number + (place - 1) * width
            middle = statistics.median(shares)
            error = [[middle - min(shares)], [max(shares) - middle]]
            axis.bar(
                at,
                middle,
                width,
                yerr=error,
                color=f"C{place}",
                capsize=2,
                label=None if number else way,
            )
            if aim := goal(method, way, side):
                axis.plot(
                    [at - width / 2, at + width / 2], [aim, aim], color="black", linewidth=1.5
                )
    axis.axhline(1, color="gray", linewidth=0.5)
    axis.set_xticks(range(len(methods)), [method_name(Variant(method)) for method in methods])
    axis.set(ylabel="share of a bare loop (—: goal)", title=f"{side} pixels")
    axis.margins(y=0.2)
    axis.legend(frameon=False, loc="upper left", ncols=len(WAYS[1:]))
