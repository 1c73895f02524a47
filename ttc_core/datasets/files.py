"""Image files and arrays on their way to the size at which a model reads images."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ttc_core.corruptions import corrupt
from ttc_core.datasets.stream import DataError, Images, Labels, Places, Shift, check_sizes
from ttc_core.errors import shown
from ttc_core.geometry import Geometry
from ttc_core.grain import Grain, fitted
from ttc_core.pictures import open_picture

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
# Pillow knows many more, some of which start other programs, whatever a file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MOST_FILE_BYTES = 256 << 20

log = logging.getLogger(__name__)


def folders(directory: Path) -> list[str]:
    """The names of the folders in a directory, sorted; not those that systems leave behind.

    Raises:
        DataError: it cannot be read.
    """
    return [name for name in _names(directory, Path.is_dir) if name != "__MACOSX"]


def image_files(directory: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """(folder, file) of each image file in the folders, sorted; nothing is opened.

    A warning counts what else lies there and in the directory.

    Raises:
        DataError: a folder cannot be read.
    """
    found = [(name, file) for name in names for file in _names(directory / name, _is_image)]
    taken = {*names, "__MACOSX", *(f"{name}/{file}" for name, file in found)}
    inside = (f"{name}/{file}" for name in names for file in _names(directory / name))
    left = [name for name in (*_names(directory), *inside) if name not in taken]
    if left:
        log.warning(
            "Left out of %s as no images in its folders: %d (the first is %s); taken are %s.",
            shown(directory),
            len(left),
            shown(left[0]),
            ", ".join(sorted(IMAGE_SUFFIXES)),
        )
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _names(directory: Path, wanted: Callable[[Path], bool] = lambda _: True) -> list[str]:
    """What is of a kind in a directory, sorted; hidden files are the litter of other systems."""
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
        return [name for name in names if wanted(directory / name)]
    except OSError as error:
        raise DataError(f"{directory} cannot be read: {error.strerror}.") from error


def read_bytes(path: Path) -> bytes:
    """Read an image file as it is.

    Raises:
        DataError: it cannot be read, or is larger than MOST_FILE_BYTES.
    """
    try:
        if (size := path.stat().st_size) > MOST_FILE_BYTES:
            raise DataError(
                f"{path} has {size:,} bytes; an image file may have {MOST_FILE_BYTES:,}."
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


class ImageFiles:
    """Image files by their place in file order, decoded and resized as the server would.

    Args:
        path: of the file at a place.
    """

    def __init__(self, path: Callable[[int], Path], geometry: Geometry) -> None:
        self._path, self._geometry = path, geometry
        self._grains: dict[int, Grain | None] = {}

    def read(self, places: Places) -> Images:
        """Read images (n, H, W, 3).

        Raises:
            DataError: a file is no whole image, or they differ in size.
        """
        images = []
        for place in places.tolist():
            path = self._path(place)
            try:
                picture = open_picture(read_bytes(path), FORMATS).load()
                pixels, grain = fitted(picture, self._geometry)
            except DataError:
                raise
            except Exception as error:  # Pillow promises no particular types for damaged files
                raise DataError(f"{path} cannot be read as an image: {error}.") from None
            images.append(pixels)
            self._grains[place] = grain
        check_sizes({image.shape for image in images})
        return np.stack(images)

    def grain(self, place: int) -> Grain | None:
        """What `ttc_core.grain.fitted` saw of an image that was read."""
        return self._grains[place]

    def original(self, place: int) -> bytes:
        """The file as it is; raises as `read_bytes`."""
        return read_bytes(self._path(place))


def as_sent(files: ImageFiles, labels: Labels, severity: int | None) -> Shift:
    """Files that are sent to a server as they are."""
    return Shift(
        severity,
        labels,
        files.read,
        files.original,
        files.original,
        decodes=True,
        grain=files.grain,
    )


def corrupt_at(images: Images, places: Places, corruption: str, severity: int, seed: int) -> Images:
    """Corrupt each image as the one at its place in the file order, whatever the order here."""
    if corruption == "clean" or len(images) == 0:
        return images
    starts = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)
    runs = zip(np.split(images, starts[1:]), places[starts], strict=True)
    return np.concatenate(
        [corrupt(run, corruption, severity, seed=seed, first_index=int(at)) for run, at in runs]
    )
