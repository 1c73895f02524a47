"""`ttc demo`: the service and a replay, for SOURCE, TTC and the default."""

import click

from service.cli.options import COUNT


@click.command(epilog="Example: ttc demo")
@click.option("--limit", type=COUNT, default=1000, show_default=True)
def demo(limit: int) -> None:
    """Replay a corrupted stream to SOURCE, TTC and the default, shuffled and in runs; compare."""
    from rich.console import Console

    from service.demo import run_demo
    from service.view import View

    run_demo(View(Console(emoji=False)), limit=limit)
