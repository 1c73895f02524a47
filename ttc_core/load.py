"""From a model spec to a `SourceModel`. No code is executed from a weight file.

Specs: `bundled`, `torchvision/NAME[?weights=none|DEFAULT]`, `timm/NAME`, `cifar/ARCHITECTURE@FILE`,
`package.module:factory[@FILE]`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakSet

import safetensors
import torch
from torch import nn

from ttc_core.calibration_record import SUFFIX, CalibrationRecord, RecordError
from ttc_core.checkpoint import LoadError, fill, read_checkpoint
from ttc_core.errors import PluginError, told
from ttc_core.model import Precision, SourceModel
from ttc_core.plugins import call_factory
from ttc_core.zoo import ARCHITECTURES, CIFAR10_CLASSES

BUNDLED_WEIGHTS = Path(__file__).parent / "zoo" / "weights.safetensors"
SPECS = (
    "bundled, torchvision/NAME[?weights=none|DEFAULT], timm/NAME, cifar/ARCHITECTURE@FILE, "
    "package.module:factory[@FILE]"
)


# Layers that factories made, as long as somebody has them: a model may be loaded anew while they
# answer, and other weights filled into them would answer at once.
_made: WeakSet[nn.Module] = WeakSet()


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
    precision: Precision = "float32",
    calibration: Path | None = None,
) -> SourceModel:
    """Load the model that `spec` names, frozen, onto `device`.

    Args:
        mean, std: per channel for values in [0, 1], in place of what the spec stands for.
        precision: see `SourceModel.compute_in`.
        calibration: its calibration record; None: that beside its weights, if one is there. One
            that lies there and is of no use is a notice.

    Raises:
        LoadError: an unknown spec, a file that is missing, unreadable or does not fit, a network
            that cannot be split or adapted, or not computed in this precision.
        RecordError: the record that was named cannot be read, or is another model's.
    """
    model = _loaded(spec, device, mean, std, precision)
    beside = record_beside(spec)
    if calibration is not None:
        model.calibration = CalibrationRecord.read(calibration, model)
    elif beside is not None and os.path.exists(beside):  # a name too long is none
        try:
            model.calibration = CalibrationRecord.read(beside, model)
        except RecordError as error:
            model.notices.append(f"{error} It is left out.")
    return model


def record_beside(spec: str) -> Path | None:
    """Where a model's calibration record lies; None where the spec names no file of weights."""
    file = str(BUNDLED_WEIGHTS) if spec == "bundled" else spec.partition("@")[2]
    return Path(file + SUFFIX) if file else None


def _loaded(
    spec: str,
    device: torch.device | str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    precision: Precision,
) -> SourceModel:
    try:
        return _load(spec, mean, std).to(device).compute_in(precision)
    except (LoadError, KeyboardInterrupt):
        raise
    except PluginError as error:
        raise LoadError(str(error)) from error
    except ValueError as error:
        raise LoadError(f"{spec}: {error}") from error
    except BaseException as error:  # a network of somebody's own may raise anything
        raise LoadError(f"{spec} could not be loaded: {told(error)}.") from error


