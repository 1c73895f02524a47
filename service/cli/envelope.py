"""`ttc envelope`: what adaptation may change, and whether saved streams have kept to it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import (
    FILE,
    NetworkOptions,
    NotAccepted,
    SettingsCommand,
    chosen_settings,
    grouped,
    settings_options,
)

if TYPE_CHECKING:
    from ttc_core.envelope.clauses import Envelope
    from ttc_core.model import SourceModel


@click.group(epilog="Example: ttc envelope show --envelope envelope.toml")
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
    from service.settings_reading import read_settings

    try:
        found = in_force(read_settings(chosen_settings(given)))
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    click.echo("# With --paper no envelope holds." if found is None else as_toml(found), nl=False)
    if found is None:
        click.echo()


@envelope.command(
    epilog="Example: ttc envelope check envelope.toml --state-dir /var/lib/ttc --model bundled"
)
@click.argument("file", type=FILE)
@click.option(
    "--model",
    help="its spec: patterns are held against its names. A state file has no other loaded than "
    "bundled",
)
@click.option("--method", help="of saved streams, where it is a class of your own")
@click.option(
    "--state-dir",
    envvar="TTC_STATE_DIR",
    show_envvar=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="saved streams, which may be in use: whether each is inside",
)
@grouped("network", NetworkOptions)
def check(
    file: Path,
    model: str | None,
    method: str | None,
    state_dir: Path | None,
    network: NetworkOptions,
) -> None:
    """Check an envelope's FILE, and whether saved streams are inside.

    It says what is wrong, or that FILE holds. Exit status 2 where FILE is wrong, as with ttc serve;
    1 where a stream is outside, or that cannot be told: it would start at the source, and its file
    would be kept as NAME.rejected. Code of your own is imported where you name it here, never
    because a state file does.
    """
    from service.envelope_file import read_envelope

    try:
        found = read_envelope(file)
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    loaded = None if model is None else _loaded(found, model, network)
    click.echo(f"{file} holds. Its digest is {found.digest}.")
    if loaded is None and not found.moves_all:
        click.echo("Its parameters were held against no network: --model SPEC does that.")
    if found.steps_per_1000_images != (allowed := found.steps_allowed):
        click.echo(f"steps_per_1000_images = {found.steps_per_1000_images} allows {allowed}.")
    if state_dir is None:
        return
    if not _check_streams(state_dir, Kept(found, loaded, method, network)):
        sys.exit(1)


def _loaded(envelope: "Envelope", spec: str, network: NetworkOptions) -> "SourceModel":
    """The model, if the envelope's patterns fit it.

    Raises:
        UserError: it cannot be loaded. NotAccepted: they do not fit it.
    """
    from ttc_core.envelope.limits import Limits

    model = network.load(spec)
    try:
        Limits(model, envelope)
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    return model


@dataclass
class Kept:
    """What saved streams are held against.

    Attributes:
        model, method: as they were named; None: they were not.
    """

    envelope: "Envelope"
    model: "SourceModel | None"
    method: str | None
    network: NetworkOptions
    _bundled: "SourceModel | None" = None

    def drift(self, file: Path) -> float:
        """How far a stream is from the source's parameters.

        Raises:
            UserError, ValueError, TypeError: it is outside, or that cannot be told.
        """
        from ttc_core.guard import Unwatched
        from ttc_core.methods import create
        from ttc_core.methods.contract import AROUND
        from ttc_core.state import load_state
        from ttc_core.state_description import describe

        said = describe(file)
        model = self._model_of(said.model)
        settings = {k: v for k, v in said.settings.items() if k not in AROUND}
        made = create(self._method_of(said.method), model, envelope=self.envelope, **settings)
        method = Unwatched(made)
        load_state(file, method, name=said.method, model=said.model)
        return method.drift

    def _model_of(self, said: str) -> "SourceModel":
        """The model to hold a file against that names one: anybody may have written that."""
        from ttc_core.errors import UserError, shown

        if self.model is not None:
            return self.model
        if said != "bundled":
            raise UserError(f"it is of the model {shown(said)}: name it with --model.")
        if self._bundled is None:
            self._bundled = _loaded(self.envelope, said, self.network)
        return self._bundled

    def _method_of(self, said: str) -> str:
        from ttc_core.errors import UserError, shown
        from ttc_core.methods import METHODS

        if said not in METHODS and said != self.method:
            raise UserError(f"it is of the method {shown(said)}: name it with --method.")
        return said


def _check_streams(folder: Path, kept: Kept) -> bool:
    """Say of each saved stream whether it is inside; return whether all are."""
    from service.changes.saved import stream_files
    from ttc_core.errors import UserError, shown
    from ttc_core.state_file import StateError

    try:
        files = list(stream_files(folder))
    except OSError as error:
        raise StateError(f"{shown(folder)} cannot be read: {error.strerror}.") from None
    inside = 0
    for file in files:
        stream = shown(file.relative_to(folder).with_suffix(""))
        try:
            drift = kept.drift(file)
        except (UserError, ValueError, TypeError) as error:
            click.echo(f"{stream}: {error}")
            continue
        inside += 1
        click.echo(f"{stream} is inside: drift {drift:.3g}")
    click.echo(f"{inside} of {len(files)} saved streams are inside.")
    return inside == len(files)
