"""What clients send as they are, and what nobody should: the one is answered, the other refused.

None of it is written in the protocol. Most has crashed a server, or a client, once.
"""

import gzip
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from conformance.v2.asking import Inference, Kit, NotApplicable
from conformance.v2.checks import ROBUST, Checks
from conformance.v2.required import UNKNOWN_MODEL
from conformance.v2.server import HEADER, Failed, told
from conformance.v2.tensors import LETTERS, Tensor

CHUNKS = 1_000
DEEP_DATA = 120
DEEP_JSON = 100_000
HUGE = 2**70
# Fits 64 bits; no two of them do, multiplied.
LARGE = 2**62

CHECKS = Checks(ROBUST)


@CHECKS.add("slash", "GET /v2/ is GET /v2, without a redirect")
def slash(kit: Kit) -> None:
    kit.server.get("/v2/").expect(200).object()


@CHECKS.add("unknown-keys", "unknown keys are ignored (KServe's client sends model_name)")
def unknown_keys(kit: Kit) -> None:
    request = kit.inference()
    request.body |= {"model_name": kit.name, "no_such_key": {"of": ["any", "kind"]}}
    for entry in request.body["inputs"]:
        entry["no_such_key"] = None
    kit.same(kit.answer(request))


@CHECKS.add("unknown-parameters", "unknown parameters are ignored")
def unknown_parameters(kit: Kit) -> None:
    request = kit.with_parameters(
        kit.inference(), no_such_parameter="x", no_such_number=1.5, no_such_switch=True
    )
    for entry in request.body["inputs"]:
        entry["parameters"] = {**entry.get("parameters", {}), "no_such_parameter": 1}
    kit.same(kit.answer(request))


@CHECKS.add("no-content-type", "a body without a Content-Type (tritonclient sends none)")
def no_content_type(kit: Kit) -> None:
    expected = kit.inference()
    headers = {HEADER: expected.all_headers[HEADER]} if expected.tail else {}
    _ = kit.plain
    kit.same(kit.send_content(expected.content, headers).expect(200))


@CHECKS.add("chunked", f"a body in up to {CHUNKS:,} chunks")
def chunked(kit: Kit) -> None:
    request = kit.inference()
    _ = kit.plain
    content = request.content
    size = math.ceil(len(content) / CHUNKS)
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    kit.same(kit.send_content(pieces, request.all_headers).expect(200))


@CHECKS.add("json-type", "JSON answers say application/json")
def json_type(kit: Kit) -> None:
    request = kit.inference()
    for answer in (kit.server.get(kit.path()), kit.answer(request)):
        given = answer.headers.get("Content-Type", "none")
        if HEADER not in answer.headers and given.partition(";")[0].strip() != "application/json":
            raise Failed(f"Content-Type is {told(given)}; application/json is due")


@CHECKS.add("error-type", "errors are application/json alone (KServe's client shows no others)")
def error_type(kit: Kit) -> None:
    given = kit.server.get(kit.path(name=UNKNOWN_MODEL)).headers.get("Content-Type", "none")
    if given != "application/json":
        raise Failed(f"Content-Type of an error is {told(given)}; application/json is due")


@CHECKS.add("unknown-model", "an unknown model is 404")
def unknown_model(kit: Kit) -> None:
    kit.server.get(kit.path(name=UNKNOWN_MODEL)).expect(404)


@CHECKS.add("unknown-path", 'an unknown path is 404, with {"error": …}')
def unknown_path(kit: Kit) -> None:
    answer = kit.server.get(kit.path("/no-such-path")).expect(404)
    if not isinstance(answer.object().get("error"), str):
        raise Failed(f'{answer}; {{"error": "…"}} is due')


@CHECKS.add("method", "a method that a path has not is 405")
def method(kit: Kit) -> None:
    kit.server.get(kit.path("/infer")).expect(405)
    kit.server.send("DELETE", "/v2/health/live").expect(405)


# Bodies that are no request.


@CHECKS.add("wrong-body", "a body that is empty, no JSON, no UTF-8 or no object is refused")
def wrong_body(kit: Kit) -> None:
    for content in (b"", b"[]", b"null", b'{"inputs"', b'{"inputs":"\xff\xfe"}', b"{}"):
        kit.send_content(content).expect_refusal()


@CHECKS.add("deep-data", f"data nested {DEEP_DATA} deep is refused")
def deep_data(kit: Kit) -> None:
    request, entry, tensor = _json_input(kit)
    data: list[Any] = tensor.flat()
    for _ in range(DEEP_DATA):
        data = [data]
    entry["data"] = data
    kit.refuses(request)


