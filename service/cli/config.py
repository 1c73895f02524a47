"""`ttc config`: what `ttc serve` would be set to, and where each of it comes from."""

from typing import Any

import click

from service.cli.options import SettingsCommand, chosen_settings, settings_options
from service.settings_reading import read
from service.settings_view import as_json, as_table, as_toml


@click.command(cls=SettingsCommand, epilog="Example: ttc config --paper --max-batch 32")
@click.option("--json", "form", flag_value="json", help="as one JSON object")
@click.option("--toml", "form", flag_value="toml", help="as a file that --config reads")
@settings_options
def config(form: str | None, **given: Any) -> None:
    """Show every setting that `ttc serve` would have, and where it comes from: its flag, its TTC_
    variable, the file of --config, or the default. It takes the flags of `ttc serve`.

    Tokens are shown as set or unset. Neither the model nor what --set says is looked at.
    """
    try:
        reading = read(chosen_settings(given))
        shown = {"json": as_json, "toml": as_toml}.get(form or "", as_table)(reading)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(shown.rstrip("\n"))
    for notice in reading.notices:
        click.echo(notice, err=True)
