"""Clean images in memory or on disk, corrupted as they are read: the bundled stream, factories."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.datasets.files import corrupt_at
from ttc_core.datasets.stream import DataError, DataSet, Images, Labels, Places, Shift
from ttc_core.errors import PluginError
from ttc_core.geometry import Geometry
from ttc_core.plugins import call_factory, guarded
from ttc_core.zoo import fashion_mnist

MOST_IMAGES = 2_000_000
STREAM_FILE = Path(fashion_mnist.__file__).parent / "stream.npz"


class CleanData(DataSet):
    """Images (N, H, W, 3) with labels (N,), corrupted as they are read."""

    def __init__(self, images: Images, labels: Labels, geometry: Geometry) -> None:
        self._images, self._labels, self._geometry = images, labels, geometry

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        def read(places: Places) -> Images:
            images = self._geometry.apply_all(np.asarray(self._images[places]))
            return corrupt_at(images, places, corruption, severity, seed)

        return Shift(
            None if corruption == "clean" else severity,
            self._labels,
            read,
            lambda place: self._images[place].tobytes(),
        )


def bundled(geometry: Geometry) -> CleanData:
    """The stream that comes with the package: 2,000 test pictures of Fashion-MNIST."""
    with np.load(STREAM_FILE) as file:
        images, labels = fashion_mnist.to_rgb(file["pictures"]), file["labels"].astype(np.int64)
    return CleanData(images, labels, geometry)


def from_factory(
    spec: str, geometry: Geometry, class_names: Sequence[str] | None, limit: int | None = None
) -> CleanData:
    """Call a factory of one's own, which yields (images uint8 (n, H, W, 3), labels (n,)) pairs.

    They go to an unnamed file, of which a stream reads what it needs: however many there are,
    memory holds one pair at a time.

    Args:
        limit: no more than so many images are asked for; None: all, up to MOST_IMAGES.

    Raises:
        DataError: it fails, yields something else, labels that the model has no class for, or
            does not end.
    """
    try:
        with guarded(f"{spec} failed"):  # it may do anything while it yields, too
            images, labels = _spooled(spec, limit)
    except PluginError as error:
        raise DataError(str(error)) from error
    if class_names is not None and not (0 <= labels.min() <= labels.max() < len(class_names)):
        raise DataError(
            f"{spec} gave labels from {labels.min()} to {labels.max()}; the model's classes "
            f"are 0 to {len(class_names) - 1}."
        )
    return CleanData(images, labels, geometry)


def _spooled(spec: str, limit: int | None) -> tuple[Images, Labels]:
    shape: tuple[int, ...] | None = None
    labels: list[Labels] = []
    count = 0
    with tempfile.TemporaryFile() as file:
        room = shutil.disk_usage(tempfile.gettempdir()).free // 2
        for pair in call_factory(spec):
            images, its_labels = _checked(spec, pair)
            if limit is not None:
                images, its_labels = images[: limit - count], its_labels[: limit - count]
            if shape is not None and images.shape[1:] != shape:
                raise DataError(
                    f"{spec} gave images of {shape} and of {images.shape[1:]}; expected is one "
                    "size."
                )
            shape = images.shape[1:]
            file.write(np.ascontiguousarray(images).data)
            labels.append(its_labels)
            count += len(images)
            if count == limit:
                break
            if max(count, len(labels)) > MOST_IMAGES or file.tell() > room:
                raise DataError(
                    f"{spec} gave {count:,} images in {len(labels):,} pairs and has not ended; "
                    f"up to {MOST_IMAGES:,} of either are taken, and half of the free room of "
                    f"{tempfile.gettempdir()}. --limit N takes the first N."
                )
        if shape is None or count == 0:
            raise DataError(f"{spec} must yield (images uint8 (n, H, W, 3), labels (n,)) pairs.")
        file.flush()
        mapped = np.memmap(file, np.uint8, mode="r", shape=(count, *shape))
    return mapped, np.concatenate(labels)


def _checked(spec: str, pair: Any) -> tuple[Images, Labels]:
    try:
        images, given = (np.asarray(part) for part in pair)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{spec} must yield (images uint8 (n, H, W, 3), labels (n,)) pairs: {error}."
        ) from error
    if (
        images.ndim != 4
        or images.shape[3] != 3
        or 0 in images.shape[1:]
        or images.dtype != np.uint8
    ):
        raise DataError(
            f"{spec} must yield uint8 (N, H, W, 3); it gave {images.dtype} {images.shape}."
        )
    labels = np.atleast_1d(given)
    if labels.ndim != 1 or not _are_whole(labels):
        raise DataError(
            f"{spec} must yield labels (n,) of whole numbers; it gave {given.dtype} {given.shape}."
        )
    if len(images) != len(labels):
        raise DataError(f"{spec} gave {len(images):,} images but {len(labels):,} labels.")
    return images, labels.astype(np.int64)


def _are_whole(labels: NDArray[Any]) -> bool:
    if np.issubdtype(labels.dtype, np.integer):
        return True
    floating = np.issubdtype(labels.dtype, np.floating)
    return floating and bool(((np.abs(labels) < 2**53) & (labels == np.round(labels))).all())
