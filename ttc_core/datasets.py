"""Where images come from: the bundled stream, the benchmarks' files, folders, factories.

A `DataSet` opens one corruption at a time as a `Stream`, whose images are read (and, where the
data set holds clean images, corrupted by our own functions) batch by batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ttc_core.corruptions import CORRUPTIONS, corrupt
from ttc_core.errors import UserError
from ttc_core.geometry import fit, to_rgb
from ttc_core.order import order_indices
from ttc_core.plugins import call_factory
from ttc_core.zoo import fashion_mnist

STREAM_FILE = Path(__file__).parent / "zoo" / "stream.npz"
WORDNET_IDS_FILE = Path(__file__).parent / "zoo" / "imagenet_wordnet_ids.txt"
SPECS = "bundled, cifar10c:DIR, cifar100c:DIR, imagenetc:DIR, folder:DIR, package.module:factory"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
CIFAR_SEVERITIES = 5

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class DataError(UserError):
    """A data set cannot be read; the text names the file and what was expected."""


@dataclass(frozen=True)
class Geometry:
    """The size at which a model reads images; see `ttc_core.geometry.fit`."""

    size: int | None = None
    crop: int | None = None

    def apply(self, image: Image.Image) -> Images:
        """Decode and resize as the server would: (H, W, 3)."""
        return np.asarray(fit(to_rgb(image), self.size, self.crop))


@dataclass(frozen=True)
class Stream:
    """One corruption of a data set, in the order asked for.

    Attributes:
        corruption: its name, or "clean".
        severity: 1 to 5; None where the data set has but one, or for "clean".
        labels: (N,) class indices in stream order.
        positions: (N,) each image's place in the file order.
        read: gives the images (n, H, W, 3) at an array of such places.
        read_file: gives the bytes of the image file at a place; None where there are none, or
            where the images were changed after they were read.
    """

    corruption: str
    severity: int | None
    labels: Labels
    positions: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Images]
    read_file: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[Images, Labels]]:
        """Yield the images (n, H, W, 3) and labels (n,) of each batch; the last may be short."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.read(self.positions[part]), self.labels[part]


class DataSet(Protocol):
    """Images with labels, under one or more corruptions."""

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        """Open the first `limit` images of a corruption, then put them in `order`.

        Raises:
            DataError: it is not there, or a file does not fit.
            ValueError: the name, severity or order is unknown.
        """


def open_data(spec: str, geometry: Geometry, class_names: Sequence[str] | None = None) -> DataSet:
    """Find the data set that `spec` names (SPECS).

    Args:
        geometry: the model's; images come at it.
        class_names: the model's, K of them; labels must be 0 to K - 1. None: not known.

    Raises:
        DataError: the spec is unknown, what it names does not exist, or its labels do not fit.
    """
    kind, _, rest = spec.partition(":")
    if spec == "bundled":
        return CleanData(*_bundled(), geometry)
    if kind in ("cifar10c", "cifar100c") and rest:
        return CifarC(Path(rest), geometry, classes=10 if kind == "cifar10c" else 100)
    if kind == "imagenetc" and rest:
        return ImageNetC(Path(rest), geometry)
    if kind == "folder" and rest:
        return Folder(Path(rest), geometry, class_names)
    if rest and kind.isidentifier() | ("." in kind):
        images, labels = _from_factory(kind, rest)
        if class_names is not None and not (0 <= labels.min() <= labels.max() < len(class_names)):
            raise DataError(
                f"{spec} gave labels from {labels.min()} to {labels.max()}; the model's classes "
                f"are 0 to {len(class_names) - 1}."
            )
        return CleanData(images, labels, geometry)
    raise DataError(f"{spec!r} names no data; accepted are {SPECS}.")


def check_corruption(name: str) -> None:
    """Raise ValueError unless `name` is one of the fifteen or "clean"."""
    if name != "clean" and name not in CORRUPTIONS:
        raise ValueError(
            f"There is no corruption {name!r}; there are clean, {', '.join(CORRUPTIONS)}."
        )


class CleanData:
    """Clean images in memory, corrupted as they are read."""

    def __init__(self, images: Images, labels: Labels, geometry: Geometry) -> None:
        self._images, self._labels, self._geometry = images, labels, geometry

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        check_corruption(corruption)
        labels = self._labels[:limit]
        positions = order_indices(labels, order, seed=seed)

        def read(places: NDArray[np.int64]) -> Images:
            images = _fit_all(self._images[places], self._geometry)
            return _corrupt_at(images, places, corruption, severity, seed)

        known = None if corruption == "clean" else severity
        return Stream(corruption, known, labels[positions], positions, read)


