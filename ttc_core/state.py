"""Adaptation state on disk: one safetensors file a stream, nothing in it that could be code.

A file is written whole or not at all, and outlasts a power cut once `save_state` returns. Whatever
lies in its place is read within limits: its header is held against the method before any tensor is.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors.torch import load, save
from torch import Tensor

from ttc_core.errors import UserError, shown
from ttc_core.methods.contract import Method, State

FORMAT = "ttc-state-1"
MOST_BYTES = 1 << 30
"""A larger file is neither written nor read."""
MOST_HEADER_BYTES = 16 << 20
# Whole numbers that our own methods count with; a user's may hold any others.
COUNTS = {"steps", "pending_batches", "pending_images", "learned_batches", "images_seen"}
MOST_COUNT = 2**53
FLOATS = {"F64", "F32", "F16", "BF16"}

T = TypeVar("T")
Counters = dict[str, dict[str, bool | int | float | str | None]]


class StateError(UserError):
    """A state file cannot be used; the text says why."""


class StateUnreadable(StateError):
    """The system does not let the file be read: what is in it is not known, and may be good."""


class _Stored(BaseModel):
    """What a header says of a tensor."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class _Header:
    """The texts of a state file, and its tensors by name."""

    texts: dict[str, str]
    tensors: dict[str, _Stored]


_TENSORS = TypeAdapter(dict[str, _Stored])
_TEXTS = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))
_COUNTERS = TypeAdapter(Counters, config=ConfigDict(strict=True))
_SECTIONS = TypeAdapter(list[str], config=ConfigDict(strict=True))


