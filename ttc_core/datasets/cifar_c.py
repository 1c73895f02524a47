"""The layout of CIFAR-10-C and CIFAR-100-C: labels.npy and one <corruption>.npy each."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ttc_core.datasets.stream import DataError, DataSet, Images, Places, Shift
from ttc_core.geometry import Geometry

SEVERITIES = 5


class CifarC(DataSet):
    """R rows belong to L labels; with n = L/5 if the labels are five equal repeats, else n = L.

    R = 5n holds the severities 1 to 5 in blocks and R = n a single, unnamed one. Files are
    memory-mapped, never loaded whole.
    """

    def __init__(self, directory: Path, geometry: Geometry, *, classes: int) -> None:
        self._directory, self._geometry = directory, geometry
        labels = self._load("labels.npy")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
            raise DataError(f"{directory}/labels.npy must hold whole numbers (N,).")
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"{directory}/labels.npy holds labels from {labels.min()} to {labels.max()}; "
                f"expected are 0 to {classes - 1}."
            )
        blocks = labels.reshape(SEVERITIES, -1) if len(labels) % SEVERITIES == 0 else None
        repeated = blocks is not None and bool((blocks == blocks[0]).all()) and blocks.shape[1] > 1
        self._labels = np.array(blocks[0] if blocks is not None and repeated else labels, np.int64)

    def _load(self, name: str) -> NDArray[np.generic]:
        path = self._directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing; expected are labels.npy and <corruption>.npy.")
        try:
            # Not np.load, which takes archives and pickles for arrays, too.
            array: NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # numpy promises no particular types for damaged files
            raise DataError(f"{path} is no readable .npy file: {error}.") from None
        return array

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        images = self._load(f"{corruption}.npy")
        count, path = len(self._labels), self._directory / f"{corruption}.npy"
        if (
            images.ndim != 4
            or images.shape[3] != 3
            or 0 in images.shape
            or images.dtype != np.uint8
        ):
            raise DataError(
                f"{path} must hold uint8 (N, H, W, 3); it holds {images.dtype} {images.shape}."
            )
        if len(images) not in (count, SEVERITIES * count):
            raise DataError(
                f"{path} has {len(images):,} rows for {count:,} labels; expected are {count:,}, or "
                f"{SEVERITIES * count:,} for five severities."
            )
        known = severity if len(images) != count else None
        if known is not None and not 1 <= severity <= SEVERITIES:
            raise ValueError(f"severity must be 1 to {SEVERITIES}; got {severity}.")
        offset = 0 if known is None else (severity - 1) * count

        def read(places: Places) -> Images:
            return self._geometry.apply_all(np.asarray(images[places + offset], np.uint8))

        return Shift(known, self._labels, read, lambda place: images[place + offset].tobytes())