class Folder:
    """Image files as DIR/<class name or index>/*, corrupted as they are read.

    A folder is named like a class of the model (case, blanks and signs do not matter), or by a
    class's index. Where the classes have no names, any folders are taken, as many as classes, and
    numbered in sorted order.
    """

    def __init__(
        self, directory: Path, geometry: Geometry, class_names: Sequence[str] | None = None
    ) -> None:
        if not directory.is_dir():
            raise DataError(f"There is no folder {directory}.")
        names = sorted(path.name for path in directory.iterdir() if path.is_dir())
        index = _class_indices(directory, names, class_names)
        self._files = [
            path
            for name in names
            for path in sorted((directory / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self._files:
            raise DataError(
                f"{directory} holds no images; expected are {directory}/<class name or index>/*."
            )
        self._labels = np.array([index[path.parent.name] for path in self._files], np.int64)
        self._geometry = geometry

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        check_corruption(corruption)
        labels = self._labels[:limit]
        positions = order_indices(labels, order, seed=seed)

        def read(places: NDArray[np.int64]) -> Images:
            images = _decode_all([self._files[place] for place in places], self._geometry)
            return _corrupt_at(images, places, corruption, severity, seed)

        clean = corruption == "clean"
        return Stream(
            corruption,
            None if clean else severity,
            labels[positions],
            positions,
            read,
            (lambda place: self._files[place].read_bytes()) if clean else None,
        )


def _class_indices(
    directory: Path, names: Sequence[str], class_names: Sequence[str] | None
) -> dict[str, int]:
    """Give each folder its class; see `Folder`."""
    numbered = all(name.isdecimal() for name in names)
    if class_names is None:
        return {name: int(name) if numbered else rank for rank, name in enumerate(names)}
    known = {_plain(name): rank for rank, name in enumerate(class_names)}
    if all(_plain(name) in known for name in names):
        return {name: known[_plain(name)] for name in names}
    if numbered and all(int(name) < len(class_names) for name in names):
        return {name: int(name) for name in names}
    unnamed = list(class_names) == [str(rank) for rank in range(len(class_names))]
    if unnamed and len(names) == len(class_names):
        return {name: rank for rank, name in enumerate(names)}
    stranger = next(name for name in names if _plain(name) not in known)
    raise DataError(
        f"{directory / stranger} is named like none of the model's {len(class_names)} classes "
        f"({', '.join(class_names[:5])}, …); name the folders so, or 0 to {len(class_names) - 1}."
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


class ImageNetC:
    """The layout of ImageNet-C: DIR/<corruption>/<severity>/<WordNet id>/*.JPEG.

    A class is the rank of its WordNet id among ImageNet's thousand, whatever folders are there.
    """

    def __init__(self, directory: Path, geometry: Geometry) -> None:
        if not directory.is_dir():
            raise DataError(f"There is no folder {directory}.")
        self._directory, self._geometry = directory, geometry
        ids = WORDNET_IDS_FILE.read_text().split()
        self._classes = {wordnet_id: rank for rank, wordnet_id in enumerate(ids)}

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        check_corruption(corruption)
        folder = self._directory / corruption / str(severity)
        if not folder.is_dir():
            raise DataError(f"{folder} is missing; expected are {folder}/<WordNet id>/*.JPEG.")
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        for name in names:
            if name not in self._classes:
                raise DataError(f"{folder / name} is none of ImageNet's 1,000 WordNet ids.")
        files = [
            path
            for name in names
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ][:limit]
        if not files:
            raise DataError(f"{folder} holds no images; expected are {folder}/<WordNet id>/*.JPEG.")
        labels = np.array([self._classes[path.parent.name] for path in files], np.int64)
        positions = order_indices(labels, order, seed=seed)

        def read(places: NDArray[np.int64]) -> Images:
            return _decode_all([files[place] for place in places], self._geometry)

        return Stream(
            corruption,
            severity,
            labels[positions],
            positions,
            read,
            lambda place: files[place].read_bytes(),
        )


class CifarC:
    """The layout of CIFAR-10-C and CIFAR-100-C: labels.npy and one <corruption>.npy each.

    R rows belong to L labels: with n = L/5 if the labels are five equal repeats, else n = L,
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
        blocks = (
            labels.reshape(CIFAR_SEVERITIES, -1) if len(labels) % CIFAR_SEVERITIES == 0 else None
        )
        repeated = blocks is not None and bool((blocks == blocks[0]).all()) and blocks.shape[1] > 1
        self._labels = np.array(blocks[0] if blocks is not None and repeated else labels, np.int64)

    def _load(self, name: str) -> NDArray[np.generic]:
        path = self._directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing; expected are labels.npy and <corruption>.npy.")
        try:
            array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is no readable .npy file: {error}.") from None
        return array

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        check_corruption(corruption)
        images = self._load(f"{corruption}.npy")
        count, path = len(self._labels), self._directory / f"{corruption}.npy"
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(
                f"{path} must hold uint8 (N, H, W, 3); it holds {images.dtype} {images.shape}."
            )
        if len(images) not in (count, CIFAR_SEVERITIES * count):
            raise DataError(
                f"{path} has {len(images):,} rows for {count:,} labels; expected are {count:,}, or "
                f"{CIFAR_SEVERITIES * count:,} for five severities."
            )
        known = severity if len(images) != count else None
        if known is not None and not 1 <= severity <= CIFAR_SEVERITIES:
            raise ValueError(f"severity must be 1 to {CIFAR_SEVERITIES}; got {severity}.")
        offset = 0 if known is None else (severity - 1) * count
        labels = self._labels[:limit]
        positions = order_indices(labels, order, seed=seed)

        def read(places: NDArray[np.int64]) -> Images:
            return _fit_all(np.asarray(images[places + offset], np.uint8), self._geometry)

        return Stream(corruption, known, labels[positions], positions, read)


def _bundled() -> tuple[Images, Labels]:
    with np.load(STREAM_FILE) as file:
        return fashion_mnist.to_rgb(file["pictures"]), file["labels"].astype(np.int64)


def _from_factory(module_name: str, function: str) -> tuple[Images, Labels]:
    """Call a factory of one's own, which yields (images uint8 (N, H, W, 3), labels) pairs."""
    spec = f"{module_name}:{function}"
    try:
        pairs = list(call_factory(spec))
    except (ValueError, TypeError) as error:
        raise DataError(str(error)) from error
    try:
        images = np.concatenate([np.asarray(images) for images, _ in pairs])
        labels = np.concatenate([np.atleast_1d(labels) for _, labels in pairs]).astype(np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{spec} must yield (images uint8 (N, H, W, 3), labels (N,)) pairs: {error}."
        ) from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{spec} must yield uint8 (N, H, W, 3); it gave {images.dtype} {images.shape}."
        )
    if len(images) != len(labels):
        raise DataError(f"{spec} gave {len(images):,} images but {len(labels):,} labels.")
    return images, labels


def _fit_all(images: Images, geometry: Geometry) -> Images:
    """Bring images (n, H, W, 3) of one size to the model's; as they are where nothing changes."""
    if len(images) == 0 or geometry.size is None:
        return images
    if images.shape[1:3] == (geometry.crop or geometry.size,) * 2:
        return images
    return np.stack([geometry.apply(Image.fromarray(image)) for image in images])


def _decode_all(files: Sequence[Path], geometry: Geometry) -> Images:
    images = []
    for path in files:
        try:
            with Image.open(path) as image:
                images.append(geometry.apply(image))
        except Exception as error:  # Pillow promises no particular types for damaged files
            raise DataError(f"{path} cannot be read as an image: {error}.") from None
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"The images differ in size ({len(shapes)} sizes) and the model resizes none; "
            "give the model a size."
        )
    return np.stack(images)


def _corrupt_at(
    images: Images, places: NDArray[np.int64], corruption: str, severity: int, seed: int
) -> Images:
    """Corrupt each image as the one at its place in the file order, whatever the order here."""
    if corruption == "clean" or len(images) == 0:
        return images
    starts = np.flatnonzero(np.diff(places, prepend=places[0] - 2) != 1)
    runs = zip(np.split(images, starts[1:]), places[starts], strict=True)
    return np.concatenate(
        [corrupt(run, corruption, severity, seed=seed, first_index=int(at)) for run, at in runs]
    )
