"""Methods × streams: what becomes of each in every order, protocol and mix, image by image."""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from ttc_core.calibration import Terms
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.report.configuration import Configuration, configurations
from ttc_core.report.drawing import (
    COLOURS,
    OTHER_COLOUR,
    Drawing,
    drawn,
    legend,
    panels,
    plain_text,
)
from ttc_core.report.results import ArraysError, Result, accuracies
from ttc_core.report.statistics import Correct, paired_difference
from ttc_core.report.table import NONE, Cell, Table, mark_best, percent
from ttc_core.rows import as_key, differing, setting, stated
from ttc_core.tally import WINDOW

# What lines, columns and averages are over; all else tells one matrix from another.
_OF_A_STREAM = ("order", "protocol", "mix", "unknown", "limit")
_LAID_OUT = (
    *("method", "settings", "batch_size", "corruption", "severity", "after", "after_severity"),
    *("guard", "record_temperature", "visit", "seed", "data_digest", *_OF_A_STREAM),
)
_STYLES = ("-", "--", ":", "-.")
SMOOTHED_OVER = 50
# Images after a change, between which accuracy is told.
STAGES = (0, 50, 150, 300, 500)
REFERENCE = "source"


@dataclass(frozen=True)
class Measure:
    """A field of rows that is a mean over images.

    Attributes:
        scale, digits: that it is shown with.
    """

    field: str
    title: str
    scale: float
    digits: int


ACCURACY = Measure("accuracy", "accuracy in %", 100, 1)
CALIBRATION = (
    Measure("ece", "expected calibration error in %", 100, 1),
    Measure("nll", "negative log-likelihood in nats", 1, 3),
)


@dataclass(frozen=True)
class StreamLine:
    """A method as it was set, in batches of one size."""

    configuration: Configuration
    batch_size: int | None

    @property
    def is_reference(self) -> bool:
        return self.configuration.method == REFERENCE and not self.configuration.told

    @property
    def title(self) -> str:
        return self.configuration.title


@dataclass(frozen=True)
class Matrix:
    """Methods × streams on one data set and network.

    Attributes:
        setting: what all have in common.
        cells: stream -> line -> its rows, over corruptions, visits and seeds.
    """

    setting: Mapping[str, Any]
    told: Sequence[str]
    cells: Mapping[str, Mapping[StreamLine, Sequence[Result]]]

    @property
    def lines(self) -> list[StreamLine]:
        """Those in any stream, in the paper's order, plain before varied."""
        return ordered(line for lines in self.cells.values() for line in lines)

    @property
    def place(self) -> str:
        data, model = self.setting.get("data"), self.setting.get("model")
        others = [name for name in self.told if name not in ("data", "model")]
        return ", ".join([f"{data}, model {model}", *stated(self.setting, others)])

    def label(self, line: StreamLine) -> str:
        return label(line, self.lines)


def ordered(lines: Iterable[StreamLine]) -> list[StreamLine]:
    """Each once: SOURCE first, then in the paper's order, plain before varied."""
    found = dict.fromkeys(lines)
    rank = {line: (0 if line.title.startswith("SOURCE") else 1) for line in found}
    return sorted(found, key=lambda one: (rank[one], one.configuration.rank))


def label(line: StreamLine, lines: Iterable[StreamLine]) -> str:
    """Its name among others; with the size of its batches where not all have the same."""
    sizes = {one.batch_size for one in lines}
    return line.title if len(sizes) == 1 else f"{line.title}, N = {line.batch_size}"


