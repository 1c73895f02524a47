"""The hyperparameters that methods share, each once, with bounds. METHOD §4 names them."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
)

StatisticsSource = Literal["batch", "source", "moving"]
CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
# From this many classes on, the paper's ImageNet settings are the defaults.
IMAGENET_CLASSES = 1000


class MethodSettings(BaseModel):
    """Hyperparameters of a method: frozen, checked, nothing unknown accepted."""

    model_config = CONFIG

    @classmethod
    def create(cls, method: str, classes: int, given: dict[str, Any]) -> Self:
        """Check what was given and fill in the defaults for this number of classes.

        Raises:
            ValueError: a name is unknown or a value out of range; the sentence names it.
        """
        try:
            return cls(**(cls.defaults(classes, given) | given))
        except ValidationError as error:
            raise ValueError(_sentence(method, cls, error)) from None

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        """Defaults that depend on the data set (by its classes) or on other settings."""
        return {}


class MovingSettings(BaseModel):
    """How fast moving statistics follow the stream (METHOD §1.8)."""

    model_config = CONFIG

    warm_start: int = Field(16, ge=1, description="images the source's statistics are worth")
    floor: float = Field(0.001, ge=0, le=1, description="least weight of a new image")


class StatisticsSettings(MethodSettings):
    """Where BatchNorm layers take their statistics from."""

    statistics: StatisticsSource = Field("batch", description="batch (the paper), source, moving")
    moving: MovingSettings = Field(default_factory=MovingSettings)


def _split_pair(value: Any) -> Any:
    """The text of a pair, as a shell, JSON or Python writes it, becomes its parts."""
    return re.findall(r"[^\s,()\[\]]+", value) if isinstance(value, str) else value


Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], BeforeValidator(_split_pair)]


class OptimizerSettings(StatisticsSettings):
    """How the affine parameters move. Adam 1e-3 for CIFAR, SGD 2.5e-4 for ImageNet (METHOD §1)."""

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(False, description="of SGD")
    betas: Betas = Field((0.9, 0.999), description="of Adam")
    eps: float = Field(1e-8, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0)

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        optimizer = given.get("optimizer", "sgd" if classes >= IMAGENET_CLASSES else "adam")
        return {"optimizer": optimizer, "lr": 2.5e-4 if optimizer == "sgd" else 1e-3}


class SourceSettings(MethodSettings):
    """SOURCE has none."""


class NormSettings(StatisticsSettings):
    """NORM (METHOD §1.2)."""

    source_images: NonNegativeInt = Field(
        0, description="images the source's statistics are worth beside a batch (n_s)"
    )
    flip: bool = Field(False, description="average the answer with the mirrored image's")


class TentSettings(OptimizerSettings):
    """TENT (METHOD §1.3)."""

    flip: bool = Field(False, description="average the answer with the mirrored image's")


Augmentation = Literal[
    "horizontal_flip", "vertical_flip", "rotation", "resized_crop", "gaussian_noise"
]


class TTCSettings(OptimizerSettings):
    """TTC and its switches (METHOD §1.7 and §2). All four parts off is TENT."""

    rla: bool = Field(True, description="average the two views (robust label assignment)")
    spc: bool = Field(True, description="similarity-preserving constraint")
    ss: bool = Field(True, description="learn from the confident images only (sample selection)")
    ga: bool = Field(True, description="accumulate gradients over several batches")
    augmentation: Augmentation = Field("horizontal_flip", description="what makes the second view")
    sigma: float = Field(1.0, gt=0, description="width of SPC's kernel, in units of the features")
    samples_per_step: int = Field(200, ge=1, description="images between two optimizer steps")
    mean_over: Literal["selected", "batch"] = Field("selected", description="the loss's divisor")
    accumulate_mean: bool = Field(False, description="average gradients over Q, not sum them")
    counter_start: int = Field(1, ge=0, le=1, description="0: the first batch steps at once")
    flush_at_end: bool = Field(False, description="step on what is pending when a stream ends")
    average: Literal["logits", "probabilities"] = Field("logits", description="what RLA averages")
    spc_on: Literal["logits", "probabilities"] = Field("logits", description="what SPC compares")
    kappa_detach: bool = Field(False, description="no gradient through SPC's kernel")
    views: Literal["separate", "concatenated"] = Field(
        "separate", description="two forward passes, or one of both views (statistics=batch)"
    )
    seed: NonNegativeInt = Field(0, description="of the random augmentations")


def _sentence(method: str, settings: type[BaseModel], error: ValidationError) -> str:
    """Say the first thing that is wrong with what was given."""
    first = error.errors()[0]
    name = ".".join((method, *map(str, first["loc"])))
    if first["type"] == "extra_forbidden":
        known = ", ".join(settings.model_fields) or "none"
        return f"{name} is not a setting of {method}; its settings are: {known}."
    return f"{name}={first['input']!r} is not accepted: {first['msg']}."
