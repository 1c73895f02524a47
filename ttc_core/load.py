"""From a model spec to a `SourceModel`. No code is executed from a weight file.

Specs: `bundled`, `torchvision/NAME[?weights=none|NAME][@FILE]`, `timm/NAME[@FILE]`,
`cifar/ARCHITECTURE@FILE`, `package.module:factory[@FILE]`; `torchscript@FILE` and `export@FILE`,
whose files are code and therefore have to be trusted in so many words.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from ttc_core.calibration_record import SUFFIX, CalibrationRecord, RecordError
from ttc_core.checkpoint import Checkpoint, class_counts, fill, read_checkpoint
from ttc_core.class_names import first_double, read_class_names
from ttc_core.errors import LoadError, PluginError, told
from ttc_core.interpolation import Interpolation
from ttc_core.model import Origins, Precision, SourceModel
from ttc_core.plugins import call_factory
from ttc_core.programs import HEAD, open_program
from ttc_core.zoo import ARCHITECTURES, CIFAR10_CLASSES

BUNDLED_WEIGHTS = Path(__file__).parent / "zoo" / "weights.safetensors"
SPECS = (
    "bundled, torchvision/NAME[?weights=none|NAME][@FILE], timm/NAME[@FILE], "
    "cifar/ARCHITECTURE@FILE, package.module:factory[@FILE], torchscript@FILE, export@FILE"
)
# A network of so many classes is made to see which of its weights are the head's: nothing else in
# one has as many rows.
ODD = 1013
# These two of torchvision's read what their published weights had as an input of another scale;
# whoever goes on from those has networks that do so too. And a head beside the main one is left
# out where a file has none.
_INCEPTIONS = ("inception_v3", "googlenet")
_IMAGENET_CLASSES = 1000
_PLAIN = ((0.0,) * 3, (1.0,) * 3)
_UNSTATED = "not stated"
_FILE = "the file"
_UNNAMED = "none are stated"
# Of a file without names: by their number, which one's own classes may have, too.
_IMAGENETS, _CIFARS = "ImageNet's, for 1,000 classes", "CIFAR-10's, for ten classes"


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


at_work: ContextVar[nn.Module | None] = ContextVar("at_work", default=None)
"""The network that answers while another is loaded: weights that were filled into its layers would
answer at once. Whoever loads beside threads that answer sets it."""


def pick_device(name: str) -> torch.device:
    """Return the device for `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        LoadError: it is not there, or no device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LoadError(f"{name!r} is no device; accepted are auto, cpu, cuda, cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise LoadError(f"There is no device {name}; torch sees {count} CUDA devices here.")
    if device.type not in ("cpu", "cuda"):
        raise LoadError(f"{name!r} is not served; accepted are auto, cpu, cuda, cuda:N.")
    return device


def load(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    crop: int | None = None,
    interpolation: Interpolation | None = None,
    class_names: Path | None = None,
    precision: Precision = "float32",
    calibration: Path | None = None,
    trust_code: bool = False,
) -> SourceModel:
    """Load the model that `spec` names, frozen, onto `device`.

    Args:
        mean, std: per channel for values in [0, 1], in place of what the spec stands for.
        size, crop, interpolation: likewise, see `SourceModel`; a size without a crop goes without
            the spec's, too.
        class_names: a file of the classes' names, see `class_names.read_class_names`.
        precision: see `SourceModel.compute_in`.
        calibration: its calibration record; None: that beside its weights, if one is there. One
            that lies there and is of no use is a notice.
        trust_code: open files that hold code, of TorchScript and torch.export.

    Raises:
        LoadError: an unknown spec, a file that is missing, unreadable, not trusted or does not fit,
            a network that cannot be split or adapted, or not computed in this precision.
        RecordError: the record that was named cannot be read, or is another model's.
    """
    stated = Input(mean, std, size, crop, interpolation)
    model = _loaded(spec, stated, torch.device(device), precision, trust_code)
    if class_names is not None:
        model.name_classes(read_class_names(class_names, model.classes), str(class_names))
    model.notices += _doubtful_names(model, str(class_names or "") or spec.partition("@")[2])
    beside = record_beside(spec)
    if calibration is not None:
        model.calibration = CalibrationRecord.read(calibration, model)
    elif beside is not None and os.path.exists(beside):  # a name too long is none
        try:
            model.calibration = CalibrationRecord.read(beside, model)
        except RecordError as error:
            model.notices.append(f"{error} It is left out.")
    return model


def _doubtful_names(model: SourceModel, file: str) -> Iterable[str]:
    """What to beware of in a model's names. Published lists have doubles: ImageNet's two cranes."""
    origin = model.origins.class_names
    if origin in (_IMAGENETS, _CIFARS):
        yield f"{file} names no classes: they are called as {origin}; --class-names gives others."
    elif file and (double := first_double(model.class_names)):
        yield f"{file}: {double}, so that their answers look alike."


def record_beside(spec: str) -> Path | None:
    """Where a model's calibration record lies; None where the spec names no file of weights."""
    file = str(BUNDLED_WEIGHTS) if spec == "bundled" else spec.partition("@")[2]
    return Path(file + SUFFIX) if file else None


def _loaded(
    spec: str, stated: Input, device: torch.device, precision: Precision, trust_code: bool
) -> SourceModel:
    try:
        model = _load(spec, stated, device, trust_code)
        return model.to(device).compute_in(precision)
    except (LoadError, KeyboardInterrupt):
        raise
    except PluginError as error:
        raise LoadError(str(error)) from error
    except ValueError as error:
        raise LoadError(f"{spec}: {error}") from error
    except BaseException as error:  # a network of somebody's own may raise anything
        raise LoadError(f"{spec} could not be loaded: {told(error)}.") from error


def _load(spec: str, stated: Input, device: torch.device, trust_code: bool) -> SourceModel:
    name, at, file = spec.partition("@")
    if at and not file:
        raise LoadError(f"{spec!r} names no file behind the @; accepted are {SPECS}.")
    if spec == "bundled":
        return _bundled(stated)
    if name.startswith("cifar/"):
        return _cifar(name.removeprefix("cifar/"), file, stated)
    if name.startswith("torchvision/"):
        return _torchvision(name.removeprefix("torchvision/"), file, stated)
    if name.startswith("timm/"):
        return _timm(name.removeprefix("timm/"), file, stated)
    if name in ("torchscript", "export") and file:
        return _program(name, file, stated, device, trust_code)
    if ":" in name:
        return _factory(name, file, stated)
    if os.path.isfile(spec):
        raise LoadError(
            f"{spec!r} is a file, which does not tell its network: name that, too, as in "
            f"torchvision/resnet18@{spec}. Accepted are {SPECS}."
        )
    raise LoadError(f"{spec!r} names no model; accepted are {SPECS}.")


def _made(
    module: nn.Module,
    usual: Input,
    origin: str,
    stated: Input,
    *,
    names: tuple[Sequence[str] | None, str] = (None, _UNNAMED),
    **how: Any,
) -> SourceModel:
    """The model whose input is as stated, else as usual.

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
        class_names=_UNNAMED,
    )
    if origin == _UNSTATED and moments == ["--mean"]:
        model.notices.append("--mean is said without --std: nothing is divided by a deviation.")
    if origin == _UNSTATED and moments == ["--std"]:
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


def _bundled(stated: Input) -> SourceModel:
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        header = file.metadata()
    checkpoint = read_checkpoint(BUNDLED_WEIGHTS)
    assert checkpoint.class_names is not None
    module = ARCHITECTURES[header["architecture"]].build(len(checkpoint.class_names))
    fill(module, checkpoint.sets, BUNDLED_WEIGHTS)
    usual = Input(json.loads(header["mean"]), json.loads(header["std"]), int(header["size"]))
    return _made(
        module,
        usual,
        _FILE,
        stated,
        names=(checkpoint.class_names, _FILE),
        accuracy=float(header["accuracy"]),
    )


def _cifar(name: str, file: str, stated: Input) -> SourceModel:
    if name not in ARCHITECTURES or not file:
        raise LoadError(
            f"cifar/{name}: give cifar/ARCHITECTURE@FILE with one of {', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]
    checkpoint = read_checkpoint(Path(file))
    # The AugMix checkpoints carry their normalisation as buffers of the network.
    buffers: dict[str, list[float]] = {}
    for state in checkpoint.sets.values():
        for key in [key for key in state if key.rpartition(".")[2] in ("mu", "sigma")]:
            buffers.setdefault(key.rpartition(".")[2], state.pop(key).flatten().tolist())
    module, classes, notices = _filled(f"cifar/{name}", architecture.build, checkpoint, file)
    names = (checkpoint.class_names, file)
    if names[0] is None and classes == len(CIFAR10_CLASSES):
        names = (CIFAR10_CLASSES, _CIFARS)
    usual = Input(
        buffers.get("mu") or architecture.mean, buffers.get("sigma") or architecture.std, 32
    )
    origin = _FILE if buffers else f"what cifar/{name} is trained with"
    model = _made(module, usual, origin, stated, names=names)
    model.notices[:0] = notices
    return model


def _torchvision(spec: str, file: str, stated: Input) -> SourceModel:
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

        module, classes, notices = _filled(name, build, checkpoint, file)
        names = (checkpoint.class_names, file)
        if names[0] is None and classes == len(published):
            names = (published, _IMAGENETS)
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
    model = _made(module, usual, f"torchvision's {weights}", stated, names=names)
    model.notices[:0] = notices
    return model


def _timm(spec: str, file: str, stated: Input) -> SourceModel:
    try:
        import timm
    except ImportError:
        raise LoadError("timm models need the extra: pip install 'ttc-service[timm]'.") from None
    name, _, query = spec.partition("?")
    architecture = name.partition(".")[0]
    if ":" not in name and not timm.is_model(architecture):
        raise LoadError(f"timm has no model {name!r}{_near(architecture, timm.list_models())}.")
    notices: list[str] = []
    names: tuple[Sequence[str] | None, str] = (None, _UNNAMED)
    if file:

        def build(classes: int) -> nn.Module:
            network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
            return network

        checkpoint = read_checkpoint(Path(file))
        module, _, notices = _filled(name, build, checkpoint, file)
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
    model = _made(module, usual, origin, stated, names=names)
    model.notices[:0] = notices
    return model


def _filled(
    name: str, build: Callable[[int], nn.Module], checkpoint: Checkpoint, file: str
) -> tuple[nn.Module, int, list[str]]:
    """The network with as many classes as the file has, filled from it; and what is to be said.

    Args:
        build: makes the network, of so many classes.

    Raises:
        LoadError: the file has none that fits, or several with other numbers of classes, as
            distilling leaves them: which of them is meant cannot be told.
    """
    try:
        with torch.device("meta"):  # where nothing is drawn at random, nor takes memory
            sample = build(ODD)
    except Exception:  # some compute as they are made
        sample = build(ODD)
    heads = [
        key
        for key, tensor in sample.state_dict().items()
        if tensor.ndim >= 2 and len(tensor) == ODD
    ]
    counts = class_counts(sample.state_dict(), ODD, checkpoint.sets)
    if len(set(counts.values())) > 1:
        several = ", ".join(f"{place} has {count:,}" for place, count in counts.items())
        raise LoadError(
            f"{file} holds networks that fit {name} and differ in their classes: {several}. Save "
            "the weights that are to be served alone, with torch.save or as safetensors."
        )
    found = next(iter(counts.values()), None) or checkpoint.classes(heads)
    classes = found or _IMAGENET_CLASSES
    module = build(classes)
    try:
        return module, classes, fill(module, checkpoint.sets, file)
    except LoadError as error:
        if found is not None:
            raise LoadError(f"{str(error).rstrip('.')}. It was filled as {name}.") from None
        raise LoadError(
            f"{str(error).rstrip('.')}. {name} has its head in {' and '.join(heads)}, by whose "
            "rows classes are counted, and the file has none of them: with a head of one's own, "
            "name a function that makes the network, as package.module:factory@FILE."
        ) from None


def _keys(checkpoint: Checkpoint) -> Iterable[str]:
    return (key for weights in checkpoint.sets.values() for key in weights)


def _near(name: str, known: Iterable[str]) -> str:
    """A question for a name that is meant, to end a sentence with."""
    close = get_close_matches(name, list(known), 3, cutoff=0.6)
    return f" (is {' or '.join(close)} meant?)" if close else ""


def _program(
    kind: str, file: str, stated: Input, device: torch.device, trust_code: bool
) -> SourceModel:
    if not trust_code:
        raise LoadError(
            f"{kind}@{file}: such a file holds code, which runs with your rights as soon as it is "
            "opened or asked. If you trust whoever made it, say --trust-code (TTC_TRUST_CODE=on). "
            "Weights alone hold none, and adapt: torch.save(model.state_dict(), 'weights.pt')."
        )
    program = open_program(kind, Path(file), device)
    model = _made(
        program,
        Input(*_PLAIN, program.side),
        _UNSTATED,
        stated,
        split=HEAD,
        adaptable=False,
    )
    if stated.mean is None and stated.std is None:
        model.notices.append(
            "no mean and deviation are stated: it reads values in [0, 1]; --mean and --std say "
            "otherwise."
        )
    model.notices.insert(
        0,
        f"a {'TorchScript' if kind == 'torchscript' else 'torch.export'} program cannot adapt, as "
        "its layers are out of reach: it is served frozen, by the method source. A state dict "
        "adapts, as torchvision/NAME@FILE, timm/NAME@FILE or package.module:factory@FILE.",
    )
    return model


def _factory(name: str, file: str, stated: Input) -> SourceModel:
    made = call_factory(name)
    module = made.module if isinstance(made, SourceModel) else made
    if not isinstance(module, nn.Module):
        kind = type(made).__name__
        if isinstance(made, type):
            kind = f"the class {made.__name__} itself"
        raise LoadError(f"{name} must return an nn.Module or a SourceModel; it returned {kind}.")
    if isinstance(made, SourceModel) and stated != Input():
        said = [f"--{each}" for each, value in vars(stated).items() if value is not None]
        raise LoadError(f"{name} states its own input; leave {' and '.join(said)} out.")
    served = at_work.get()
    if served is not None and not {*served.modules()}.isdisjoint(module.modules()):
        raise LoadError(
            f"{name} returned layers of the network that answers now; it must make all of them "
            "anew each time."
        )
    checkpoint = read_checkpoint(Path(file)) if file else Checkpoint({})
    notices = fill(module, checkpoint.sets, file) if file else []
    if isinstance(made, SourceModel):
        model = made
        if file:
            model.refresh()
    else:
        names = (checkpoint.class_names, file)
        model = _made(module, Input(*_PLAIN), _UNSTATED, stated, names=names)
    model.notices[:0] = notices
    if model.size is None and not any(model.mean) and set(model.std) == {1.0}:
        model.notices.insert(
            0, "no preprocessing is stated: images go in as they come, values in [0, 1]."
        )
    return model
