"""What happens when a stream is not shuffled: methods × streams, `make streams` and `make study`.

    python -m benchmarks.streams [--network SPEC DATA]... [--seeds 0,1,2] [--corruptions A,B]
        [--rows ROWS] [--out DIR] [--page docs/what-happens-when.md]

Every stream of SCENES with every line that `runs` makes, by the same walk as `ttc evaluate`; rows
that are there are not run again. Then the report, and the page with its pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from PIL import Image
from rich.console import Console

from service.cli.evaluate import row_fields
from service.cli.options import corruptions_of, load_model
from service.evaluation_view import EvaluationView, kind_of
from service.settings_words import default
from service.view import View
from ttc_core.datasets import DataSet, open_data, parse_mix
from ttc_core.evaluate import Run
from ttc_core.evaluation import Evaluation
from ttc_core.methods import UnsuitableNetworkError, settings_for
from ttc_core.model import SourceModel
from ttc_core.presets import Variant
from ttc_core.report import write_report
from ttc_core.report.results import read_results
from ttc_core.report.streams import (
    change_table,
    matrices,
    slug,
    stream_matrix,
    stream_title,
    window_table,
)
from ttc_core.rows import Rows

BATCH_SIZE = 100
DEFAULT_BATCH_SIZE = 10
HEAD = """# What happens when…

