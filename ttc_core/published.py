"""Networks of torchvision and timm, whose published weights say how images are prepared."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from ttc_core.checkpoint import Checkpoint, read_checkpoint
from ttc_core.errors import LoadError, told
from ttc_core.filling import IMAGENET_CLASSES, filled
from ttc_core.model import SourceModel
from ttc_core.model_input import UNNAMED, Input, make_model

# These two of torchvision's read what their published weights had as an input of another scale;
# whoever goes on from those has networks that do so too. And a head beside the main one is left
# out where a file has none.
_INCEPTIONS = ("inception_v3", "googlenet")
_SECOND_HEADS = frozenset({"AuxLogits", "aux1"})
# Of torch, which looks for it wherever it reads a file.
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# Of a file without names: by their number, which one's own classes may have, too.
IMAGENETS = "ImageNet's, for 1,000 classes"


def torchvision_model(spec: str, file: str, stated: Input) -> SourceModel:
    try:
        import torchvision
    except RuntimeError as error:
        raise LoadError(
            f"torchvision does not match the installed torch ({error}); install a matching pair "
            "with pip install --upgrade torch torchvision."
        ) from None
    name, _, query = spec.partition("?")
    wish = query.removeprefix("weights=") or "DEFAULT"
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise LoadError(f"torchvision has no classification model {name!r}{_near(name, known)}.")
    choices = torchvision.models.get_model_weights(name)
    if wish not in (*choices.__members__, "DEFAULT", "none"):
        choice = ", ".join(choices.__members__)
        raise LoadError(f"weights={wish}: {name} has {choice}, DEFAULT, or none.")
    weights = choices.DEFAULT if wish in ("DEFAULT", "none") else choices[wish]
    notices: list[str] = []
    published = weights.meta["categories"]
    # Without weights the network still takes the usual input of its kind.
    transforms = weights.transforms()
    options = _of_one_size(name, stated.crop or stated.size or transforms.crop_size[0])

    def build(classes: int) -> nn.Module:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=classes, **options
        )
        return network

    names: tuple[Sequence[str] | None, str]
    if file:
        checkpoint = read_checkpoint(Path(file))
        if name in _INCEPTIONS:
            options |= {
                "aux_logits": _has_second_head(checkpoint),
                "transform_input": True,
                "init_weights": False,
            }
        module, classes, notices = filled(name, build, checkpoint, file)
        if name in _INCEPTIONS:
            notices.append(
                f"{name} is taken to read its input as its published weights do (transform_input); "
                "if it was trained from nothing, name a function that makes it otherwise, as "
                "package.module:factory@FILE."
            )
        names = (checkpoint.class_names, file)
        if names[0] is None and classes == len(published):
            names = (published, IMAGENETS)
    elif wish == "none":
        module, names = build(IMAGENET_CLASSES), (None, str(weights))
    else:
        names = (published, str(weights))
        try:
            with _no_code():
                module = torchvision.models.get_model(name, weights=weights)
        except OSError as error:
            raise LoadError(
                f"The weights of {name} could not be downloaded ({error}); use ?weights=none, or "
                f"torchvision/{name}@FILE with a file of them."
            ) from None
    usual = Input(
        transforms.mean,
        transforms.std,
        transforms.resize_size[0],
        transforms.crop_size[0],
        transforms.interpolation.value,
    )
    model = make_model(module, usual, f"torchvision's {weights}", stated, names=names)
    model.notices[:0] = notices
    return model


def timm_model(spec: str, file: str, stated: Input) -> SourceModel:
    try:
        import timm
    except ImportError:
        raise LoadError("timm models need the extra: pip install 'ttc-service[timm]'.") from None
    name, _, query = spec.partition("?")
    architecture = name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        raise LoadError(f"timm has no model {name!r}{_near(architecture, timm.list_models())}.")
    if query not in ("", "weights=none"):
        raise LoadError(f"timm/{name}?{query}: behind the ? weights=none is accepted.")
    notices: list[str] = []
    names: tuple[Sequence[str] | None, str] = (None, UNNAMED)
    if file:

        def build(classes: int) -> nn.Module:
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
            return network

        checkpoint = read_checkpoint(Path(file))
        module, _, notices = filled(name, build, checkpoint, file)
        names = (checkpoint.class_names, file)
    else:
        try:
            module = timm.create_model(name, pretrained=query != "weights=none")
        except Exception as error:  # the hub's client has errors of its own for "no network"
            raise LoadError(
                f"timm/{name} could not be made: {told(error)}. Where it cannot be downloaded, "
                f"timm/{name}@FILE reads a file of its weights."
            ) from None
    config = timm.data.resolve_model_data_config(module)
    _, height, width = config["input_size"]
    if height != width:
        raise LoadError(
            f"timm/{name} reads images of {width} × {height} pixels; square ones are served."
        )
    # As timm.data.transforms_imagenet_eval has it.
    size, crop = int(height / config["crop_pct"]), height
    mode = config["crop_mode"]
    if mode == "squash" and size == crop:
        usual_size: tuple[int, int | None] = (size, None)
    else:
        usual_size = (max(size, crop), crop)
        if mode != "center":
            notices.append(
                f"timm prepares images for it by {mode!r}, and here their middle is cut out; "
                "--size without --crop resizes all of an image."
            )
    usual = Input(config["mean"], config["std"], *usual_size, config["interpolation"])
    tag = getattr(module, "pretrained_cfg", {}).get("tag")
    origin = f"timm's {name.partition('.')[0]}{f'.{tag}' if tag else ''}"
    model = make_model(module, usual, origin, stated, names=names)
    model.notices[:0] = notices
    return model


def _of_one_size(name: str, side: int) -> dict[str, Any]:
    """What has torchvision make a network for images of this side, where it is made for one."""
    if name.startswith("vit_"):
        return {"image_size": side}
    return {"input_size": (side, side)} if name.startswith("maxvit_") else {}


def _has_second_head(checkpoint: Checkpoint) -> bool:
    """Whether a file of an Inception has the head that is of use in training alone."""
    return any(
        not _SECOND_HEADS.isdisjoint(key.split("."))
        for weights in checkpoint.sets.values()
        for key in weights
    )


@contextlib.contextmanager
def _no_code() -> Iterator[None]:
    """Have torchvision, which reads what it downloads as a pickle of anything, read weights."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before


def _near(name: str, known: Iterable[str]) -> str:
    """A question for a name that is meant, to end a sentence with."""
    close = get_close_matches(name, list(known), 3, cutoff=0.6)
    return f" (is {' or '.join(close)} meant?)" if close else ""
