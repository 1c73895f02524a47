"""`ttc state`: what saved adaptation states hold."""

import sys
from pathlib import Path

import click


@click.command(epilog="Example: ttc state /var/lib/ttc")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="all that is known, one JSON object a stream")
def state(path: Path, as_json: bool) -> None:
    """Show what saved adaptation states hold: a file, or a --state-dir, which may be in use.

    A line a stream: images, optimizer steps and labels since its start or last reset; whether its
    guard has the source answer; which fault its camera's frames looked like; what was done with it
    last; and the good states that its guard keeps (version, at how many images). What no stream has
    is left out. A line goes on beyond a narrow terminal's edge: pipe it into less -S.
    """
    from rich.console import Console

    from service.saved_view import read_saved, saved_line, show
    from ttc_core.errors import shown
    from ttc_core.state_file import StateError

    try:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if path.is_dir():
            next(path.iterdir(), None)  # `glob` tells nothing of a folder that cannot be read
    except OSError as error:
        raise StateError(f"{shown(path)} cannot be read: {error.strerror}.") from None
    if not files:
        raise StateError(f"The folder {shown(path)} holds no saved state.")
    found, failed = [], 0
    for file in files:
        try:
            saved = read_saved(file)
        except StateError as error:
            click.echo(error, err=True)
            failed += 1
            continue
        if as_json:
            click.echo(saved_line(saved))
        else:
            found.append(saved)
    if found:
        show(found, Console(emoji=False))
    if failed:
        sys.exit(1)
