"""Adaptation state on disk: one safetensors file a stream, nothing in it that could be code."""

import json
import os
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ttc_core.errors import UserError
from ttc_core.methods.contract import Method, State

FORMAT = "ttc-state-1"


class StateError(UserError):
    """A state file cannot be used; the text says why."""


def save_state(path: Path, method: Method, *, name: str, model: str) -> None:
    """Write what `method` has adapted, whole or not at all.

    Args:
        name: the method's name; model: the model's spec. Both must fit when it is loaded.
    """
    tensors: dict[str, Tensor] = {}
    counters: dict[str, dict[str, int]] = {}
    for section, entries in method.state().items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{section}/{key}"] = value.detach().cpu().contiguous()
            else:
                counters.setdefault(section, {})[key] = int(value)
    header = {
        "format": FORMAT,
        "method": name,
        "model": model,
        "settings": json.dumps(dict(method.settings)),
        "counters": json.dumps(counters),
        # A section may be empty (nothing pending), and safetensors keeps tensors only.
        "sections": json.dumps(list(method.state())),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(save(tensors, metadata=header))
    os.replace(unfinished, path)


def read_header(path: Path) -> dict[str, str]:
    """Return what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except FileNotFoundError:
        raise StateError(f"There is no state file {path}.") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise StateError(f"{path} is no readable state file: {error}.") from None
    if header.get("format") != FORMAT:
        raise StateError(f"{path} is no state file of this program (format {FORMAT}).")
    return header


def describe(path: Path) -> str:
    """Say in a line what a state file holds.

    Raises:
        StateError: it is missing or no state file.
    """
    header = read_header(path)
    counters = [
        f"{name.replace('_', ' ')} {value}"
        for section in json.loads(header["counters"]).values()
        for name, value in section.items()
    ]
    return f"{header['method']} on {header['model']}; {', '.join(counters) or 'nothing moved'}"


def load_state(path: Path, method: Method, *, name: str, model: str) -> None:
    """Restore a method from a file that `save_state` wrote for the same method and model.

    Raises:
        StateError: the file is missing, damaged, or belongs to another method, model or settings.
    """
    header = read_header(path)
    expected = {
        "method": name,
        "model": model,
        "settings": json.dumps(dict(method.settings)),
    }
    for key, value in expected.items():
        if header.get(key) != value:
            raise StateError(f"{path} was saved for {key} {header.get(key)}, not {value}.")
    own = method.state()
    state: State = {section: {} for section in json.loads(header["sections"])}
    with safetensors.safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - the file is no mapping
            section, _, entry = key.partition("/")
            state.setdefault(section, {})[entry] = file.get_tensor(key)
    for section, counters in json.loads(header["counters"]).items():
        state.setdefault(section, {}).update(counters)
    for section in ("affine", "moments"):
        for key, value in own.get(section, {}).items():
            loaded = state.get(section, {}).get(key)
            if isinstance(value, Tensor) and (
                not isinstance(loaded, Tensor)
                or loaded.shape != value.shape
                or not bool(torch.isfinite(loaded).all())
            ):
                raise StateError(f"{path} does not fit the model: {section} {key}.")
    try:
        method.restore(state)
    except (KeyError, ValueError, RuntimeError) as error:
        method.reset()
        raise StateError(f"{path} is incomplete: {error}.") from None
