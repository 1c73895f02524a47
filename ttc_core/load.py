"""From a model spec to a `SourceModel`. No code is executed from a weight file.

Specs: `bundled`, `torchvision/NAME[?weights=none|DEFAULT]`, `timm/NAME`, `cifar/ARCHITECTURE@FILE`,
`package.module:factory[@FILE]`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ttc_core.errors import UserError
from ttc_core.model import SourceModel
from ttc_core.plugins import call_factory
from ttc_core.zoo import ARCHITECTURES, CIFAR10_CLASSES

BUNDLED_WEIGHTS = Path(__file__).parent / "zoo" / "weights.safetensors"
SPECS = (
    "bundled, torchvision/NAME[?weights=none|DEFAULT], timm/NAME, cifar/ARCHITECTURE@FILE, "
    "package.module:factory[@FILE]"
)
# Where training scripts put the state dict inside their checkpoint files.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "net", "model")
PREFIXES = ("module.", "model.")


class LoadError(UserError):
    """A model could not be loaded; the text says why and what is accepted."""


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
) -> SourceModel:
    """Load the model that `spec` names, frozen, onto `device`.

    Args:
        mean, std: per channel for values in [0, 1], in place of what the spec stands for.

    Raises:
        LoadError: an unknown spec, a file that is missing, unreadable or does not fit, a network
            that cannot be split or adapted.
    """
    try:
        model = _load(spec, mean, std)
    except LoadError:
        raise
    except ValueError as error:
        raise LoadError(f"{spec}: {error}") from error
    return model.to(device)


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


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights from a safetensors or torch file, bare or inside a training checkpoint.

    The names come without the prefixes that training scripts put in front (PREFIXES).

    Raises:
        LoadError: the file is missing, unreadable, holds code, or no tensors by name.
    """
    if not path.is_file():
        raise LoadError(f"There is no weight file {path}.")
    if path.suffix == ".safetensors":
        try:
            return {_strip(name): tensor for name, tensor in load_file(path).items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise LoadError(f"{path} is no readable safetensors file: {error}.") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(
            f"{path} is no torch file of plain tensors ({reason}). Files that hold code are not "
            "opened; save the state dict with torch.save or as safetensors."
        ) from None
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise LoadError(f"{path} holds no state dict (tensors by name).")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise LoadError(f"{path} holds no state dict: {others[0]!r} is not a tensor.")
    return {_strip(str(name)): tensor for name, tensor in content.items()}


def _strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.removeprefix("module.").removeprefix("model.")
    return name


def _fill(module: nn.Module, state: Mapping[str, Tensor], origin: object) -> None:
    """Load a state dict, naming every key that is missing, left over or of another shape."""
    # A network's own names may begin with what was taken off the file's.
    own = {_strip(name): name for name in module.state_dict()}
    expected = {_strip(name): tensor for name, tensor in module.state_dict().items()}
    wanted = {name for name in expected if not name.endswith("num_batches_tracked")}
    given = {name for name in state if not name.endswith("num_batches_tracked")}
    problems = [f"missing {own[name]}" for name in sorted(wanted - given)]
    problems += [f"left over {name}" for name in sorted(given - wanted)]
    problems += [
        f"{own[name]} has shape {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(wanted & given)
        if state[name].shape != expected[name].shape
    ]
    if problems:
        raise LoadError(f"{origin} does not fit the network: {'; '.join(problems)}.")
    module.load_state_dict({own[name]: state[name] for name in given}, strict=False)


def _bundled(mean: Sequence[float] | None, std: Sequence[float] | None) -> SourceModel:
    with safetensors.safe_open(BUNDLED_WEIGHTS, framework="pt") as file:
        header = file.metadata()
    class_names = json.loads(header["class_names"])
    module = ARCHITECTURES[header["architecture"]].build(len(class_names))
    _fill(module, read_state_dict(BUNDLED_WEIGHTS), BUNDLED_WEIGHTS)
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
    state = read_state_dict(Path(file))
    # The AugMix checkpoints carry their normalisation as buffers of the network.
    buffers = {key: state.pop(key).flatten().tolist() for key in ("mu", "sigma") if key in state}
    head = state.get(f"{architecture.head}.weight")
    classes = len(head) if head is not None and head.ndim == 2 else 10
    module = architecture.build(classes)
    _fill(module, state, file)
    return SourceModel(
        module,
        mean=mean or buffers.get("mu") or architecture.mean,
        std=std or buffers.get("sigma") or architecture.std,
        size=32,
        class_names=CIFAR10_CLASSES if classes == len(CIFAR10_CLASSES) else None,
    )


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
    if isinstance(made, SourceModel):
        if file:
            _fill(made.module, read_state_dict(Path(file)), file)
        if mean or std:
            raise LoadError(f"{name} states its own mean and std; leave --mean and --std out.")
        return made
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise LoadError(f"{name} must return an nn.Module or a SourceModel; it returned {kind}.")
    if file:
        _fill(made, read_state_dict(Path(file)), file)
    return SourceModel(made, mean=mean or (0.0,) * 3, std=std or (1.0,) * 3, size=None)


def states_no_preprocessing(spec: str, model: SourceModel) -> bool:
    """Whether the model takes plain values in [0, 1] only because nothing else was said."""
    return ":" in spec and model.size is None and not any(model.mean) and set(model.std) == {1.0}
