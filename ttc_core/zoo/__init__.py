"""The CIFAR architectures by name, each with the preprocessing its public checkpoints expect."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ttc_core.zoo.bottleneck_resnet import BottleneckResNet
from ttc_core.zoo.resnet import ResNet
from ttc_core.zoo.wide_resnet import WideResNet

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


@dataclass(frozen=True)
class Architecture:
    """How to build a network for K classes, and the input its public checkpoints want."""

    build: Callable[[int], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def _resnet(depth: int) -> Architecture:
    return Architecture(
        build=lambda classes: ResNet((depth - 2) // 6, classes),
        # akamaster's training script normalises CIFAR-10 with ImageNet's figures.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def _wide_resnet(depth: int, width: int) -> Architecture:
    return Architecture(
        build=lambda classes: WideResNet(depth, width, classes),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


ARCHITECTURES: dict[str, Architecture] = {
    "resnet20": _resnet(20),
    "resnet32": _resnet(32),
    "resnet44": _resnet(44),
    "resnet56": _resnet(56),
    "resnet110": _resnet(110),
    "resnet50": Architecture(
        build=lambda classes: BottleneckResNet(classes=classes),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "wrn28-10": _wide_resnet(28, 10),
    "wrn40-2": _wide_resnet(40, 2),
}
