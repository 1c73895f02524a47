"""Adaptation state on disk: one safetensors file a stream, nothing in it that could be code.

A file is written whole or not at all, and outlasts a power cut once `save_state` returns. Whatever
lies in its place is read within limits: its header is held against the method before any tensor is.
What would not be read again is not written.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic_core import from_json
from torch import Tensor

from ttc_core.envelope.limits import OutsideEnvelopeError
from ttc_core.errors import shown
from ttc_core.flat import NamedTensors, tensor_bytes
from ttc_core.methods.contract import AROUND, Method, State
from ttc_core.normalization import shared_parameters
from ttc_core.state_file import (
    COUNTERS,
    FORMAT,
    FORMER_FORMAT,
    MOST_BYTES,
    MOST_HEADER_BYTES,
    SECTIONS,
    Counters,
    Form,
    StateError,
    StateOfAnother,
    StateOutside,
    kept_beside,
    opened,
    parsed,
    read_forms,
    read_tensors,
    read_texts,
)
from ttc_core.state_fit import bad_number, like_of, miscount, misfit, split_key

# Of a setting that is an object: no other process can have the same.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")
# As safetensors calls them.
DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}


def save_state(path: Path, method: Method, **of: Any) -> str:
    """Write what `method` has adapted, whole or not at all; a file that was there stays until then.

    Args:
        as for `encoded`.

    Returns:
        The file's SHA-256, in hex digits.

    Raises:
        OSError: it cannot be written; nothing is left beside the file that was there. A process
            that is killed leaves a file of this name with `.part` behind it.
        TypeError: the state, or a setting, is what no state file can hold.
    """
    data = encoded(method, **of)
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
    return sha256(data).hexdigest()


def size_bytes(entries: Mapping[str, Any]) -> int:
    """The memory of all tensors of a state."""
    total = 0
    for value in entries.values():
        if isinstance(value, NamedTensors):
            total += value.flat.nbytes
        elif isinstance(value, Mapping):
            total += size_bytes(value)
        elif isinstance(value, Tensor):
            total += value.nbytes
    return total


def encoded(
    method: Method,
    *,
    name: str,
    model: str,
    state: State | None = None,
    of_stream: Mapping[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
) -> bytes:
    """What `save_state` writes: a safetensors file of the tensors by section and name.

    The library's own writer takes 90 ms for the 742 tensors of a ResNet-50's stream, most of it to
    find memory that they share; here what lies in one tensor is written as it lies.

    Args:
        name: the method's name; model: the model's spec. Both must fit when it is loaded.
        state: as the method gave it before; None: as it is now.
        of_stream: what is kept beside it, as JSON has it.
        code: digests of the `method`'s and the `model`'s code, where it is the user's own. They
            must fit likewise; files that have none do.

    Raises:
        TypeError: the state, or a setting, is what no state file can hold, or would be refused when
            it is read.
    """
    for key, value in method.settings.items():
        if _ADDRESS.search(json.dumps(value, default=str)):
            raise TypeError(
                f"settings are numbers, texts and None, to be the same in another process; {key} "
                f"is an object of type {type(value).__name__}"
            )
    state = method.state() if state is None else state
    blocks: list[tuple[Tensor, dict[str, Sequence[int]]]] = []
    counters: Counters = {}

    def keep(section: str, entries: Mapping[str, Any], prefix: str) -> None:
        if isinstance(entries, NamedTensors):
            shapes = entries.layout.shapes.items()
            blocks.append((entries.flat, {f"{prefix}{name}": shape for name, shape in shapes}))
            entries = entries.others
        for key, value in entries.items():
            if not isinstance(key, str):
                raise TypeError(f"what a state holds is named by texts; in {section} one is {key}")
            if isinstance(value, Tensor) and value.dtype in DTYPES:
                blocks.append((value, {f"{prefix}{key}": value.shape}))
            elif isinstance(value, NamedTensors):
                keep(section, value, f"{prefix}{key}:")
            elif value is None or isinstance(value, int | float | str):
                counters.setdefault(section, {})[key] = value
            else:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"a state holds tensors, numbers, texts and None; {section} {key} is {kind}"
                )

    for section, entries in state.items():
        if not isinstance(section, str) or "/" in section:
            raise TypeError(f"a section's name is a text without a slash; got {section!r}")
        keep(section, entries, f"{section}/")
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            **_identity(method, name, model, code),
            "counters": json.dumps(counters, ensure_ascii=False),
            # A section may be empty (nothing pending), and safetensors keeps tensors only.
            "sections": json.dumps(list(state), ensure_ascii=False),
            "stream": json.dumps(dict(of_stream or {})),
        }
    }
    data = bytearray()
    stored: dict[str, Form] = {}
    # The widest numbers first, so that each lies at a multiple of its own size.
    for tensor, shapes in sorted(blocks, key=lambda block: -block[0].element_size()):
        start, dtype = len(data), DTYPES[tensor.dtype]
        for key, shape in shapes.items():
            end = start + tensor.element_size() * prod(shape)
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            stored[key] = dtype, shape
            start = end
        data += tensor_bytes(tensor)
    # All that lies in one tensor is looked at by the first of its names.
    firsts = {next(iter(shapes)): tensor for tensor, shapes in blocks if shapes}
    unfit = misfit(stored, state) or miscount(stored, counters, state)
    if unfit := unfit or bad_number(firsts, state):
        raise TypeError(f"it could not be read again: {unfit}")
    try:
        text = json.dumps(header, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = shown(error.object[max(0, error.start - 30) : error.end])
        raise TypeError(f"a text holds half of a character, behind {half!r}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER_BYTES:
        raise TypeError(
            f"names and texts have at most {MOST_HEADER_BYTES:,} bytes; these have {len(text):,}"
        )
    if 8 + len(text) + len(data) > MOST_BYTES:
        raise TypeError(f"a state has at most {MOST_BYTES:,} bytes; this one has {len(data):,}")
    return len(text).to_bytes(8, "little") + text + data


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_counters(
    path: Path, method: Method, *, name: str, model: str, code: Mapping[str, str] | None = None
) -> Counters:
    """Return the numbers and texts, by section, that a file saved for this method and model holds.

    What it says of its tensors is not looked at: that takes ten times as long.

    Raises:
        StateError: it is missing, no state file, or of another method, model, code or settings.
    """
    with opened(path) as file:
        texts = read_texts(path, file)[0]
    _check_owner(path, texts, _identity(method, name, model, code))
    return parsed(path, texts, "counters", COUNTERS)


def read_of_stream(
    path: Path, method: Method, *, name: str, model: str, code: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what was kept beside a state of this method and model, without reading the state.

    Raises:
        StateError: as `read_counters`.
    """
    with opened(path) as file:
        texts = read_texts(path, file)[0]
    _check_owner(path, texts, _identity(method, name, model, code))
    return kept_beside(path, texts)


