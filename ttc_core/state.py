"""Adaptation state on disk: one safetensors file a stream, nothing in it that could be code.

A file is written whole or not at all, and outlasts a power cut once `save_state` returns. Whatever
lies in its place is read within limits: its header is held against the method before any tensor is.
What would not be read again is not written.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeGuard, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors.torch import load
from torch import Tensor

from ttc_core.envelope.limits import OutsideEnvelopeError
from ttc_core.errors import UserError, shown
from ttc_core.flat import NamedTensors, tensor_bytes
from ttc_core.methods.contract import AROUND, HELD, Method, State
from ttc_core.normalization import shared_parameters

FORMAT = "ttc-state-2"
# One step counter for each parameter, and the count of learned batches among the others.
FORMER_FORMAT = "ttc-state-1"
MOST_BYTES = 1 << 30
"""A larger file is neither written nor read."""
MOST_HEADER_BYTES = 16 << 20
# Whole numbers that our own methods count with; a user's may hold any others.
COUNTS = {"steps", "pending_batches", "pending_images", "learned_batches", "images_seen"}
MOST_COUNT = 2**53
FLOATS = {"F64", "F32", "F16", "BF16"}
# As safetensors calls them.
DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}

T = TypeVar("T")
# Of a tensor: its type as safetensors calls it, and its shape.
_Form = tuple[str, Sequence[int]]
Counters = dict[str, dict[str, bool | int | float | str | None]]


class StateError(UserError):
    """A state file cannot be used; the text says why."""


class StateUnreadable(StateError):
    """The system does not let the file be read: what is in it is not known, and may be good."""


class StateOfAnother(StateError):
    """It was saved for another method, model, code or settings; `difference` says which."""

    def __init__(self, path: Path, difference: str) -> None:
        super().__init__(f"{shown(path)} was saved for {difference}.")
        self.difference = difference


class StateOutside(StateError):
    """It is outside of the envelope that holds; `clause` says by what."""

    def __init__(self, path: Path, clause: str) -> None:
        super().__init__(f"{shown(path)} is outside of the envelope: {clause}.")
        self.clause = clause


class _Stored(BaseModel):
    """What a header says of a tensor."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[NonNegativeInt]
    data_offsets: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]


_TENSORS = TypeAdapter(dict[str, _Stored])
_TEXTS = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))
_COUNTERS = TypeAdapter(Counters, config=ConfigDict(strict=True))
_SECTIONS = TypeAdapter(list[str], config=ConfigDict(strict=True))
_OF_STREAM = TypeAdapter(dict[str, Any])
_SETTINGS = TypeAdapter(dict[str, Any])
# Seconds since 1970 before which any time is that is one.
_LATEST = 1e11
# Of a setting that is an object: no other process can have the same.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


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
    stored: dict[str, _Form] = {}
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
    unfit = _misfit(stored, state) or _miscount(stored, counters, state)
    if unfit := unfit or _bad_number(firsts, state):
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


def read_header(path: Path) -> dict[str, str]:
    """Return what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    with _opened(path) as file:
        return _read_header(path, file)[0]


@dataclass(frozen=True)
class Description:
    """What a state file says of itself; its texts are as they stand there, whoever wrote them.

    Attributes:
        method, model: as they were named; settings: the method's, by name.
        counters: numbers and texts by section.
        of_stream: what was kept beside the state.
    """

    method: str
    model: str
    settings: dict[str, Any]
    counters: Counters
    of_stream: dict[str, Any]

    @property
    def steps(self) -> int | None:
        """Optimizer steps; None of a method that takes none."""
        steps = self.counters.get("counters", {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def snapshots(self) -> list[tuple[str, str]]:
        """A guard's good states: version, and after how many images it was."""
        return [
            (shown(about.get("version")), shown(about.get("images")))
            for section, about in self.counters.items()
            if re.fullmatch(r"guard\.snapshot\d+", section)
        ]

    @property
    def held(self) -> str | None:
        """Whether and since when the source answers the stream, in words; None: no guard was on."""
        watch = self.counters.get("guard")
        return None if watch is None else _held(watch, self.of_stream)


