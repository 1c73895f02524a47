"""The rows that a report is made of, with the arrays that lie beside them."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.errors import UserError
from ttc_core.methods import METHODS
from ttc_core.presets import SUPERVISED
from ttc_core.report.statistics import Correct
from ttc_core.rows import Row, read_rows
from ttc_core.supervised import SupervisedSettings

# The paper's methods, in its order; others follow in the order of the rows.
METHOD_ORDER = {name: rank for rank, name in enumerate(METHODS)}
SIMULATION = "entropy_minimisation"


@dataclass(frozen=True)
class Answers:
    """Which images were answered right, in stream order.

    Attributes:
        right: (N,).
        labels_digest: equal where the labels are, image by image.
    """

    right: Correct
    labels_digest: str


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
            UserError: the file is missing or damaged, or is not about this row.
        """
        if self.folder is None or not self["details"]:
            return {}
        path = self.folder / str(self["details"])
        try:
            # Opened here: of a damaged file np.load would leave its own handle open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            self._check_shapes(found)
        except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}, which lies beside a row, cannot be read ({error}); the tables and "
                "figures that need it leave that row out."
            ) from error
        return found

    def _check_shapes(self, arrays: dict[str, NDArray[Any]]) -> None:
        images = (self["images"],)
        shapes: dict[str, tuple[int | None, ...]] = {"predicted": images, "labels": images}
        if self["channels"]:
            shapes["features"] = (*images, len(self["channels"]))
        for name in arrays:
            if name.startswith("probabilities_"):
                shapes[name] = (None, int(name.removeprefix("probabilities_")))
        for name, shape in shapes.items():
            if name not in arrays:
                continue
            seen = arrays[name].shape
            if len(seen) != len(shape) or any(
                wanted not in (None, size) for wanted, size in zip(shape, seen, strict=True)
            ):
                raise ValueError(f"its {name} are {seen}, not those of the row")
            if name in ("predicted", "labels"):
                fit = arrays[name].dtype.kind in "iu"
            else:
                fit = arrays[name].dtype.kind == "f" and bool(np.isfinite(arrays[name]).all())
            if not fit or not arrays[name].size:
                raise ValueError(f"its {name} are no finite numbers")

    @cached_property
    def answers(self) -> Answers | None:
        """What came of each image; None where that was not kept or cannot be read."""
        try:
            arrays = self.arrays()
        except UserError:
            return None
        if not {"predicted", "labels"} <= arrays.keys():
            return None
        labels = arrays["labels"].astype(np.int64)
        return Answers(
            right=arrays["predicted"] == labels,
            labels_digest=hashlib.sha256(labels.tobytes()).hexdigest(),
        )

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


_KINDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    **dict.fromkeys(("data", "model", "corruption", "order", "protocol", "details"), (str,)),
    **dict.fromkeys(("batch_size", "limit", "seed", "severity", "classes"), (int,)),
    **dict.fromkeys(("correct", "images"), (int,)),
    "accuracy": (int, float),
    **dict.fromkeys(("settings", "versions"), (dict,)),
    "channels": (list,),
}


def _check(row: Row, path: Path) -> None:
    """A row of another making is refused here, so that nothing later stumbles over it."""
    missing = [name for name in ("method", "corruption", "accuracy") if name not in row]
    odd = [
        name
        for name, kinds in _KINDS.items()
        if not isinstance(row.get(name), kinds) and (row.get(name) is not None or name == "method")
    ]
    if missing:
        problem = f"has no {missing[0]!r}"
    elif odd:
        problem = f"has {row[odd[0]]!r} for {odd[0]}"
    elif not all(type(channel) is int for channel in row.get("channels") or []):
        problem = f"has {row['channels']!r} for channels"
    else:
        correct, images, accuracy = (row.get(n) or 0 for n in ("correct", "images", "accuracy"))
        if (0 <= correct <= images or not images) and 0 <= accuracy <= 1:
            return
        problem = f"has {correct} right answers to {images} images, accuracy {accuracy}"
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
