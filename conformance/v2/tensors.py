"""Tensors as the protocol sends them, in JSON and as bytes. Knows nothing of HTTP."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# What `struct` calls the datatypes of fixed size; BF16 is the upper half of an FP32.
LETTERS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*LETTERS, "BF16", "BYTES")
WITHOUT_JSON = ("FP16", "BF16")
IMAGE_SIDE = 32

Element = bool | int | float | bytes


@dataclass(frozen=True)
class Declared:
    """A tensor of a model's metadata; sizes of -1 may be any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.datatype} {list(self.shape)}"

    def allows(self, shape: Sequence[int]) -> bool:
        """Whether a tensor may have these sizes."""
        return len(shape) == len(self.shape) and all(
            size in (-1, given) for size, given in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Tensor:
    """Elements in row-major order, those of BYTES as bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: tuple[Element, ...]
    came_binary: bool = False

    @property
    def has_json(self) -> bool:
        """Whether JSON can carry it: it has no form for half floats, nor for bytes beyond UTF-8."""
        try:
            self.flat()
        except UnicodeDecodeError:
            return False
        return self.datatype not in WITHOUT_JSON

    def flat(self) -> list[Any]:
        """The elements as one list of JSON values."""
        return [
            element.decode() if isinstance(element, bytes) else element for element in self.elements
        ]

    def nested(self) -> list[Any]:
        """The elements as lists of lists, as deep as there are dimensions."""
        data = self.flat()
        for size in reversed(self.shape[1:]):
            data = [data[start : start + size] for start in range(0, len(data), size)]
        return data

    def binary(self) -> bytes:
        """The elements as the binary extension has them: little-endian, without padding."""
        if self.datatype == "BYTES":
            return b"".join(
                struct.pack("<I", len(element)) + element
                for element in self.elements
                if isinstance(element, bytes)
            )
        if self.datatype == "BF16":
            return b"".join(struct.pack("<f", element)[2:] for element in self.elements)
        return struct.pack(f"<{len(self.elements)}{LETTERS[self.datatype]}", *self.elements)


def from_binary(datatype: str, data: bytes, count: int) -> tuple[Element, ...]:
    """The elements of a tensor that came as bytes.

    Raises:
        ValueError: these bytes are not so many elements; the text says why.
    """
    if datatype == "BYTES":
        elements = []
        while data:
            if len(data) < 4 or len(data) - 4 < (length := struct.unpack_from("<I", data)[0]):
                raise ValueError("an element of BYTES ends after the data does")
            elements.append(data[4 : 4 + length])
            data = data[4 + length :]
        if len(elements) != count:
            raise ValueError(f"its bytes are {len(elements)} elements, its shape has {count}")
        return tuple(elements)
    size = 2 if datatype == "BF16" else struct.calcsize(f"<{LETTERS[datatype]}")
    if len(data) != count * size:
        raise ValueError(f"it has {len(data)} bytes, its shape and datatype {count * size}")
    if datatype == "BF16":
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        datatype = "FP32"
    return struct.unpack(f"<{count}{LETTERS[datatype]}", data)


def from_json(datatype: str, data: object, count: int) -> tuple[Element, ...]:
    """The elements of a tensor that came as JSON, flat or nested.

    Raises:
        ValueError: these are not so many elements of that datatype; the text says why.
    """
    if not isinstance(data, list):
        raise ValueError("its data is no array")
    flat: list[Any] = data
    while any(isinstance(element, list) for element in flat):
        flat = [
            inner
            for element in flat
            for inner in (element if isinstance(element, list) else [element])
        ]
    if len(flat) != count:
        raise ValueError(f"its data has {len(flat)} elements, its shape {count}")
    kinds: tuple[type, ...] = (int,)
    if datatype == "BYTES":
        kinds = (str,)
    elif datatype == "BOOL":
        kinds = (bool,)
    elif "FP" in datatype or datatype == "BF16":
        kinds = (int, float)
    for element in flat:
        if not isinstance(element, kinds) or (isinstance(element, bool) and datatype != "BOOL"):
            raise ValueError(f"{element!r} is no {datatype}")
    if datatype != "BYTES":
        try:
            struct.pack(f"<{count}{LETTERS.get(datatype, 'f')}", *flat)
        except (struct.error, OverflowError):
            raise ValueError(f"its data has a number beyond {datatype}") from None
    return tuple(element.encode() if isinstance(element, str) else element for element in flat)


def difference(ours: Sequence[Element], theirs: Sequence[Element]) -> float:
    """The largest difference of two elements, relative to what is beyond 1; bytes: 0 or inf."""
    largest = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one == other:
            continue
        if isinstance(one, bytes) or isinstance(other, bytes):
            return math.inf
        gap = abs(one - other) / max(1.0, abs(one), abs(other))
        largest = max(largest, math.inf if math.isnan(gap) else gap)
    return largest


def sizes(shape: Sequence[int], side: int | None = None) -> tuple[int, ...]:
    """Sizes to send where a model allows any: the first of several is a batch of 1.

    Args:
        side: for all the others; None: 32 for an image's (four dimensions, one of them 3), else 1.
    """
    image = len(shape) == 4 and 3 in shape[1:]
    other = side or (IMAGE_SIDE if image else 1)
    return tuple(
        size if size >= 0 else 1 if place == 0 and len(shape) > 1 else other
        for place, size in enumerate(shape)
    )


def example(declared: Declared, shape: tuple[int, ...], element: bytes, place: int) -> Tensor:
    """A tensor that a model should take: floats in [0, 1], small whole numbers, `element` of BYTES.

    Args:
        place: which of the inputs it is, so that two of them differ.
    """
    numbers = range(place, place + math.prod(shape))
    elements: tuple[Element, ...]
    match declared.datatype:
        case "BYTES":
            elements = (element,) * len(numbers)
        case "BOOL":
            elements = tuple(number % 2 == 1 for number in numbers)
        case "UINT8":
            elements = tuple(number * 37 % 256 for number in numbers)
        case "FP16" | "BF16" | "FP32" | "FP64":
            elements = tuple(number % 9 / 8 for number in numbers)  # exact in each of them
        case _:
            elements = tuple(number * 3 % 11 for number in numbers)
    return Tensor(declared.name, declared.datatype, shape, elements)