def describe(path: Path) -> Description:
    """Read what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    texts = read_header(path)
    return Description(
        method=texts.get("method", ""),
        model=texts.get("model", ""),
        settings=_text(path, texts, "settings", _SETTINGS),
        counters=_text(path, texts, "counters", _COUNTERS),
        of_stream=_of_stream(path, texts),
    )


def _held(watch: Mapping[str, object], of_stream: Mapping[str, Any]) -> str:
    """Say whether and since when the source answers a stream, as the service told it.

    A guard that only observes holds nothing, and files of former versions, or of no service, do not
    say which it was.
    """
    mode = of_stream.get("mode")
    is_doubted = watch.get("held") or watch.get("suspected")
    if mode not in (None, HELD):
        doubted = f"doubted{_since(of_stream.get('doubted_since'))}, held with its guard on"
        return f"not held, but {doubted}" if is_doubted else "not held"
    if mode is None and not is_doubted:
        return "not held"
    held = f"held{_since(of_stream.get('held_since'))}"
    return held if mode == HELD else f"{held}, unless its guard only observed"


def _since(moment: object) -> str:
    return f" since {datetime.fromtimestamp(moment, UTC):%FT%TZ}" if _is_moment(moment) else ""


def _is_moment(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and 0 <= value < _LATEST


def read_counters(
    path: Path, method: Method, *, name: str, model: str, code: Mapping[str, str] | None = None
) -> Counters:
    """Return the numbers and texts, by section, that a file saved for this method and model holds.

    What it says of its tensors is not looked at: that takes ten times as long.

    Raises:
        StateError: it is missing, no state file, or of another method, model, code or settings.
    """
    with _opened(path) as file:
        texts = _read_texts(path, file)[0]
    _check_owner(path, texts, _identity(method, name, model, code))
    return _text(path, texts, "counters", _COUNTERS)


def read_of_stream(
    path: Path, method: Method, *, name: str, model: str, code: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what was kept beside a state of this method and model, without reading the state.

    Raises:
        StateError: as `read_counters`.
    """
    with _opened(path) as file:
        texts = _read_texts(path, file)[0]
    _check_owner(path, texts, _identity(method, name, model, code))
    return _of_stream(path, texts)


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
    with _opened(path) as file:
        texts, forms = _read_header(path, file)
        _check_owner(path, texts, _identity(method, name, model, code))
        sections = _text(path, texts, "sections", _SECTIONS)
        counters = _text(path, texts, "counters", _COUNTERS)
        of_stream = _of_stream(path, texts)
        own = method.state()
        former = counters.get("counters", {})
        if "learned_batches" in former and "learned_batches" in own.get("draws", {}):
            # The former format has it there.
            counters["draws"] = {"learned_batches": former.pop("learned_batches")}
        twins = _twins(forms, method) if texts["format"] == FORMER_FORMAT else {}
        forms = {key: form for key, form in forms.items() if key not in twins}
        misfit = _misfit(forms, own) or _miscount(forms, counters, own)
        if misfit is None:
            tensors, sha256_read = _read_tensors(path, file)
            for twin, first in twins.items():
                if not torch.equal(tensors.pop(twin), tensors[first]):
                    misfit = misfit or " ".join(_split(twin))
            misfit = misfit or _bad_number(tensors, own)
    if misfit is not None:
        raise StateError(f"{shown(path)} does not fit the model: {misfit}.")
    state: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for key, tensor in tensors.items():
        section, entry = _split(key)
        like = _like(own, section, entry)
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
        raise _no_state(path, "it is no regular file")
    with open(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            reason = shown(error.strerror or error)
            raise StateUnreadable(f"{shown(path)} cannot be read: {reason}.") from None


def _read_texts(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, Any], int]:
    """What a file says of itself, what it says of its tensors, and where those begin."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size > MOST_BYTES:
        raise _no_state(path, f"it has {size:,} bytes, more than the {MOST_BYTES:,} that are read")
    if not 0 < length <= min(size - 8, MOST_HEADER_BYTES):
        raise _no_state(path, "it does not begin with a safetensors header")
    try:
        content: dict[str, Any] = from_json(file.read(length))
        texts = _TEXTS.validate_python(content.pop("__metadata__", {}))
    except (ValueError, AttributeError, TypeError):
        raise _no_state(path, "its safetensors header is damaged") from None
    if texts.get("format") not in (FORMAT, FORMER_FORMAT):
        raise StateError(f"{shown(path)} is no state file of this program (format {FORMAT}).")
    return texts, content, 8 + length


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, _Form]]:
    """What a file says of itself and, by name, of its tensors."""
    texts, content, start = _read_texts(path, file)
    try:
        tensors = _TENSORS.validate_python(content)
    except ValueError:
        raise _no_state(path, "its safetensors header is damaged") from None
    end = start + max((stored.data_offsets[1] for stored in tensors.values()), default=0)
    size = os.fstat(file.fileno()).st_size
    if size != end:
        raise _no_state(path, f"it has {size:,} bytes where {end:,} were written")
    return texts, {key: (stored.dtype, stored.shape) for key, stored in tensors.items()}


def _no_state(path: Path, problem: str) -> StateError:
    return StateError(f"{shown(path)} is no readable state file: {problem}.")


def _read_tensors(path: Path, file: BinaryIO) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the SHA-256 of all of it."""
    file.seek(0)
    data = file.read(MOST_BYTES)
    try:
        return load(data), sha256(data).hexdigest()
    except Exception as error:  # whatever the library makes of a stranger's bytes
        raise _no_state(path, shown(error)) from None


