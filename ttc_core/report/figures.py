"""The paper's Figures 1 to 3, from rows. matplotlib is an extra: tables do without it."""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde, norm

from ttc_core.errors import UserError
from ttc_core.presets import SUPERVISED, TTC_SWITCHES
from ttc_core.report.groups import Group, Line
from ttc_core.report.results import SIMULATION, Result, differing, labels, shown, telling
from ttc_core.rows import averaged, setting

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
ACCUMULATION = "TENT + GA"
MOST_CLASSES_DRAWN = 100


@dataclass(frozen=True)
class Drawing:
    """A figure in both forms.

    Attributes:
        name: of its files.
        title: a few words.
        caption: what it shows, for people who cannot see it, too.
    """

    name: str
    title: str
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


def _panels(
    count: int, columns: int, width: float = 3.3, height: float = 2.6
) -> tuple["Figure", list["Axes"]]:
    """An empty figure with so many panels, each of a size in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib: pip install 'ttc-service[report]'; the tables do not."
        ) from error
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, axes


def _legend(figure: "Figure", axes: Sequence["Axes"], columns: int) -> None:
    """One below all panels, so that it hides no line."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(columns, len(entries)),
        frameon=False,
    )


def _text(text: object) -> str:
    """Text from rows as it is: matplotlib would set $...$ as a formula."""
    return "".join(c if c.isprintable() else " " for c in str(text)).replace("$", r"\$")


def _drawing(name: str, title: str, caption: str, figure: "Figure") -> Drawing:
    import matplotlib as mpl

    files = {}
    # Equal rows give equal bytes: no dates, no random names inside.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}), warnings.catch_warnings():
        # A name in a script that the font lacks gets boxes; that is no news to the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            out = io.BytesIO()
            figure.savefig(out, format=kind, dpi=150, metadata=metadata)
            files[kind] = out.getvalue()
    return Drawing(name, title, caption, files["png"], files["svg"])


# Figure 1


def probabilities(results: Sequence[Result]) -> list[Drawing]:
    """Class probabilities of one sample while their entropy is minimised, a panel for each K."""
    found = [result for result in results if result["method"] == SIMULATION]
    if not found:
        return []
    # The last of each setting; another setting is another figure.
    last = {json.dumps(result.settings, sort_keys=True): result for result in found}
    return [
        drawing
        for number, result in enumerate(last.values(), start=1)
        if (drawing := _simulation(result, "figure1" if number == 1 else f"figure1-{number}"))
    ]


def _simulation(result: Result, name: str) -> Drawing | None:
    arrays, settings = _arrays(result), result.settings
    paths = {
        int(name.rpartition("_")[2]): path
        for name, path in arrays.items()
        if name.startswith("probabilities_")
    }
    if not paths:
        return None
    figure, axes = _panels(len(paths), 4)
    for axis, (classes, path) in zip(axes, sorted(paths.items()), strict=True):
        _probabilities_of(axis, classes, path)
    axes[0].set_ylabel("probability of each class (0 to 1)")
    _legend(figure, axes[-1:], 2)
    caption = (
        "Figure 1: class probabilities of one answer while its entropy is minimised by gradient "
        f"descent, for several numbers of classes K (learning rate {settings.get('lr')}): the "
        "largest grows to 1."
    )
    return _drawing(name, "Figure 1: repeated entropy minimisation", caption, figure)


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
    places: dict[str, list[Group]] = {}
    for group in groups:
        if group.setting.get("batch_size") is not None:
            places.setdefault(group.place, []).append(group)
    curves = [curves for found in places.values() if (curves := _curves(found)) is not None]
    if not curves:
        return []
    width, height = (9.0, 4.4) if len(curves) == 1 else (6.2, 4.0)
    figure, axes = _panels(len(curves), 2, width, height)
    for axis, each in zip(axes, curves, strict=True):
        _accuracy_by_size(axis, each)
    _legend(figure, axes, 8 if len(curves) > 1 else 6)
    averages = "; ".join(f"{each.place}: {each.average}" for each in curves)
    caption = (
        "Figure 2: accuracy in % against the number of images in a batch, with 95 % intervals "
        f"where the answers to each image are known ({averages}). TENT + GA is TENT with gradient "
        "accumulation: it steps every 200 images."
    )
    return [_drawing("figure2", "Figure 2: accuracy against batch size", caption, figure)]


