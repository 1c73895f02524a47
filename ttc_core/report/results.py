"""The rows that a report is made of, with the arrays that lie beside them."""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, ValidationError, create_model

from ttc_core.calibration import COLUMNS, Terms, terms_of
from ttc_core.errors import UserError
from ttc_core.files import check_regular
from ttc_core.report.configuration import method_title
from ttc_core.report.statistics import Correct
from ttc_core.rows import Row, RowsError, as_key, asked_images, read_rows, setting

MOST_ARRAY_BYTES = 1 << 30


class ArraysError(UserError):
    """What lies beside a row is missing or damaged, or is not about it."""


@dataclass(frozen=True)
class ImageResults:
    """What came of the images that are judged, in stream order.

    Attributes:
        right: (N,) which were answered right.
        labels_digest: equal where the labels are, image by image.
        terms: (N,) what each adds to a field that is a mean over them: accuracy, ece, nll.
    """

    right: Correct
    labels_digest: str
    terms: Mapping[str, Terms]


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
            ArraysError: the file is missing or damaged, or is not about this row.
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
            raise ArraysError(
                f"{path}, which lies beside a row, cannot be read ({error}); the tables and "
                "figures that need it leave that row out."
            ) from error
        return found

    def _check_shapes(self, arrays: dict[str, NDArray[Any]]) -> None:
        images = asked_images(self.row)
        shapes: dict[str, tuple[int, ...]] = {"predicted": (images,), "labels": (images,)}
        shapes |= dict.fromkeys(COLUMNS, (images,))
        if self["channels"]:
            shapes["features"] = (images, len(self["channels"]))
        for name, values in arrays.items():
            if name.startswith("probabilities_"):
                shapes[name] = (len(values), int(name.removeprefix("probabilities_")))
            if name not in shapes:
                continue
            if values.shape != shapes[name]:
                raise ValueError(f"its {name} are {values.shape}, not those of the row")
            kinds = "iu" if name in ("predicted", "labels") else "f"
            if values.dtype.kind not in kinds or not values.size:
                raise ValueError(f"its {name} are no numbers")
            # An image without a label or an answer has none.
            if not (np.isfinite(values) | ((name in COLUMNS) & np.isnan(values))).all():
                raise ValueError(f"its {name} are no finite numbers")

    @cached_property
    def image_results(self) -> ImageResults | None:
        """What came of each image; None where that was not kept or cannot be read."""
        try:
            arrays = self.arrays()
        except ArraysError:
            return None
        if not {"predicted", "labels"} <= arrays.keys() or self.is_partial:
            return None
        labels = arrays["labels"].astype(np.int64)
        names = ("predicted", "labels", *COLUMNS)
        judged = {name: arrays[name][labels >= 0] for name in names if name in arrays}
        right = judged["predicted"] == judged["labels"]
        return ImageResults(
            right=right,
            labels_digest=hashlib.sha256(labels.tobytes()).hexdigest(),
            terms={"accuracy": right.astype(np.float64), **terms_of(judged)},
        )

    @property
    def is_partial(self) -> bool:
        """Whether images were asked about that have no answer, or the server was another midway."""
        return asked_images(self.row) > (self["images"] or 0) or bool(self["restarted"])

    @property
    def is_of_a_benchmark(self) -> bool:
        """Whether each corruption has files of its own, so that digests differ between them."""
        return str(self["data"]).partition(":")[0] in ("cifar10c", "cifar100c", "imagenetc")


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
            raise UserError(str(error)) from error
        for row in rows:
            _check(row, path)
        rows = [_printable(row) for row in rows]
        results += [Result(row, path.parent) for row in rows]
    if not results:
        raise UserError(f"There are no rows in {', '.join(map(str, paths))}.")
    return results


_Count = Annotated[int, Field(ge=0, lt=2**63)]
_KINDS: dict[Any, tuple[str, ...]] = {
    str | None: (
        *("data", "model", "order", "protocol", "mix", "unknown", "details", "data_digest"),
    ),
    _Count | None: (
        *("batch_size", "limit", "seed", "severity", "after_severity", "classes"),
        *("correct", "images", "judged", "asked", "visit"),
    ),
    dict[str, Any] | None: ("settings", "versions"),
    list[_Count] | None: ("channels",),
    list[str] | None: ("after",),
    _Count | dict[str, _Count] | None: ("refused", "errors", "dropped"),
}
_FIELDS: dict[str, Any] = {name: (kind, None) for kind, names in _KINDS.items() for name in names}
_Mean = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_FIELDS |= {
    name: (_Mean | None, None)
    for name in (
        *("ece", "nll", "utility", "availability", "timeliness", "accuracy_learning"),
        *("accuracy_frozen", "period_seconds", "budget", "spent_seconds"),
    )
}
_FIELDS |= {"alignment": (Annotated[float, Field(allow_inf_nan=False)] | None, None)}
_FIELDS |= {"method": (str, ...), "corruption": (str | None, ...), "accuracy": (float | None, ...)}
_Checked = create_model("_Checked", __config__=ConfigDict(strict=True), **_FIELDS)


def _check(row: Row, path: Path) -> None:
    """A row of another making is refused here, so that nothing later stumbles over it."""
    try:
        _Checked.model_validate(row)
    except ValidationError as error:
        first, *others = error.errors()
        name = first["loc"][0]
        types = {first["type"], *(each["type"] for each in others if each["loc"][0] == name)}
        if first["type"] == "missing":
            problem = f"has no {name!r}"
        elif types & {"greater_than_equal", "less_than"}:
            problem = f"has no possible number for {name}"
        else:
            problem = f"has {row[str(name)]!r} for {name}"
    else:
        correct, images, accuracy = (row.get(n) or 0 for n in ("correct", "images", "accuracy"))
        judged = row.get("judged")
        images = images if judged is None else min(judged, images)
        sizes = asked_images(row) >= images and row.get("batch_size") != 0
        if sizes and (correct <= images or not images) and 0 <= accuracy <= 1:
            return
        problem = f"has {correct} right answers to {images} images, accuracy {accuracy}"
    raise UserError(
        f"The rows cannot be read: one of {path} {problem}; expected are rows as evaluate and "
        "replay write them."
    )


def _printable(value: Any) -> Any:
    """Without halves of characters (as of file names in other encodings), which no file takes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_printable(name): _printable(each) for name, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list) else value


def settings(results: Iterable[Result]) -> list[Row]:
    """The setting of each row, as corruptions have it in common.

    Each corruption of a benchmark has files of its own: `data_state` stands for their digest, 0
    until they were changed, then how often.
    """
    seen: dict[str, list[str]] = {}
    found = []
    for result in results:
        told = setting(result.row)
        if result.is_of_a_benchmark and "data_digest" in told:
            digest = told.pop("data_digest")
            files = as_key([result[name] for name in ("data", "corruption", "severity", "limit")])
            known = seen.setdefault(files, [])
            if digest not in known:
                known.append(digest)
            told["data_state"] = known.index(digest)
        found.append(told)
    return found


def repeated(results: Sequence[Result]) -> list[str]:
    """Sentences about rows that measure the same again and found something else."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(as_key(setting(result.row)), []).append(result)
    problems = []
    for same in found.values():
        if len({as_key([one["correct"], one["images"]]) for one in same}) > 1:
            known = [one["accuracy"] for one in same]
            shown = ", ".join("none" if each is None else f"{each:.4g}" for each in known)
            problems.append(
                f"{len(same)} rows of {method_title(same[0]['method'])} on "
                f"{same[0]['corruption']} ask for the same and differ in what they found "
                f"(accuracy {shown}); the last whole one is shown."
            )
    return problems


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