def _text(path: Path, texts: Mapping[str, str], key: str, kind: TypeAdapter[T]) -> T:
    """Parse one of a header's texts."""
    try:
        return kind.validate_json(texts[key])
    except (KeyError, ValidationError):
        raise StateError(f"{shown(path)} is incomplete: it has no {key}.") from None


def _of_stream(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    # Files of former versions have none.
    kept = _text(path, {"stream": "{}", **texts}, "stream", _OF_STREAM)
    if "doubted_since" not in kept and _is_moment(kept.get("held_since")):
        # A former version has one moment for both, and says by its mode which it was.
        kept["doubted_since"] = kept["held_since"]
        if kept.get("mode") not in (None, HELD):
            del kept["held_since"]
    return kept


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


def _twins(forms: Mapping[str, _Form], method: Method) -> dict[str, str]:
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


def _misfit(stored: Mapping[str, _Form], own: State) -> str | None:
    """Name the first tensor that is missing, of another shape or kind than the method's, or extra.

    The network names the entries of affine and moments, and by them those of gradients and
    optimizer; what other sections hold is the method's own affair.
    """
    for section in ("affine", "moments"):
        for key, value in own.get(section, {}).items():
            if isinstance(value, Tensor) and f"{section}/{key}" not in stored:
                return f"{section} {key}"
    for key, (dtype, shape) in stored.items():
        section, entry = _split(key)
        like = _like(own, section, entry)
        named_by_network = section in ("affine", "moments", "gradients", "optimizer")
        if like is None and named_by_network and "affine" in own:
            return f"{section} {entry}"
        if like is None:
            continue
        # What an optimizer counts of a parameter, its steps, is one number.
        one_number = section == "optimizer" and not shape
        shaped = one_number or not named_by_network or tuple(shape) == like.shape
        if not shaped or (dtype in FLOATS) != like.is_floating_point():
            return f"{section} {entry}"
    return None


def _miscount(stored: Mapping[str, _Form], counters: Counters, own: State) -> str | None:
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
    if (section, entry) == ("optimizer", "step"):
        return torch.zeros(())
    if section in ("gradients", "optimizer"):
        key, _, name = entry.rpartition(":")
        value = own.get("affine", {}).get(name) if bool(key) == (section == "optimizer") else None
    return value if isinstance(value, Tensor) else None


def _split(key: str) -> tuple[str, str]:
    section, _, entry = key.partition("/")
    return section, entry