@dataclass(frozen=True)
class _Curves:
    """A panel: title -> batch size -> line, and the corruptions that all of them have."""

    place: str
    lines: Mapping[str, Mapping[int, Line]]
    corruptions: list[str]

    @property
    def average(self) -> str:
        if len(self.corruptions) == 1:
            return self.corruptions[0]
        return f"average of {len(self.corruptions)} corruptions"


def _curves(groups: Sequence[Group]) -> _Curves | None:
    """None where no method ran at two batch sizes under the same corruption."""
    lines: dict[str, dict[int, Line]] = {}
    for group in groups:
        for line in group.lines:
            if (title := _title(line)) is not None:
                lines.setdefault(title, {})[int(group.setting["batch_size"])] = line
    lines = {title: sizes for title, sizes in lines.items() if len(sizes) > 1}
    corruptions = [
        name
        for name in averaged(groups[0].columns)
        if all(
            name in line.results and not line.results[name].is_partial
            for sizes in lines.values()
            for line in sizes.values()
        )
    ]
    place = _where(groups[0])
    return _Curves(place, lines, corruptions) if lines and corruptions else None


def _where(group: Group) -> str:
    """Data and network, and what tells this panel from another."""
    s = group.setting.get
    told = [
        f"{name.replace('_', ' ')} {telling(s(name))}"
        for name in ("order", "protocol", "limit", "seed")
        if name in group.told
    ]
    where = [str(s("data")), f"severity {s('severity')}", str(s("model")), *told]
    return f"{', '.join(where)}{group.differences}"