def matrices(results: Sequence[Result], *, fewest: int = 2) -> list[Matrix]:
    """A matrix for each data set and network that ran on so many streams."""
    counted = [one for one in accuracies(results) if not one.is_partial]
    places: dict[str, dict[str, dict[StreamLine, dict[str, Result]]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    named = configurations(result.row for result in counted)
    for result, configuration in zip(counted, named, strict=True):
        told = setting(result.row)
        common = {name: told[name] for name in told if name not in _LAID_OUT}
        stream = {name: told[name] for name in told if name in _OF_A_STREAM}
        settings[as_key(common)] = common
        lines = places.setdefault(as_key(common), {}).setdefault(as_key(stream), {})
        rows = lines.setdefault(StreamLine(configuration, result["batch_size"]), {})
        # Of rows that measure the same again the last one counts.
        rows[as_key({n: v for n, v in told.items() if n not in ("method", "settings")})] = result
    places = {key: streams for key, streams in places.items() if len(streams) >= fewest}
    told_apart = differing([settings[key] for key in places])
    return [
        Matrix(
            settings[key],
            told_apart,
            {
                title: {line: list(rows.values()) for line, rows in lines.items()}
                for title, lines in _titled(streams).items()
            },
        )
        for key, streams in places.items()
    ]


def _titled(streams: Mapping[str, Any]) -> dict[str, Any]:
    """The streams by what tells them from each other; by their length only where they need it."""
    rows = {
        key: next(iter(next(iter(lines.values())).values())).row for key, lines in streams.items()
    }
    titles = {key: stream_title(row) for key, row in rows.items()}
    return {
        title
        if list(titles.values()).count(title) == 1
        else f"{title}, {rows[key].get('limit') or 'all'} images": streams[key]
        for key, title in titles.items()
    }


def stream_title(row: Mapping[str, Any]) -> str:
    """A stream as one asks for it: its order, and its protocol and mix where they are not usual."""
    parts = [str(row.get("order")), str(row.get("protocol"))]
    if row.get("mix"):
        parts.append(f"mix {row['mix']}" + (f" of {row['unknown']}" if row.get("unknown") else ""))
    return ", ".join(part for part in parts if part not in ("episodic", "iid")) or "iid"


def stream_matrix(matrix: Matrix, name: str, measure: Measure = ACCURACY) -> Table:
    """The mean of each line on each stream, and the paired difference to SOURCE."""
    lines: list[list[Cell]] = []
    for line in matrix.lines:
        label = matrix.label(line)
        cells = [stream_cell(line, found, measure) for found in matrix.cells.values()]
        lines.append([Cell(label, label), *cells])
    titles = list(matrix.cells)
    rows = [one for found in matrix.cells.values() for each in found.values() for one in each]
    known = ("clean", *CORRUPTIONS)
    names = [name for name in known if any(one["corruption"] == name for one in rows)]
    points = " in points" if measure.scale == 100 else ""
    return Table(
        name,
        f"Streams: {measure.title} on {matrix.place}, mean of {', '.join(names)}",
        ["Method", *titles],
        ["method", *titles],
        mark_best(lines) if measure is ACCURACY else lines,
        (
            f"In brackets the difference to SOURCE{points}, with the standard error of the mean "
            "over the same images. N: images in a batch.",
        ),
    )


def calibration_tables(results: Sequence[Result]) -> list[Table]:
    """ECE and NLL of what was answered, on each stream; what no row tells is left out."""
    tables = [
        stream_matrix(matrix, f"{measure.field}-{number}", measure)
        for number, matrix in enumerate(matrices(results, fewest=1), start=1)
        for measure in CALIBRATION
    ]
    return [
        table
        for table in tables
        if any(cell.value is not None for _, *cells in table.lines for cell in cells)
    ]


def stream_cell(
    line: StreamLine, lines: Mapping[StreamLine, Sequence[Result]], measure: Measure
) -> Cell:
    """The mean of a line on a stream, and the paired difference to SOURCE."""
    found = lines.get(line)
    everything = {_pass(one) for rows in lines.values() for one in rows}
    if not found or {_pass(one) for one in found} != everything:
        return percent(None)  # a mean over fewer passes is another figure
    if any(one[measure.field] is None for one in found):
        return percent(None)
    scale, digits = measure.scale, measure.digits
    value = scale * fmean(float(one[measure.field]) for one in found)
    cell = Cell(value, f"{value:.{digits}f}")
    difference = None if line.is_reference else _difference(found, lines, measure.field)
    if difference is None:
        return cell
    mean, error = (scale * each for each in difference)
    return replace(
        cell,
        text=f"{cell.text} ({mean:+z.{digits}f} ± {error:.{digits}f})",
        beside={"difference": mean, "difference_error": error},
    )


def window_table(matrix: Matrix, name: str) -> Table | None:
    """The window of each stream in which a line falls farthest below SOURCE; None without SOURCE.

    Far means in standard errors of the paired difference over the window's images.
    """
    lines = []
    for line in matrix.lines:
        cells = [_worst_window(line, found) for found in matrix.cells.values()]
        if any(cell.value is not None for cell in cells):
            label = matrix.label(line)
            lines.append([Cell(label, label), *cells])
    if not lines:
        return None
    titles = list(matrix.cells)
    return Table(
        name,
        f"Worst windows of {WINDOW} images against SOURCE, in points, on {matrix.place}",
        ["Method", *titles],
        ["method", *titles],
        lines,
        (
            "Of all windows of a stream, under each corruption, the one that is the most standard "
            "errors below SOURCE. †: by more than two, corrected for the number of windows.",
        ),
    )


def change_table(matrix: Matrix, name: str) -> Table | None:
    """Accuracy by how long the conditions have lasted, over all changes of a stream.

    None unless some last until the last of STAGES. What comes before the first change is left out.
    """
    parts = list(pairwise(STAGES))
    lines = []
    for title, found in matrix.cells.items():
        for line in (each for each in matrix.lines if each in found):
            since, right = _after_changes(found[line])
            stages = [right[(since >= low) & (since < high)] for low, high in parts]
            if all(map(len, stages)) and max(since) >= STAGES[-1] - 1:
                label = f"{title}: {matrix.label(line)}"
                accuracies = [percent(100 * float(stage.mean())) for stage in stages]
                lines.append([Cell(label, label), *accuracies])
    if not lines:
        return None
    heads = [f"{low} to {high}" for low, high in parts]
    return Table(
        name,
        f"Accuracy in % by images since the conditions changed, on {matrix.place}",
        ["Stream: method", *heads],
        ["line", *heads],
        lines,
    )


def _after_changes(rows: Sequence[Result]) -> tuple[NDArray[np.int64], Correct]:
    """Of each judged image behind a change: how many came since, and whether it was right."""
    since: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    right: list[Correct] = [np.empty(0, np.bool_)]
    for one in rows:
        with contextlib.suppress(ArraysError):
            arrays = one.arrays()
            if {"predicted", "labels"} <= arrays.keys():
                numbers = np.arange(len(arrays["labels"]))
                lasted = arrays.get("since_change", numbers)
                behind = (lasted < numbers) | bool(one["after"])
                counted = behind & (arrays["labels"] >= 0)
                since.append(lasted[counted])
                right.append((arrays["predicted"] == arrays["labels"])[counted])
    return np.concatenate(since), np.concatenate(right)


def _worst_window(line: StreamLine, lines: Mapping[StreamLine, Sequence[Result]]) -> Cell:
    windows: list[tuple[float, float, float]] = []
    pairs = [] if line.is_reference else _pairs(lines.get(line, ()), lines, ACCURACY.field)
    for ours, theirs in pairs:
        for start in range(0, max(1, len(ours) - WINDOW + 1), WINDOW):
            part = slice(start, start + WINDOW)
            mean, error = paired_difference([ours[part]], [theirs[part]])
            errors = mean / error if error else np.sign(mean) * np.inf if mean else 0.0
            windows.append((float(errors), 100 * mean, 100 * error))
    if not windows:
        return Cell(None, NONE)
    errors, mean, error = min(windows)
    least = norm.ppf(norm.cdf(-2) / len(windows))
    text = f"{mean:+z.1f} ± {error:.1f}" + (" †" if errors < least else "")
    return Cell(mean, text, beside={"error": error, "windows": len(windows)})


def _pairs(
    found: Sequence[Result], lines: Mapping[StreamLine, Sequence[Result]], field: str
) -> list[tuple[Terms, Terms]]:
    """What each image adds to a field, by a line and by SOURCE, pass by pass.

    Nothing unless all are of the same images, and all tell it.
    """
    reference = next((rows for one, rows in lines.items() if one.is_reference), ())
    others = {_pass(one): one.image_results for one in reference}
    pairs = []
    for one in found:
        ours, theirs = one.image_results, others.get(_pass(one))
        if ours is None or theirs is None or ours.labels_digest != theirs.labels_digest:
            return []
        if field not in ours.terms or field not in theirs.terms:
            return []
        pairs.append((ours.terms[field], theirs.terms[field]))
    return pairs if all(len(terms) > 1 for terms, _ in pairs) else []


def _difference(
    found: Sequence[Result], lines: Mapping[StreamLine, Sequence[Result]], field: str
) -> tuple[float, float] | None:
    """The mean paired difference to SOURCE over the rows; None unless it answered the same images.

    Rows of the same images, under other corruptions, are no independent observations.
    """
    same: dict[str, list[tuple[Terms, Terms]]] = {}
    for one, pair in zip(found, _pairs(found, lines, field), strict=False):
        assert one.image_results is not None
        same.setdefault(f"{one['seed']} {one.image_results.labels_digest}", []).append(pair)
    if not same:
        return None
    each = [paired_difference(*zip(*pairs, strict=True)) for pairs in same.values()]
    error = sum(error**2 for _, error in each) ** 0.5 / len(each)
    return fmean(mean for mean, _ in each), error


def _pass(result: Result) -> str:
    return as_key([result[name] for name in ("corruption", "severity", "visit", "seed")])


def stream_figures(matrix: Matrix, prefix: str = "stream") -> list[Drawing]:
    """Accuracy over the images of each stream, a curve a line; changes are marked."""
    found = []
    for title, lines in matrix.cells.items():
        with contextlib.suppress(ArraysError):
            if drawing := _figure(matrix, title, lines, f"{prefix}-{slug(title)}"):
                found.append(drawing)
    return found


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", title).strip("-")


def _figure(
    matrix: Matrix, title: str, lines: Mapping[StreamLine, Sequence[Result]], name: str
) -> Drawing | None:
    figure, (axis,) = panels(1, 1, 9.0, 3.6)
    seen: dict[str, int] = {}
    marks: dict[int, str] = {}
    for line in matrix.lines:
        curve, changes = _curve(lines.get(line, ()))
        method = line.configuration.method
        style = _STYLES[seen.get(method, 0) % len(_STYLES)]
        seen[method] = seen.get(method, 0) + 1
        if not len(curve):
            continue
        marks |= changes
        axis.plot(
            np.arange(len(curve)),
            100 * curve,
            color=COLOURS.get(method, OTHER_COLOUR),
            linestyle=style,
            linewidth=1.4,
            label=plain_text(matrix.label(line)),
        )
    if not axis.lines:
        return None
    for at, text in marks.items():
        if at:
            axis.axvline(at, color="#777777", linewidth=0.8, linestyle=(0, (2, 2)))
        axis.annotate(
            plain_text(text),
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=6,
            color="#555555",
        )
    axis.set_ylim(-2, 102)
    axis.set_xlabel("images seen")
    axis.set_ylabel(f"accuracy of {SMOOTHED_OVER} images, %")
    legend(figure, [axis], 3)
    caption = (
        f"{title}: accuracy in % over the images of the stream, each point the mean of the "
        f"{SMOOTHED_OVER} images around it, over all corruptions and seeds ({matrix.place})."
        + (" Dashed lines mark where the conditions change." if len(marks) > 1 else "")
    )
    return drawn(name, f"Stream {title}", caption, figure)


def _curve(rows: Sequence[Result]) -> tuple[NDArray[np.float64], dict[int, str]]:
    """The smoothed accuracy over the images, and where conditions begin, with their names.

    Visits and corruptions that follow one another in a stream are put one behind the other; other
    rows are averaged.
    """
    streams: list[tuple[NDArray[Any], NDArray[Any]]] = []
    marks: dict[int, str] = {}
    chained = sorted(rows, key=lambda one: (one["seed"] or 0, len(one["after"] or ())))
    for (_, after), same in groupby(
        chained, lambda one: (one["seed"], one["after"] is not None or id(one))
    ):
        right: list[NDArray[Any]] = []
        judged: list[NDArray[Any]] = []
        done = 0
        for one in same:
            arrays = one.arrays()
            if not {"predicted", "labels"} <= arrays.keys():
                return np.empty(0), {}
            if after is True:
                marks[done] = str(one["corruption"])
            marks |= _marks(arrays, str(one["order"]), done)
            right.append(arrays["predicted"] == arrays["labels"])
            judged.append(arrays["labels"] >= 0)
            done += len(arrays["labels"])
        streams.append((np.concatenate(right), np.concatenate(judged)))
    if not streams or len({len(right) for right, _ in streams}) > 1:
        return np.empty(0), {}
    width = np.ones(min(SMOOTHED_OVER, len(streams[0][0])))
    # The ends are means of what is there.
    sums = [np.convolve(np.sum(each, axis=0), width, "same") for each in zip(*streams, strict=True)]
    return sums[0] / np.maximum(sums[1], 1), marks


def _marks(arrays: Mapping[str, NDArray[Any]], order: str, start: int) -> dict[int, str]:
    if "condition" in arrays and "since_change" in arrays:
        at = np.flatnonzero(arrays["since_change"] == 0)
        return {start + int(each): str(arrays["condition"][each]) for each in at}
    if order.startswith("limited:"):
        return {start: order, start + len(arrays["labels"]) // 2: "all classes"}
    return {}
