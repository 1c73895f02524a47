"""The hyperparameters that methods share, each once, with bounds. METHOD §4 names them."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ttc_core.accepted import accepted, field_at, what_is
from ttc_core.methods.parts.statistics import STATISTICS

Checked = TypeVar("Checked", bound=BaseModel)


def _known(statistics: str) -> str:
    if statistics not in STATISTICS:
        raise ValueError(f"accepted are {', '.join(map(repr, STATISTICS))}")
    return statistics


StatisticsSource = Annotated[str, AfterValidator(_known)]
CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
# From this many classes on, a data set's defaults are the paper's for CIFAR-100 and for ImageNet.
CIFAR100_CLASSES, IMAGENET_CLASSES = 100, 1000
# What torch computes with is in single precision.
LARGEST = 3e38
# Ten times the usual learning rate costs up to 36 points, three times it 4 (docs/default.md).
FAR = 10
USUAL_MOMENTUM = 0.9
# Beyond these a value is accepted, and does harm.
MOST_FLOOR, MOST_DECAY = 0.2, 0.1


class MethodSettings(BaseModel):
    """Hyperparameters of a method: frozen, checked, nothing unknown accepted."""

    model_config = CONFIG

    @field_validator("*")
    @classmethod
    def _not_immense(cls, value: Any) -> Any:
        if isinstance(value, float) and value > LARGEST:
            raise ValueError(f"it should be at most {LARGEST:g}")
        return value

    @classmethod
    def create(cls, method: str, classes: int, given: dict[str, Any]) -> Self:
        """Check what was given and fill in the defaults for this number of classes.

        Raises:
            ValueError: a name is unknown or a value out of range; the sentence names it.
        """
        return checked(method, cls, cls.defaults(classes, given) | given)

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        """Defaults that depend on the data set (by its classes) or on other settings."""
        return {}

    def far_off(self, classes: int) -> Iterator[str]:
        """Say of each value that is accepted, and so far off that it does harm, what is usual."""
        yield from ()


class MovingSettings(BaseModel):
    """How fast moving statistics follow the stream (METHOD §1.8)."""

    model_config = CONFIG

    warm_start: int = Field(16, ge=1, description="images the source's statistics are worth")
    floor: float = Field(0.001, ge=0, le=1, description="least weight of a new image")


class StatisticsSettings(MethodSettings):
    """Where BatchNorm layers take their statistics from."""

    statistics: StatisticsSource = Field("batch", description="batch (the paper), source, moving")
    moving: MovingSettings = Field(default_factory=MovingSettings)

    @property
    def prior_images(self) -> int:
        """How many images the source's statistics are worth beside a batch's own."""
        return 0

    def far_off(self, classes: int) -> Iterator[str]:
        yield from super().far_off(classes)
        if self.statistics == "moving" and self.moving.floor > MOST_FLOOR:
            yield (
                f"moving.floor={self.moving.floor:g} has single images outweigh the stream; usual "
                "is 0.0001 to 0.05"
            )


# Numbers of batches are added to it, and torch takes 64 bits.
LARGEST_SEED = 2**63 - 2**32


def none_as_text(value: Any) -> Any:
    """None as a shell or JSON writes it."""
    return None if isinstance(value, str) and value.lower() in ("none", "null") else value


def _split_pair(value: Any) -> Any:
    """The text of a pair, as a shell, JSON or Python writes it, becomes its parts."""
    return re.findall(r"[^\s,()\[\]]+", value) if isinstance(value, str) else value


Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], BeforeValidator(_split_pair)]


class OptimizerSettings(MethodSettings):
    """How the affine parameters move. Adam 1e-3 for CIFAR, SGD 2.5e-4 for ImageNet (METHOD §1)."""

    optimizer: Literal["adam", "sgd"] = Field("adam", description="what moves scales and shifts")
    lr: float = Field(1e-3, gt=0, description="learning rate of a step")
    momentum: float = Field(USUAL_MOMENTUM, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(False, description="of SGD")
    betas: Betas = Field((0.9, 0.999), description="of Adam")
    eps: float = Field(1e-8, gt=0, description="of Adam")
    weight_decay: float = Field(0.0, ge=0, description="draws scales and shifts towards 0")

    @classmethod
    def defaults(cls, classes: int, given: dict[str, Any]) -> dict[str, Any]:
        optimizer = given.get("optimizer", "sgd" if classes >= IMAGENET_CLASSES else "adam")
        return {"optimizer": optimizer, "lr": 2.5e-4 if optimizer == "sgd" else 1e-3}

    def far_off(self, classes: int) -> Iterator[str]:
        yield from super().far_off(classes)
        usual, named = (
            self.defaults(classes, {"optimizer": self.optimizer})["lr"],
            f"lr={self.lr:g}",
        )
        times = self.lr / usual
        if self.optimizer == "sgd":  # steps in one direction add up to 1 / (1 - momentum) of one
            times *= (1 - USUAL_MOMENTUM) / (1 - self.optimizer_momentum)
            named += f" with a momentum of {self.optimizer_momentum:g}"
        if times >= FAR:
            yield (
                f"{named} makes steps {times:,.0f} times as long as usual, by which learning does "
                f"harm; usual is lr={usual / 10:g} to {3 * usual:g}"
            )
        if self.weight_decay > MOST_DECAY:
            yield (
                f"weight_decay={self.weight_decay:g} draws scales towards 0, whatever is seen; "
                "usual is 0 to 0.01"
            )

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.optimizer == "sgd" and self.nesterov and self.optimizer_momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0")
        return self

    @property
    def optimizer_momentum(self) -> float:
        """SGD's momentum; ETA has a `momentum` of its own and calls it otherwise."""
        return self.momentum


class AffineSettings(OptimizerSettings, StatisticsSettings):
    """Of methods that move scales and shifts, over statistics of one's choice."""


def checked(whose: str, kind: type[Checked], given: Mapping[str, Any]) -> Checked:
    """Settings as they were given, with the defaults of the others.

    Raises:
        ValueError: a name is unknown or a value out of range; a sentence names each.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        found = (_sentence(whose, kind, each) for each in error.errors())
        raise ValueError(" ".join(found)) from None


def _sentence(method: str, settings: type[BaseModel], error: Mapping[str, Any]) -> str:
    """Say a thing that is wrong with what was given."""
    field = field_at(settings, error["loc"])
    if field is None and not error["loc"]:  # values that do not go together
        return f"{method}: {what_is(error, '')}."
    name = ".".join((method, *map(str, error["loc"])))
    if field is None or error["type"] == "extra_forbidden":
        known = ", ".join(settings.model_fields) or "none"
        return f"{name} is not a setting of {method}; its settings are: {known}."
    return f"{name}={error['input']!r} is not accepted: {what_is(error, accepted(field))}."
