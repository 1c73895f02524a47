"""The paper's Figures 1 to 3, from rows. matplotlib is an extra: tables do without it."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde, norm

from ttc_core.presets import SUPERVISED, TTC_SWITCHES
from ttc_core.report.configuration import Configuration, configurations
from ttc_core.report.drawing import (
    COLOURS,
    MARKERS,
    OTHER_COLOUR,
    Drawing,
    drawn,
    legend,
    panels,
    plain_text,
)
from ttc_core.report.groups import Group, Line, by_batch_size
from ttc_core.report.results import ArraysError, Result
from ttc_core.rows import as_key, averaged, differing, setting, stated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIMULATION = "entropy_minimisation"
MOST_CLASSES_DRAWN = 100


def draw(results: Sequence[Result], groups: Sequence[Group]) -> list[Drawing]:
    """Draw the figures there are rows for; one whose arrays cannot be read is left out.

    Raises:
        UserError: there is something to draw, but matplotlib is not installed.
    """
    drawings: list[Drawing] = []
    with contextlib.suppress(ArraysError):
        drawings += probabilities(results)
    drawings += batch_sizes(groups)
    with contextlib.suppress(ArraysError):
        drawings += feature_densities(results)
    return drawings


# Figure 1


def probabilities(results: Sequence[Result]) -> list[Drawing]:
    """Class probabilities of one sample while their entropy is minimised, a panel for each K."""
    # The last of each setting; another setting is another figure.
    found = {
        as_key(result["settings"]): result for result in results if result["method"] == SIMULATION
    }
    told = differing([result["settings"] or {} for result in found.values()])
    drawings: list[Drawing] = []
    for result in found.values():
        paths = {
            int(name.rpartition("_")[2]): path
            for name, path in result.arrays().items()
            if name.startswith("probabilities_")
        }
        if paths:
            drawings.append(_simulation(paths, result, told, _numbered("figure1", drawings)))
    return drawings


def _numbered(name: str, before: Sequence[Drawing]) -> str:
    return f"{name}-{len(before) + 1}" if before else name


def _simulation(
    paths: Mapping[int, NDArray[Any]], result: Result, told: Sequence[str], name: str
) -> Drawing:
    figure, axes = panels(len(paths), 4)
    for axis, (classes, path) in zip(axes, sorted(paths.items()), strict=True):
        _probabilities_of(axis, classes, path)
    axes[0].set_ylabel("probability of each class (0 to 1)")
    legend(figure, axes[-1:], 2)
    settings = result["settings"] or {}
    others = stated(settings, [one for one in told if one != "lr"])
    said = ", ".join([f"learning rate {settings.get('lr')}", *others])
    caption = (
        "Figure 1: class probabilities of one answer while its entropy is minimised by gradient "
        f"descent, for several numbers of classes K ({said}): the largest grows to 1."
    )
    return drawn(name, "Figure 1: repeated entropy minimisation", caption, figure)


def _probabilities_of(axis: "Axes", classes: int, path: NDArray[Any]) -> None:
    steps, order = np.arange(len(path)), np.argsort(path[0])[::-1]
    for rank, label in enumerate(order[1:MOST_CLASSES_DRAWN]):
        name = "the other classes" if rank == 0 else None
        axis.plot(steps, path[:, label], color="#777777", linewidth=0.7, alpha=0.7, label=name)
    axis.plot(
        steps, path[:, order[0]], color=COLOURS["ttc"], linewidth=2, label="the most probable class"
    )
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(0, len(path) - 1)
    ticks = [0, *(10**power for power in range(4) if 10**power < len(path))]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(f"K = {classes:,}", fontsize=10)
    axis.set_xlabel("gradient steps taken")


# Figure 2


def batch_sizes(groups: Sequence[Group]) -> list[Drawing]:
    """Average accuracy against batch size, a panel for each data set and network."""
    found = [panel for sizes in by_batch_size(groups) if (panel := _panel(sizes)) is not None]
    if not found:
        return []
    width, height = (9.0, 4.4) if len(found) == 1 else (6.2, 4.0)
    figure, axes = panels(len(found), 2, width, height)
    for axis, panel in zip(axes, found, strict=True):
        _accuracy_by_size(axis, panel)
    legend(figure, axes, 8 if len(found) > 1 else 6)
    averages = "; ".join(f"{panel.place}: {panel.average}" for panel in found)
    caption = (
        "Figure 2: accuracy in % against the number of images in a batch, with 95 % intervals "
        f"where the answers to each image are known ({averages}). TENT + GA is TENT with gradient "
        "accumulation: it steps every 200 images."
    )
    return [drawn("figure2", "Figure 2: accuracy against batch size", caption, figure)]


@dataclass(frozen=True)
class _Panel:
    """Curves, by configuration: batch size -> line; and the corruptions that all of them have."""

    place: str
    curves: Mapping[Configuration, Mapping[int, Line]]
    corruptions: list[str]

    @property
    def average(self) -> str:
        if len(self.corruptions) == 1:
            return self.corruptions[0]
        return f"average of {len(self.corruptions)} corruptions"


def _panel(groups: Mapping[int, Group]) -> _Panel | None:
    """None where no method ran at two batch sizes under the same corruption."""
    curves: dict[Configuration, dict[int, Line]] = {}
    for size, group in groups.items():
        for line in group.lines:
            # Methods as they come, and TENT with accumulation; other variants are no curve.
            if not line.configuration.told or _accumulates(line.configuration):
                curves.setdefault(line.configuration, {})[size] = line
    curves = {one: sizes for one, sizes in curves.items() if len(sizes) > 1}
    first = next(iter(groups.values()))
    corruptions = [
        name
        for name in averaged(first.columns)
        if all(
            name in line.results and not line.results[name].is_partial
            for sizes in curves.values()
            for line in sizes.values()
        )
    ]
    return _Panel(_where(first), curves, corruptions) if curves and corruptions else None


def _accumulates(configuration: Configuration) -> bool:
    """TTC with nothing but its accumulation: TENT + GA."""
    alone = {name: False for name in TTC_SWITCHES if name != "ga"}
    return configuration.is_known and configuration.method == "ttc" and configuration.told == alone


def _where(group: Group) -> str:
    """Data and network, and what tells this panel from another."""
    said = ("data", "severity", "model")
    told = [str(group.setting.get("data")), *stated(group.setting, ["severity"])]
    told.append(str(group.setting.get("model")))
    return ", ".join(told) + group.differences((*said, "batch_size"))


def _accuracy_by_size(axis: "Axes", panel: _Panel) -> None:
    for one, sizes in panel.curves.items():
        accumulates = _accumulates(one)
        method = "tent" if accumulates else one.method
        at = sorted(sizes)
        values = [fmean(float(sizes[n].accuracy(c) or 0) for c in panel.corruptions) for n in at]
        colour = COLOURS.get(method, OTHER_COLOUR)
        axis.plot(
            at,
            values,
            color=colour,
            label="TENT + GA" if accumulates else plain_text(one.title),
            linestyle="--" if accumulates else "-",
            marker=MARKERS.get(method, "."),
            markersize=5,
        )
        found = [sizes[n].average_interval(panel.corruptions) for n in at]
        axis.fill_between(
            [n for n, each in zip(at, found, strict=True) if each],
            [each.low for each in found if each],
            [each.high for each in found if each],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    ticks = sorted({size for sizes in panel.curves.values() for size in sizes})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images in a batch")
    axis.set_ylabel(
        f"accuracy, {panel.average}, %" if len(panel.corruptions) > 1 else "accuracy, %"
    )
    lines = [panel.place] if len(panel.corruptions) > 1 else [panel.place, panel.average]
    axis.set_title("\n".join(fill(plain_text(line), 70) for line in lines), fontsize=10)


# Figure 3


def feature_densities(results: Sequence[Result]) -> list[Drawing]:
    """Densities of single channels of the features, and how far each overlaps the reference's.

    One figure for each data set, network and corruption.
    """
    kept = [result for result in results if result["channels"] and not result.is_partial]
    found: dict[str, dict[Configuration, Result]] = {}
    named = configurations(result.row for result in kept)
    for result, configuration in zip(kept, named, strict=True):
        same = setting(result.row)
        same = {name: same[name] for name in same if name not in ("method", "settings")}
        found.setdefault(as_key(same), {})[configuration] = result
    places = [json.loads(key) for key in found]
    told = [name for name in differing(places) if name not in _SAID_OF_DENSITIES]
    drawings: list[Drawing] = []
    for place, methods in zip(places, found.values(), strict=True):
        where = "".join(f", {text}" for text in stated(place, told))
        features = {
            one: arrays["features"]
            for one in sorted(methods, key=_rank)
            if "features" in (arrays := methods[one].arrays())
        }
        if features:
            drawings.append(_densities_of(features, place, where, _numbered("figure3", drawings)))
    return drawings


_SAID_OF_DENSITIES = ("data", "model", "corruption", "severity", "channels")


def _rank(configuration: Configuration) -> int:
    """The reference first, then the paper's methods."""
    return -1 if configuration.method == SUPERVISED else configuration.rank


