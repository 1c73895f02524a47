"""Image files and arrays on their way to the size at which a model reads images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ttc_core.corruptions import corrupt
from ttc_core.datasets.stream import DataError, Images, Places, check_sizes
from ttc_core.geometry import fit, to_rgb
from ttc_core.pictures import open_picture

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})


@dataclass(frozen=True)
class Geometry:
    """The size at which a model reads images; see `ttc_core.geometry.fit`."""

    size: int | None = None
    crop: int | None = None

    def apply(self, image: Image.Image) -> Images:
        """Decode and resize as the server would: (H, W, 3)."""
        return np.asarray(fit(to_rgb(image), self.size, self.crop))

    def apply_all(self, images: Images) -> Images:
        """Bring images (n, H, W, 3) of one size to the model's; as they are if that is theirs."""
        if len(images) == 0 or self.size is None:
            return images
        if images.shape[1:3] == (self.crop or self.size,) * 2:
            return images
        return np.stack([self.apply(Image.fromarray(image)) for image in images])


def folders(directory: Path) -> list[str]:
    """The names of the folders in a directory, sorted."""
    with os.scandir(directory) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def image_files(directory: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """(folder, file) of each image file in the folders, sorted; nothing is opened."""
    found = []
    for name in names:
        with os.scandir(directory / name) as entries:
            files = sorted(
                entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file()
            )
        found += [(name, file) for file in files]
    return found


def decode(files: Sequence[Path], geometry: Geometry) -> Images:
    """Read image files as (n, H, W, 3).

    Raises:
        DataError: a file is no whole image, or they differ in size.
    """
    images = []
    for path in files:
        try:
            images.append(geometry.apply(open_picture(path.read_bytes(), _FORMATS).load()))
        except Exception as error:  # Pillow promises no particular types for damaged files
            raise DataError(f"{path} cannot be read as an image: {error}.") from None
    check_sizes({image.shape for image in images})
    return np.stack(images)


def corrupt_at(images: Images, places: Places, corruption: str, severity: int, seed: int) -> Images:
    """Corrupt each image as the one at its place in the file order, whatever the order here."""
    if corruption == "clean" or len(images) == 0:
        return images
    starts = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)
    runs = zip(np.split(images, starts[1:]), places[starts], strict=True)
    return np.concatenate(
        [corrupt(run, corruption, severity, seed=seed, first_index=int(at)) for run, at in runs]
    )
