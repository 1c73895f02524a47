"""The protocol's datatypes: their names, and tensors as bytes and as lists of JSON."""

import math
import struct
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import OutOfRange, TooLarge, Unreadable
from service.v2.sentences import shown, shown_count, told

Buffer = bytes | bytearray
BYTES, BOOL = "BYTES", "BOOL"
NUMPY = {
    BOOL: np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Those of numbers, as numpy has them: little endian."""
NAMES = (*NUMPY, BYTES)
MOST_DIMENSIONS = 16
MOST_SIDE = 2**63 - 1
_LENGTH = struct.Struct("<I")


def check_shape(shape: object) -> tuple[int, ...]:
    """Hold what a request says of a tensor's shape against what a shape is.

    Raises:
        OutOfRange: no list of 1 to 16 whole numbers from 0 to 2^63 − 1. Their product may be of any
            size: `count_of` looks at it.
    """
    if not isinstance(shape, list) or not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise OutOfRange(
            f"its shape is not a list of 1 to {MOST_DIMENSIONS} whole numbers; got {told(shape)}."
        )
    for side in shape:
        if type(side) is not int or not 0 <= side <= MOST_SIDE:
            raise OutOfRange(
                f"its shape has {told(side)}; accepted are whole numbers from 0 to 2^63 − 1."
            )
    return tuple(shape)


def count_of(shape: tuple[int, ...], datatype: str) -> int:
    """How many values a tensor has.

    Raises:
        OutOfRange: it would have 2^63 bytes or more if its sides of 0 were of 1: numpy has no such
            shape, be it empty.
    """
    width = NUMPY[datatype].itemsize if datatype in NUMPY else 8
    if math.prod(side or 1 for side in shape) * width > MOST_SIDE:
        raise OutOfRange(
            f"its shape {shown(shape)} is one of 2^63 bytes or more, which no tensor has."
        )
    return math.prod(shape)


def from_bytes(
    body: Buffer, start: int, size: int, datatype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Read a tensor of `size` bytes at `start`: in C order, little endian, without gaps.

    It is a view of the body; BYTES are elements behind their length in four bytes, a view each.

    Raises:
        Unreadable: it has another size than its shape says. OutOfRange: as `count_of`.
    """
    count = count_of(shape, datatype)
    if datatype == BYTES:
        return _elements(list(_split(body, start, size, count)), shape)
    kind = NUMPY[datatype]
    if count * kind.itemsize != size:
        raise Unreadable(
            f"it has {size:,} bytes; {datatype} of shape {shown(shape)} has "
            f"{shown_count(count * kind.itemsize)}."
        )
    found: NDArray[Any] = np.frombuffer(body, kind, count, start)
    if datatype == BOOL:  # any byte but 0 is true
        found = found.view(np.uint8) != 0
    return found.reshape(shape)


def _split(body: Buffer, start: int, size: int, count: int) -> Iterator[memoryview]:
    at, end, view = start, start + size, memoryview(body)
    for number in range(count):
        length = _LENGTH.unpack_from(body, at)[0] if at + _LENGTH.size <= end else 0
        at += _LENGTH.size
        if at + length > end:
            raise Unreadable(
                f"its bytes end within element {number + 1:,} of {shown_count(count)}; each is "
                "its length in four bytes, little endian, and as many bytes."
            )
        yield view[at : at + length]
        at += length
    if at != end:
        raise Unreadable(f"it has {end - at:,} bytes behind its {count:,} elements.")


def from_json(data: object, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read a tensor out of JSON: its values in one list or in nested ones of equal lengths.

    Raises:
        Unreadable: lists nested otherwise, or too deep. OutOfRange: another number of values than
            the shape has, a value that is none of the datatype's, or as `count_of`.
    """
    values, count = _flat(data), count_of(shape, datatype)
    if len(values) != count:
        raise OutOfRange(
            f"its data has {len(values):,} values; its shape {shown(shape)} has "
            f"{shown_count(count)}."
        )
    kinds = set(map(type, values))
    if datatype == BYTES:
        _check_kinds(kinds, {str}, "strings", datatype)
        try:
            return _elements([value.encode() for value in values], shape)
        except UnicodeEncodeError:
            raise Unreadable("its data has a string that is no text.") from None
    if datatype == BOOL:
        _check_kinds(kinds, {bool}, "true and false", datatype)
    elif datatype.startswith("FP"):
        _check_kinds(kinds, {int, float}, "numbers", datatype)
    else:
        _check_kinds(kinds, {int}, "whole numbers", datatype)
        least, most = np.iinfo(NUMPY[datatype]).min, np.iinfo(NUMPY[datatype]).max
        if values and not (least <= min(values) and max(values) <= most):
            raise OutOfRange(f"{datatype} has values from {least} to {most}; its data has others.")
    try:
        found = np.array(values, np.float64 if datatype.startswith("FP") else NUMPY[datatype])
        with np.errstate(over="ignore"):
            narrowed = found.astype(NUMPY[datatype])
    except OverflowError:
        raise OutOfRange(f"its data has a number beyond those of {datatype}.") from None
    if datatype.startswith("FP") and not np.isfinite(narrowed).all():
        raise OutOfRange(f"its data has a number beyond those of {datatype}.")
    return narrowed.reshape(shape)


def _check_kinds(kinds: set[type], accepted: set[type], words: str, datatype: str) -> None:
    if not kinds <= accepted:
        raise OutOfRange(f"its data has values that are not {words}, which {datatype} is of.")


def _flat(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise Unreadable("its data is not a list.")
    for _ in range(MOST_DIMENSIONS):
        if list not in set(map(type, data)):
            return data
        if set(map(type, data)) != {list} or len(set(map(len, data))) != 1:
            raise Unreadable("its data has lists of different lengths, or lists beside values.")
        data = list(chain.from_iterable(data))
    raise Unreadable(f"its data is nested more than {MOST_DIMENSIONS} lists deep.")


def _elements(values: Sequence[Buffer | memoryview], shape: tuple[int, ...]) -> NDArray[Any]:
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def memory_of(values: NDArray[Any]) -> int:
    """The bytes of a tensor and of its elements."""
    return values.nbytes + (sum(map(sys.getsizeof, values.flat)) if values.dtype == object else 0)


def packed(values: NDArray[Any], datatype: str) -> bytes:
    """A tensor as bytes, as `from_bytes` reads it."""
    if datatype == BYTES:
        return b"".join(_LENGTH.pack(len(each)) + each for each in values.ravel())
    return np.ascontiguousarray(values, NUMPY[datatype]).tobytes()


def check_batch(shape: tuple[int, ...], most: int) -> None:
    """Raise TooLarge where a tensor's first side is longer than a request's may be."""
    if shape[0] > most:
        raise TooLarge(f"it is of {shown_count(shape[0])}; at most {most:,} are accepted at once.")
