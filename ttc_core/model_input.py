"""How images are prepared for a model: as somebody says, else as its weights or its kind do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ttc_core.errors import LoadError
from ttc_core.interpolation import Interpolation
from ttc_core.model import Origins, SourceModel

PLAIN = ((0.0,) * 3, (1.0,) * 3)
UNSTATED = "not stated"
UNNAMED = "none are stated"


@dataclass(frozen=True)
class Input:
    """What is said of a model's input; None: nothing.

    Attributes:
        mean, std: per channel, for values in [0, 1].
        size, crop, interpolation: see `SourceModel`.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | None = None
    crop: int | None = None
    interpolation: Interpolation | None = None


def make_model(
    module: nn.Module,
    usual: Input,
    origin: str,
    stated: Input,
    *,
    names: tuple[Sequence[str] | None, str] = (None, UNNAMED),
    **how: Any,
) -> SourceModel:
    """Make the model whose input is as stated, else as usual.

    Args:
        origin: where the usual comes from, to show.
        names: of the classes, if they are known, and where they come from. Not their number: they
            are left out then, with a notice.
    """
    size, crop = usual.size, usual.crop
    flags = [f"--{name}" for name in ("size", "crop") if getattr(stated, name) is not None]
    if stated.size is not None:
        size, crop = stated.size, stated.crop
        if crop is not None and crop > size:
            raise LoadError(
                f"--crop {crop} is above --size {size}, the shorter side before it is cut."
            )
    elif stated.crop is not None:
        crop = stated.crop
        if size is None or crop > size:
            raise LoadError(
                f"--crop {crop} goes with --size, the shorter side before it is cut: "
                f"{'none is stated otherwise' if size is None else f'it is {size} otherwise'}."
            )
    mean, std = stated.mean or usual.mean, stated.std or usual.std
    assert mean is not None
    assert std is not None
    model = SourceModel(
        module,
        mean=mean,
        std=std,
        size=size,
        crop=crop,
        interpolation=stated.interpolation or usual.interpolation or "bilinear",
        **how,
    )
    moments = [f"--{name}" for name in ("mean", "std") if getattr(stated, name) is not None]
    others = [origin] if len(moments) < 2 else []
    model.origins = Origins(
        geometry=" and ".join(flags) or origin,
        interpolation="--interpolation" if stated.interpolation else origin,
        normalisation=" and ".join(moments + others),
        class_names=UNNAMED,
    )
    if origin == UNSTATED and moments == ["--mean"]:
        model.notices.append("--mean is said without --std: nothing is divided by a deviation.")
    if origin == UNSTATED and moments == ["--std"]:
        model.notices.append("--std is said without --mean: no mean is taken off.")
    given, whose = names
    if given is not None and len(given) == model.classes:
        model.name_classes(given, whose)
    elif given is not None:
        model.notices.append(
            f"{whose} names {len(given):,} classes, and the network has {model.classes:,}: the "
            "names are left out; --class-names gives others."
        )
    return model
