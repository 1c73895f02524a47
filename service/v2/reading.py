"""From the bytes of a request to its tensors: JSON, the binary extension, the bare body."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json as read_json

from service.bounds import (
    MOST_CONTAINERS,
    MOST_NAMES,
    count_containers,
    count_names,
    count_values,
)
from service.errors import OutOfRange, Refused, TooLarge, Unreadable
from service.v2.datatypes import (
    BYTES,
    MOST_SIDE,
    NAMES,
    Buffer,
    check_batch,
    check_shape,
    from_bytes,
    from_json,
    memory_of,
)
from service.v2.parameters import (
    id_of,
    number,
    object_in,
    options_in,
    parameters_in,
    sequence,
    switch,
    timeout,
)
from service.v2.sentences import shown, told
from service.v2.signature import Input, Scalar, Shape, Signature

HEADER_LENGTH = "Inference-Header-Content-Length"
# Values of a request's JSON. So many take some 100 ms to read, in which no other thread runs;
# whoever has more of them has the binary form.
MOST_VALUES = 1_000_000
# What an answer may have that is written value by value.
MOST_WRITTEN = 100_000
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class Tensor:
    """An input of a request.

    Attributes:
        values: of `shape`. What came in binary form is a view of the body, BYTES are views of it
            each; those of JSON are bytes.
        parameters: those that the model reads.
        binary: whether it came as bytes, not as JSON.
    """

    name: str
    datatype: str
    shape: Shape
    values: NDArray[Any]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    binary: bool = True


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for: as bytes or as JSON, or of its best classes so many."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class InferenceRequest:
    """What a request says.

    Attributes:
        id: echoed; None for none.
        parameters: those that the model reads; the protocol's own have fields.
        sequence: the name of the sequence that it is of; "" for none.
        timeout: seconds after which it is not to be run; None: it may wait.
        batch: the first side of its tensors, where the model has batches.
    """

    id: str | None
    parameters: Mapping[str, Scalar]
    inputs: dict[str, Tensor]
    outputs: list[Wanted]
    sequence: str = ""
    timeout: float | None = None
    batch: int = 1

    @property
    def memory(self) -> int:
        """Bytes that its tensors hold beside the body."""
        return sum(memory_of(tensor.values) for tensor in self.inputs.values() if not tensor.binary)


def json_length(body: Buffer, stated: str | None) -> int:
    """How many bytes of a body are JSON, by the header that may say so.

    Raises:
        Unreadable: it is no number of bytes that the body has.
    """
    if stated is None:
        return len(body)
    if not re.fullmatch(r"[0-9]{1,18}", stated) or int(stated) > len(body):
        raise Unreadable(
            f"{HEADER_LENGTH} is {stated[:40]!r}; accepted are 0 to {len(body):,}, the bytes of "
            "the body."
        )
    return int(stated)


def read_request(body: Buffer, stated: str | None, signature: Signature) -> InferenceRequest:
    """Take a request apart.

    Args:
        stated: the header Inference-Header-Content-Length; None where there is none. With 0 the
            whole body is the one input's bytes.

    Raises:
        Unreadable: it cannot be parsed. OutOfRange: a value that is none of the protocol's or of
            the model's. TooLarge: a longer batch than the model takes.
    """
    length = json_length(body, stated)
    if stated is not None and length == 0:
        return _bare(body, signature)
    content = object_of(json_of(body, length))
    parameters = parameters_in(content)
    binary = switch(parameters, "binary_data_output")
    inputs, batch = _inputs(content.get("inputs"), body, length, signature)
    return InferenceRequest(
        id=id_of(content.get("id")),
        parameters=options_in(parameters, signature.readable),
        inputs=inputs,
        outputs=_outputs(content.get("outputs"), binary, batch, signature),
        sequence=sequence(parameters),
        timeout=timeout(parameters),
        batch=batch,
    )


def json_of(body: Buffer, length: int) -> Buffer:
    """The first bytes of a body, which are JSON; a copy where more follows."""
    return body if length == len(body) else bytes(memoryview(body)[:length])


def object_of(text: Buffer) -> dict[str, Any]:
    """Read JSON that is an object.

    Raises:
        Unreadable: it is not JSON. OutOfRange: it is no object. TooLarge: it has too many values.
    """
    if count_values(text) > MOST_VALUES:
        raise TooLarge(
            f"The JSON has more than {MOST_VALUES:,} values; send tensors in binary form: "
            f"binary_data_size and {HEADER_LENGTH}."
        )
    if count_containers(text) > MOST_CONTAINERS:
        raise TooLarge(
            f"The JSON has more than {MOST_CONTAINERS:,} lists and objects; send data as one flat "
            f"list, or in binary form: binary_data_size and {HEADER_LENGTH}."
        )
    if count_names(text) > MOST_NAMES:
        raise TooLarge(
            f"The JSON has more than {MOST_NAMES:,} colons, which names have; send texts in binary "
            f"form: binary_data_size and {HEADER_LENGTH}."
        )
    try:
        # Names that are kept for the next time take as long again.
        content = read_json(text, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise Unreadable(f"The request is not JSON: {str(error)[:200]}.") from None
    if not isinstance(content, dict):
        raise OutOfRange(f"The request is not a JSON object; got {told(content)}.")
    return content


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise OutOfRange(f"{name} is not a list of JSON objects; got {told(value)}.")
    return value


# Inputs


def _inputs(
    content: object, body: Buffer, at: int, signature: Signature
) -> tuple[dict[str, Tensor], int]:
    """The inputs by name, those in binary form from `at` on, and the length of the batch."""
    known, found = {each.name: each for each in signature.inputs}, dict[str, Tensor]()
    for entry in _objects(content, "inputs"):
        name = _name(entry, known, "input", found)
        with _of_tensor("input", name):
            found[name] = _input(entry, known[name], body, at, signature.max_batch)
            at += _size(entry)
    for name in known:
        if name not in found:
            raise OutOfRange(
                f"The request has no input {name!r}; accepted are exactly {_named(known)}."
            )
    if at != len(body):
        raise Unreadable(
            f"The body has {len(body) - at:,} bytes that no input's binary_data_size tells of."
        )
    if not signature.max_batch:
        return found, 1
    lengths = {tensor.shape[0] for tensor in found.values()}
    if len(lengths) != 1:
        raise OutOfRange("The inputs have different lengths along their first side.")
    return found, lengths.pop()


def _name(
    entry: object, known: Mapping[str, object], kind: str, found: Mapping[str, object]
) -> str:
    """The name of an input or output, one of those known, for the first time."""
    name = object_in(entry, f"One of the {kind}s").get("name")
    if not isinstance(name, str) or name not in known:
        raise OutOfRange(f"There is no {kind} {told(name)}; the model has {_named(known)}.")
    if name in found:
        raise OutOfRange(f"The {kind} {name!r} is there twice; once is accepted.")
    return name


def _named(known: Mapping[str, object]) -> str:
    return ", ".join(map(repr, known))


@contextmanager
def _of_tensor(kind: str, name: str) -> Iterator[None]:
    """Have a refusal say which tensor it is of."""
    try:
        yield
    except Refused as error:
        if error.index is not None:
            raise
        raise type(error)(f"The {kind} {name!r}: {error}") from error


def _input(entry: dict[str, Any], known: Input, body: Buffer, at: int, most: int) -> Tensor:
    shape = check_shape(entry.get("shape"))
    datatype = _datatype(entry.get("datatype"), known, shape, most)
    parameters = parameters_in(entry, "its parameters")
    if _SHARED_MEMORY in parameters:
        raise OutOfRange("shared memory is not served: send the tensor itself.")
    options = options_in(parameters, known.options)
    binary, data = "binary_data_size" in parameters, entry.get("data")
    if binary == (data is not None):
        raise OutOfRange("a tensor has either data or the parameter binary_data_size.")
    if not binary:
        return Tensor(
            known.name, datatype, shape, from_json(data, datatype, shape), options, binary=False
        )
    size = _size(entry)
    if at + size > len(body):
        raise Unreadable(
            f"binary_data_size is {size:,}; behind the JSON and the tensors before it the body "
            f"has {len(body) - at:,} bytes."
        )
    return Tensor(known.name, datatype, shape, from_bytes(body, at, size, datatype, shape), options)


def _size(entry: dict[str, Any]) -> int:
    return number(entry.get("parameters") or {}, "binary_data_size", MOST_SIDE)


def _datatype(datatype: object, known: Input, shape: Shape, most: int) -> str:
    """Hold datatype and shape against those that the model takes."""
    forms = known.forms
    if not isinstance(datatype, str) or datatype not in forms:
        whether = "" if datatype in NAMES else ", which the protocol does not know"
        raise OutOfRange(
            f"its datatype is {told(datatype)}{whether}; accepted are {', '.join(forms)}."
        )
    if not any(_fits(shape, form) for form in forms[datatype]):
        raise OutOfRange(
            f"its shape is {shown(shape)}; {datatype} is accepted as "
            f"{' or '.join(shown(form) for form in forms[datatype])}, -1 for any length."
        )
    if most:
        check_batch(shape, most)
    return datatype


def _fits(shape: Shape, form: Shape) -> bool:
    return len(shape) == len(form) and all(
        side in (-1, given) for side, given in zip(form, shape, strict=True)
    )


def _bare(body: Buffer, signature: Signature) -> InferenceRequest:
    """A request that is the bytes of its one input: one image, say."""
    if len(signature.inputs) != 1:
        raise Unreadable(
            f"{HEADER_LENGTH} is 0: then the body is the model's one input, and this one has "
            f"{len(signature.inputs)}."
        )
    (known,) = signature.inputs
    datatype = known.raw or known.datatype
    with _of_tensor("input", known.name):
        shape: Shape
        if datatype == BYTES:
            shape, values = (1,), np.empty(1, object)
            values[0] = body  # not its length before it
        else:
            shape = tuple(1 if side == -1 else side for side in known.shape)
            values = from_bytes(body, 0, len(body), datatype, shape)
    inputs = {known.name: Tensor(known.name, datatype, shape, values)}
    outputs = [Wanted(each.name, binary=True) for each in signature.outputs]
    return InferenceRequest(None, {}, inputs, outputs)


# Outputs


def _outputs(content: object, binary: bool, batch: int, signature: Signature) -> list[Wanted]:
    known, found = signature.answers, dict[str, Wanted]()
    for entry in _objects(content, "outputs") if content is not None else []:
        name = _name(entry, known, "output", found)
        with _of_tensor("output", name):
            found[name] = _output(entry, name, binary)
            if found[name].classes and known[name].datatype == BYTES:
                raise OutOfRange("it is of BYTES, which have no classes.")
    wanted = list(found.values()) or [Wanted(each.name, binary) for each in signature.outputs]
    values = 0
    for each in wanted:
        sides = known[each.name].shape[1 if signature.max_batch else 0 :]
        width = math.prod(abs(side) for side in sides)
        written = min(each.classes, width) or (0 if each.binary else width)
        values += batch * written
    if values > MOST_WRITTEN:
        raise OutOfRange(
            f"The answer would have {values:,} values in JSON or as classes; at most "
            f"{MOST_WRITTEN:,} are written. Ask for binary_data, or for fewer at once."
        )
    return wanted


def _output(entry: dict[str, Any], name: str, binary: bool) -> Wanted:
    parameters = parameters_in(entry, "its parameters")
    if _SHARED_MEMORY in parameters:
        raise OutOfRange("shared memory is not served: the answer brings the tensor itself.")
    if "binary_data" in parameters:
        binary = switch(parameters, "binary_data")
    return Wanted(name, binary, number(parameters, "classification", 2**31))
