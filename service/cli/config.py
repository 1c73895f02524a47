"""`ttc config`: what `ttc serve` would be set to, and where each of it comes from."""

from typing import Any

import click

from service.cli.options import (
    NotAccepted,
    SettingsCommand,
    chosen_settings,
    pairs_of,
    settings_options,
)
from service.settings import Settings
from service.settings_reading import read
from service.settings_view import as_json, as_table, as_toml


@click.command(cls=SettingsCommand, epilog="Example: ttc config --paper --max-batch 32")
@click.option("--json", "form", flag_value="json", help="as one JSON object")
@click.option("--toml", "form", flag_value="toml", help="as a file that --config reads")
@settings_options
def config(form: str | None, **given: Any) -> None:
    """Show every setting that `ttc serve` would have, and where it comes from: its flag, its TTC_
    variable, the file of --config, or the default. It takes the flags of `ttc serve`.

    What is wrong is told, of hyperparameters (--set) as well. Tokens are shown as set or unset. The
    model is not looked at, nor a method of your own.
    """
    try:
        reading = read(chosen_settings(given))
        _check_hyperparameters(reading.settings)
        shown = {"json": as_json, "toml": as_toml}.get(form or "", as_table)(reading)
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    click.echo(shown.rstrip("\n"))
    for notice in reading.notices:
        click.echo(notice, err=True)


def _check_hyperparameters(settings: Settings) -> None:
    """Let pass what `--set` says if the method and its guard take it.

    Raises:
        ValueError: they do not; the sentence names what is wrong.
    """
    pairs = pairs_of(settings.set)
    if not pairs:
        return
    from ttc_core.guard import divided  # torch comes along, and takes seconds
    from ttc_core.methods import check_settings, settings_for

    _, pairs = divided(pairs)
    given = settings_for(settings.method, pairs, statistics=settings.statistics)
    check_settings(settings.method, given)
