"""What the guard does where adapting does harm, and what it costs where it does none: `make harm`.

    python -m benchmarks.harm [--images 1000] [--corruptions clean,fog] [--rows ROWS]

Methods that break on a stream, each without and with the guard, beside SOURCE on the same images:
the paper's in batches of one, rates ten times too high, statistics that follow one class; and the
default on streams made to break it: odd pictures again and again, two corruptions of which now one
and now the other prevails. By the same walk as `ttc evaluate`; rows that are there are not
run again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.streams import DEFAULT, Scene, evaluation_of
from service.cli.evaluate import row_fields
from service.cli.options import corruptions_of, load_model
from service.evaluation_view import EvaluationView, kind_of
from service.view import View
from ttc_core.datasets import DataSet, open_data
from ttc_core.datasets.conditions import Shapes
from ttc_core.datasets.stream import Shift, joined, mixed_corruptions
from ttc_core.evaluate import Run
from ttc_core.methods import settings_for
from ttc_core.model import SourceModel
from ttc_core.presets import Variant
from ttc_core.rows import Rows

TEN_TIMES = {"lr": 0.02}
MOVING = settings_for("ttc", {}, statistics="moving")


# Images from where one of two corruptions prevails until it does again.
SWING = 500
# So many odd images, then so many of the stream's own, after so many at the start.
ODD, OWN, BEFORE = 12, 20, 300


@dataclass(frozen=True)
class Case:
    """What may go wrong: a method, its batch size, a stream.

    Attributes:
        data: made of the bundled images in the order of the files; None: these.
        corruption: the only one, in the place of those asked for.
    """

    said: str
    variant: Variant
    order: str = "iid"
    protocol: str = "episodic"
    mix: str = ""
    data: type["Made"] | None = None
    corruption: str = ""


class Made(DataSet):
    """Images, some of which become others by their place."""

    def __init__(self, inner: DataSet) -> None:
        self._inner = inner

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        return self._inner.shift(corruption, severity, seed)


class Swinging(Made):
    """Of two corruptions, `mixed:A+B`, the share of the first falls from all to none and rises."""

    def find(self, corruption: str, severity: int, seed: int) -> Shift:
        parts = [self.shift(name, severity, seed) for name in mixed_corruptions(corruption)]
        places = np.arange(len(parts[0].labels))
        share = (1 + np.cos(2 * np.pi * places / SWING)) / 2
        draws = np.random.default_rng(seed).random(len(places))
        return joined(parts, (draws >= share).astype(np.int64))


class OddInRows(Made):
    """Drawn shapes in a row, again and again, which are not judged."""

    def find(self, corruption: str, severity: int, seed: int) -> Shift:
        own = self.shift(corruption, severity, seed)
        height, width = own.read(np.arange(1)).shape[1:3]
        odd = Shapes(height, width, seed).shift("clean", severity, seed)
        places = np.arange(len(own.labels))
        is_odd = (places >= BEFORE) & ((places - BEFORE) % (ODD + OWN) < ODD)
        whole = joined([own, odd], is_odd.astype(np.int64))
        return replace(whole, labels=np.where(is_odd, -1, own.labels))


CASES = (
    Case("TENT to the letter, N = 1", Variant("tent", {}, 1)),
    Case("TTC to the letter, N = 1", Variant("ttc", {}, 1)),
    Case("TENT to the letter, runs of 50", Variant("tent", {}, 100), "runs:50"),
    Case("TTC, one class", Variant("ttc", MOVING, 10), "one:1"),
    Case("TTC, rate × 10", Variant("ttc", {**MOVING, "lr": 0.01}, 10)),
    Case("the default, rate × 10", Variant(DEFAULT, TEN_TIMES, 10)),
    Case("the default", Variant(DEFAULT, {}, 10)),
    Case("the default, two classes first", Variant(DEFAULT, {}, 10), "limited:2"),
    Case("the default, one class", Variant(DEFAULT, {}, 10), "one:6"),
    Case("the default, 20 % noise", Variant(DEFAULT, {}, 10), mix="noise:0.2"),
    Case("the default, 20 % of no class", Variant(DEFAULT, {}, 10), mix="unknown:0.2"),
    Case("the default, frozen frames", Variant(DEFAULT, {}, 10), mix="frozen:0.1"),
    Case("the default, 5 % poison", Variant(DEFAULT, {}, 10), mix="poison:0.05"),
    Case("the default, 12 drawn before each 20", Variant(DEFAULT, {}, 10), "file", data=OddInRows),
    *(
        Case(
            f"the default, {pair} swing",
            Variant(DEFAULT, {}, 10),
            "file",
            data=Swinging,
            corruption=f"mixed:{pair}",
        )
        for pair in ("gaussian_noise+fog", "brightness+contrast", "defocus_blur+clean")
    ),
)


@click.command()
@click.option("--images", default=1000, show_default=True)
@click.option("--corruptions", default="clean,fog", show_default=True)
@click.option("--rows", "rows_path", type=Path, default="results/harm.jsonl", show_default=True)
def main(images: int, corruptions: str, rows_path: Path) -> None:
    """Fill in the rows that are missing, then print the table."""
    rows, names = Rows(rows_path), corruptions_of(corruptions)
    model = load_model("bundled", "auto", None, None)
    table = Table(title=f"Accuracy in %, mean of {', '.join(names)}; {images} images each")
    for column in ("", "SOURCE", "unguarded", "guarded", "less SOURCE", "held", "done"):
        table.add_column(column, justify="left" if column in ("", "done") else "right")
    for case in CASES:
        found = _rows_of(case, model, rows, names, images)
        table.add_row(case.said, *_told(found, len(found) // 3))
    Console(emoji=False, width=140).print(table)


def _rows_of(
    case: Case, model: SourceModel, rows: Rows, names: Sequence[str], images: int
) -> list[dict[str, Any]]:
    """SOURCE's, then the method's without the guard, then with it; one a corruption."""
    scene = Scene("", "", case.order, case.protocol, case.mix, images)
    size = case.variant.batch_size or 1
    lines = [Run("source", Variant("source").create(model, {}), 100)]
    lines += [
        Run(case.variant.method, case.variant.create(model, {}, guard=guard), size)
        for guard in ("off", "on")
    ]
    data = open_data("bundled", model.geometry, model.class_names)
    fields = row_fields("bundled", "bundled", model)
    if case.data is not None:
        data, fields = case.data(data), {**fields, "data": f"bundled, {case.data.__name__}"}
    names = [case.corruption] if case.corruption else names
    evaluation = evaluation_of(scene, lines, data, names, 5, 0, fields)
    passes = [kind_of(run) for run in evaluation.runs for _ in evaluation.passes]
    view = View(Console(emoji=False, stderr=True))
    view.say(case.said)
    return evaluation.run(rows, EvaluationView(view, passes, None, scene.order))


def _told(found: Sequence[dict[str, Any]], count: int) -> list[str]:
    source, without, guarded = (found[i * count : (i + 1) * count] for i in range(3))
    means = [100 * fmean(row["accuracy"] for row in each) for each in (source, without, guarded)]
    acts = [act for row in guarded for act in row.get("guard_acts", ())]
    held = sum(row.get("held", 0) for row in guarded) / count
    done = ", ".join(dict.fromkeys(f"{act['action']} ({act['reason']})" for act in acts))
    differences = [100 * (row["source_difference"] or 0) for row in guarded]
    return [
        *(f"{mean:.1f}" for mean in means),
        f"{means[2] - means[0]:+z.1f} (worst {min(differences):+z.1f})",
        f"{held:.0f}",
        done or "-",
    ]


if __name__ == "__main__":
    main()
