"""`ttc envelope`: what adaptation may change, and whether saved streams have kept to it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import (
    FILE,
    NetworkOptions,
    SettingsCommand,
    chosen_settings,
    grouped,
    settings_options,
)

if TYPE_CHECKING:
    from ttc_core.envelope.clauses import Envelope
    from ttc_core.model import SourceModel


@click.group()
def envelope() -> None:
    """Show or check an envelope: what adaptation may change, determined beforehand."""


@envelope.command(
    cls=SettingsCommand, epilog="Example: ttc envelope show --envelope envelope.toml > copy.toml"
)
@settings_options
def show(**given: Any) -> None:
    """Show the envelope that `ttc serve` with the same flags would keep to, as a TOML file with
    what each clause does. Without --envelope it is the built-in one, a file to start from."""
    from service.envelope_file import as_toml, in_force
    from service.settings import read_settings

    try:
        found = in_force(read_settings(chosen_settings(given)))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo("# With --paper no envelope holds." if found is None else as_toml(found), nl=False)
    if found is None:
        click.echo()


@envelope.command(
    epilog="Example: ttc envelope check envelope.toml --state-dir /var/lib/ttc --model bundled"
)
@click.argument("file", type=FILE)
@click.option("--model", help="its spec: patterns are held against its names [that of the states]")
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="saved streams, which may be in use: whether each is inside",
)
@grouped("network", NetworkOptions)
def check(file: Path, model: str | None, state_dir: Path | None, network: NetworkOptions) -> None:
    """Check an envelope's FILE, and whether saved streams are inside.

    It says what is wrong, or that FILE holds. Exit status 1 where a stream is outside, or cannot be
    told: it would start at the source, and its file would be kept as NAME.rejected.
    """
    from service.envelope_file import read_envelope

    try:
        found = read_envelope(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    loaded = None if model is None else _loaded(found, model, network)
    click.echo(f"{file} holds. Its digest is {found.digest}.")
    if state_dir is not None and not _check_streams(found, state_dir, loaded, network):
        sys.exit(1)


def _loaded(envelope: "Envelope", spec: str, network: NetworkOptions) -> "SourceModel":
    """The model, if the envelope's patterns fit it.

    Raises:
        UserError, click.ClickException: it cannot be loaded, or they do not.
    """
    from ttc_core.envelope.limits import Limits

    model = network.load(spec)
    try:
        Limits(model, envelope)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return model


def _check_streams(
    envelope: "Envelope",
    folder: Path,
    model: "SourceModel | None",
    network: NetworkOptions,
) -> bool:
    """Say of each saved stream whether it is inside; return whether all are."""
    from service.state_folder import SUFFIX, stream_of
    from ttc_core.errors import UserError, shown
    from ttc_core.guard import Unwatched
    from ttc_core.methods import create
    from ttc_core.methods.contract import AROUND
    from ttc_core.state import StateError, describe, load_state

    try:
        files = sorted(each for each in folder.iterdir() if each.suffix == SUFFIX)
    except OSError as error:
        raise StateError(f"{shown(folder)} cannot be read: {error.strerror}.") from None
    models: dict[str, SourceModel] = {}
    inside = 0
    for file in files:
        stream = stream_of(file.name) or file.name
        try:
            said = describe(file)
            if said.model not in models:
                models[said.model] = model or _loaded(envelope, said.model, network)
            settings = {k: v for k, v in said.settings.items() if k not in AROUND}
            method = Unwatched(
                create(said.method, models[said.model], envelope=envelope, **settings)
            )
            load_state(file, method, name=said.method, model=said.model)
        except (UserError, ValueError, TypeError) as error:
            click.echo(f"{shown(stream)}: {error}")
            continue
        inside += 1
        click.echo(f"{shown(stream)} is inside: drift {method.drift:.3g}")
    click.echo(f"{inside} of {len(files)} saved streams are inside.")
    return inside == len(files)
