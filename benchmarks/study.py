"""The default over networks, data and streams: `make study`, `make ablation`, `make sensitivity`.

    python -m benchmarks.study methods|batches|ablation|sensitivity [--networks tuning|reporting]
        [--only NAME]... [--images 500] [--corruptions 2] [--seeds 0,1,2] [--minutes 20]

What the default's numbers were chosen on is `tuning`, what only reports them `reporting`. The table
has a line a variant and a column a kind of stream. Rows that are there are not run again; with
--minutes no pass is begun after so many, and the table is of what is there.
"""

import ast
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import click

from benchmarks.places import PLACES, Place
from benchmarks.streams import (
    BATCH_SIZE,
    DEFAULT,
    DEFAULT_BATCH_SIZE,
    PAPER,
    SCENES,
    SERVED,
    Scene,
    evaluation_of,
)
from benchmarks.variants import LINE, Lines, ablation, sensitivity
from service.cli.evaluate import row_fields
from service.cli.options import load_model
from ttc_core import methods
from ttc_core.datasets import Stream, open_data
from ttc_core.errors import UserError
from ttc_core.evaluate import Run
from ttc_core.methods import UnsuitableNetworkError
from ttc_core.plugins import source_digest
from ttc_core.presets import Variant
from ttc_core.report.statistics import Correct, paired_difference
from ttc_core.report.table import NONE, Cell, Table, percent
from ttc_core.rows import Arrays, Row, Rows
from ttc_core.tally import Tally

SEVERITY = 5


def _methods(classes: int) -> Lines:
    """The paper's, each also with the flip average, and what is served."""
    return {
        f"{each.method}{' flip' if each.settings.get('flip') else ''}, N = {size}": each
        for each in (*PAPER[1:], *SERVED)
        for size in [each.batch_size or BATCH_SIZE]
    }


def _batches(classes: int) -> Lines:
    """The default, by the size of its batches; in all of the same stream."""
    sizes = (1, 2, 5, 10, 20, 100)
    return {f"N = {size}": Variant(DEFAULT, batch_size=size) for size in sizes}


@dataclass(frozen=True)
class Study:
    """Lines × streams.

    Attributes:
        lines: for a network of so many classes.
        corruptions: how many of a place's are run, beside clean; None: all.
    """

    lines: Callable[[int], Lines]
    scenes: Sequence[Scene]
    images: int
    corruptions: int | None
    seeds: Sequence[int] = (0,)


KINDS = (
    Scene("the images are shuffled", ""),
    Scene("something stays before the lens", "", "runs:50"),
    Scene("a camera trap sees mostly two animals", "", "camera-trap"),
    Scene("there is one thing only", "", "one:3"),
    Scene("the weather changes", "", protocol="changing:100"),
)
STUDIES = {
    "methods": Study(_methods, SCENES, 2000, None, (0, 1, 2)),
    "batches": Study(_batches, KINDS[:2], 1000, 2),
    "ablation": Study(ablation, KINDS, 500, 2),
    "sensitivity": Study(sensitivity, KINDS, 500, 2),
}
SOURCE = "SOURCE"


class Pass(NamedTuple):
    """What a row is over."""

    place: str
    stream: str
    seed: int
    corruption: str
    visit: int | None

    @property
    def images(self) -> tuple[str, str, int]:
        """Equal where the same images come in the same order."""
        return self[:3]


@dataclass(frozen=True)
class Found:
    """A row: whose line it is, and which images were answered right."""

    line: str
    of: Pass
    row: Row
    right: Correct

    @property
    def difference(self) -> float:
        """To SOURCE, in points of accuracy."""
        return 100 * float(self.row["source_difference"])


class TimeIsOver(Exception):
    """No pass is to begin any more."""