def _densities_of(
    features: Mapping[Configuration, NDArray[Any]], place: Mapping[str, Any], where: str, name: str
) -> Drawing:
    figure, axes = panels(len(place["channels"]), 3)
    overlaps: dict[str, list[float]] = {}
    for number, (axis, channel) in enumerate(zip(axes, place["channels"], strict=True)):
        shared = _densities(axis, {one: values[:, number] for one, values in features.items()})
        for one, overlap in shared.items():
            overlaps.setdefault(one, []).append(overlap)
        numbers = ", ".join(f"{plain_text(one)} {value:.2f}" for one, value in shared.items())
        title = f"channel {channel}" + (f"\noverlap {numbers}" if numbers else "")
        axis.set_title("\n".join(fill(line, 48) for line in title.split("\n")), fontsize=9)
        axis.set_xlabel("value of the feature (no unit)", fontsize=9)
    for axis in axes[::3]:
        axis.set_ylabel("density (no unit)")
    legend(figure, axes, 6)
    means = ", ".join(f"{one} {fmean(each):.2f}" for one, each in overlaps.items())
    severity = "".join(f", {text}" for text in stated(place, ["severity"]))
    caption = (
        "Figure 3: densities of the channels that the classifier weighs most, on "
        f"{place.get('data')}, {place['corruption']}{severity}, {place.get('model')}{where}."
    )
    if means:
        caption += (
            " The reference was trained with the labels. Overlap: the area shared with it, 1 for "
            f"all of it; its mean over the channels: {means}."
        )
    title = f"Figure 3: feature densities, {place['corruption']}{where}"
    return drawn(name, title, caption, figure)


