"""`ttc state`: what saved adaptation states hold."""

import sys
from pathlib import Path

import click


@click.command(epilog="Example: ttc state /var/lib/ttc")
@click.argument("path", type=click.Path(path_type=Path))
def state(path: Path) -> None:
    """Show what saved adaptation states hold: a file, or a --state-dir, which may be in use."""
    from ttc_core.errors import shown
    from ttc_core.state import StateError, describe

    try:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if path.is_dir():
            next(path.iterdir(), None)  # `glob` tells nothing of a folder that cannot be read
    except OSError as error:
        raise StateError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    if not files:
        raise StateError(f"There is no saved state in {shown(path)}.")
    failed = 0
    for file in files:
        try:
            click.echo(f"{shown(file)}: {describe(file)}")
        except StateError as error:
            click.echo(error, err=True)
            failed += 1
    if failed:
        sys.exit(1)
