"""`ttc evaluate`: methods on a data set, without a server."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from service.cli.options import (
    BATCH_SIZE,
    FILE,
    DataOptions,
    ModelOptions,
    NotAccepted,
    check_watched,
    check_writable,
    grouped,
    option,
    pairs_of,
    sets_nothing,
    several,
)
from service.settings import usual_method

if TYPE_CHECKING:
    from ttc_core.envelope.clauses import Envelope
    from ttc_core.evaluate import Run
    from ttc_core.evaluation import Evaluation
    from ttc_core.model import SourceModel
    from ttc_core.presets import Preset
    from ttc_core.rows import Rows

FIGURE_1 = "figure1"


@dataclass(frozen=True)
class MethodOptions:
    """Which methods are run, and on what kind of stream."""

    methods: str | None = option(
        "--methods",
        help="all (the paper's seven), or names divided by commas [all; with --served ttc_stream]",
    )
    settings: tuple[str, ...] = option(
        "--set", "settings", multiple=True, help="METHOD.PARAM=VALUE; may be repeated"
    )
    served: bool = option(
        "--served", is_flag=True, help="as `ttc serve` runs the methods by default"
    )
    protocol: str = option(
        "--protocol",
        default="episodic",
        show_default=True,
        help="episodic: reset before each corruption; continual: never; recurring:V: never, all "
        "of them V times; changing:L: one pass, another of them every L images; day-night",
    )
    mix: str | None = option(
        "--mix",
        metavar="KIND:SHARE,…",
        help="images replaced: noise, unknown, frozen, poison; [none]",
    )
    unknown: str | None = option(
        "--unknown", metavar="DATA", help="where a mix's unknown images are from [shapes]"
    )
    guard: str | None = option(
        "--guard",
        type=click.Choice(("on", "off", "observe")),
        help="keep a faulty camera's frames out of what is learned, and let the source answer "
        "while adapting does harm; or only tell both [on with ttc_stream, else off]",
    )
    adapt: str = option(
        "--adapt",
        type=click.Choice(("always", "on-shift")),
        default="always",
        show_default=True,
        help="learn from every batch, or only while the stream differs from what was last learned",
    )
    envelope: Path | None = option(  # noqa: RUF009  it makes a field
        "--envelope",
        metavar="FILE",
        type=FILE,
        help="what adaptation may change, as in ttc serve [built in; none with the paper's methods "
        "as the paper has them]",
    )
    preset: str | None = option(
        "--preset",
        metavar="NAME",
        help="what a table or figure of the paper needs: table1 … table7, figure1 … figure3",
    )


class Words(NamedTuple):
    """What was asked for, whole: of it any process makes the same evaluation."""

    asked: DataOptions
    chosen: MethodOptions
    network: ModelOptions


@click.command(
    epilog="Example: ttc evaluate bundled --methods source,ttc --corruptions fog --json rows.jsonl"
)
@grouped("asked", DataOptions)
@grouped("chosen", MethodOptions)
@click.option(
    "--ray",
    is_flag=True,
    help="spread the rows over the Ray cluster of RAY_ADDRESS, else over this machine's cores, "
    "--threads of them a row (extra ray)",
)
@grouped("network", ModelOptions)
def evaluate(asked: DataOptions, chosen: MethodOptions, ray: bool, network: ModelOptions) -> None:
    """Answer DATA batch by batch with each method, adapting, without a server."""
    from rich.console import Console

    from service.evaluation_view import EvaluationView, kind_of
    from service.spread_view import SpreadView
    from service.view import View, results_table
    from ttc_core.methods import far_off
    from ttc_core.rows import Rows

    if chosen.preset == FIGURE_1:
        _simulate(Rows(asked.rows_path))
        return
    if ray and network.device.startswith("cuda:"):
        raise click.UsageError("--ray gives each row a device of its own; say --device cuda.")
    check_writable(asked.predictions, asked.rows_path)
    evaluation = evaluation_of(Words(asked, chosen, network))
    methods = {run.name: run.method for run in evaluation.runs}
    for sentence in sets_nothing(pairs_of(chosen.settings), methods):
        click.echo(sentence, err=True)
    notes = [each for run in evaluation.runs for each in far_off(run.name, run.method)]
    for sentence in dict.fromkeys(notes):
        click.echo(sentence, err=True)
    passes = [kind_of(run) for run in evaluation.runs for _ in evaluation.passes]
    rows, view = Rows(asked.rows_path), View(Console(emoji=False))
    kind = SpreadView if ray else EvaluationView
    watcher = kind(view, passes, asked.predictions, asked.order)
    anew = asked.predictions is not None
    try:
        if isinstance(watcher, SpreadView):
            from service.ray_cluster import connect
            from service.spreading import spread

            connect()
            words = Words(asked, chosen, _pinned(network, evaluation))
            spread(evaluation, evaluation_of, words, rows, watcher, anew=anew)
        else:
            evaluation.run(rows, watcher, anew=anew)
    finally:
        watcher.end()
        if watcher.rows:
            view.table(results_table(watcher.rows))


def evaluation_of(words: Words) -> "Evaluation":
    """What was asked for, checked and loaded.

    Raises:
        click.UsageError: parts of it contradict. UserError: model or data cannot be had.
    """
    import torch

    from ttc_core.datasets import check_there, open_data, parse_mix
    from ttc_core.evaluation import Evaluation, parse_protocol
    from ttc_core.features import weightiest_channels
    from ttc_core.order import check_order, images_asked, with_class_index

    asked, chosen, network = words
    served = usual_method(network.model) if chosen.served else None
    wanted = _preset(chosen.preset, chosen.methods, served)
    if asked.batch_size is not None and wanted.chooses_batch_sizes:
        raise click.UsageError(
            f"{chosen.preset} has batch sizes of its own; leave out --batch-size."
        )
    try:
        check_order(asked.order)
        kind, _ = parse_protocol(chosen.protocol)
        shares = parse_mix(chosen.mix) if chosen.mix is not None else {}
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if chosen.unknown is not None and "unknown" not in shares:
        raise click.UsageError("--unknown goes with --mix unknown:SHARE.")
    if asked.predictions is not None and kind == "recurring":
        raise click.UsageError("--predictions goes with one pass; recurring:V makes several.")
    usual = ("clean",) if kind == "day-night" else wanted.corruptions
    corruptions = asked.chosen(usual, len(wanted.variants), joined=kind == "changing")
    envelope = _envelope(chosen.envelope, chosen.preset)
    for data in filter(None, (asked.data, chosen.unknown)):
        check_there(data)
    if network.threads:
        torch.set_num_threads(network.threads)
    model = network.load(
        network.model, calibration=network.calibration, precision=network.precision
    )
    images = images_asked(asked.order, asked.limit)
    unknown = chosen.unknown
    return Evaluation(
        runs=_runs(
            wanted,
            model,
            pairs_of(chosen.settings),
            "moving" if chosen.served else None,
            asked.batch_size or BATCH_SIZE,
            chosen.guard,
            on_shift=chosen.adapt == "on-shift",
            envelope=envelope,
            paper=not chosen.served,
            named=chosen.methods not in (None, "all"),
        ),
        data=open_data(asked.data, model.geometry, model.class_names, limit=images),
        corruptions=corruptions,
        severity=asked.severity,
        limit=asked.limit,
        order=with_class_index(asked.order, model.class_names),
        protocol=chosen.protocol,
        seed=asked.seed,
        fields=row_fields(asked.data, network.model, model, unknown),
        logits=asked.predictions is not None,
        channels=weightiest_channels(model, wanted.channels) if wanted.channels else (),
        mix=shares,
        unknown=None if unknown is None else open_data(unknown, model.geometry, limit=asked.limit),
    )


def _pinned(network: ModelOptions, evaluation: "Evaluation") -> ModelOptions:
    """The network's options for a worker: as many threads as here, a device of its own."""
    device = str(evaluation.fields["device"]).partition(":")[0]
    return replace(network, threads=evaluation.fields["threads"], device=device)


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
        raise NotAccepted(str(error)) from error


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
