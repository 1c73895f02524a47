"""`ttc evaluate`: methods on a data set, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.options import (
    BATCH_SIZE,
    check_writable,
    corruptions_of,
    data_options,
    load_model,
    pairs_of,
    rgb,
    several,
)

if TYPE_CHECKING:
    from ttc_core.evaluate import Run
    from ttc_core.model import SourceModel
    from ttc_core.presets import Preset
    from ttc_core.rows import Rows

FIGURE_1 = "figure1"


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
@click.option(
    "--preset",
    metavar="NAME",
    help="what a table or figure of the paper needs: table1 … table7, figure1 … figure3",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="torch's CPU threads")
@click.option("--mean", help="R,G,B mean of the model's input")
@click.option("--std", help="R,G,B deviation of the model's input")
def evaluate(
    data: str,
    corruptions: str | None,
    severity: int,
    batch_size: int | None,
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

    from service.evaluation_view import EvaluationView, kind_of
    from service.metrics import versions
    from service.view import View, results_table
    from ttc_core.datasets import Geometry, open_data
    from ttc_core.evaluate import Evaluation
    from ttc_core.features import weightiest_channels
    from ttc_core.order import check_order
    from ttc_core.plugins import source_digest
    from ttc_core.report.results import Result, labels
    from ttc_core.rows import Rows

    if preset == FIGURE_1:
        _simulate(Rows(rows_path))
        return
    wanted = _preset(preset, methods)
    if batch_size is not None and wanted.chooses_batch_sizes:
        raise click.UsageError(f"{preset} has batch sizes of its own; leave out --batch-size.")
    chosen = corruptions_of(corruptions or ",".join(wanted.corruptions))
    if predictions is not None and (len(wanted.variants) != 1 or len(chosen) != 1):
        raise click.UsageError("--predictions goes with one method and one corruption.")
    check_writable(predictions, rows_path)
    try:
        check_order(order)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if threads:
        torch.set_num_threads(threads)
    source_model = load_model(model, device, rgb(mean), rgb(std))
    runs = _runs(
        wanted,
        source_model,
        pairs_of(settings),
        "moving" if served else None,
        batch_size or BATCH_SIZE,
        named=methods not in (None, "all"),
    )
    evaluation = Evaluation(
        runs=runs,
        data=open_data(
            data,
            Geometry(source_model.size, source_model.crop),
            source_model.class_names,
            limit=limit,
        ),
        corruptions=chosen,
        severity=severity,
        limit=limit,
        order=order,
        protocol=protocol,  # type: ignore[arg-type]
        seed=seed,
        fields={
            "data": data,
            "model": model,
            "model_digest": source_model.digest,
            "model_code": source_digest(model),
            "device": str(source_model.device),
            "threads": torch.get_num_threads(),
            "mean": list(source_model.mean),
            "std": list(source_model.std),
            "classes": source_model.classes,
            "versions": versions(),
        },
        logits=predictions is not None,
        channels=weightiest_channels(source_model, wanted.channels) if wanted.channels else (),
    )
    passes = [kind_of(run) for run in runs for _ in chosen]
    watcher = EvaluationView(View(Console()), passes, predictions, order)
    try:
        evaluation.run(Rows(rows_path), watcher, anew=predictions is not None)
    except BaseException:
        watcher.view.interrupt()
        raise
    finally:
        if watcher.rows:
            named = zip(watcher.rows, labels([Result(row) for row in watcher.rows]), strict=True)
            watcher.view.table(results_table([{**row, "method": name} for row, name in named]))


def _preset(name: str | None, methods: str | None) -> "Preset":
    """The runs that were asked for: a preset's, of these methods, or each method once."""
    from ttc_core.methods import METHODS
    from ttc_core.presets import PRESETS, plain

    if name is not None and name not in PRESETS:
        raise click.UsageError(
            f"There is no preset {name!r}; there are {', '.join((*PRESETS, FIGURE_1))}."
        )
    preset = PRESETS[name] if name is not None else plain(METHODS)
    if methods in (None, "all"):
        return preset
    return preset.restricted(several(methods, tuple(METHODS), own=True))


def _runs(
    preset: "Preset",
    model: "SourceModel",
    pairs: dict[str, str],
    statistics: str | None,
    batch_size: int,
    *,
    named: bool,
) -> list["Run"]:
    """Make the methods; one that the network does not allow is an error only if it was named."""
    from ttc_core.evaluate import Run
    from ttc_core.methods import UnsuitableNetworkError, settings_for
    from ttc_core.plugins import source_digest

    runs = []
    for variant in preset.variants:
        try:
            given = settings_for(variant.method, pairs, statistics=statistics)
            if taken := sorted(given.keys() & variant.settings.keys() - {"statistics"}):
                raise click.UsageError(
                    f"The preset sets {variant.method}.{taken[0]} itself; leave it out."
                )
            method = variant.create(model, given)
        except UnsuitableNetworkError as error:
            if named:
                raise click.UsageError(str(error)) from error
            click.echo(f"{variant.method} is left out: {error}", err=True)
            continue
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error
        size, code = variant.batch_size or batch_size, source_digest(variant.method)
        runs.append(Run(variant.method, method, size, code))
    return runs


def _simulate(rows: "Rows") -> None:
    """Figure 1 has neither data nor model: a row that holds a simulation."""
    from service.metrics import versions
    from ttc_core.entropy_minimisation import SETTINGS, simulate

    row = {
        "method": "entropy_minimisation",
        "settings": SETTINGS,
        **dict.fromkeys(("data", "model", "corruption", "severity", "accuracy", "batch_size")),
    }
    if rows.find(row) is None:
        rows.append({**row, "versions": versions()}, simulate())
    click.echo("Class probabilities under repeated entropy minimisation; DATA is not read.")