@CHECKS.add("deep-json", f"JSON nested {DEEP_JSON:,} deep is no 5xx")
def deep_json(kit: Kit) -> None:
    nested = b"[" * DEEP_JSON + b"]" * DEEP_JSON
    kit.send_content(b'{"inputs":' + nested + b"}").expect_refusal()
    kit.send_content(b'{"inputs":[],"parameters":{"x":' + nested + b"}}").expect_no_crash()


@CHECKS.add("broken-gzip", "gzip that ends early, or fails late, is refused")
def broken_gzip(kit: Kit) -> None:
    request = kit.inference()
    packed = gzip.compress(request.content)
    headers = {**request.all_headers, "Content-Encoding": "gzip"}
    late = packed[:-8] + bytes(byte ^ 0xFF for byte in packed[-8:])
    for content in (packed[: len(packed) // 2], late):
        kit.send_content(content, headers).expect_refusal()


@CHECKS.add("unknown-encoding", "a Content-Encoding that it does not know is refused")
def unknown_encoding(kit: Kit) -> None:
    request = kit.inference()
    headers = {**request.all_headers, "Content-Encoding": "no-such-encoding"}
    kit.send_content(request.content, headers).expect_refusal()


# Requests that ask for what there is not.


@CHECKS.add("wrong-inputs", "inputs that are missing, unknown, or come twice are refused")
def wrong_inputs(kit: Kit) -> None:
    def change(entries: list[Any], how: str) -> list[Any]:
        match how:
            case "missing":
                return entries[:-1]
            case "unknown":
                return [*entries[:-1], {**entries[-1], "name": "no-such-input"}]
            case _:
                return [*entries, entries[0]]

    # What came twice would need its bytes twice.
    forms = ("missing", "unknown") if kit.inference().tail else ("missing", "unknown", "twice")
    for how in forms:
        request = kit.inference()
        request.body["inputs"] = change(request.body["inputs"], how)
        kit.refuses(request)


@CHECKS.add("wrong-outputs", "outputs that are unknown or asked for twice are refused")
def wrong_outputs(kit: Kit) -> None:
    for names in (["no-such-output"], [*list(kit.plain)[:1], *list(kit.plain)[:1]]):
        request = kit.inference()
        request.body["outputs"] = [{"name": name} for name in names]
        kit.refuses(request)


@CHECKS.add("wrong-datatype", "a datatype that there is not is refused")
def wrong_datatype(kit: Kit) -> None:
    for name in ("FP99", "int32", 4, None):
        request = kit.inference()
        request.body["inputs"][0]["datatype"] = name
        kit.refuses(request)


@CHECKS.add("wrong-shape", "shapes that are negative, no numbers, missing or nested are refused")
def wrong_shape(kit: Kit) -> None:
    wholes: tuple[object, ...] = ("1", None)
    wrongs: tuple[object, ...] = (-1, -HUGE, "1", 1.5, [1], None)
    for wrong in (*wholes, *(_replaced(kit, {_free(kit)[0]: each}) for each in wrongs)):
        request = kit.inference()
        request.body["inputs"][0]["shape"] = wrong
        kit.refuses(request)


@CHECKS.add("shape-overflow", "a shape whose size overflows 64 bits is refused")
def shape_overflow(kit: Kit) -> None:
    for binary in (False, True):
        for shape, tensor in _overflowing(kit):
            request = _first(kit, tensor, binary=binary)
            request.body["inputs"][0]["shape"] = shape
            kit.refuses(request)


@CHECKS.add("shape-and-data", "a shape of more or fewer elements than the data is refused")
def shape_and_data(kit: Kit) -> None:
    tensor = kit.inputs[0]
    count = len(tensor.elements)
    for other in (count + 1, count - 1):
        request = _first(kit, _repeated(tensor, other))
        request.body["inputs"][0]["shape"] = list(tensor.shape)
        kit.refuses(request)


@CHECKS.add("shape-zero", "a shape with a 0, beside huge sizes too, is no 5xx")
def shape_zero(kit: Kit) -> None:
    large = dict.fromkeys(_free(kit), LARGE)
    places = range(len(kit.inputs[0].shape))
    shapes = [_replaced(kit, {**large, place: 0}) for place in places]
    for binary in (False, True):
        for shape in (_replaced(kit, dict.fromkeys(places, 0)), *shapes):
            request = _first(kit, _repeated(kit.inputs[0], 0), binary=binary)
            request.body["inputs"][0]["shape"] = shape
            kit.bears(request)


@CHECKS.add("wrong-data", "data of another type is coerced or refused, no 5xx")
def wrong_data(kit: Kit) -> None:
    for wrong in ("x", None, True, {"a": 1}, -1, 1.5, HUGE, 10**400):
        request, entry, tensor = _json_input(kit)
        entry["data"] = [wrong, *tensor.flat()[1:]]
        kit.bears(request)
    no_arrays: tuple[object, ...] = ("x", 1, None, {})
    for instead in no_arrays:
        request, entry, _ = _json_input(kit)
        entry["data"] = instead
        kit.refuses(request)


@CHECKS.add("nan", "NaN, which JSON has not, is refused, or never answered in JSON")
def nan(kit: Kit) -> None:
    request, entry, tensor = _json_input(kit)
    entry["data"] = [math.nan, *tensor.flat()[1:]]
    if (answer := kit.bears(request)).status == 200:
        answer.json()


@CHECKS.add("nan-binary", "NaN among floats as bytes is refused, or never answered in JSON")
def nan_binary(kit: Kit) -> None:
    floats = [tensor for tensor in kit.inputs if tensor.datatype in ("FP16", "FP32", "FP64")]
    if not floats:
        raise NotApplicable("the model has no input of floats")
    number = struct.pack(f"<{LETTERS[floats[0].datatype]}", math.nan)
    request = kit.inference(binary=True)
    at = 0
    for tensor in kit.inputs:
        if tensor is floats[0]:
            break
        at += len(tensor.binary())
    request.tail = request.tail[:at] + number + request.tail[at + len(number) :]
    if (answer := kit.bears(request)).status == 200:
        answer.json()


@CHECKS.add("wrong-parameters", "parameters of wrong types and reserved ones are no 5xx")
def wrong_parameters(kit: Kit) -> None:
    for wrong in (
        {"sequence_id": {"a": 1}, "sequence_start": "yes"},
        {"sequence_id": -1},
        {"sequence_id": HUGE},
        {"priority": "high"},
        {"priority": -1},
        {"timeout": "soon"},
        {"timeout": HUGE},
        {"binary_data_output": "yes"},
        {"headers": "x", "triton_enable_empty_final_response": True},
    ):
        kit.bears(kit.with_parameters(kit.inference(), **wrong))
    for of_output in (
        {"classification": -1},
        {"classification": HUGE},
        {"classification": "x"},
        {"binary_data": "yes"},
        {"shared_memory_region": "no-such-region", "shared_memory_byte_size": 8},
    ):
        request = kit.inference()
        request.body["outputs"] = [
            {"name": name, "parameters": of_output} for name in list(kit.plain)[:1]
        ]
        kit.bears(request)
    no_objects: tuple[object, ...] = ("x", 1, [])
    for instead in no_objects:
        request = kit.inference()
        request.body["parameters"] = instead
        kit.bears(request)


# What the header and the JSON object say of bytes, and the bytes.


@CHECKS.add("header-negative", f"a negative {HEADER} is refused")
def header_negative(kit: Kit) -> None:
    _header(kit, "-1")


@CHECKS.add("header-no-number", f"an {HEADER} that is no number is refused")
def header_no_number(kit: Kit) -> None:
    for value in ("x", "1.5", "0x10", ""):
        _header(kit, value)


@CHECKS.add("header-huge", f"an {HEADER} beyond 64 bits is refused")
def header_huge(kit: Kit) -> None:
    for value in (2**31, 2**63, 2**64 + 1, 10**30):
        _header(kit, str(value))


@CHECKS.add("header-beyond", f"an {HEADER} beyond the body is refused")
def header_beyond(kit: Kit) -> None:
    _header(kit, str(len(kit.inference(binary=True).content) + 1))


@CHECKS.add("header-short", f"an {HEADER} that cuts the JSON object is refused")
def header_short(kit: Kit) -> None:
    request = kit.inference(binary=True)
    _header(kit, str(len(request.content) - len(request.tail) - 1))


@CHECKS.add("binary-sizes", "sizes of bytes that do not add up to the body are refused")
def binary_sizes(kit: Kit) -> None:
    size = len(kit.inputs[-1].binary())
    for wrong in (size + 1, size - 1, -1, HUGE, "x", 1.5, True):
        request = kit.inference(binary=True)
        request.body["inputs"][-1]["parameters"]["binary_data_size"] = wrong
        kit.refuses(request)
    request = kit.inference(binary=True)
    request.tail += b"\0"
    kit.refuses(request)


@CHECKS.add("binary-and-shape", "bytes that are not the shape's elements are refused")
def binary_and_shape(kit: Kit) -> None:
    tensor = kit.inputs[0]
    for count in (len(tensor.elements) + 1, len(tensor.elements) - 1):
        request = _first(kit, _repeated(tensor, count), binary=True)
        request.body["inputs"][0]["shape"] = list(tensor.shape)
        kit.refuses(request)


@CHECKS.add("binary-bytes", "an element of BYTES longer than its data is refused")
def binary_bytes(kit: Kit) -> None:
    place = next(
        (place for place, tensor in enumerate(kit.inputs) if tensor.datatype == "BYTES"), None
    )
    if place is None:
        raise NotApplicable("the model has no input of BYTES")
    at = sum(len(tensor.binary()) for tensor in kit.inputs[:place])
    for length in (len(kit.inputs[place].binary()) + 1, 2**32 - 1):
        request = kit.inference(binary=True)
        request.tail = request.tail[:at] + struct.pack("<I", length) + request.tail[at + 4 :]
        kit.refuses(request)


@CHECKS.add("still-there", "after all of that it lives and answers")
def still_there(kit: Kit) -> None:
    kit.server.get("/v2/health/live").expect(200)
    kit.same(kit.answer(kit.inference()))


def _json_input(kit: Kit) -> tuple[Inference, dict[str, Any], Tensor]:
    """A request, the entry of the first input that JSON can carry, and what it holds."""
    request = kit.inference()
    for entry, tensor in zip(request.body["inputs"], kit.inputs, strict=True):
        if tensor.has_json:
            return request, entry, tensor
    raise NotApplicable("the model has no input with a form in JSON")


def _free(kit: Kit) -> list[int]:
    """Which sizes of the first input may be any; all of them where none may.

    A server refuses a wrong rank, or another size than the model's, before it multiplies: what it
    makes of huge sizes is seen where those are allowed.
    """
    shape = kit.declared_inputs[0].shape
    if not shape:
        raise NotApplicable("the first input is a scalar")
    return [place for place, size in enumerate(shape) if size < 0] or list(range(len(shape)))


def _replaced(kit: Kit, sizes: Mapping[int, object]) -> list[object]:
    """The first input's shape with other sizes in some places."""
    return [sizes.get(place, size) for place, size in enumerate(kit.inputs[0].shape)]


def _overflowing(kit: Kit) -> Iterator[tuple[list[object], Tensor]]:
    """Shapes of more than 2^64 elements, or bytes, and what is sent: as many as 64 bits tell."""
    tensor = kit.inputs[0]
    nothing, count = _repeated(tensor, 0), len(tensor.elements)
    width = 1 if tensor.datatype == "BYTES" else len(tensor.binary()) // count
    free = _free(kit)
    for place in free:
        size = tensor.shape[place]
        # So many more are a multiple of 2^64, of elements or of bytes.
        elements, byte_count = (
            2**64 // math.gcd(2**64, count // size * each) for each in (1, width)
        )
        for other, sent in (
            (size + elements, tensor),
            (size + byte_count, tensor),
            (elements, nothing),
            (HUGE, tensor),
        ):
            yield _replaced(kit, {place: other}), sent
    yield _replaced(kit, dict.fromkeys(free, 2**32)), tensor
    yield _replaced(kit, dict.fromkeys(free, HUGE)), tensor


def _repeated(tensor: Tensor, count: int) -> Tensor:
    """A tensor of so many of its elements, in turns, without a shape of its own."""
    elements = tuple(tensor.elements[place % len(tensor.elements)] for place in range(count))
    return Tensor(tensor.name, tensor.datatype, (count,), elements)


def _first(kit: Kit, tensor: Tensor, *, binary: bool = False) -> Inference:
    """A request with another tensor as its first input."""
    request = kit.inference(binary=binary)
    entry = request.body["inputs"][0]
    before = len(kit.inputs[0].binary()) if "data" not in entry else 0
    if "data" in entry:
        entry["data"] = tensor.flat()
    else:
        entry["parameters"]["binary_data_size"] = len(tensor.binary())
        request.tail = tensor.binary() + request.tail[before:]
    return request


def _header(kit: Kit, value: str) -> None:
    request = kit.inference(binary=True)
    request.headers[HEADER] = value
    kit.refuses(request)