class Collecting:
    """Watches evaluations of one line on one stream after another, and collects their rows.

    Attributes:
        at: the line, place and stream that are next.
        missing: evaluations for which there was no time.
    """

    def __init__(self, rows: Rows, minutes: float) -> None:
        self.collected: list[Found] = []
        self.at, self.missing = ("", "", ""), 0
        self._rows, self._end = rows, time.monotonic() + 60 * minutes

    def found(self, run: Run, row: Row) -> None:
        arrays = self._rows.arrays(row)
        if arrays is None:
            raise UserError(f"What lies beside a row of {run.name} cannot be read.")
        right = (arrays["predicted"] == arrays["labels"])[arrays["labels"] >= 0]
        line, place, stream = self.at
        of = Pass(place, stream, row["seed"], row["corruption"], row.get("visit"))
        self.collected.append(Found(line, of, row, right))

    def started(self, run: Run, stream: Stream) -> None:
        if time.monotonic() > self._end:
            raise TimeIsOver

    def progressed(self, tally: Tally) -> None:
        """A pass takes seconds."""

    def finished(self, run: Run, row: Row, columns: Arrays) -> None:
        self.found(run, row)
        told = f"{', '.join(self.at)}, {row['corruption']}, seed {row['seed']}"
        click.echo(f"{told}: {100 * row['accuracy']:.1f} %, {row['seconds']:.1f} s")


def _seeds(_: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", value):
        raise click.BadParameter("whole numbers, divided by commas", param=option)
    return [int(each) for each in value.split(",")]


@click.command()
@click.argument("name", type=click.Choice(list(STUDIES)))
@click.option("--networks", type=click.Choice(list(PLACES)), default="tuning", show_default=True)
@click.option("--only", multiple=True, help="of them, those whose name begins so")
@click.option("--images", type=click.IntRange(min=1), help="of a stream, at most; else the study's")
@click.option(
    "--corruptions", type=click.IntRange(min=0), help="so many beside clean; else the study's"
)
@click.option("--seeds", callback=_seeds, help="divided by commas; else the study's")
@click.option("--minutes", default=math.inf, help="begin no pass after so many")
@click.option("--rows", "rows_path", type=Path, default="results/study.jsonl", show_default=True)
@click.option("--out", type=Path, default="results/study", show_default=True)
def main(
    name: str,
    networks: str,
    only: tuple[str, ...],
    images: int | None,
    corruptions: int | None,
    seeds: Sequence[int] | None,
    minutes: float,
    rows_path: Path,
    out: Path,
) -> None:
    """Fill in the rows that are missing, then print the table and write it into a folder."""
    asked = STUDIES[name]
    study = replace(
        asked,
        images=images or asked.images,
        corruptions=asked.corruptions if corruptions is None else corruptions,
        seeds=seeds or asked.seeds,
    )
    rows = Rows(rows_path)
    watcher = Collecting(rows, minutes)
    for place in PLACES[networks]:
        if not only or place.name.startswith(only):
            try:
                walk(study, place, rows, watcher)
            except UserError as error:
                click.echo(f"{place.name} is left out: {error}", err=True)
    if not watcher.collected:
        raise click.ClickException("There are no rows.")
    made = table(watcher.collected, f"{name}-{networks}")
    text = made.markdown()
    if watcher.missing:
        text += f"\nNot run yet: {watcher.missing} streams of a line.\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{made.name}.md").write_text(text)
    (out / f"{made.name}.csv").write_text(made.csv())
    click.echo(text)


def walk(study: Study, place: Place, rows: Rows, watcher: Collecting) -> None:
    """Run all of a study's lines at one place.

    Raises:
        UserError: the network or the images cannot be had.
    """
    model = load_model(place.model, "auto", None, None)
    data = open_data(place.data, model.geometry, model.class_names)
    fields = row_fields(place.data, place.model, model) | {"methods_code": methods_digest()}
    names = [*place.corruptions[: study.corruptions], "clean"]
    lines = {SOURCE: Variant("source"), **study.lines(model.classes)}
    for seed in study.seeds:
        for scene in scenes_of(place, study):
            for label, variant in lines.items():
                watcher.at = label, place.name, scene.title
                try:
                    # What is compared is the methods and their parts, not who watches them.
                    method = variant.create(model, {}, guard="off")
                except UnsuitableNetworkError:
                    continue
                size = variant.batch_size or (BATCH_SIZE if label == SOURCE else DEFAULT_BATCH_SIZE)
                run = Run(variant.method, method, size, source_digest(variant.method))
                evaluation = evaluation_of(
                    replace(scene, images=min(scene.images, study.images)),
                    [run],
                    data,
                    # Of a stream within which conditions change, clean ones are the end.
                    names[:-1] if scene.protocol.startswith("changing") else names,
                    SEVERITY,
                    seed,
                    fields,
                )
                try:
                    evaluation.run(rows, watcher)
                except TimeIsOver:
                    watcher.missing += 1
                except UserError as error:  # so few images have no such stream
                    click.echo(f"{', '.join(watcher.at)} is left out: {error}", err=True)


