"""The rows that a report is made of, with the arrays that lie beside them."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ttc_core.errors import UserError
from ttc_core.files import check_regular
from ttc_core.methods import METHODS
from ttc_core.presets import SUPERVISED
from ttc_core.report.statistics import Correct
from ttc_core.rows import Row, RowsError, asked_images, read_rows, setting
from ttc_core.supervised import SupervisedSettings

# The paper's methods, in its order; others follow in the order of the rows.
METHOD_ORDER = {name: rank for rank, name in enumerate(METHODS)}
SIMULATION = "entropy_minimisation"
MOST_ARRAY_BYTES = 1 << 30


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
            if Path(self["details"]).is_absolute() or ".." in Path(self["details"]).parts:
                raise ValueError("it lies elsewhere")
            check_regular(path)
            with zipfile.ZipFile(path) as archive:
                size = sum(each.file_size for each in archive.infolist())
            if size > MOST_ARRAY_BYTES:
                raise ValueError(f"it holds {size:,} bytes; {MOST_ARRAY_BYTES:,} are read")
            # Opened here: of a damaged file np.load would leave its own handle open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            self._check_shapes(found)
        except Exception as error:  # numpy and zipfile promise no types for damaged files
            raise UserError(
                f"{path}, which lies beside a row, cannot be read ({error}); the tables and "
                "figures that need it leave that row out."
            ) from error
        return found

    def _check_shapes(self, arrays: dict[str, NDArray[Any]]) -> None:
        images = (asked_images(self.row),)
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
        if not {"predicted", "labels"} <= arrays.keys() or self.is_partial:
            return None
        labels = arrays["labels"].astype(np.int64)
        return Answers(
            right=arrays["predicted"] == labels,
            labels_digest=hashlib.sha256(labels.tobytes()).hexdigest(),
        )

    @property
    def is_partial(self) -> bool:
        """Whether images were asked about that have no answer, or the server was another midway."""
        return asked_images(self.row) > (self["images"] or 0) or bool(self["restarted"])

    @property
    def is_of_a_benchmark(self) -> bool:
        """Whether each corruption has files of its own, so that digests differ between them."""
        return str(self["data"]).partition(":")[0] in ("cifar10c", "cifar100c", "imagenetc")

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
        except RowsError as error:
            raise UserError(f"The rows cannot be read: {error}") from error
        for row in rows:
            _check(row, path)
        rows = [_printable(row) for row in rows]
        results += [Result(row, path.parent) for row in rows]
    if not results:
        raise UserError(f"There are no rows in {', '.join(map(str, paths))}.")
    return results


_KINDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    **dict.fromkeys(("data", "model", "corruption", "order", "protocol", "details"), (str,)),
    "data_digest": (str,),
    **dict.fromkeys(("batch_size", "limit", "seed", "severity", "classes"), (int,)),
    **dict.fromkeys(("after_severity", "correct", "images", "asked"), (int,)),
    "accuracy": (int, float),
    **dict.fromkeys(("settings", "versions"), (dict,)),
    **dict.fromkeys(("channels", "after"), (list,)),
    **dict.fromkeys(("refused", "errors", "dropped"), (int, dict)),
}
_COUNTED = _KINDS.keys() - {"settings", "versions"}
MOST = 2**63
"""No count is negative or as large; a setting may be any number."""


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
    elif not all(isinstance(name, str) for name in row.get("after") or []):
        problem = f"has {row['after']!r} for after"
    elif large := [name for name in _COUNTED if not _is_moderate(row.get(name))]:
        problem = f"has no possible number for {large[0]}"
    else:
        correct, images, accuracy = (row.get(n) or 0 for n in ("correct", "images", "accuracy"))
        sizes = asked_images(row) >= images and row.get("batch_size") != 0
        if sizes and (0 <= correct <= images or not images) and 0 <= accuracy <= 1:
            return
        problem = f"has {correct} right answers to {images} images, accuracy {accuracy}"
    raise UserError(
        f"The rows cannot be read: one of {path} {problem}; expected are rows as evaluate and "
        "replay write them."
    )


def _is_moderate(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_moderate, value.values()))
    return not isinstance(value, int | float) or 0 <= value < MOST


def _printable(value: Any) -> Any:
    """Without halves of characters (as of file names in other encodings), which no file takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_printable(name): _printable(each) for name, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value


def repeated(results: Sequence[Result]) -> list[str]:
    """Sentences about rows that measure the same again and found something else."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(json.dumps(setting(result.row), sort_keys=True), []).append(result)
    return [
        f"{len(same)} rows of {shown(str(first['method']))} on {first['corruption']} ask for the "
        f"same and differ in what they found (accuracy "
        f"{', '.join(telling(each['accuracy']) for each in same)}); the last whole one is shown."
        for first, *others in found.values()
        if (same := [first, *others])
        and len({json.dumps([each[name] for name in ("correct", "images")]) for each in same}) > 1
    ]


def telling(value: Any) -> str:
    """A value of a row in a few words, also where it has none."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "/".join(map(telling, value))
    return "not stated" if value is None else str(value)


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