def save_state(path: Path, method: Method, *, name: str, model: str) -> None:
    """Write what `method` has adapted, whole or not at all; a file that was there stays until then.

    Args:
        name: the method's name; model: the model's spec. Both must fit when it is loaded.

    Raises:
        OSError: it cannot be written; nothing is left beside the file that was there. A process
            that is killed leaves a file of this name with `.part` behind it.
        TypeError: the state holds what no state file can.
    """
    tensors: dict[str, Tensor] = {}
    counters: Counters = {}
    state = method.state()
    for section, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                # A copy: safetensors refuses tensors that share their memory.
                tensors[f"{section}/{key}"] = value.detach().cpu().contiguous().clone()
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
        "sections": json.dumps(list(state)),
    }
    data = save(tensors, metadata=header)
    if len(data) > MOST_BYTES:
        raise TypeError(f"a state has at most {MOST_BYTES:,} bytes; this one has {len(data):,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_header(path: Path) -> dict[str, str]:
    """Return what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    with _opened(path) as file:
        return _read_header(path, file).texts


def describe(path: Path) -> str:
    """Say in a line what a state file holds.

    Raises:
        StateError: it is missing or no state file.
    """
    texts = read_header(path)
    counters = [
        f"{shown(name.replace('_', ' '))} {shown(value)}"
        for section in _text(path, texts, "counters", _COUNTERS).values()
        for name, value in section.items()
    ]
    held = ", ".join(counters) or "nothing moved"
    return f"{shown(texts.get('method'))} on {shown(texts.get('model'))}; {held}"


def read_counters(path: Path, method: Method, *, name: str, model: str) -> Counters:
    """Return the numbers and texts, by section, that a file saved for this method and model holds.

    Raises:
        StateError: it is missing, no state file, or of another method, model or settings.
    """
    texts = read_header(path)
    _check_owner(path, texts, _identity(method, name, model))
    return _text(path, texts, "counters", _COUNTERS)


def load_state(path: Path, method: Method, *, name: str, model: str) -> None:
    """Restore a method from a file that `save_state` wrote for the same method and model.

    Raises:
        StateError: the file is missing, damaged, or belongs to another method, model or settings;
            the method is as it was, or at the source.
    """
    with _opened(path) as file:
        header = _read_header(path, file)
        _check_owner(path, header.texts, _identity(method, name, model))
        sections = _text(path, header.texts, "sections", _SECTIONS)
        counters = _text(path, header.texts, "counters", _COUNTERS)
        own = method.state()
        misfit = _misfit(header.tensors, own) or _miscount(header.tensors, counters, own)
        if misfit is None:
            tensors = _read_tensors(path, file)
            misfit = _bad_number(tensors, own)
    if misfit is not None:
        raise StateError(f"{shown(path)} does not fit the model: {misfit}.")
    state: State = {section: {} for section in sections}
    for key, tensor in tensors.items():
        section, entry = _split(key)
        like = _like(own, section, entry)
        state.setdefault(section, {})[entry] = tensor if like is None else tensor.to(like.dtype)
    for section, values in counters.items():
        state.setdefault(section, {}).update(values)
    try:
        method.restore(state)
    except Exception as error:  # a user's own method may raise anything
        method.reset()
        raise StateError(f"{shown(path)} is incomplete: {shown(error)}.") from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; whatever else has its name is neither waited for nor read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"There is no state file {shown(path)}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StateUnreadable(f"{shown(path)} cannot be read: {reason}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StateError(f"{shown(path)} is no readable state file: it is no regular file.")
    with open(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            reason = shown(error.strerror or error)
            raise StateUnreadable(f"{shown(path)} cannot be read: {reason}.") from None


def _read_header(path: Path, file: BinaryIO) -> _Header:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    problem = None
    if size > MOST_BYTES:
        problem = f"it has {size:,} bytes, more than the {MOST_BYTES:,} that are read"
    elif not 0 < length <= min(size - 8, MOST_HEADER_BYTES):
        problem = "it does not begin with a safetensors header"
    if problem is None:
        try:
            content: dict[str, Any] = from_json(file.read(length))
            texts = _TEXTS.validate_python(content.pop("__metadata__", {}))
            tensors = _TENSORS.validate_python(content)
        except (ValueError, AttributeError, TypeError):
            problem = "its safetensors header is damaged"
        else:
            end = max((stored.data_offsets[1] for stored in tensors.values()), default=0)
            if size != 8 + length + end:
                problem = f"it has {size:,} bytes where {8 + length + end:,} were written"
    if problem is not None:
        raise StateError(f"{shown(path)} is no readable state file: {problem}.")
    if texts.get("format") != FORMAT:
        raise StateError(f"{shown(path)} is no state file of this program (format {FORMAT}).")
    return _Header(texts, tensors)


def _read_tensors(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    file.seek(0)
    try:
        return load(file.read(MOST_BYTES))
    except Exception as error:  # whatever the library makes of a stranger's bytes
        raise StateError(f"{shown(path)} is no readable state file: {shown(error)}.") from None


def _text(path: Path, texts: Mapping[str, str], key: str, kind: TypeAdapter[T]) -> T:
    """Parse one of a header's texts."""
    try:
        return kind.validate_json(texts[key])
    except (KeyError, ValidationError):
        raise StateError(f"{shown(path)} is incomplete: it has no {key}.") from None


def _identity(method: Method, name: str, model: str) -> dict[str, str]:
    """What a state belongs to; a state of anything else is not to be taken up."""
    return {
        "method": name,
        "model": model,
        "weights": method.model.digest,
        "settings": json.dumps(dict(getattr(method, "settings", {})), default=str),
    }


def _check_owner(path: Path, texts: Mapping[str, str], identity: Mapping[str, str]) -> None:
    for key, value in identity.items():
        if texts.get(key) != value:
            difference = _difference(key, texts.get(key), value)
            raise StateError(f"{shown(path)} was saved for {difference}.")


def _difference(key: str, saved: str | None, wanted: str) -> str:
    """Say where a saved state and the method part, by the setting if it is one."""
    if key == "settings" and saved is not None:
        with contextlib.suppress(ValueError, AttributeError):
            before, now = from_json(saved), json.loads(wanted)
            for name in before.keys() | now.keys():
                if before.get(name) != now.get(name):
                    name = shown(name)
                    return f"{name}={shown(before.get(name))}, not {shown(now.get(name))}"
    return f"{key} {shown(saved)}, not {shown(wanted)}"


def _misfit(stored: Mapping[str, _Stored], own: State) -> str | None:
    """Name the first tensor that is missing, of another shape or kind than the method's, or extra.

    The network names the entries of affine and moments, and by them those of gradients and
    optimizer; what other sections hold is the method's own affair.
    """
    for section in ("affine", "moments"):
        for key, value in own.get(section, {}).items():
            if isinstance(value, Tensor) and f"{section}/{key}" not in stored:
                return f"{section} {key}"
    for key, tensor in stored.items():
        section, entry = _split(key)
        like = _like(own, section, entry)
        named_by_network = section in ("affine", "moments", "gradients", "optimizer")
        if like is None and named_by_network and "affine" in own:
            return f"{section} {entry}"
        if like is None:
            continue
        # What an optimizer counts of a parameter, its steps, is one number.
        one_number = section == "optimizer" and not tensor.shape
        shaped = one_number or not named_by_network or tensor.shape == list(like.shape)
        if not shaped or (tensor.dtype in FLOATS) != like.is_floating_point():
            return f"{section} {entry}"
    return None


def _miscount(stored: Mapping[str, _Stored], counters: Counters, own: State) -> str | None:
    """Name the first count that counts nothing."""
    for section, values in own.items():
        for key in COUNTS & values.keys():
            saved = counters.get(section, {}).get(key, 0)
            if type(saved) is not int or not 0 <= saved <= MOST_COUNT:
                return f"{section} {key} {shown(saved)}"
    pending = counters.get("counters", {}).get("pending_batches")
    if pending is not None and "gradients" in own:
        has_gradients = any(_split(key)[0] == "gradients" for key in stored)
        if bool(pending) != has_gradients:
            return f"gradients of {pending} pending batches"
    return None


def _bad_number(tensors: Mapping[str, Tensor], own: State) -> str | None:
    """Name the first tensor of the network's, or of an optimizer's, that could not have been."""
    for key, tensor in tensors.items():
        section, entry = _split(key)
        like = _like(own, section, entry)
        if like is None:
            continue
        if not like.is_floating_point() and tensor.dtype != like.dtype:
            return f"{section} {entry}"
        if section in ("affine", "moments", "gradients", "optimizer"):
            negative = section == "optimizer" and tensor.ndim == 0 and float(tensor) < 0
            if negative or not bool(torch.isfinite(tensor.to(like.dtype)).all()):
                return f"{section} {entry}"
    return None


def _like(own: State, section: str, entry: str) -> Tensor | None:
    """The method's tensor that a stored one should resemble, if one is known."""
    value = own.get(section, {}).get(entry)
    if section in ("gradients", "optimizer"):
        key, _, name = entry.rpartition(":")
        value = own.get("affine", {}).get(name) if bool(key) == (section == "optimizer") else None
    return value if isinstance(value, Tensor) else None


def _split(key: str) -> tuple[str, str]:
    section, _, entry = key.partition("/")
    return section, entry
