"""A natural shift, without any of our corruptions: scikit-learn's handwritten digits.

Two small BatchNorm networks, trained without mirroring on one half of the 1,797 digits, and the
other half as it is, enlarged, inverted and blurred. Mirrored digits are other digits, or none.

    ttc evaluate benchmarks.digits:enlarged --model benchmarks.digits:resnet8 --corruptions clean

A network is trained where it is first asked for, in half a minute, and kept in results/digits.
Needs scikit-learn (of the development extra), for the pictures alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.cifar10_stream import Pair
from ttc_core.files import written_whole
from ttc_core.model import SourceModel
from ttc_core.zoo.resnet import ResNet
from ttc_core.zoo.train import fit, shifted

WEIGHTS = Path(__file__).parents[1] / "results" / "digits"
SIDE = 32
MEAN = STD = (0.5,) * 3
# Of the picture's side that a digit takes; what does not fit is cut off.
USUAL, ENLARGED = 0.9, 1.2
BLUR = 7


def resnet8() -> SourceModel:
    """One block a stage."""
    return _network(1)


def resnet14() -> SourceModel:
    """Two blocks a stage."""
    return _network(2)


def clean() -> Iterator[Pair]:
    """Yield the digits that no network was trained on: images (898, 32, 32, 3), labels (898,)."""
    yield _pair(1)


def enlarged() -> Iterator[Pair]:
    """Yield the same, a third larger."""
    yield _pair(1, ENLARGED)


def inverted() -> Iterator[Pair]:
    """Yield the same, black on white."""
    images, labels = _pair(1)
    yield 255 - images, labels


def blurred() -> Iterator[Pair]:
    """Yield the same, each pixel the mean of BLUR × BLUR."""
    yield _pair(1, blur=BLUR)


def _pair(half: int, size: float = USUAL, blur: int = 1) -> Pair:
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.array_split(np.random.default_rng(0).permutation(len(digits.target)), 2)[half]
    fields = torch.from_numpy(digits.images[chosen])[:, None].float() / 16
    scaled = F.interpolate(fields, size=2 * round(SIDE * size / 2), mode="bicubic").clamp(0, 1)
    margin = (SIDE - scaled.shape[-1]) // 2
    pictures = F.pad(scaled, (margin,) * 4)  # a margin below 0 cuts off
    pictures = F.avg_pool2d(F.pad(pictures, (blur // 2,) * 4, mode="replicate"), blur, 1)
    images = (pictures.expand(-1, 3, -1, -1) * 255).round().byte()
    return images.permute(0, 2, 3, 1).numpy(), digits.target[chosen]


def _network(blocks: int) -> SourceModel:
    file = WEIGHTS / f"resnet{6 * blocks + 2}.pt"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as out:
            torch.save(_trained(blocks).state_dict(), out)
    network = ResNet(blocks)
    network.load_state_dict(torch.load(file, weights_only=True))
    return SourceModel(network, mean=MEAN, std=STD, size=SIDE)


def _trained(blocks: int) -> ResNet:
    images, labels = _pair(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(blocks)
        network = ResNet(blocks)
        fit(
            network,
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.from_numpy(labels),
            mean=MEAN,
            std=STD,
            augment=shifted,
            epochs=15,
            batch_size=64,
            lr=0.1,
        )
    return network
