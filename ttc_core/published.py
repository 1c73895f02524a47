"""Networks of torchvision and timm, whose published weights say how images are prepared."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from ttc_core.checkpoint import Checkpoint, read_checkpoint
from ttc_core.errors import LoadError, told
from ttc_core.filling import filled
from ttc_core.model import SourceModel
from ttc_core.model_input import UNNAMED, Input, make_model

# These two of torchvision's read what their published weights had as an input of another scale;
# whoever goes on from those has networks that do so too. And a head beside the main one is left
# out where a file has none.
_INCEPTIONS = ("inception_v3", "googlenet")
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
    names: tuple[Sequence[str] | None, str]
    if file:
        checkpoint = read_checkpoint(Path(file))
        options: dict[str, Any] = {}
        if name in _INCEPTIONS:
            aux = any(key.lower().startswith("aux") for key in _keys(checkpoint))
            options = {"aux_logits": aux, "transform_input": True, "init_weights": False}

        def build(classes: int) -> nn.Module:
            network: nn.Module = torchvision.models.get_model(
                name, weights=None, num_classes=classes, **options
            )
            return network

        module, classes, notices = filled(name, build, checkpoint, file)
        names = (checkpoint.class_names, file)
        if names[0] is None and classes == len(published):
            names = (published, IMAGENETS)
    else:
        names = (None if wish == "none" else published, str(weights))
        try:
            module = torchvision.models.get_model(name, weights=None if wish == "none" else weights)
        except OSError as error:
            raise LoadError(
                f"The weights of {name} could not be downloaded ({error}); use ?weights=none, or "
                f"torchvision/{name}@FILE with a file of them."
            ) from None
    # Without weights the network still takes the usual input of its kind.
    transforms = weights.transforms()
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


def _keys(checkpoint: Checkpoint) -> Iterable[str]:
    return (key for weights in checkpoint.sets.values() for key in weights)


def _near(name: str, known: Iterable[str]) -> str:
    """A question for a name that is meant, to end a sentence with."""
    close = get_close_matches(name, list(known), 3, cutoff=0.6)
    return f" (is {' or '.join(close)} meant?)" if close else ""
