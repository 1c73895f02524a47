"""From a model spec to a `SourceModel`. No code is executed from a weight file.

Specs: `bundled`, `torchvision/NAME[?weights=none|NAME][@FILE]`, `timm/NAME[@FILE]`,
`cifar/ARCHITECTURE@FILE`, `package.module:factory[@FILE]`; `torchscript@FILE` and `export@FILE`,
whose files are code and therefore have to be trusted in so many words.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path

import safetensors
import torch
from torch import nn

from ttc_core.calibration_record import SUFFIX, CalibrationRecord, RecordError
from ttc_core.checkpoint import Checkpoint, read_checkpoint
from ttc_core.class_names import first_double, read_class_names
from ttc_core.errors import LoadError, PluginError, told
from ttc_core.filling import fill, filled
from ttc_core.interpolation import Interpolation
from ttc_core.model import Precision, SourceModel
from ttc_core.model_input import PLAIN, UNSTATED, Input, make_model
from ttc_core.plugins import call_factory
from ttc_core.programs import HEAD, open_program
from ttc_core.published import IMAGENETS, timm_model, torchvision_model
from ttc_core.zoo import ARCHITECTURES, CIFAR10_CLASSES

BUNDLED_WEIGHTS = Path(__file__).parent / "zoo" / "weights.safetensors"
SPECS = (
    "bundled, torchvision/NAME[?weights=none|NAME][@FILE], timm/NAME[@FILE], "
    "cifar/ARCHITECTURE@FILE, package.module:factory[@FILE], torchscript@FILE, export@FILE"
)
_FILE = "the file"
# Of a file without names, as IMAGENETS.
_CIFARS = "CIFAR-10's, for ten classes"

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
    if origin in (IMAGENETS, _CIFARS):
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
    if file.startswith("~/") and not os.path.exists(file):
        raise LoadError(
            f"The file {file} is not there: shells put the home folder for ~ at the beginning of a "
            "word alone. Write it out, or as $HOME."
        )
    if spec == "bundled":
        return _bundled(stated)
    if name.startswith("cifar/"):
        return _cifar(name.removeprefix("cifar/"), file, stated)
    if name.startswith("torchvision/"):
        return torchvision_model(name.removeprefix("torchvision/"), file, stated)
    if name.startswith("timm/"):
        return timm_model(name.removeprefix("timm/"), file, stated)
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


def _bundled(stated: Input) -> SourceModel:
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        header = file.metadata()
    checkpoint = read_checkpoint(BUNDLED_WEIGHTS)
    assert checkpoint.class_names is not None
    module = ARCHITECTURES[header["architecture"]].build(len(checkpoint.class_names))
    fill(module, checkpoint.sets, BUNDLED_WEIGHTS)
    usual = Input(json.loads(header["mean"]), json.loads(header["std"]), int(header["size"]))
    return make_model(
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
    module, classes, notices = filled(f"cifar/{name}", architecture.build, checkpoint, file)
    names = (checkpoint.class_names, file)
    if names[0] is None and classes == len(CIFAR10_CLASSES):
        names = (CIFAR10_CLASSES, _CIFARS)
    usual = Input(
        buffers.get("mu") or architecture.mean, buffers.get("sigma") or architecture.std, 32
    )
    origin = _FILE if buffers else f"what cifar/{name} is trained with"
    model = make_model(module, usual, origin, stated, names=names)
    model.notices[:0] = notices
    return model


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
    model = make_model(
        program,
        Input(*PLAIN, program.side),
        UNSTATED,
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
        model = make_model(module, Input(*PLAIN), UNSTATED, stated, names=names)
    model.notices[:0] = notices
    if model.size is None and not any(model.mean) and set(model.std) == {1.0}:
        model.notices.insert(
            0, "no preprocessing is stated: images go in as they come, values in [0, 1]."
        )
    return model
