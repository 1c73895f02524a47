"""`ttc evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import (
    data_options,
    load_model,
    make_method,
    open_rows,
    pairs_of,
    rgb,
    several,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from service.view import View
    from ttc_core.datasets import Stream
    from ttc_core.evaluate import Tally

# Mixed streams of ten classes have runs of 1.1 images.
LONG_RUN = 2.0


# What a table of the paper needs where the command line says nothing else.
PRESETS = {"table2": {"methods": "all", "corruptions": "all"}}


class EvaluationView:
    """Shows an evaluation, and keeps what was answered to each image if asked to."""

    def __init__(self, view: "View", predictions: Path | None) -> None:
        self.view, self._predictions = view, predictions
        self.rows: list[dict[str, Any]] = []

    def found(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def started(self, method: str, stream: "Stream") -> None:
        from ttc_core.order import mean_run_length

        if (run_length := mean_run_length(stream.labels)) > LONG_RUN:
            self.view.say(
                f"{stream.corruption}: runs of {run_length:.1f} images of one class on average; "
                "batch statistics suffer from them."
            )
        self.view.start(f"{method} {stream.corruption}", len(stream))

    def progressed(self, tally: "Tally", batch_seconds: float) -> None:
        self.view.update(
            done=tally.images,
            correct=tally.correct,
            entropy_sum=tally.entropy_sum,
            selected=tally.selected,
            steps=tally.steps,
        )

    def finished(self, row: dict[str, Any], columns: dict[str, "NDArray[Any]"]) -> None:
        import numpy as np

        self.rows.append(row)
        self.view.finish(row)
        if self._predictions is not None:
            self._predictions.parent.mkdir(parents=True, exist_ok=True)
            with self._predictions.open("wb") as file:  # to a name alone numpy would add .npz
                np.savez_compressed(file, **columns)  # type: ignore[arg-type]


@click.command(
    epilog="Example: ttc evaluate bundled --methods source,ttc --corruptions fog --json rows.jsonl"
)
@data_options
@click.option("--model", default="bundled", show_default=True, help="as in ttc serve")
@click.option("--methods", help="all, or names divided by commas [all]")
@click.option("--set", "settings", multiple=True, help="METHOD.PARAM=VALUE; may be repeated")
@click.option("--served", is_flag=True, help="as `ttc serve` runs the methods by default")
@click.option(
    "--protocol",
    type=click.Choice(["episodic", "continual"]),
    default="episodic",
    show_default=True,
    help="reset before each corruption, or never",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="what a table of the paper needs")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="torch's CPU threads")
@click.option("--mean", help="R,G,B mean of the model's input")
@click.option("--std", help="R,G,B deviation of the model's input")
def evaluate(
    data: str,
    corruptions: str | None,
    severity: int,
    batch_size: int,
    limit: int | None,
    seed: int,
    order: str,
    rows_path: Path | None,
    predictions: Path | None,
    model: str,
    methods: str | None,
    settings: tuple[str, ...],
    served: bool,
    protocol: str,
    preset: str | None,
    device: str,
    threads: int,
    mean: str | None,
    std: str | None,
) -> None:
    """Answer DATA batch by batch with each method, adapting, without a server."""
    import torch
    from rich.console import Console

    from service.metrics import versions
    from service.view import View, results_table
    from ttc_core.corruptions import CORRUPTIONS
    from ttc_core.datasets import Geometry, open_data
    from ttc_core.evaluate import Evaluation
    from ttc_core.methods import METHODS
    from ttc_core.order import check_order

    wanted = PRESETS[preset] if preset else {}
    names = several(methods or wanted.get("methods"), tuple(METHODS), own=True)
    chosen = several(corruptions or wanted.get("corruptions"), CORRUPTIONS, ("clean",))
    if predictions is not None and (len(names) != 1 or len(chosen) != 1):
        raise click.UsageError("--predictions goes with one method and one corruption.")
    try:
        check_order(order)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if threads:
        torch.set_num_threads(threads)
    source_model = load_model(model, device, rgb(mean), rgb(std))
    pairs = pairs_of(settings)
    statistics = "moving" if served else None
    evaluation = Evaluation(
        methods={n: make_method(n, source_model, pairs, statistics) for n in names},
        data=open_data(
            data, Geometry(source_model.size, source_model.crop), source_model.class_names
        ),
        corruptions=chosen,
        severity=severity,
        batch_size=batch_size,
        limit=limit,
        order=order,
        protocol=protocol,  # type: ignore[arg-type]
        seed=seed,
        fields={
            "data": data,
            "model": model,
            "mean": list(source_model.mean),
            "std": list(source_model.std),
            "versions": versions(),
        },
    )
    watcher = EvaluationView(View(Console()), predictions)
    try:
        evaluation.run(open_rows(rows_path), watcher, anew=predictions is not None)
    except BaseException:
        watcher.view.interrupt()
        raise
    finally:
        if watcher.rows:
            watcher.view.table(results_table(watcher.rows))
