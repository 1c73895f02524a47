"""`ttc demo`: the service and a replay, side by side for SOURCE and TTC."""

import click

from service.cli.options import COUNT


@click.command(epilog="Example: ttc demo")
@click.option("--limit", type=COUNT, default=2000, show_default=True)
def demo(limit: int) -> None:
    """Serve the bundled model, replay a corrupted stream for SOURCE and TTC, compare."""
    from rich.console import Console

    from service.demo import run_demo
    from service.view import View

    run_demo(View(Console()), limit=limit)
