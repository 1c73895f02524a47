"""How images are resized, by Pillow's names. It imports next to nothing, as clients name them."""

from typing import Literal, get_args

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
