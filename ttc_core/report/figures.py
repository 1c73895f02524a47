"""The paper's Figures 1 to 3, from rows. matplotlib is an extra: tables do without it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from ttc_core.errors import UserError
from ttc_core.presets import SUPERVISED, TTC_SWITCHES
from ttc_core.report.groups import Group, Line
from ttc_core.report.results import SIMULATION, Result, differing, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart also by colour-blind eyes; the paper dictates Figure 3's.
COLOURS = {
    "source": "#000000",
    "norm": "#E69F00",
    "t3a": "#999999",
    "eta": "#009E73",
    "tipi": "#CC79A7",
    "tent": "#0072B2",
    "ttc": "#D55E00",
    SUPERVISED: "#E8B800",
}
OTHER_COLOUR = "#56B4E9"
MARKERS = {"source": "s", "norm": "o", "t3a": "v", "eta": "^", "tipi": "D", "tent": "X", "ttc": "P"}
ACCUMULATION = "TENT with gradient accumulation"
PANEL = (3.3, 2.6)
MOST_CLASSES_DRAWN = 100


@dataclass(frozen=True)
class Drawing:
    """A figure in both forms.

    Attributes:
        name: of its files.
        caption: what it shows, for people who cannot see it, too.
    """

    name: str
    caption: str
    png: bytes
    svg: bytes


def draw(results: Sequence[Result], groups: Sequence[Group]) -> tuple[list[Drawing], list[str]]:
    """Draw the figures there are rows for.

    Returns:
        The figures, and sentences about rows that could not be drawn.

    Raises:
        UserError: there is something to draw, but matplotlib is not installed.
    """
    problems: list[str] = []
    drawings: list[Drawing] = []
    for figure in (
        partial(probabilities, results),
        partial(batch_sizes, groups),
        partial(feature_densities, results),
    ):
        try:
            drawings += figure()
        except _Unreadable as error:
            problems.append(str(error))
    return drawings, problems


class _Unreadable(Exception):
    """A row's arrays cannot be drawn."""


def _arrays(result: Result) -> dict[str, NDArray[Any]]:
    try:
        return result.arrays()
    except UserError as error:
        raise _Unreadable(str(error)) from error


def _panels(count: int, columns: int, *, height: float = PANEL[1]) -> tuple["Figure", list["Axes"]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib: pip install 'ttc-service[report]'; the tables do not."
        ) from error
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, height * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _drawing(name: str, caption: str, figure: "Figure") -> Drawing:
    import matplotlib as mpl

    files = {}
    # Equal rows give equal bytes: no dates, no random names inside.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=150, metadata=metadata)
            files[kind] = out.getvalue()
    return Drawing(name, caption, files["png"], files["svg"])


# Figure 1


def probabilities(results: Sequence[Result]) -> list[Drawing]:
    """Class probabilities of one sample while their entropy is minimised, a panel for each K."""
    found = [result for result in results if result["method"] == SIMULATION]
    if not found:
        return []
    arrays, settings = _arrays(found[-1]), found[-1].settings
    paths = {
        int(name.rpartition("_")[2]): path
        for name, path in arrays.items()
        if name.startswith("probabilities_")
    }
    if not paths:
        return []
    figure, axes = _panels(len(paths), 4)
    for axis, (classes, path) in zip(axes, sorted(paths.items()), strict=True):
        _probabilities_of(axis, classes, path)
    axes[0].set_ylabel("probability of each class")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    caption = (
        "Figure 1: class probabilities of one answer while its entropy is minimised by gradient "
        f"descent, for several numbers of classes K (learning rate {settings.get('lr')}): the "
        "largest grows to 1."
    )
    return [_drawing("figure1", caption, figure)]


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
    axis.set_xlabel("gradient steps")


# Figure 2


def batch_sizes(groups: Sequence[Group]) -> list[Drawing]:
    """Average accuracy against batch size, a panel for each data set and network."""
    places: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        s = group.setting
        names = ("data", "model", "severity", "order", "protocol", "limit", "seed")
        places.setdefault(tuple(s[name] for name in names), []).append(group)
    several = {key: found for key, found in places.items() if len(found) > 1}
    if not several:
        return []
    figure, axes = _panels(len(several), 2, height=4.2)
    figure.set_size_inches(6.4 * min(2, len(several)), figure.get_size_inches()[1])
    for axis, (key, found) in zip(axes, several.items(), strict=True):
        corruptions = _accuracy_by_size(axis, found)
        what = (
            corruptions[0]
            if len(corruptions) == 1
            else f"average of {len(corruptions)} corruptions"
        )
        axis.set_title(f"{key[0]}, {key[1]}: {what}", fontsize=10, wrap=True)
    caption = (
        "Figure 2: accuracy in % against the number of images in a batch, with 95 % intervals; "
        "gradient accumulation lets TENT step every 200 images."
    )
    return [_drawing("figure2", caption, figure)]