def _load(spec: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> SourceModel:
    name, _, file = spec.partition("@")
    if spec == "bundled":
        return _bundled(mean, std)
    if name.startswith("cifar/"):
        return _cifar(name.removeprefix("cifar/"), file, mean, std)
    if name.startswith("torchvision/"):
        return _torchvision(spec.removeprefix("torchvision/"), mean, std)
    if name.startswith("timm/"):
        return _timm(spec.removeprefix("timm/"), mean, std)
    if ":" in name:
        return _factory(name, file, mean, std)
    raise LoadError(f"{spec!r} names no model; accepted are {SPECS}.")


def _bundled(mean: Sequence[float] | None, std: Sequence[float] | None) -> SourceModel:
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        header = file.metadata()
    class_names = json.loads(header["class_names"])
    module = ARCHITECTURES[header["architecture"]].build(len(class_names))
    fill(module, read_checkpoint(BUNDLED_WEIGHTS), BUNDLED_WEIGHTS)
    return SourceModel(
        module,
        mean=mean or json.loads(header["mean"]),
        std=std or json.loads(header["std"]),
        size=int(header["size"]),
        class_names=class_names,
        accuracy=float(header["accuracy"]),
    )


def _cifar(
    name: str, file: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> SourceModel:
    if name not in ARCHITECTURES or not file:
        raise LoadError(
            f"cifar/{name}: give cifar/ARCHITECTURE@FILE with one of {', '.join(ARCHITECTURES)}."
        )
    architecture = ARCHITECTURES[name]
    found = read_checkpoint(Path(file))
    # The AugMix checkpoints carry their normalisation as buffers of the network.
    buffers: dict[str, list[float]] = {}
    for state in found.values():
        for key in [key for key in state if key.rpartition(".")[2] in ("mu", "sigma")]:
            buffers.setdefault(key.rpartition(".")[2], state.pop(key).flatten().tolist())
    heads = (
        tensor
        for state in found.values()
        for key, tensor in state.items()
        if f".{key}".endswith(f".{architecture.head}.weight") and tensor.ndim == 2
    )
    head = next(heads, None)
    classes = 10 if head is None else len(head)
    module = architecture.build(classes)
    notices = fill(module, found, file)
    model = SourceModel(
        module,
        mean=mean or buffers.get("mu") or architecture.mean,
        std=std or buffers.get("sigma") or architecture.std,
        size=32,
        class_names=CIFAR10_CLASSES if classes == len(CIFAR10_CLASSES) else None,
    )
    model.notices.extend(notices)
    return model


def _torchvision(
    spec: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> SourceModel:
    try:
        import torchvision
    except RuntimeError as error:
        raise LoadError(
            f"torchvision does not match the installed torch ({error}); install a matching pair "
            "with pip install --upgrade torch torchvision."
        ) from None
    name, _, query = spec.partition("?")
    wish = query.removeprefix("weights=") or "DEFAULT"
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise LoadError(f"torchvision has no classification model {name!r}.")
    weights = None
    if wish != "none":
        choices = torchvision.models.get_model_weights(name)
        if wish not in (*choices.__members__, "DEFAULT"):
            names = ", ".join(choices.__members__)
            raise LoadError(f"weights={wish}: {name} has {names}, DEFAULT, or none.")
        weights = choices[wish] if wish != "DEFAULT" else choices.DEFAULT
    try:
        module = torchvision.models.get_model(name, weights=weights)
    except OSError as error:
        raise LoadError(
            f"The weights of {name} could not be downloaded ({error}); use ?weights=none or a "
            "factory with @FILE."
        ) from None
    # Without weights the network still takes the usual input of its kind.
    transforms = (weights or torchvision.models.get_model_weights(name).DEFAULT).transforms()
    return SourceModel(
        module,
        mean=mean or transforms.mean,
        std=std or transforms.std,
        size=transforms.resize_size[0],
        crop=transforms.crop_size[0],
        class_names=weights.meta["categories"] if weights else None,
    )


def _timm(name: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> SourceModel:
    try:
        import timm
    except ImportError:
        raise LoadError("timm models need the extra: pip install 'ttc-service[timm]'.") from None
    name, _, query = name.partition("?")
    try:
        module = timm.create_model(name, pretrained=query != "weights=none")
    except Exception as error:  # the hub's client has errors of its own for "no network"
        raise LoadError(f"timm/{name} could not be made: {error}.") from None
    config = timm.data.resolve_model_data_config(module)
    crop = config["input_size"][-1]
    return SourceModel(
        module,
        mean=mean or config["mean"],
        std=std or config["std"],
        size=round(crop / config["crop_pct"]),
        crop=crop,
    )


def _factory(
    name: str, file: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> SourceModel:
    made = call_factory(name)
    stated = isinstance(made, SourceModel)
    module = made.module if isinstance(made, SourceModel) else made
    if not isinstance(module, nn.Module):
        kind = type(made).__name__
        if isinstance(made, type):
            kind = f"the class {made.__name__} itself"
        raise LoadError(f"{name} must return an nn.Module or a SourceModel; it returned {kind}.")
    if stated and (mean or std):
        raise LoadError(f"{name} states its own mean and std; leave --mean and --std out.")
    if not _made.isdisjoint(module.modules()):
        raise LoadError(
            f"{name} returned layers of a network that it has returned before, and that is still "
            "in use; it must make all of them anew each time."
        )
    notices = fill(module, read_checkpoint(Path(file)), file) if file else []
    _made.update(module.modules())
    if isinstance(made, SourceModel):
        model = made
        if file:
            model.refresh()
    else:
        model = SourceModel(made, mean=mean or (0.0,) * 3, std=std or (1.0,) * 3, size=None)
    model.notices[:0] = notices
    if model.size is None and not any(model.mean) and set(model.std) == {1.0}:
        model.notices.insert(
            0, "no preprocessing is stated: images go in as they come, values in [0, 1]."
        )
    return model
