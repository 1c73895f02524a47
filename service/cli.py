"""The command line: `ttc serve | replay | evaluate | report | corrupt | train | demo | …`.

A verb checks what it was given, calls one function of another room, and shows what came of it.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

import click

from service.settings import Settings, flag, read_settings
from ttc_core.errors import UserError

# torch takes seconds to import: a verb imports what it needs, so that --help comes at once.
if TYPE_CHECKING:
    from numpy.typing import NDArray

    from service.view import View
    from ttc_core.datasets import Stream
    from ttc_core.evaluate import Tally
    from ttc_core.methods import Method
    from ttc_core.model import SourceModel
    from ttc_core.rows import Rows

# Mixed streams of ten classes have runs of 1.1 images.
LONG_RUN = 2.0

Command = TypeVar("Command", bound=Callable[..., Any])

# What a table of the paper needs where the command line says nothing else.
PRESETS = {"table2": {"methods": "all", "corruptions": "all"}}


def main() -> None:
    """Run the command line. Exit status 0 done, 2 wrong usage, 1 anything else, 130 interrupted."""
    sys.path.append(str(Path.cwd()))  # so that package.module:factory finds one's own module
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:  # anything else is our mistake and keeps its trace
        click.echo(f"ttc: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("ttc: interrupted; finished rows are kept.", err=True)
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="ttc-service", prog_name="ttc")
def cli() -> None:
    """Image classification that keeps adapting to the images it is asked about."""


# Options that several verbs share


def _several(
    value: str | None, known: tuple[str, ...], more: tuple[str, ...] = (), *, own: bool = False
) -> list[str]:
    """`all`, or names divided by commas; with `own` also package.module:Class."""
    if value is None or value == "all":
        return list(known)
    names = [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if name not in (*known, *more) and not (own and ":" in name):
            raise click.UsageError(
                f"There is no {name!r}; there are all, {', '.join((*more, *known))}."
            )
    if not names:
        raise click.UsageError(f"Name at least one of {', '.join((*more, *known))}.")
    return names


def _rgb(value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(number) for number in value.split(","))
    except ValueError:
        raise click.UsageError(f"Three numbers as R,G,B are expected; got {value!r}.") from None
    return numbers


def _pairs(settings: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes METHOD.PARAM=VALUE; got {text!r}.")
        pairs[key.strip()] = value.strip()
    return pairs


def _make_method(
    name: str, model: "SourceModel", pairs: dict[str, str], statistics: str | None
) -> "Method":
    from ttc_core.methods import create, settings_for

    try:
        return create(name, model, **settings_for(name, pairs, statistics=statistics))
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error


def _load_model(
    spec: str, device: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> "SourceModel":
    from ttc_core.load import load, pick_device, states_no_preprocessing

    model = load(spec, device=pick_device(device), mean=mean, std=std)
    if states_no_preprocessing(spec, model):
        click.echo(
            f"{spec} states no preprocessing: images go in as they come, values in [0, 1].",
            err=True,
        )
    return model


def data_options(command: Command) -> Command:
    """What to read: shared by replay and evaluate."""
    for option in reversed(
        (
            click.argument("data"),
            click.option(
                "--corruptions", help="all, or names divided by commas; clean is one too [all]"
            ),
            click.option("--severity", type=click.IntRange(1, 5), default=5, show_default=True),
            click.option(
                "--batch-size", type=click.IntRange(min=1), default=100, show_default=True
            ),
            click.option(
                "--limit", type=click.IntRange(min=1), help="take the first N of each corruption"
            ),
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
            click.option(
                "--order",
                default="file",
                show_default=True,
                help="file, iid, sorted or dirichlet:D",
            ),
            click.option(
                "--json",
                "rows_path",
                metavar="ROWS",
                type=click.Path(dir_okay=False, path_type=Path),
                help="file of result rows, one JSON object a line",
            ),
            click.option(
                "--predictions",
                metavar="FILE.npz",
                type=click.Path(dir_okay=False, path_type=Path),
                help="keep what was answered to each image (one method, one corruption)",
            ),
        )
    ):
        command = option(command)
    return command


def settings_options(command: Command) -> Command:
    """A flag for each of the server's settings, from `Settings` itself."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default in (None, (), "") else f"; default {field.default}"
        help_text = f"{field.description} [TTC_{name.upper()}{default}]"
        several = name in ("set", "cors_origin")
        if field.annotation is bool:
            option = click.option(flag(name), name, is_flag=True, default=None, help=help_text)
        else:
            option = click.option(
                flag(name), name, multiple=several, metavar=_metavar(name), help=help_text
            )
        command = option(command)
    return command


