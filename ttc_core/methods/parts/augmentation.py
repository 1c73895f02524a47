"""What makes the second view of an image: the five augmentations of the paper's Table 5.

The paper states no strengths; ours are written at each. All act on values in [0, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ROTATION_DEGREES = 15.0
CROP_SCALE = (0.7, 1.0)
NOISE_DEVIATION = 0.05


def augment(images: Tensor, name: str, *, seed: int) -> Tensor:
    """Return another view of images (N, 3, H, W) in [0, 1], same shape.

    Args:
        name: horizontal_flip, vertical_flip, rotation (up to ±15 degrees, black corners),
            resized_crop (70 to 100 % of the area, same aspect) or gaussian_noise (deviation 0.05).
        seed: of the random ones; the same seed draws the same.

    Raises:
        ValueError: another name.
    """
    if name == "horizontal_flip":
        return images.flip(3)
    if name == "vertical_flip":
        return images.flip(2)
    generator = torch.Generator().manual_seed(seed)
    if name == "gaussian_noise":
        noise = torch.randn(images.shape, generator=generator).to(images)
        return (images + NOISE_DEVIATION * noise).clamp(0, 1)
    draws = torch.rand(len(images), 3, generator=generator)
    if name == "rotation":
        return _warp(images, _rotations(draws[:, 0]))
    if name == "resized_crop":
        return _warp(images, _crops(draws))
    raise ValueError(f"{name!r} is no augmentation")


def _rotations(draws: Tensor) -> Tensor:
    angle = (2 * draws - 1) * math.radians(ROTATION_DEGREES)
    zero = torch.zeros_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    return torch.stack(rows, dim=1).reshape(-1, 2, 3)


def _crops(draws: Tensor) -> Tensor:
    least, most = CROP_SCALE
    side = (least + (most - least) * draws[:, 0]).sqrt()
    # The window of this side may lie anywhere inside the picture, whose coordinates are -1..1.
    across, down = ((2 * draws[:, 1:] - 1) * (1 - side)[:, None]).unbind(1)
    zero = torch.zeros_like(side)
    return torch.stack([side, zero, across, zero, side, down], dim=1).reshape(-1, 2, 3)


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    grid = F.affine_grid(maps.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)