def _accuracy_by_size(axis: "Axes", curves: _Curves) -> None:
    for title, sizes in curves.lines.items():
        method = "tent" if title == ACCUMULATION else title.lower()
        at = sorted(sizes)
        values = [fmean(float(sizes[n].accuracy(c) or 0) for c in curves.corruptions) for n in at]
        colour = COLOURS.get(method, OTHER_COLOUR)
        axis.plot(
            at,
            values,
            color=colour,
            label=_text(title),
            linestyle="--" if title == ACCUMULATION else "-",
            marker=MARKERS.get(method, "."),
            markersize=5,
        )
        found = [sizes[n].average_interval(curves.corruptions) for n in at]
        axis.fill_between(
            [n for n, each in zip(at, found, strict=True) if each],
            [each.low for each in found if each],
            [each.high for each in found if each],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
    ticks = sorted({size for sizes in curves.lines.values() for size in sizes})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("images in a batch")
    axis.set_ylabel(
        f"accuracy, {curves.average}, %" if len(curves.corruptions) > 1 else "accuracy, %"
    )
    lines = [curves.place] if len(curves.corruptions) > 1 else [curves.place, curves.average]
    axis.set_title("\n".join(fill(_text(line), 70) for line in lines), fontsize=10)


def _title(line: Line) -> str | None:
    """Methods as they come, and TENT with accumulation; other variants are no line."""
    if "(" not in line.label:
        return shown(line.label)
    changed = differing(next(iter(line.results.values())))
    alone = {name: False for name in TTC_SWITCHES if name != "ga"}
    return ACCUMULATION if line.label.startswith("ttc") and changed == alone else None


# Figure 3


def feature_densities(results: Sequence[Result]) -> list[Drawing]:
    """Densities of single channels of the features, and how far each overlaps the reference's.

    One figure for each data set, network and corruption.
    """
    kept = [result for result in results if result["channels"] and not result.is_partial]
    found: dict[str, dict[str, Result]] = {}
    for result, label in zip(kept, labels(kept), strict=True):
        same = setting(result.row)
        same = {name: same[name] for name in same if name not in ("method", "settings")}
        found.setdefault(json.dumps(same, sort_keys=True), {})[label] = result
    places = [json.loads(key) for key in found]
    names = sorted({name for each in places for name in each} - set(_SAID_OF_DENSITIES))
    told = [name for name in names if len({json.dumps(one.get(name)) for one in places}) > 1]
    drawings: list[Drawing] = []
    for place, methods in zip(places, found.values(), strict=True):
        name = "figure3" if not drawings else f"figure3-{len(drawings) + 1}"
        where = "".join(f", {one.replace('_', ' ')} {telling(place.get(one))}" for one in told)
        if (drawing := _densities_of(methods, name, where)) is not None:
            drawings.append(drawing)
    return drawings


_SAID_OF_DENSITIES = ("data", "model", "corruption", "severity", "channels")


def _densities_of(methods: Mapping[str, Result], name: str, where: str) -> Drawing | None:
    order = [one for one in (SUPERVISED, "source", "norm", "tent", "ttc") if one in methods]
    order += [one for one in methods if one not in order]
    arrays = {one: _arrays(methods[one]) for one in order}
    features = {one: each["features"] for one, each in arrays.items() if "features" in each}
    if not features:
        return None
    row = methods[order[0]]
    figure, axes = _panels(len(row["channels"]), 3)
    overlaps: dict[str, list[float]] = {}
    for number, (axis, channel) in enumerate(zip(axes, row["channels"], strict=True)):
        shared = _densities(axis, {one: values[:, number] for one, values in features.items()})
        for one, overlap in shared.items():
            overlaps.setdefault(one, []).append(overlap)
        numbers = ", ".join(f"{_text(shown(one))} {value:.2f}" for one, value in shared.items())
        title = f"channel {channel}" + (f"\noverlap {numbers}" if numbers else "")
        axis.set_title("\n".join(fill(line, 48) for line in title.split("\n")), fontsize=9)
        axis.set_xlabel("value of the feature (no unit)", fontsize=9)
    for axis in axes[::3]:
        axis.set_ylabel("density (no unit)")
    _legend(figure, axes, 6)
    severity = "" if row["severity"] is None else f", severity {row['severity']}"
    means = ", ".join(f"{shown(one)} {fmean(each):.2f}" for one, each in overlaps.items())
    caption = (
        f"Figure 3: densities of the channels that the classifier weighs most, on {row['data']}, "
        f"{row['corruption']}{severity}, {row['model']}{where}."
    )
    if means:
        caption += (
            " The reference was trained with the labels. Overlap: the area shared with it, 1 for "
            f"all of it; its mean over the channels: {means}."
        )
    title = f"Figure 3: feature densities, {row['corruption']}{where}"
    return _drawing(name, title, caption, figure)


def _densities(axis: "Axes", values: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Draw a channel's; return the area that each shares with the reference's."""
    low, high = np.percentile(np.concatenate(list(values.values())), (0.5, 99.5))
    margin = 0.25 * (high - low) or 0.5
    points = np.linspace(low - margin, high + margin, 400)
    curves = {name: _density(found, points) for name, found in values.items()}
    for name, curve in curves.items():
        label = "supervised reference" if name == SUPERVISED else _text(shown(name))
        colour = COLOURS.get(name, OTHER_COLOUR)
        axis.plot(points, curve, color=colour, linewidth=1.6, label=label)
        axis.fill_between(points, curve, color=colour, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)
    reference = curves.pop(SUPERVISED, None)
    if reference is None:
        return {}
    step = points[1] - points[0]
    return {
        name: float(np.minimum(curve, reference).sum() * step) for name, curve in curves.items()
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
