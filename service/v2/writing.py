"""From a model's tensors to the bytes of an answer: JSON, the binary extension, classes, packed."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bounds import MOST_HEADER_CHARACTERS
from service.errors import OutOfRange
from service.v2.datatypes import BYTES, packed
from service.v2.reading import InferenceRequest, Wanted
from service.v2.signature import VERSION, Signature

# Values written, rows sorted and bytes packed in a go, before others may have their turn.
MOST_IN_A_PIECE = 500
PIECE_BYTES = 1 << 16
# Packed a little at a tenth of the time.
LEVEL = 1

# Tells, of row n, the best classes, so many, best first.
Best = Callable[[int, int], Sequence[int]]

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass
class Answer:
    """What an answer's body is made of: `write` fills it."""

    text: bytearray = field(default_factory=bytearray)
    tensors: bytearray = field(default_factory=bytearray)


def write(
    answer: Answer,
    signature: Signature,
    request: InferenceRequest,
    outputs: Mapping[str, NDArray[Any]],
    best: Mapping[str, Best] = MappingProxyType({}),
) -> Iterator[None]:
    """Write an answer step by step: with each others may have their turn.

    Args:
        outputs: by name, all that were asked for.
        best: as `Inference.best`.

    Raises:
        OutOfRange: JSON was asked for, and a value is no number that it has.
    """
    head: dict[str, Any] = {"model_name": signature.name, "model_version": VERSION}
    if request.id is not None:
        head["id"] = request.id
    answer.text += _encode(head)[:-1].encode() + b',"outputs":['
    for number, wanted in enumerate(request.outputs):
        answer.text += b"," * bool(number)
        output, values = signature.answers[wanted.name], outputs[wanted.name]
        datatype = output.datatype
        if wanted.classes:
            datatype, rows = BYTES, []
            table = values.reshape(len(values) if signature.max_batch else 1, -1)
            ranked = best.get(wanted.name, partial(_by_value, table))
            for index, row in enumerate(table):
                rows.append(_told(row, ranked(index, wanted.classes), output.labels))
                yield
            values = np.array(rows, object)
            if not signature.max_batch:
                values = values[0]
        yield from _write_tensor(answer, wanted, datatype, values)
    answer.text += b"]}"


def _by_value(table: NDArray[Any], row: int, count: int) -> list[int]:
    found: list[int] = np.argsort(-table[row].astype(np.float64), kind="stable")[:count].tolist()
    return found


def _told(row: NDArray[Any], best: Sequence[int], labels: Sequence[str]) -> list[bytes]:
    """Classes as "value:index:label"."""
    return [
        ":".join([f"{row[index]:f}", str(index), *labels[index : index + 1]]).encode()
        for index in best
    ]


def _write_tensor(
    answer: Answer, wanted: Wanted, datatype: str, values: NDArray[Any]
) -> Iterator[None]:
    head: dict[str, Any] = {
        "name": wanted.name,
        "datatype": datatype,
        "shape": list(values.shape),
    }
    if wanted.binary:
        content = packed(values, datatype)
        head["parameters"] = {"binary_data_size": len(content)}
        answer.text += _encode(head).encode()
        answer.tensors += content
        yield
        return
    if datatype.startswith("FP") and not np.isfinite(values).all():
        raise OutOfRange(
            f"The output {wanted.name!r} has values that JSON has no numbers for; ask for "
            "binary_data."
        )
    answer.text += _encode(head)[:-1].encode() + b',"data":['
    flat = values.ravel()
    for start in range(0, len(flat), MOST_IN_A_PIECE):
        piece = flat[start : start + MOST_IN_A_PIECE].tolist()
        if datatype == BYTES:
            piece = [each.decode(errors="replace") for each in piece]
        answer.text += b"," * bool(start) + _encode(piece)[1:-1].encode()
        yield
    answer.text += b"]}"


def coding_for(accepted: Sequence[str]) -> str | None:
    """What an answer is packed with, by the request's Accept-Encoding; None: as it is.

    As it is also where the header is longer than any: to read 60,000 codings others would wait.
    """
    if sum(map(len, accepted)) > MOST_HEADER_CHARACTERS:
        return None
    weights = {}
    for each in ",".join(accepted).lower().split(","):
        name, _, parameters = each.partition(";")
        _, _, weight = parameters.replace(" ", "").partition("q=")
        weights[name.strip()] = weight
    taken = [name for name in ("gzip", "deflate") if name in weights and _is_wanted(weights[name])]
    return taken[0] if taken else None


def _is_wanted(weight: str) -> bool:
    return weight.rstrip("0").rstrip(".") not in ("0", "") if weight else True


def pack(content: bytes, coding: str) -> Iterator[bytes]:
    """Pack an answer with gzip or deflate, in pieces: between them others may have their turn."""
    packer = zlib.compressobj(LEVEL, wbits=31 if coding == "gzip" else 15)
    for start in range(0, len(content), PIECE_BYTES):
        yield packer.compress(content[start : start + PIECE_BYTES])
    yield packer.flush()