def _metavar(name: str) -> str:
    """What a setting's value looks like, for the help; `Settings` itself checks it."""
    special = {
        "model": "SPEC",
        "method": "NAME",
        "set": "METHOD.PARAM=VALUE",
        "mean": "R,G,B",
        "std": "R,G,B",
        "state_dir": "DIR",
    }
    kind = Settings.model_fields[name].annotation
    if get_origin(kind) is Literal:
        return f"[{'|'.join(get_args(kind))}]"
    # Every number that is not a count is a time.
    return special.get(name) or ("N" if kind is int else "SECONDS" if kind is float else "TEXT")


def _open_rows(path: Path | None) -> "Rows":
    from ttc_core.rows import Rows

    try:
        return Rows(path)
    except (ValueError, OSError) as error:
        raise click.ClickException(f"The rows file cannot be used: {error}") from error


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


# The verbs


@cli.command(epilog="Example: ttc serve --method ttc --set ttc.lr=0.0005 --port 8000")
@settings_options
def serve(**given: Any) -> None:
    """Serve a model that adapts to what it is asked about."""
    # torch's threads spin while they wait for one another. Beside other work (decoding, clients, a
    # neighbour) that takes the processor from those they wait for: let them spin for moments only.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # read when torch is imported
    import torch

    from service import server
    from service.app import build

    try:
        settings = read_settings({k: v for k, v in given.items() if v not in (None, ())})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        listener = server.bind(settings.host, settings.port)
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Choose another with --port, or 0 for a free one."
        ) from error
    with listener:
        if settings.state_dir is not None:
            try:
                settings.state_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise click.ClickException(
                    f"--state-dir {settings.state_dir} cannot be used: {error.strerror}."
                ) from error
        if settings.threads:
            torch.set_num_threads(settings.threads)
        model = _load_model(settings.model, settings.device, settings.mean, settings.std)
        source = _make_method(settings.method, model, _pairs(settings.set), settings.statistics)
        for line in _introduction(settings, source):
            click.echo(line)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"Listening on http://{shown}:{port}  (API: /docs, metrics: /metrics)")
        sys.stdout.flush()
        if not server.run(build(settings, source), settings, listener):
            raise click.ClickException("The service failed; the lines above say why.")


def _introduction(settings: Settings, source: "Method") -> list[str]:
    import torch

    model = source.model
    adapted = model.affine.values() if "affine" in getattr(source, "adapts", ()) else ()
    count = sum(tensor.numel() for tensor in adapted)
    threads = f", {torch.get_num_threads()} threads" if model.device.type == "cpu" else ""
    lines = [
        f"Model {settings.model} on {model.device}{threads}: {model.classes} classes, "
        f"features ({model.feature_dimension}) → {model.split} → logits, "
        f"{count:,} adapted parameters in {len(adapted)} tensors",
        f"Method {settings.method}: "
        + (
            ", ".join(f"{k}={v}" for k, v in getattr(source, "settings", {}).items())
            or "no settings"
        ),
    ]
    chosen = settings.model_dump(exclude={"model", "method", "set", "token"}, mode="json")
    lines.append("Settings: " + ", ".join(f"{flag(k)} {v}" for k, v in chosen.items()))
    if settings.paper and settings.max_wait == 0:
        lines.append(
            "Note: --paper needs full batches; images that come one by one are answered near "
            "chance. Let them wait for one another with --max-wait, or leave --paper out."
        )
    if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append(
            f"Warning: {settings.host} may be reached from elsewhere and no --token is set: anyone "
            "who can reach it can steer the model."
        )
    return lines


@cli.command(
    epilog="Example: ttc replay bundled --corruptions fog,contrast --reset-between --limit 1000"
)
@data_options
@click.option("--url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--token", envvar="TTC_TOKEN", help="bearer token [TTC_TOKEN]")
@click.option(
    "--mode",
    type=click.Choice(["lockstep", "closed", "open"]),
    default="lockstep",
    show_default=True,
    help="wait for each batch; keep --concurrency requests under way; or send at --rate",
)
@click.option("--concurrency", type=click.IntRange(min=1), help="requests under way (closed) [8]")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="images a second (open)")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "even"]),
    default="poisson",
    show_default=True,
    help="how the sends of the open loop are spread",
)
@click.option("--stream", help="the stream on the server [default]")
@click.option("--reset-between", is_flag=True, help="reset the stream before each corruption")
def replay(
    data: str,
    corruptions: str | None,
    rows_path: Path | None,
    predictions: Path | None,
    mode: str,
    concurrency: int | None,
    **plan: Any,
) -> None:
    """Send DATA to a running server and measure accuracy, adaptation and latency."""
    from rich.console import Console

    from service.client import Client
    from service.replay import ReplayPlan
    from service.replay import replay as run_replay
    from service.view import View
    from ttc_core.corruptions import CORRUPTIONS

    names = _several(corruptions, CORRUPTIONS, ("clean",))
    if predictions is not None and len(names) != 1:
        raise click.UsageError("--predictions goes with one corruption.")
    try:
        replay_plan = ReplayPlan(
            data=data,
            corruptions=tuple(names),
            mode=mode,  # type: ignore[arg-type]
            concurrency=concurrency or (8 if mode == "closed" else 1),
            **plan,
        )
        Client(replay_plan.url).close()  # it knows which URLs can be asked
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    asyncio.run(run_replay(replay_plan, _open_rows(rows_path), View(Console()), predictions))


