"""A state file as it lies there: opened, and read within limits, whoever wrote it.

Whose state it is, and whether it fits, is for `state` to say.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeGuard, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors.torch import load
from torch import Tensor

from ttc_core.errors import UserError, shown
from ttc_core.methods.contract import HELD

FORMAT = "ttc-state-2"
# One step counter for each parameter, and the count of learned batches among the others.
FORMER_FORMAT = "ttc-state-1"
MOST_BYTES = 1 << 30
"""A larger file is neither written nor read."""
MOST_HEADER_BYTES = 16 << 20

T = TypeVar("T")
# Of a tensor: its type as safetensors calls it, and its shape.
Form = tuple[str, Sequence[int]]
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
COUNTERS = TypeAdapter(Counters, config=ConfigDict(strict=True))
SECTIONS = TypeAdapter(list[str], config=ConfigDict(strict=True))
_OF_STREAM = TypeAdapter(dict[str, Any])
SETTINGS = TypeAdapter(dict[str, Any])
# Seconds since 1970 before which any time is that is one.
_LATEST = 1e11


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
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


def read_texts(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, Any], int]:
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


def read_forms(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, Form]]:
    """What a file says of itself and, by name, of its tensors."""
    texts, content, start = read_texts(path, file)
    try:
        tensors = _TENSORS.validate_python(content)
    except ValueError:
        raise _no_state(path, "its safetensors header is damaged") from None
    end = start + max((stored.data_offsets[1] for stored in tensors.values()), default=0)
    size = os.fstat(file.fileno()).st_size
    if size != end:
        raise _no_state(path, f"it has {size:,} bytes where {end:,} were written")
    return texts, {key: (stored.dtype, stored.shape) for key, stored in tensors.items()}


def read_header(path: Path) -> dict[str, str]:
    """Return what a state file says of itself.

    Raises:
        StateError: it is missing or no state file.
    """
    with opened(path) as file:
        return read_forms(path, file)[0]


def read_tensors(path: Path, file: BinaryIO) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the SHA-256 of all of it."""
    file.seek(0)
    data = file.read(MOST_BYTES)
    try:
        return load(data), sha256(data).hexdigest()
    except Exception as error:  # whatever the library makes of a stranger's bytes
        raise _no_state(path, shown(error)) from None


def parsed(path: Path, texts: Mapping[str, str], key: str, kind: TypeAdapter[T]) -> T:
    """Parse one of a header's texts."""
    try:
        return kind.validate_json(texts[key])
    except (KeyError, ValidationError):
        raise StateError(f"{shown(path)} is incomplete: it has no {key}.") from None


def kept_beside(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """What was kept beside the state, as it is kept now."""
    # Files of former versions have none.
    kept = parsed(path, {"stream": "{}", **texts}, "stream", _OF_STREAM)
    if "doubted_since" not in kept and is_moment(kept.get("held_since")):
        # A former version has one moment for both, and says by its mode which it was.
        kept["doubted_since"] = kept["held_since"]
        if kept.get("mode") not in (None, HELD):
            del kept["held_since"]
    return kept


def is_moment(value: object) -> TypeGuard[int | float]:
    """Whether it is a time, in seconds since 1970."""
    return isinstance(value, int | float) and 0 <= value < _LATEST


def _no_state(path: Path, problem: str) -> StateError:
    return StateError(f"{shown(path)} is no readable state file: {problem}.")