def _densities(axis: "Axes", values: Mapping[Configuration, NDArray[Any]]) -> dict[str, float]:
    """Draw a channel's; return the area that each shares with the reference's, by title."""
    low, high = np.percentile(np.concatenate(list(values.values())), (0.5, 99.5))
    margin = 0.25 * (high - low) or 0.5
    points = np.linspace(low - margin, high + margin, 400)
    curves = {one: _density(found, points) for one, found in values.items()}
    reference = None
    for one, curve in curves.items():
        is_reference = one.method == SUPERVISED and not one.told
        if is_reference:
            reference = curve
        label = "supervised reference" if is_reference else plain_text(one.title)
        colour = COLOURS.get(one.method, OTHER_COLOUR)
        axis.plot(points, curve, color=colour, linewidth=1.6, label=label)
        axis.fill_between(points, curve, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    if reference is None:
        return {}
    step = points[1] - points[0]
    return {
        one.title: float(np.minimum(curve, reference).sum() * step)
        for one, curve in curves.items()
        if curve is not reference
    }


def _density(values: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """A smooth density; of a channel that is always the same, a narrow peak there."""
    wide = values.astype(np.float64)
    if len(wide) > 1 and float(wide.std()) > 1e-6:
        smooth: NDArray[Any] = gaussian_kde(wide)(points)
        return smooth
    width = 2 * float(points[1] - points[0])
    peak: NDArray[Any] = norm.pdf(points, float(wide[0]), width)
    return peak