Streams that cameras send, and what becomes of each method on them: made by `make streams`, on the
bundled network under fog, contrast and Gaussian noise of severity 5 (32 minutes with one thread).
SOURCE is the frozen network with one view; *flip* averages the answers to an image and its mirror
image. The last lines are as `ttc serve --guard off` runs them: `--method ttc`, and where no method
is named. What the guard does besides, `make harm` shows.
"""
DEFAULT = str(default("method"))
"""The method that is served where none is named."""


@dataclass(frozen=True)
class Scene:
    """A stream that a camera may send.

    Attributes:
        happens: ends the sentence "What happens when …".
        said: what it is, for the page.
        images: of a pass.
    """

    happens: str
    said: str
    order: str = "iid"
    protocol: str = "episodic"
    mix: str = ""
    images: int = 1000

    @property
    def title(self) -> str:
        """As the report calls it."""
        return stream_title(vars(self))

    @property
    def asked(self) -> str:
        """How to ask `ttc evaluate` for it."""
        parts = [f"--order {self.order}", f"--limit {self.images}"]
        if self.protocol != "episodic":
            parts.append(f"--protocol {self.protocol}")
        return " ".join([*parts, *([f"--mix {self.mix}"] if self.mix else [])])


SCENES = (
    Scene("the images are shuffled", "The benchmark's case: no image says what the next one is."),
    Scene("they come as they are filed", "The order of the files, here mixed as well.", "file"),
    Scene("they come class by class", "All of one class, then all of the next.", "sorted"),
    Scene(
        "each class has its time",
        "Ten slots one after another, each class spread over them very unevenly.",
        "dirichlet:0.1",
    ),
    Scene(
        "something stays before the lens",
        "Runs of 50 images of one class, then another class.",
        "runs:50",
    ),
    Scene(
        "a camera trap sees mostly two animals",
        "Bursts of 3 to 10 images of one class; two classes are 71 % of the images.",
        "camera-trap",
    ),
    Scene("there is one thing only, an easy one", "Class 1 (Trouser) throughout.", "one:1"),
    Scene("there is one thing only, a hard one", "Class 6 (Shirt) throughout.", "one:6"),
    Scene("new things turn up", "Two classes in the first half, all in the second.", "limited:2"),
    Scene(
        "the weather changes every 100 images",
        "The corruptions in turn, round and round; clean at last.",
        protocol="changing:100",
    ),
    Scene(
        "the weather changes every 500 images",
        "The corruptions in turn, then clean.",
        protocol="changing:500",
        images=2000,
    ),
    Scene(
        "the weather comes back",
        "The corruptions one after another, twice, without a reset.",
        protocol="recurring:2",
    ),
    Scene(
        "night falls",
        "Clean images whose light sinks to a quarter and whose noise rises, every 500 images.",
        protocol="day-night",
    ),
    Scene("a fifth is noise", "Pixels without meaning; the others count.", mix="noise:0.2"),
    Scene("frames freeze", "A tenth is one frame again and again.", mix="frozen:0.1"),
    Scene(
        "a fifth is of no class",
        "Drawn shapes in the place of every fifth image.",
        mix="unknown:0.2",
    ),
    Scene(
        "somebody poisons the stream",
        "A twentieth is moved by 8 of 255 levels towards class 0 on the source network.",
        mix="poison:0.05",
    ),
)

# The paper's methods, each also with the flip average where it has none.
PAPER = (
    Variant("source"),
    Variant("source", {"flip": True}),
    Variant("norm"),
    Variant("norm", {"flip": True}),
    Variant("tent"),
    Variant("tent", {"flip": True}),
    Variant("ttc"),
)
# As they are served.
SERVED = tuple(
    Variant(name, settings_for(name, {}, statistics="moving"), DEFAULT_BATCH_SIZE)
    for name in ("ttc", DEFAULT)
)


def runs(model: SourceModel) -> Iterator[Run]:
    """The lines of the matrix; those that the network does not allow are left out."""
    for variant in (*PAPER, *SERVED):
        try:
            # What is compared is the methods; what watches them has `benchmarks.harm`.
            method = variant.create(model, {}, guard="off")
        except UnsuitableNetworkError as error:
            click.echo(f"{variant.method} is left out: {error}", err=True)
            continue
        yield Run(variant.method, method, variant.batch_size or BATCH_SIZE)


@click.command()
@click.option("--network", "networks", nargs=2, multiple=True, metavar="SPEC DATA")
@click.option("--seeds", default="0", show_default=True, help="divided by commas")
@click.option("--corruptions", default="fog,contrast,gaussian_noise", show_default=True)
@click.option("--severity", default=5, show_default=True)
@click.option("--rows", "rows_path", type=Path, default="results/streams.jsonl", show_default=True)
@click.option("--out", type=Path, default="results/streams", show_default=True)
@click.option("--page", type=Path, help="a Markdown page to write, its pictures beside it")
def main(
    networks: tuple[tuple[str, str], ...],
    seeds: str,
    corruptions: str,
    severity: int,
    rows_path: Path,
    out: Path,
    page: Path | None,
) -> None:
    """Fill in the rows that are missing, then write the report."""
    rows, names = Rows(rows_path), corruptions_of(corruptions)
    for spec, where in networks or (("bundled", "bundled"),):
        model = load_model(spec, "auto", None, None)
        data = open_data(where, model.geometry, model.class_names)
        fields = row_fields(where, spec, model)
        for seed in map(int, seeds.split(",")):
            for scene in SCENES:
                lines = [*runs(model)]
                evaluation = evaluation_of(scene, lines, data, names, severity, seed, fields)
                passes = [kind_of(run) for run in evaluation.runs for _ in evaluation.passes]
                view = View(Console(emoji=False))
                view.say(f"{fields['model']}, seed {seed}: {scene.title}")
                evaluation.run(rows, EvaluationView(view, passes, None, scene.order))
    written = write_report([rows_path], out)
    for problem in written.problems:
        click.echo(problem, err=True)
    if page is not None:
        write_page(page, rows_path, out)
    for name in ("overview.md", "streams.md"):
        if (out / name).exists():
            click.echo((out / name).read_text())


def evaluation_of(
    scene: Scene,
    lines: Sequence[Run],
    data: DataSet,
    corruptions: Sequence[str],
    severity: int,
    seed: int,
    fields: dict[str, Any],
) -> Evaluation:
    """The evaluation of some lines on one stream."""
    return Evaluation(
        runs=lines,
        data=data,
        corruptions=["clean"] if scene.protocol == "day-night" else corruptions,
        severity=severity,
        limit=scene.images,
        order=scene.order,
        protocol=scene.protocol,
        seed=seed,
        fields=fields,
        mix=parse_mix(scene.mix) if scene.mix else {},
    )


def write_page(page: Path, rows_path: Path, report: Path) -> None:
    """Write the page: the matrix, then each stream with its numbers and its picture."""
    matrix = matrices(read_results([rows_path]))[0]
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    table = stream_matrix(matrix, "streams")
    more = (window_table(matrix, "windows"), change_table(matrix, "changes"))
    parts = [HEAD, table.markdown(), *(each.markdown() for each in more if each)]
    for scene in SCENES:
        if scene.title not in matrix.cells:
            continue
        name, column = f"{slug(scene.title)}.png", table.header.index(scene.title)
        with Image.open(report / f"stream-{name}") as image:
            small = image.convert("RGB").resize((900, 900 * image.height // image.width))
            # Median cuts would merge two oranges, rare as they are on so much white.
            small.quantize(64, Image.Quantize.FASTOCTREE).save(pictures / name, optimize=True)
        numbers = replace(
            table,
            caption=f"Accuracy in %, `ttc evaluate DATA {scene.asked}`",
            header=[line[0].text for line in table.lines],
            lines=[[line[column] for line in table.lines]],
            notes=(),
        )
        parts.append(
            f"## … {scene.happens}?\n\n{scene.said}\n\n{numbers.markdown()}\n"
            f"![Accuracy over the images: {scene.title}]({pictures.name}/{name})\n"
        )
    page.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
