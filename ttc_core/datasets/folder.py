"""Image files as DIR/<class name or index>/*, corrupted as they are read."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ttc_core.datasets.files import (
    ImageFiles,
    as_sent,
    corrupt_at,
    folders,
    image_files,
)
from ttc_core.datasets.stream import DataError, DataSet, Images, Places, Shift
from ttc_core.geometry import Geometry


class Folder(DataSet):
    """A folder is a class, named like one of the model's.

    Where none is named exactly so, case, blanks and signs do not matter, if one class alone is
    named so without them. Or the folder is named by a class's index. Where the classes have no
    names, any folders are taken, as many as classes, and numbered in sorted order.
    """

    def __init__(
        self, directory: Path, geometry: Geometry, class_names: Sequence[str] | None = None
    ) -> None:
        names = folders(directory)
        index = _class_indices(directory, names, class_names)
        self._files = image_files(directory, names)
        if not self._files:
            raise DataError(
                f"{directory} holds no images; expected are {directory}/<class name or index>/*."
            )
        self._labels = np.array([index[folder] for folder, _ in self._files], np.int64)
        self._directory, self._geometry = directory, geometry

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        files = ImageFiles(self._path, self._geometry)
        if corruption == "clean":
            return as_sent(files, self._labels, None)

        def read(places: Places) -> Images:
            return corrupt_at(files.read(places), places, corruption, severity, seed)

        return Shift(severity, self._labels, read, files.original, decodes=True)

    def _path(self, place: int) -> Path:
        folder, file = self._files[place]
        return self._directory / folder / file


def _class_indices(
    directory: Path, names: Sequence[str], class_names: Sequence[str] | None
) -> dict[str, int]:
    """Give each folder its class; see `Folder`."""
    # Longer numbers are no class's, and digits may be those of any script.
    numbered = all(re.fullmatch("[0-9]{1,9}", name) for name in names)
    if class_names is None:
        return {name: int(name) if numbered else rank for rank, name in enumerate(names)}
    exactly, alike = (_ranks(form, class_names) for form in (_composed, _plain))
    alike.pop("", None)  # of signs alone
    named = {name: exactly.get(_composed(name)) or alike.get(_plain(name), []) for name in names}
    problem = _problem(named, class_names)
    if problem is None:
        return {name: ranks[0] for name, ranks in named.items()}
    if numbered and all(int(name) < len(class_names) for name in names):
        return {name: int(name) for name in names}
    unnamed = list(class_names) == [str(rank) for rank in range(len(class_names))]
    if unnamed and not numbered and len(names) == len(class_names):
        return {name: rank for rank, name in enumerate(names)}
    raise DataError(f"{directory}/{problem}.")


def _ranks(form: Callable[[str], str], class_names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(class_names):
        found.setdefault(form(name), []).append(rank)
    return found


def _problem(named: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> str | None:
    """Say which folder's name is not that of one class, or is the second of one, if any."""
    taken: dict[int, str] = {}
    last = len(class_names) - 1
    for name, ranks in named.items():
        if not ranks:
            return (
                f"{name} is named like none of the model's {len(class_names)} classes "
                f"({', '.join(class_names[:5])}, …); name the folders so, or 0 to {last}"
            )
        if len(ranks) > 1:
            listed = ", ".join(map(str, ranks[:5]))
            return f"{name} may be each of the classes {listed}; name all folders 0 to {last}"
        if (other := taken.setdefault(ranks[0], name)) != name:
            return f"{name} and {other} are named like one class; name all folders 0 to {last}"
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # file systems take letters and accents apart


def _plain(name: str) -> str:
    return "".join(sign for sign in _composed(name).casefold() if sign.isalnum())