def _accuracy_by_size(axis: "Axes", groups: Sequence[Group]) -> list[str]:
    lines: dict[str, dict[int, Line]] = {}
    for group in groups:
        for line in group.lines:
            if (title := _title(line)) is not None:
                lines.setdefault(title, {})[int(group.setting["batch_size"])] = line
    lines = {title: sizes for title, sizes in lines.items() if len(sizes) > 1}
    shared = [set(line.results) for sizes in lines.values() for line in sizes.values()]
    corruptions = [
        name
        for name in groups[0].columns
        if name != "clean" and all(name in results for results in shared)
    ]
    for title, sizes in lines.items():
        method = "tent" if title == ACCUMULATION else title.lower()
        at = sorted(sizes)
        values = [fmean(float(sizes[n].accuracy(c) or 0) for c in corruptions) for n in at]
        style: dict[str, Any] = {"color": COLOURS.get(method, OTHER_COLOUR), "label": title}
        style["linestyle"] = "--" if title == ACCUMULATION else "-"
        axis.plot(at, values, marker=MARKERS.get(method, "."), markersize=5, **style)
        found = [sizes[n].average_interval(corruptions) for n in at]
        known = [(n, i) for n, i in zip(at, found, strict=True) if i is not None]
        axis.fill_between(
            [n for n, _ in known],
            [i.low for _, i in known],
            [i.high for _, i in known],
            color=style["color"],
            alpha=0.12,
            linewidth=0,
        )
    ticks = sorted({size for sizes in lines.values() for size in sizes})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images in a batch")
    axis.set_ylabel("accuracy, %")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return corruptions


def _title(line: Line) -> str | None:
    """Methods as they come, and TENT with accumulation; other variants are no line."""
    if "(" not in line.label:
        return shown(line.label)
    changed = differing(next(iter(line.results.values())))
    alone = {name: False for name in TTC_SWITCHES if name != "ga"}
    return ACCUMULATION if line.label.startswith("ttc") and changed == alone else None


# Figure 3


def feature_densities(results: Sequence[Result]) -> list[Drawing]:
    """Densities of single channels of the features, and how far each overlaps the reference's."""
    found = [result for result in results if result["channels"]]
    if not found:
        return []
    last = found[-1]
    same = ("data", "model", "corruption", "severity", "batch_size", "limit", "seed", "channels")
    methods = {
        str(result["method"]): result
        for result in found
        if all(result[name] == last[name] for name in same)
    }
    order = [name for name in (SUPERVISED, "source", "norm", "tent", "ttc") if name in methods]
    order += [name for name in methods if name not in order]
    features = {name: _arrays(methods[name]).get("features") for name in order}
    known = {name: values for name, values in features.items() if values is not None}
    if not known:
        return []
    channels = [int(channel) for channel in last["channels"]]
    figure, axes = _panels(len(channels), 3)
    for number, (axis, channel) in enumerate(zip(axes, channels, strict=True)):
        _densities(axis, {name: values[:, number] for name, values in known.items()})
        axis.set_title(f"channel {channel}", fontsize=10)
        axis.set_xlabel("value of the feature (no unit)")
    for axis in axes[::3]:
        axis.set_ylabel("density (no unit)")
    severity = "" if last["severity"] is None else f", severity {last['severity']}"
    caption = (
        f"Figure 3: densities of the channels that the classifier weighs most, on {last['data']}, "
        f"{last['corruption']}{severity}, {last['model']}; the reference had the labels. In each "
        "legend: the area shared with the reference, 1 for all of it."
    )
    return [_drawing("figure3", caption, figure)]


def _densities(axis: "Axes", values: Mapping[str, NDArray[Any]]) -> None:
    both = np.concatenate(list(values.values()))
    low, high = np.percentile(both, (0.5, 99.5))
    margin = 0.25 * (high - low) or 0.5
    points = np.linspace(low - margin, high + margin, 400)
    density = {name: _density(found)(points) for name, found in values.items()}
    reference = density.get(SUPERVISED)
    for name, curve in density.items():
        label = "supervised reference" if name == SUPERVISED else shown(name)
        if reference is not None and name != SUPERVISED:
            step = points[1] - points[0]
            label += f" {float(np.minimum(curve, reference).sum() * step):.2f}"
        colour = COLOURS.get(name, OTHER_COLOUR)
        axis.plot(points, curve, color=colour, linewidth=1.6, label=label)
        axis.fill_between(points, curve, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)


def _density(values: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A smooth density; of a channel that is always the same, a narrow peak there."""
    if len(values) > 1 and float(np.std(values)) > 1e-6:
        found: Callable[[NDArray[Any]], NDArray[Any]] = gaussian_kde(values.astype(np.float64))
        return found
    centre, width = float(values[0]), 1e-2
    return lambda x: np.exp(-0.5 * ((x - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))
