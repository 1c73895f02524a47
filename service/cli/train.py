"""`ttc train`: the recipe of the bundled model."""

from pathlib import Path
from typing import Any

import click

from service.cli.options import COUNT, SEED


@click.command(epilog="Example: ttc train --out my-model --epochs 12")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="trained", show_default=True
)
@click.option("--data", type=click.Path(path_type=Path), help="folder of Fashion-MNIST's files")
@click.option("--epochs", type=COUNT, default=12, show_default=True)
@click.option("--limit", type=COUNT, help="train on the first N pictures only")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def train(device: str, data: Path | None, **recipe: Any) -> None:
    """Train the bundled model anew: a ResNet-20 on Fashion-MNIST."""
    from ttc_core.load import pick_device
    from ttc_core.zoo import fashion_mnist
    from ttc_core.zoo import train as recipe_module

    recipe_module.train(
        data=data or fashion_mnist.DIRECTORY,
        device=str(pick_device(device)),
        report=click.echo,
        **recipe,
    )
