"""A CIFAR-10 ResNet-26 with GroupNorm, for the weights beside the checkout.

    --model benchmarks.resnet26_gn:network@../shared/data/models/resnet26_gn.pth

Layer names and arithmetic are those of production-ml-lab/test-time-adaptation (Apache-2.0).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ttc_core.model import SourceModel
from ttc_core.zoo import CIFAR10_CLASSES

GROUPS = 8
BLOCKS = 4


class Block(nn.Module):
    """GroupNorm, ReLU, convolution, twice; the shortcut pools and appends zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.GroupNorm(GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.stride, self.new_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        shortcut = F.avg_pool2d(x, self.stride)
        return out + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))


class ResNet26(nn.Module):
    """(N, 3, 32, 32) normalised images -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.bn = nn.GroupNorm(GROUPS, 64)
        self.fc = nn.Linear(64, len(CIFAR10_CLASSES))

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        others = (Block(channels, channels, 1) for _ in range(BLOCKS - 1))
        return nn.Sequential(Block(in_channels, channels, stride), *others)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(out)).mean(dim=(2, 3)))


def network() -> SourceModel:
    """The network without its weights."""
    half = (0.5,) * 3
    return SourceModel(ResNet26(), mean=half, std=half, size=32, class_names=CIFAR10_CLASSES)
