"""The rows that a report is made of, with the arrays that lie beside them."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.errors import UserError
from ttc_core.methods import METHODS
from ttc_core.presets import SUPERVISED
from ttc_core.rows import Row, read_rows
from ttc_core.supervised import SupervisedSettings

# The paper's methods, in its order; others follow in the order of the rows.
METHOD_ORDER = {name: rank for rank, name in enumerate(METHODS)}
SIMULATION = "entropy_minimisation"


@dataclass(frozen=True)
class Result:
    """A row, and the folder that its `details` is relative to; None where there are none."""

    row: Row
    folder: Path | None = None

    def __getitem__(self, name: str) -> Any:
        return self.row.get(name)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What lies beside the row; nothing where nothing does.

        Raises:
            UserError: the file is missing or damaged.
        """
        if self.folder is None or not self["details"]:
            return {}
        path = self.folder / str(self["details"])
        try:
            # Opened here: of a damaged file np.load would leave its own handle open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}, which lies beside a row, cannot be read ({error}); the tables that need "
                "it leave that row out."
            ) from error

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self["settings"] or {})


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Read rows files, in order.

    Raises:
        UserError: one cannot be read, or there are no rows in any.
    """
    results = []
    paths = list(paths)
    for path in paths:
        try:
            rows = read_rows(path)
        except (ValueError, OSError) as error:
            raise UserError(f"The rows cannot be read: {error}") from error
        for row in rows:
            _check(row, path)
        results += [Result(row, path.parent) for row in rows]
    if not results:
        raise UserError(f"There are no rows in {', '.join(map(str, paths))}.")
    return results


def _check(row: Row, path: Path) -> None:
    missing = [name for name in ("method", "corruption", "accuracy") if name not in row]
    counts = tuple(row.get(name) or 0 for name in ("correct", "images", "accuracy"))
    if missing:
        problem = f"has no {missing[0]!r}"
    elif not all(isinstance(count, int | float) for count in counts):
        problem = f"has {counts} for correct, images and accuracy"
    elif not (0 <= counts[0] <= counts[1] or not row.get("images")) or not 0 <= counts[2] <= 1:
        problem = f"has {counts[0]} right answers to {counts[1]} images, accuracy {counts[2]}"
    else:
        return
    raise UserError(
        f"The rows cannot be read: one of {path} {problem}; expected are rows as evaluate and "
        "replay write them."
    )


def accuracies(results: Iterable[Result]) -> list[Result]:
    """The rows that state a method's accuracy on a corruption.

    Left out are replays of which nothing was answered, and what was run for a figure alone: Figure
    1 has no accuracy, Figure 3 a reference that saw the labels.
    """
    return [
        result
        for result in results
        if result["accuracy"] is not None and not result["channels"] and result["data"]
    ]


@cache
def _defaults(method: str, classes: int) -> dict[str, Any]:
    """A method's settings where nothing is set, as a row has them."""
    declared = SupervisedSettings if method == SUPERVISED else METHODS[method].Settings  # type: ignore[attr-defined]
    return dict(json.loads(declared.create(method, classes, {}).model_dump_json()))


def differing(result: Result) -> dict[str, Any] | None:
    """The settings that are not the method's defaults; None where the defaults are not known.

    They depend on the number of classes, which old rows do not tell, and for a method of one's own
    on its code.
    """
    method, classes = result["method"], result["classes"]
    if method not in METHODS and method != SUPERVISED:
        return None
    if not isinstance(classes, int):
        return None
    usual = _defaults(method, classes) if method != "source" else {}
    return {name: value for name, value in result.settings.items() if usual.get(name) != value}


def labels(results: Sequence[Result]) -> list[str]:
    """Name the method of each row, with what tells it from the others of that name."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        text = json.dumps(result.settings, sort_keys=True)
        variants.setdefault(result["method"], {})[text] = result.settings
    return [_label(result, list(variants[result["method"]].values())) for result in results]


def _label(result: Result, variants: list[dict[str, Any]]) -> str:
    shown = differing(result)
    if shown is None:
        names = sorted({name for settings in variants for name in settings})
        several = [n for n in names if len({str(each.get(n)) for each in variants}) > 1]
        shown = {name: result.settings.get(name) for name in several}
    details = ", ".join(f"{name}={_text(value)}" for name, value in shown.items())
    return f"{result['method']} ({details})" if details else str(result["method"])


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | dict | list) else str(value)


def shown(label: str) -> str:
    """Method names in capitals, as the paper has them; their settings as they are."""
    method, _, settings = label.partition(" ")
    return f"{method.upper()} {settings}".strip() if method in METHOD_ORDER else label


def in_order(lines: Iterable[str]) -> list[str]:
    """Labels in the order of the paper, others behind."""
    return sorted(lines, key=lambda line: METHOD_ORDER.get(line.split(" ")[0], len(METHOD_ORDER)))
