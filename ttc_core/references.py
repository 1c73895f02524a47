"""What the methods' answers are held against: SOURCE's to the same images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.evaluate import is_reference
from ttc_core.rows import Row, Rows, same_images


class References:
    """Which images SOURCE answered right, of the rows that were made and of earlier ones.

    Args:
        rows: in which earlier ones are.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._right: dict[str, NDArray[np.float64]] = {}

    def differences(
        self, row: Row, columns: Mapping[str, NDArray[Any]], *, is_reference: bool
    ) -> Row:
        """The fields of a row that say how much its accuracy is above SOURCE's.

        Args:
            row: of the pass, as far as it tells which images it was over.
            columns: predicted and labels, (N,) each.
            is_reference: these are SOURCE's own answers, for the rows to come.

        Returns:
            source_difference, and source_difference_error: the standard error of the mean over the
            images, paired. None where SOURCE did not answer them.
        """
        key, right = same_images(row), _right(columns)
        if is_reference:
            self._right[key] = right
            return _differences(right, None)
        if key not in self._right:
            self._right |= _earlier(self._rows, key)
        return _differences(right, self._right.get(key))


def _right(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Of each judged image whether the answer was right, 1 or 0."""
    judged = columns["labels"] >= 0
    return np.asarray((columns["predicted"] == columns["labels"])[judged], np.float64)


def _earlier(rows: Rows, key: str) -> dict[str, NDArray[np.float64]]:
    """SOURCE's answers to the same images, by key, if they lie beside an earlier row."""
    for row in rows:
        if is_reference(row["method"], row["settings"]) and same_images(row) == key:
            columns = rows.arrays(row) or {}
            if {"predicted", "labels"} <= columns.keys():
                return {key: _right(columns)}
    return {}


def _differences(
    right: NDArray[np.float64], reference: NDArray[np.float64] | None
) -> dict[str, float | None]:
    if reference is None or reference.shape != right.shape or len(right) < 2:
        return {"source_difference": None, "source_difference_error": None}
    paired = right - reference
    error = float(paired.std(ddof=1)) / len(paired) ** 0.5
    return {"source_difference": float(paired.mean()), "source_difference_error": error}
