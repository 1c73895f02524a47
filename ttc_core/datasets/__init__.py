"""Where images come from: the bundled stream, the benchmarks' files, folders, factories.

A `DataSet` opens one corruption at a time as a `Stream`, whose images are read (and, where the
data set holds clean images, corrupted by our own functions) batch by batch.
"""

from collections.abc import Sequence
from pathlib import Path

from ttc_core.datasets.cifar_c import CifarC
from ttc_core.datasets.clean import STREAM_FILE, CleanData, bundled, from_factory
from ttc_core.datasets.conditions import changing, day_night, mixed_in, parse_mix
from ttc_core.datasets.folder import Folder
from ttc_core.datasets.imagenet_c import WORDNET_IDS_FILE, ImageNetC
from ttc_core.datasets.stream import DataError, DataSet, Images, Labels, Stream, check_corruption
from ttc_core.geometry import Geometry

__all__ = [
    "SPECS",
    "STREAM_FILE",
    "WORDNET_IDS_FILE",
    "CifarC",
    "CleanData",
    "DataError",
    "DataSet",
    "Folder",
    "Geometry",
    "ImageNetC",
    "Images",
    "Labels",
    "Stream",
    "changing",
    "check_corruption",
    "check_there",
    "day_night",
    "mixed_in",
    "open_data",
    "parse_mix",
]

SPECS = "bundled, cifar10c:DIR, cifar100c:DIR, imagenetc:DIR, folder:DIR, package.module:factory"
_FOLDERS = ("cifar10c", "cifar100c", "imagenetc", "folder")
_CLASSES = {"bundled": 10, "cifar10c": 10, "cifar100c": 100, "imagenetc": 1000}


def check_there(spec: str) -> None:
    """Let pass data that may be opened, by a glance: before a model is loaded, or code imported.

    Raises:
        DataError: the spec is unknown, or names a folder that is not there.
    """
    kind, _, rest = spec.partition(":")
    if spec != "bundled" and not rest:
        raise DataError(f"{spec!r} names no data; accepted are {SPECS}.")
    try:
        if kind in _FOLDERS and not Path(rest).is_dir():
            raise DataError(f"There is no folder {rest}.")
    except OSError as error:
        raise DataError(f"{spec} cannot be read: {error.strerror}.") from error


def open_data(
    spec: str,
    geometry: Geometry,
    class_names: Sequence[str] | None = None,
    *,
    limit: int | None = None,
) -> DataSet:
    """Find the data set that `spec` names (SPECS).

    Args:
        geometry: the model's; images come at it.
        class_names: the model's, K of them; labels must be 0 to K - 1. None: not known.
        limit: no more images are asked of a factory.

    Raises:
        DataError: the spec is unknown, what it names does not exist, or its labels do not fit.
    """
    check_there(spec)
    kind, _, rest = spec.partition(":")
    expected = _CLASSES.get(kind)
    if expected is not None and class_names is not None and len(class_names) != expected:
        raise DataError(
            f"{kind} has {expected:,} classes and the model {len(class_names):,}; expected is a "
            "model trained for these classes."
        )
    try:
        return _opened(spec, kind, rest, geometry, class_names, limit)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise DataError(f"{spec} cannot be read: {error.strerror}.") from error


def _opened(
    spec: str,
    kind: str,
    rest: str,
    geometry: Geometry,
    class_names: Sequence[str] | None,
    limit: int | None,
) -> DataSet:
    if spec == "bundled":
        return bundled(geometry)
    if kind in ("cifar10c", "cifar100c"):
        return CifarC(Path(rest), geometry, classes=_CLASSES[kind])
    if kind == "imagenetc":
        return ImageNetC(Path(rest), geometry)
    if kind == "folder":
        return Folder(Path(rest), geometry, class_names)
    return from_factory(spec, geometry, class_names, limit)