class Loaded(NamedTuple):
    """What was read beside a state: the file's SHA-256, and what was kept there, as it has it."""

    sha256: str
    of_stream: dict[str, Any]


def load_state(
    path: Path, method: Method, *, name: str, model: str, code: Mapping[str, str] | None = None
) -> Loaded:
    """Restore a method from a file that `save_state` wrote for the same method and model.

    Raises:
        StateError: the file is missing, damaged, or belongs to another method, model, code or
            settings; the method is as it was, or at the source.
    """
    with opened(path) as file:
        texts, forms = read_forms(path, file)
        _check_owner(path, texts, _identity(method, name, model, code))
        sections = parsed(path, texts, "sections", SECTIONS)
        counters = parsed(path, texts, "counters", COUNTERS)
        of_stream = kept_beside(path, texts)
        own = method.state()
        former = counters.get("counters", {})
        if "learned_batches" in former and "learned_batches" in own.get("draws", {}):
            # The former format has it there.
            counters["draws"] = {"learned_batches": former.pop("learned_batches")}
        twins = _twins(forms, method) if texts["format"] == FORMER_FORMAT else {}
        forms = {key: form for key, form in forms.items() if key not in twins}
        unfit = misfit(forms, own) or miscount(forms, counters, own)
        if unfit is None:
            tensors, sha256_read = read_tensors(path, file)
            for twin, first in twins.items():
                if not torch.equal(tensors.pop(twin), tensors[first]):
                    unfit = unfit or " ".join(split_key(twin))
            unfit = unfit or bad_number(tensors, own)
    if unfit is not None:
        raise StateError(f"{shown(path)} does not fit the model: {unfit}.")
    state: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for key, tensor in tensors.items():
        section, entry = split_key(key)
        like = like_of(own, section, entry)
        value = tensor if like is None else tensor.to(like.dtype)
        state.setdefault(section, {})[entry] = value
    for section, values in counters.items():
        state.setdefault(section, {}).update(values)
    try:
        method.restore(state)
    except OutsideEnvelopeError as error:
        method.reset()
        raise StateOutside(path, str(error)) from None
    except Exception as error:  # a user's own method may raise anything
        method.reset()
        raise StateError(f"{shown(path)} is incomplete: {shown(error)}.") from None
    return Loaded(sha256_read, of_stream)


def _identity(
    method: Method, name: str, model: str, code: Mapping[str, str] | None
) -> dict[str, str]:
    """What a state belongs to; a state of anything else is not to be taken up."""
    settings = {key: value for key, value in method.settings.items() if key not in AROUND}
    return {
        "method": name,
        "model": model,
        "weights": method.model.digest,
        "settings": json.dumps(settings, default=str),
        **{f"{whose}_code": digest for whose, digest in (code or {}).items()},
    }


def _check_owner(path: Path, texts: Mapping[str, str], identity: Mapping[str, str]) -> None:
    for key, value in identity.items():
        is_former = key.endswith("_code") and key not in texts  # it was not told before
        if texts.get(key) != value and not is_former:
            difference = _difference(key, texts.get(key), value)
            raise StateOfAnother(path, difference)


def _difference(key: str, saved: str | None, wanted: str) -> str:
    """Say where a saved state and the method part, by the setting if it is one."""
    if key == "settings" and saved is not None:
        with contextlib.suppress(ValueError, AttributeError):
            before, now = from_json(saved), json.loads(wanted)
            for name in before.keys() | now.keys():
                if json.dumps(before.get(name)) != json.dumps(now.get(name)):  # 1 is no True
                    name = shown(name)
                    return f"{name}={shown(before.get(name))}, not {shown(now.get(name))}"
    return f"{key.replace('_', ' ')} {shown(saved)}, not {shown(wanted)}"


def _twins(forms: Mapping[str, Form], method: Method) -> dict[str, str]:
    """What is said again of a parameter that layers share, and where it is said first.

    The former format has each such parameter under all its names.
    """
    shared = shared_parameters(method.model.module)
    twins = {}
    for key, form in forms.items():
        name = re.split("[/:]", key)[-1]
        first = key.removesuffix(name) + shared.get(name, name)
        if first != key and forms.get(first) == form:
            twins[key] = first
    return twins
