"""The fifteen corruptions of CIFAR-10-C and ImageNet-C, by name. Knows no torch and no files.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4. The constants of both benchmarks
stand beside the functions: images with a short side of up to SMALL_SIDE pixels get those
of CIFAR-10-C (32), larger ones those of ImageNet-C (224). Images of these two sizes are
corrupted as in the benchmark, except that frost is drawn by us instead of photographed.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from ttc_core.corruptions import blur, digital, noise, weather
from ttc_core.corruptions.pixels import Constants, Images, Table

CORRUPTIONS: tuple[str, ...] = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)

# 84 is where 32 and 224 are equally far in ratio: 64 px is nearer to the one, 96 to the other.
SMALL_SIDE = 84

_PIXELS_AT_ONCE = 2**18  # bounds the memory (a few times 6 MB) and keeps the arrays in the cache

_Fixed = Callable[[Images, Constants], Images]
_Drawing = Callable[[Images, Constants, Sequence[Generator]], Images]

_FIXED: dict[str, tuple[_Fixed, Table]] = {
    "defocus_blur": (blur.defocus_blur, blur.DEFOCUS_BLUR),
    "zoom_blur": (blur.zoom_blur, blur.ZOOM_BLUR),
    "brightness": (weather.brightness, weather.BRIGHTNESS),
    "contrast": (digital.contrast, digital.CONTRAST),
    "pixelate": (digital.pixelate, digital.PIXELATE),
    "jpeg_compression": (digital.jpeg_compression, digital.JPEG_COMPRESSION),
}
_DRAWING: dict[str, tuple[_Drawing, Table]] = {
    "gaussian_noise": (noise.gaussian_noise, noise.GAUSSIAN_NOISE),
    "shot_noise": (noise.shot_noise, noise.SHOT_NOISE),
    "impulse_noise": (noise.impulse_noise, noise.IMPULSE_NOISE),
    "glass_blur": (blur.glass_blur, blur.GLASS_BLUR),
    "motion_blur": (blur.motion_blur, blur.MOTION_BLUR),
    "snow": (weather.snow, weather.SNOW),
    "frost": (weather.frost, weather.FROST),
    "fog": (weather.fog, weather.FOG),
    "elastic_transform": (digital.elastic_transform, digital.ELASTIC_TRANSFORM),
}


def corrupt(
    images: Images, name: str, severity: int, *, seed: int = 0, first_index: int = 0
) -> Images:
    """Return corrupted copies of the images.

    Image number first_index + i has its own random draws, made from the seed, the name,
    the severity and that number alone: a stream gives the same images however it is cut.

    Args:
        images: (N, H, W, 3) uint8, RGB, any N >= 0 and any H, W >= 1.
        name: one of CORRUPTIONS, or "clean" for an unchanged copy.
        severity: 1 (mild) to 5 (strong); ignored for "clean".
        seed: 0 or more.
        first_index: the number of images[0] in its stream, 0 or more.

    Returns:
        (N, H, W, 3) uint8, a new array.

    Raises:
        ValueError: one of the arguments is not as described.
    """
    check(name, severity, seed=seed, first_index=first_index)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a numpy array of uint8, 0 to 255; got {got}.")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:3]:
        raise ValueError(f"images must have the shape (N, H, W, 3); got {images.shape}.")
    if name == "clean":
        return np.array(images)
    result = np.empty(images.shape, dtype=np.uint8)
    count, height, width, _ = images.shape
    size = 32 if min(height, width) <= SMALL_SIDE else 224
    chunk = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, count, chunk):
        part = np.asarray(images[start : start + chunk])
        if name in _FIXED:
            fixed, table = _FIXED[name]
            corrupted = fixed(part, table[size][severity - 1])
        else:
            drawing, table = _DRAWING[name]
            numbers = range(first_index + start, first_index + start + len(part))
            generators = [_generator(seed, name, severity, number) for number in numbers]
            corrupted = drawing(part, table[size][severity - 1], generators)
        result[start : start + len(part)] = corrupted
    return result


def check(name: str, severity: int, *, seed: int = 0, first_index: int = 0) -> None:
    """Raise the ValueError that corrupt would raise for these arguments, if any."""
    if name != "clean" and name not in CORRUPTIONS:
        accepted = ", ".join(("clean", *CORRUPTIONS))
        raise ValueError(f"There is no corruption {name!r}; accepted are {accepted}.")
    whole = isinstance(severity, int | np.integer)
    if name != "clean" and not (whole and 1 <= severity <= 5):
        raise ValueError(f"severity must be a whole number from 1 to 5; got {severity!r}.")
    if seed < 0 or first_index < 0:
        raise ValueError(
            f"seed and first_index must be 0 or more; got {seed!r} and {first_index!r}."
        )


def _generator(seed: int, name: str, severity: int, number: int) -> Generator:
    # crc32 is the same in every process, unlike hash().
    key = (zlib.crc32(name.encode()), int(severity), number)
    return Generator(PCG64(SeedSequence(seed, spawn_key=key)))
