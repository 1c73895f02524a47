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
    counters: dict[str, dict[str, int | float | str | None]] = {}
    for section, entries in method.state().items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{section}/{key}"] = value.detach().cpu().contiguous()
            elif value is None or isinstance(value, int | float | str):
                counters.setdefault(section, {})[key] = value
            else:
                raise TypeError(
                    f"a state holds tensors, numbers, texts and None; {section} {key} is "
                    f"{type(value).__name__}"
                )
    header = {
        "format": FORMAT,
        **_identity(method, name, model),
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
    for key, value in _identity(method, name, model).items():
        if header.get(key) != value:
            raise StateError(f"{path} was saved for {_difference(key, header.get(key), value)}.")
    try:
        state: State = {section: {} for section in json.loads(header["sections"])}
        counters_by_section = json.loads(header["counters"])
    except (KeyError, ValueError) as error:
        raise StateError(f"{path} is incomplete: {error}.") from None
    with safetensors.safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - the file is no mapping
            section, _, entry = key.partition("/")
            state.setdefault(section, {})[entry] = file.get_tensor(key)
    for section, counters in counters_by_section.items():
        state.setdefault(section, {}).update(counters)
    misfit = _misfit(state, method.state())
    if misfit is not None:
        raise StateError(f"{path} does not fit the model: {misfit}.")
    try:
        method.restore(state)
    except (KeyError, ValueError, RuntimeError) as error:
        method.reset()
        raise StateError(f"{path} is incomplete: {error}.") from None


def _identity(method: Method, name: str, model: str) -> dict[str, str]:
    """What a state belongs to; a state of anything else is not to be taken up."""
    return {
        "method": name,
        "model": model,
        "weights": method.model.digest,
        "settings": json.dumps(dict(getattr(method, "settings", {}))),
    }


def _difference(key: str, saved: str | None, wanted: str) -> str:
    """Say where a saved state and the method part, by the setting if it is one."""
    if key == "settings" and saved is not None:
        before, now = json.loads(saved), json.loads(wanted)
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                return f"{name}={before.get(name)}, not {now.get(name)}"
    return f"{key} {saved}, not {wanted}"


def _misfit(state: State, own: State) -> str | None:
    """Name the first tensor that is missing, not finite or of another shape than the method's."""
    for section in ("affine", "moments"):
        for key, value in own.get(section, {}).items():
            if isinstance(value, Tensor) and not _fits(state.get(section, {}).get(key), value):
                return f"{section} {key}"
    # What the optimizer keeps of a parameter has its shape, but for counters of steps.
    for section in ("gradients", "optimizer"):
        for key, value in state.get(section, {}).items():
            like = own.get("affine", {}).get(key.rpartition(":")[2])
            if like is not None and value.ndim > 0 and not _fits(value, like):
                return f"{section} {key}"
    return None


def _fits(loaded: object, like: Tensor) -> bool:
    return (
        isinstance(loaded, Tensor)
        and loaded.shape == like.shape
        and bool(torch.isfinite(loaded).all())
    )
