"""A CIFAR-10 network of our own training: ResNet-14, with mirrored and shifted images.

    python -m benchmarks.cifar10_network --out results/cifar10-network.pt [--epochs 12]

trains it on the 50,000 JPEG images beside the checkout, in half an hour on one thread; what was
stopped goes on behind its last epoch. It is `--model benchmarks.cifar10_network:network@FILE`.
"""

from pathlib import Path

import click
import torch

from benchmarks.cifar10_stream import read
from ttc_core.files import written_whole
from ttc_core.model import SourceModel
from ttc_core.zoo import CIFAR10_CLASSES
from ttc_core.zoo.resnet import ResNet
from ttc_core.zoo.train import fit, mirrored, shifted

BLOCKS = 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def network() -> SourceModel:
    """The network without its weights."""
    return SourceModel(ResNet(BLOCKS), mean=MEAN, std=STD, size=32, class_names=CIFAR10_CLASSES)


@click.command()
@click.option("--out", type=Path, default="results/cifar10-network.pt", show_default=True)
@click.option("--epochs", default=12, show_default=True)
@click.option("--limit", type=int, help="train on so many images only")
def main(out: Path, epochs: int, limit: int | None) -> None:
    """Train the network, or go on, unless it is there."""
    if out.exists():
        raise click.ClickException(f"{out} is there; delete it to train anew.")
    torch.manual_seed(0)
    images, labels = read("train")
    made = ResNet(BLOCKS)
    progress = out.with_suffix(".progress")
    out.parent.mkdir(parents=True, exist_ok=True)
    fit(
        made,
        torch.from_numpy(images[:limit]).permute(0, 3, 1, 2),
        torch.from_numpy(labels[:limit]),
        mean=MEAN,
        std=STD,
        augment=lambda batch: shifted(mirrored(batch), 4),
        epochs=epochs,
        batch_size=128,
        lr=0.1,
        progress=progress,
    )
    with written_whole(out) as file:
        torch.save(made.state_dict(), file)
    progress.unlink()


if __name__ == "__main__":
    main()
