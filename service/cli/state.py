"""`ttc state`: what saved adaptation states hold."""

from pathlib import Path

import click


@click.command(epilog="Example: ttc state /var/lib/ttc")
@click.argument("path", type=click.Path(path_type=Path))
def state(path: Path) -> None:
    """Show what saved adaptation states hold: a file, or a --state-dir."""
    from ttc_core.state import StateError, describe

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise StateError(f"There is no saved state in {path}.")
    for file in files:
        click.echo(f"{file}: {describe(file)}")