def scenes_of(place: Place, study: Study) -> list[Scene]:
    """The study's streams that make sense at a place."""
    if place.streams is not None:
        known = {scene.title: scene for scene in (*SCENES, *study.scenes)}
        return [known[title] for title in place.streams]
    if place.corruptions:
        return list(study.scenes)
    return [scene for scene in study.scenes if scene.protocol == "episodic" and not scene.mix]


@cache
def methods_digest() -> str:
    """A hash of the code that answers but for comments: rows of a former version are others."""
    folder = Path(methods.__file__).parent
    beside = [
        folder.with_name(f"{name}.py") for name in ("flat", "model", "normalization", "objective")
    ]
    code = [
        ast.dump(ast.parse(file.read_text())) for file in (*beside, *sorted(folder.rglob("*.py")))
    ]
    return hashlib.sha256("".join(code).encode()).hexdigest()[:16]


def table(found: Sequence[Found], name: str) -> Table:
    """Lines × streams: the mean difference to SOURCE over places, corruptions and seeds, the worst.

    A line that lacks a pass which another has on a stream has no mean there: it would be another
    figure.
    """
    streams = list(dict.fromkeys(one.of.stream for one in found))
    by_line: dict[str, dict[Pass, Found]] = {}
    for one in found:
        by_line.setdefault(one.line, {})[one.of] = one
    asked = {stream: {one.of for one in found if one.of.stream == stream} for stream in streams}
    source = by_line.pop(SOURCE)
    lines = [
        [
            Cell(SOURCE, SOURCE),
            *(percent(100 * fmean(source[of].row["accuracy"] for of in asked[s])) for s in streams),
            *[Cell(None, NONE)] * 3,
        ]
    ]
    for label, ours in by_line.items():
        means: list[float] = []
        cells = [Cell(label, label)]
        for passes in asked.values():
            if passes <= ours.keys():
                differences = [ours[of].difference for of in passes]
                means.append(fmean(differences))
                least = min(differences)
                cells.append(
                    Cell(means[-1], f"{means[-1]:+z.1f} ({least:+z.1f})", beside={"worst": least})
                )
            else:
                cells.append(Cell(None, NONE))
        whole = len(means) == len(streams)
        cells.append(_points(fmean(means), None) if whole else Cell(None, NONE))
        cells.append(_against(ours, by_line.get(LINE, {})) if label != LINE else Cell(None, NONE))
        worst = min(ours.values(), key=lambda one: one.difference)
        error = 100 * float(worst.row["source_difference_error"])
        cell = _points(worst.difference, error)
        where = ", ".join(map(str, filter(None, worst.of)))
        lines.append([*cells, replace(cell, text=f"{cell.text}: {where}")])
    places = ", ".join(dict.fromkeys(one.of.place for one in found))
    header = ["", *streams, "mean", f"less {LINE}", "worst"]
    return Table(
        name,
        f"Accuracy less SOURCE's in points, mean and (worst), of {places}",
        header,
        ["line", *header[1:]],
        lines,
        (
            "SOURCE's line is its accuracy in %. The mean is over the streams; all else over "
            "networks, corruptions and seeds. Errors are standard errors over the same images.",
        ),
    )


def _points(value: float, error: float | None) -> Cell:
    text = f"{value:+z.1f}"
    return Cell(value, text if error is None else f"{text} ± {error:.1f}")


def _against(ours: Mapping[Pass, Found], usual: Mapping[Pass, Found]) -> Cell:
    """The mean difference to the default over all passes, each image counted once a stream."""
    if not usual or usual.keys() != ours.keys():
        return Cell(None, NONE)
    same: dict[tuple[str, str, int], list[Pass]] = {}
    for of in ours:
        same.setdefault(of.images, []).append(of)
    each = [
        paired_difference([ours[of].right for of in passes], [usual[of].right for of in passes])
        for passes in same.values()
    ]
    error = sum(error**2 for _, error in each) ** 0.5 / len(each)
    return _points(100 * fmean(mean for mean, _ in each), 100 * error)


if __name__ == "__main__":
    main()
