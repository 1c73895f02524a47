"""`ttc evaluate`: methods on a data set, without a server."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import (
    BATCH_SIZE,
    FILE,
    DataOptions,
    ModelOptions,
    check_watched,
    grouped,
    pairs_of,
    sets_nothing,
    several,
)
from service.settings import usual_method

if TYPE_CHECKING:
    from ttc_core.envelope.clauses import Envelope
    from ttc_core.evaluate import Run
    from ttc_core.model import SourceModel
    from ttc_core.presets import Preset
    from ttc_core.rows import Rows

FIGURE_1 = "figure1"


@click.command(
    epilog="Example: ttc evaluate bundled --methods source,ttc --corruptions fog --json rows.jsonl"
)
@grouped("asked", DataOptions)
@click.option(
    "--methods",
    help="all (the paper's seven), or names divided by commas [all; with --served ttc_stream]",
)
@click.option("--set", "settings", multiple=True, help="METHOD.PARAM=VALUE; may be repeated")
@click.option("--served", is_flag=True, help="as `ttc serve` runs the methods by default")
@click.option(
    "--protocol",
    default="episodic",
    show_default=True,
    help="episodic: reset before each corruption; continual: never; recurring:V: never, all of "
    "them V times; changing:L: one pass, another of them every L images; day-night",
)
@click.option(
    "--mix", metavar="KIND:SHARE,…", help="images replaced: noise, unknown, frozen, poison; [none]"
)
@click.option("--unknown", metavar="DATA", help="where a mix's unknown images are from [shapes]")
@click.option(
    "--guard",
    type=click.Choice(("on", "off", "observe")),
    help="keep a faulty camera's frames out of what is learned, and let the source answer while "
    "adapting does harm; or only tell both [on with ttc_stream, else off]",
)
@click.option(
    "--adapt",
    type=click.Choice(("always", "on-shift")),
    default="always",
    show_default=True,
    help="learn from every batch, or only while the stream differs from what was last learned",
)
@click.option(
    "--envelope",
    metavar="FILE",
    type=FILE,
    help="what adaptation may change, as in ttc serve [built in; none with the paper's methods "
    "as the paper has them]",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="what a table or figure of the paper needs: table1 … table7, figure1 … figure3",
)
@grouped("network", ModelOptions)
def evaluate(
    asked: DataOptions,
    network: ModelOptions,
    methods: str | None,
    settings: tuple[str, ...],
    served: bool,
    protocol: str,
    mix: str | None,
    unknown: str | None,
    guard: str | None,
    adapt: str,
    envelope: Path | None,
    preset: str | None,
) -> None:
    """Answer DATA batch by batch with each method, adapting, without a server."""
    import torch
    from rich.console import Console

    from service.evaluation_view import EvaluationView, kind_of
    from service.view import View, results_table
    from ttc_core.datasets import open_data, parse_mix
    from ttc_core.evaluate import Evaluation, parse_protocol
    from ttc_core.features import weightiest_channels
    from ttc_core.methods import far_off
    from ttc_core.order import check_order, images_asked, with_class_index
    from ttc_core.rows import Rows

    if preset == FIGURE_1:
        _simulate(Rows(asked.rows_path))
        return
    wanted = _preset(preset, methods, usual_method(network.model) if served else None)
    if asked.batch_size is not None and wanted.chooses_batch_sizes:
        raise click.UsageError(f"{preset} has batch sizes of its own; leave out --batch-size.")
    try:
        check_order(asked.order)
        kind, _ = parse_protocol(protocol)
        shares = parse_mix(mix) if mix is not None else {}
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if unknown is not None and "unknown" not in shares:
        raise click.UsageError("--unknown goes with --mix unknown:SHARE.")
    if asked.predictions is not None and kind == "recurring":
        raise click.UsageError("--predictions goes with one pass; recurring:V makes several.")
    usual = ("clean",) if kind == "day-night" else wanted.corruptions
    corruptions = asked.chosen(usual, len(wanted.variants), joined=kind == "changing")
    if network.threads:
        torch.set_num_threads(network.threads)
    model = network.load(
        network.model, calibration=network.calibration, precision=network.precision
    )
    runs = _runs(
        wanted,
        model,
        pairs_of(settings),
        "moving" if served else None,
        asked.batch_size or BATCH_SIZE,
        guard,
        on_shift=adapt == "on-shift",
        envelope=_envelope(envelope, preset),
        paper=not served,
        named=methods not in (None, "all"),
    )
    for sentence in sets_nothing(pairs_of(settings), {run.name: run.method for run in runs}):
        click.echo(sentence, err=True)
    for sentence in dict.fromkeys(each for run in runs for each in far_off(run.name, run.method)):
        click.echo(sentence, err=True)
    images = images_asked(asked.order, asked.limit)
    evaluation = Evaluation(
        runs=runs,
        data=open_data(asked.data, model.geometry, model.class_names, limit=images),
        corruptions=corruptions,
        severity=asked.severity,
        limit=asked.limit,
        order=with_class_index(asked.order, model.class_names),
        protocol=protocol,
        seed=asked.seed,
        fields=row_fields(asked.data, network.model, model, unknown),
        logits=asked.predictions is not None,
        channels=weightiest_channels(model, wanted.channels) if wanted.channels else (),
        mix=shares,
        unknown=None if unknown is None else open_data(unknown, model.geometry, limit=asked.limit),
    )
    passes = [kind_of(run) for run in runs for _ in evaluation.passes]
    watcher = EvaluationView(View(Console(emoji=False)), passes, asked.predictions, asked.order)
    try:
        evaluation.run(Rows(asked.rows_path), watcher, anew=asked.predictions is not None)
    except BaseException:
        watcher.view.interrupt()
        raise
    finally:
        if watcher.rows:
            watcher.view.table(results_table(watcher.rows))


def row_fields(
    data: str, spec: str, model: "SourceModel", unknown: str | None = None
) -> dict[str, Any]:
    """What is the same in every row of an evaluation."""
    import torch

    from service.metrics import versions
    from ttc_core.plugins import source_digest

    return {
        "data": data,
        "model": spec,
        "model_digest": model.digest,
        "model_code": source_digest(spec),
        "device": str(model.device),
        "precision": model.precision,
        "weights_precision": model.weights_precision,
        "threads": torch.get_num_threads(),
        "mean": list(model.mean),
        "std": list(model.std),
        "classes": model.classes,
        "unknown": unknown,
        "versions": versions(),
    }


def _envelope(path: Path | None, preset: str | None) -> "Envelope | None":
    """That of a file; None: what is usual for each method."""
    from service.envelope_file import read_envelope

    if path is None:
        return None
    if preset is not None:
        raise click.UsageError(
            "--envelope does not go with --preset, which is as the paper has it."
        )
    try:
        return read_envelope(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _preset(name: str | None, methods: str | None, served: str | None) -> "Preset":
    """The runs that were asked for: a preset's, of these methods, or each method once.

    Args:
        served: the method that a server would run, where that is asked for.
    """
    from ttc_core.methods import METHODS, PAPER_METHODS
    from ttc_core.presets import PRESETS, plain

    if name is not None and name not in PRESETS:
        raise click.UsageError(
            f"There is no preset {name!r}; there are {', '.join((*PRESETS, FIGURE_1))}."
        )
    preset = PRESETS[name] if name is not None else plain(PAPER_METHODS)
    if served is not None and methods is None and name is None:
        return plain([served])
    if methods is None or methods == "all":
        return preset
    return preset.restricted(several(methods, tuple(METHODS), own=True))


def _runs(
    preset: "Preset",
    model: "SourceModel",
    pairs: dict[str, str],
    statistics: str | None,
    batch_size: int,
    guard: str | None,
    *,
    on_shift: bool,
    envelope: "Envelope | None",
    paper: bool,
    named: bool,
) -> list["Run"]:
    """Make the methods; one that the network does not allow is an error only if it was named."""
    from ttc_core.evaluate import Run
    from ttc_core.guard import divided
    from ttc_core.methods import UnsuitableNetworkError, settings_for, usual_envelope
    from ttc_core.plugins import source_digest

    runs = []
    try:
        watching, pairs = divided(pairs)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for variant in preset.variants:
        try:
            given = settings_for(variant.method, pairs, statistics=statistics)
            if taken := sorted(given.keys() & variant.settings.keys() - {"statistics"}):
                raise click.UsageError(
                    f"The preset sets {variant.method}.{taken[0]} itself; leave it out."
                )
            method = variant.create(
                model,
                given,
                guard=guard,
                watching=watching,
                on_shift=on_shift,
                envelope=envelope or usual_envelope(variant.method, paper=paper),
            )
        except UnsuitableNetworkError as error:
            if named:
                raise click.UsageError(str(error)) from error
            click.echo(f"{variant.method} is left out: {error}", err=True)
            continue
        except (ValueError, TypeError) as error:
            raise click.UsageError(str(error)) from error
        size, code = variant.batch_size or batch_size, source_digest(variant.method)
        runs.append(Run(variant.method, method, size, code))
    check_watched(watching, [run.method for run in runs])
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
