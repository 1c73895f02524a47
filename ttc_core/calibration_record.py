"""A model's calibration record: how sure it was of held-out images, and how often right.

`ttc calibrate` writes one, a small JSON file beside the model's weights. Its temperature is what
the default tells its probabilities with (`methods/parts/temperature.py`).
Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ttc_core.calibration import BINS
from ttc_core.errors import UserError, shown
from ttc_core.files import check_regular, written_whole

if TYPE_CHECKING:
    from ttc_core.model import SourceModel

SUFFIX = ".calibration.json"
MOST_BYTES = 1 << 16
# What a temperature may be; a network that is right on all images would have it at 0.
COLDEST, HOTTEST = 0.1, 10.0
# Fewer labelled images say little of a temperature.
FEWEST_IMAGES = 100
HALVINGS = 40
# Numbers at a time, of the logits.
AT_ONCE = 1 << 22

Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=1, le=2**53)]


class RecordError(UserError):
    """A calibration record cannot be made, or not be used; the text says why."""


class Bin(BaseModel):
    """Held-out images of about one confidence, and its mean and accuracy over them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: Count
    confidence: Share
    accuracy: Share


class CalibrationRecord(BaseModel):
    """What a frozen network answered to images it was not trained on, one view each.

    Attributes:
        model: as it was named.
        model_digest: of the weights and preprocessing that it is the record of.
        data: the images, as they were named; `data_digest` tells them apart.
        confidence: the mean of the highest probabilities.
        temperature: what logits are to be divided by, so that the true classes are likeliest.
        bins: of equal mass, by rising confidence.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    format: Literal["ttc-calibration-1"] = "ttc-calibration-1"
    model: Text
    model_digest: Text
    data: Text
    data_digest: Text
    images: Annotated[Count, Field(ge=FEWEST_IMAGES)]
    accuracy: Share
    confidence: Share
    temperature: float = Field(ge=COLDEST, le=HOTTEST)
    bins: list[Bin] = Field(min_length=1, max_length=BINS)

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: Tensor,
        *,
        model: str,
        model_digest: str,
        data: str,
        data_digest: str,
    ) -> Self:
        """The record of a network's logits (N, K) on N images; the label -1 leaves one out.

        Raises:
            RecordError: fewer than FEWEST_IMAGES have a label, or a logit is no finite number.
        """
        logits, labels = logits[labels >= 0].float(), labels[labels >= 0]
        if len(labels) < FEWEST_IMAGES:
            raise RecordError(
                f"A calibration record takes {FEWEST_IMAGES} labelled images or more; there are "
                f"{len(labels)}."
            )
        if not logits.isfinite().all():
            raise RecordError("The scores for some of the images are not finite numbers.")
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        right = (predicted == labels).float()
        bins = confidence.argsort(stable=True).tensor_split(BINS)
        return cls(
            model=shown(model),
            model_digest=model_digest,
            data=shown(data),
            data_digest=data_digest,
            images=len(labels),
            accuracy=_rounded(right.mean()),
            confidence=_rounded(confidence.mean()),
            temperature=round(fitted_temperature(logits, labels), 4),
            bins=[
                Bin(
                    images=len(each),
                    confidence=_rounded(confidence[each].mean()),
                    accuracy=_rounded(right[each].mean()),
                )
                for each in bins
            ],
        )

    @classmethod
    def read(cls, path: Path, model: "SourceModel") -> Self:
        """Read the record of a model.

        Raises:
            RecordError: it is missing, unreadable, too large, no record, or another model's.
        """
        try:
            check_regular(path)
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
        if len(content) > MOST_BYTES:
            raise RecordError(f"{path} is no calibration record: it has over {MOST_BYTES:,} bytes.")
        try:
            record = cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise RecordError(
                f"{path} is no calibration record ({shown(reason)}); ttc calibrate writes one."
            ) from None
        if record.model_digest != model.digest:
            raise RecordError(
                f"{path} is of other weights or another preprocessing ({shown(record.model)}, "
                f"{shown(record.model_digest)}) than the model's ({model.digest}); ttc calibrate "
                "writes its own."
            )
        return record

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; raises OSError where that cannot be."""
        with written_whole(path) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T, COLDEST to HOTTEST, at which softmax(logits / T) makes labels likeliest.

    The negative log-likelihood is convex in 1 / T: bisection finds where its slope is 0.

    Args:
        logits: (N, K), finite.
        labels: (N,) class indices.
    """
    low, high = COLDEST, HOTTEST
    rows = max(1, AT_ONCE // logits.shape[1])
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        slope = 0.0
        for scores, classes in zip(
            *(torch.split(each, rows) for each in (logits, labels)), strict=True
        ):
            wide = scores.double()
            expected = ((wide / middle).softmax(dim=1) * wide).sum(dim=1)
            slope += float((expected - wide.gather(1, classes[:, None])[:, 0]).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.sqrt(low * high)


def measured(
    model: "SourceModel", batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The frozen network's logits (N, K) on batches of images (n, 3, H, W), and the labels (N,)."""
    logits, labels = [], []
    with torch.no_grad():
        for images, given in batches:
            inputs = model.normalize(model.to_unit(images))
            logits.append(model.run(inputs).logits.float().cpu())
            labels.append(given)
    return torch.cat(logits), torch.cat(labels)


def _rounded(value: Tensor) -> float:
    return round(float(value), 4)
