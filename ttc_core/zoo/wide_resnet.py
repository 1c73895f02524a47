"""The Wide ResNets of Zagoruyko and Komodakis for 32-pixel images, pre-activation, no dropout.

Layer names are those of TRADES and RobustBench ("Standard" and AugMix models), so their
checkpoints load as they are. Source: "Wide Residual Networks", BMVC 2016.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; at a new shape the shortcut is activated too."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None
            if in_channels == channels
            else nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        if self.convShortcut is not None:
            x = self.convShortcut(activated)
        total: Tensor = out + x
        return total


class Stage(nn.Module):
    """A row of blocks, the first of which changes the shape."""

    def __init__(self, blocks: int, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            BasicBlock(in_channels, channels, stride),
            *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """(N, 3, 32, 32) images -> (N, classes) logits; `depth` layers, `width` times the channels."""

    def __init__(self, depth: int = 28, width: int = 10, classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, channels[0], channels[1], stride=1)
        self.block2 = Stage(blocks, channels[1], channels[2], stride=2)
        self.block3 = Stage(blocks, channels[2], channels[3], stride=2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out)).mean(dim=(2, 3))
        logits: Tensor = self.fc(out)
        return logits