@cli.command(
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
    names = _several(methods or wanted.get("methods"), tuple(METHODS), own=True)
    chosen = _several(corruptions or wanted.get("corruptions"), CORRUPTIONS, ("clean",))
    if predictions is not None and (len(names) != 1 or len(chosen) != 1):
        raise click.UsageError("--predictions goes with one method and one corruption.")
    try:
        check_order(order)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if threads:
        torch.set_num_threads(threads)
    source_model = _load_model(model, device, _rgb(mean), _rgb(std))
    pairs = _pairs(settings)
    statistics = "moving" if served else None
    evaluation = Evaluation(
        methods={n: _make_method(n, source_model, pairs, statistics) for n in names},
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
        evaluation.run(_open_rows(rows_path), watcher, anew=predictions is not None)
    except BaseException:
        watcher.view.interrupt()
        raise
    finally:
        if watcher.rows:
            watcher.view.table(results_table(watcher.rows))


@cli.command(epilog="Example: ttc report rows.jsonl --out report")
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def report(rows: tuple[Path, ...], out: Path) -> None:
    """Turn result rows into tables: Markdown and CSV in a folder."""
    from ttc_core.report.tables import accuracy_tables
    from ttc_core.rows import read_rows

    try:
        tables = accuracy_tables(row for path in rows for row in read_rows(path))
    except (ValueError, KeyError, OSError) as error:
        raise click.ClickException(f"The rows cannot be read: {error}") from error
    if not tables:
        raise click.ClickException(f"There are no rows in {', '.join(map(str, rows))}.")
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table.markdown() for table in tables)
    (out / "accuracy.md").write_text(text)
    for number, table in enumerate(tables, start=1):
        (out / f"accuracy-{number}.csv").write_text(table.csv())
    click.echo(text)
    click.echo(f"Written to {out}.")


@cli.command(epilog="Example: ttc corrupt photos foggy --corruption fog --severity 3")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--corruption", required=True, help="one of the fifteen, as fog")
@click.option("--severity", type=click.IntRange(1, 5), required=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def corrupt(source: Path, target: Path, corruption: str, severity: int, seed: int) -> None:
    """Corrupt an image, a folder of images or an .npy of (N, H, W, 3) images."""
    from ttc_core.corruptions import CORRUPTIONS
    from ttc_core.corruptions.files import corrupt_path

    if corruption not in ("clean", *CORRUPTIONS):
        raise click.UsageError(
            f"There is no corruption {corruption!r}; there are clean, {', '.join(CORRUPTIONS)}."
        )
    try:
        count = corrupt_path(source, target, corruption, severity, seed)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count:,} images with {corruption} at severity {severity} written to {target}.")


@cli.command(epilog="Example: ttc train --out my-model --epochs 12")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="trained", show_default=True
)
@click.option("--data", type=click.Path(path_type=Path), help="folder of Fashion-MNIST's files")
@click.option("--epochs", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="train on the first N pictures only")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def train(device: str, data: Path | None, **recipe: Any) -> None:
    """Train the bundled model anew: a ResNet-20 on Fashion-MNIST."""
    from ttc_core.load import pick_device
    from ttc_core.zoo import fashion_mnist
    from ttc_core.zoo import train as recipe_module

    try:
        recipe_module.train(
            data=data or fashion_mnist.DIRECTORY,
            device=str(pick_device(device)),
            report=click.echo,
            **recipe,
        )
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error


@cli.command(epilog="Example: ttc demo")
@click.option("--limit", type=click.IntRange(min=1), default=2000, show_default=True)
def demo(limit: int) -> None:
    """Serve the bundled model, replay a corrupted stream for SOURCE and TTC, compare."""
    from rich.console import Console

    from service.demo import run_demo
    from service.view import View

    run_demo(View(Console()), limit=limit)


@cli.command(epilog="Example: ttc doctor")
@click.option("--device", default="auto", show_default=True)
def doctor(device: str) -> None:
    """Check that this installation can serve: versions, device, bundled model."""
    from service.doctor import examine

    findings = examine(device)
    for finding in findings:
        click.echo(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.sentence}")
    if not all(finding.ok for finding in findings):
        raise click.ClickException("Something above needs attention.")


@cli.command(epilog="Example: ttc state /var/lib/ttc")
@click.argument("path", type=click.Path(path_type=Path))
def state(path: Path) -> None:
    """Show what saved adaptation states hold: a file, or a --state-dir."""
    from ttc_core.state import StateError, describe

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise StateError(f"There is no saved state in {path}.")
    for file in files:
        click.echo(f"{file}: {describe(file)}")


if __name__ == "__main__":
    main()
