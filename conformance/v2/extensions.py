"""What a server may have beyond the protocol: Triton's extensions, and what clients make use of.

Source: triton-inference-server/server, docs/protocol/extension_*.md. Whoever lists an extension in
its metadata and has it not is told so, but conforms to the protocol all the same.
"""

import gzip
import re
import time
import zlib
from collections.abc import Callable
from typing import Any

from conformance.v2.asking import Kit, NotApplicable
from conformance.v2.checks import OPTIONAL, Checks
from conformance.v2.server import HEADER, Failed, told
from conformance.v2.tensors import Tensor, difference

BINARY = "binary_tensor_data"
COUNTED_SECONDS = 3.0

CHECKS = Checks(OPTIONAL)


@CHECKS.add("health-json", "health answers say live, ready in JSON (KServe's client reads it)")
def health_json(kit: Kit) -> None:
    for path, key in (
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
        (kit.path("/ready"), "ready"),
    ):
        answer = kit.server.get(path).expect(200)
        if answer.object().get(key) is not True:
            raise Failed(f"{answer}; {key}: true is due")


@CHECKS.add("model-list", "GET /v2/models lists the models (KServe)")
def model_list(kit: Kit) -> None:
    answer = kit.server.get("/v2/models").expect(200)
    listed = answer.object().get("models")
    if not isinstance(listed, list) or kit.name not in listed:
        raise Failed(f"{answer}; models with {kit.name!r} are due")


@CHECKS.add("binary-input", "inputs as bytes behind the JSON object", BINARY)
def binary_input(kit: Kit) -> None:
    kit.same(kit.answer(kit.inference(binary=True)))


@CHECKS.add("binary-mixed", "an input as bytes beside others in JSON", BINARY)
def binary_mixed(kit: Kit) -> None:
    with_json = [tensor.name for tensor in kit.inputs if tensor.has_json]
    if len(with_json) < 2:
        raise NotApplicable("the model has no two inputs with a form in JSON")
    kit.same(kit.answer(kit.inference(only=with_json[-1])))


@CHECKS.add("binary-output", "an output as bytes, by its parameter binary_data", BINARY)
def binary_output(kit: Kit) -> None:
    request = kit.inference()
    request.body["outputs"] = [
        {"name": name, "parameters": {"binary_data": True}} for name in kit.plain
    ]
    _binary(kit.same(kit.answer(request)), set(kit.plain))


@CHECKS.add("binary-outputs", "all outputs as bytes, by binary_data_output", BINARY)
def binary_outputs(kit: Kit) -> None:
    request = kit.with_parameters(kit.inference(), binary_data_output=True)
    _binary(kit.same(kit.answer(request)), set(kit.plain))


@CHECKS.add("binary-one-not", "binary_data: false overrides binary_data_output", BINARY)
def binary_one_not(kit: Kit) -> None:
    first, *others = kit.plain
    request = kit.with_parameters(kit.inference(), binary_data_output=True)
    request.body["outputs"] = [
        {"name": first, "parameters": {"binary_data": False}},
        *({"name": name} for name in others),
    ]
    _binary(kit.same(kit.answer(request)), set(others))


@CHECKS.add("raw", f"a raw request: {HEADER} is 0, the body is the one input", BINARY)
def raw(kit: Kit) -> None:
    if len(kit.inputs) != 1:
        raise NotApplicable("the model has not one input")
    [tensor] = kit.inputs
    element = tensor.elements[0] if len(tensor.elements) == 1 else None
    body = element if isinstance(element, bytes) else tensor.binary()
    # A batch of 1 is understood; no more can be.
    if body is not element and any(size < 0 for size in kit.declared_inputs[0].shape[1:]):
        raise NotApplicable("the one input's shape is not fixed")
    _ = kit.plain
    answer = kit.send_content(
        body,
        {HEADER: "0", "Content-Type": "application/octet-stream"},
    )
    kit.same(answer.expect(200))


@CHECKS.add("classification", "an output's highest classes, by classification: K", "classification")
def classification(kit: Kit) -> None:
    _ = kit.plain
    kit.ask_plain_again()
    numeric = [each for each in kit.plain.values() if each.datatype not in ("BYTES", "BOOL")]
    if not numeric or not numeric[0].shape:
        raise NotApplicable("the model has no output of numbers with a dimension")
    plain = numeric[0]
    count = min(2, plain.shape[-1])
    request = kit.inference()
    request.body["outputs"] = [{"name": plain.name, "parameters": {"classification": count}}]
    _highest(kit, plain, count, kit.answer(request).object().get("outputs"))


@CHECKS.add("sequence", "a sequence by number: sequence_id, sequence_start, _end", "sequence")
def sequence(kit: Kit) -> None:
    _sequence(kit, 4711)


@CHECKS.add("sequence-text", "a sequence by text as sequence_id", "sequence(string_id)")
def sequence_text(kit: Kit) -> None:
    _sequence(kit, "conformance")


@CHECKS.add("schedule", "priority and timeout (microseconds) are taken", "schedule_policy")
def schedule(kit: Kit) -> None:
    request = kit.with_parameters(kit.inference(), priority=1, timeout=60_000_000)
    kit.same(kit.answer(request))


@CHECKS.add("config", "GET of the model's /config", "model_configuration")
def config(kit: Kit) -> None:
    answer = kit.server.get(kit.path("/config")).expect(200)
    if answer.object().get("name") != kit.name:
        raise Failed(f"{answer}; name: {kit.name!r} is due")


@CHECKS.add("statistics", "the model's /stats count an inference", "statistics")
def statistics(kit: Kit) -> None:
    before = _counted(kit, kit.path("/stats"))
    kit.answer(kit.inference())
    until = time.monotonic() + COUNTED_SECONDS
    while (after := _counted(kit, kit.path("/stats"))) <= before:
        if time.monotonic() > until:
            raise Failed(f"inference_count is {after} after an inference, it was {before} before")
        time.sleep(0.1)


@CHECKS.add("statistics-of-all", "GET /v2/models/stats has the model's", "statistics")
def statistics_of_all(kit: Kit) -> None:
    _counted(kit, "/v2/models/stats")


@CHECKS.add("repository-index", "POST /v2/repository/index without a body", "model_repository")
def repository_index(kit: Kit) -> None:
    answer = kit.server.send("POST", "/v2/repository/index", b"").expect(200)
    listed = answer.json()
    if not isinstance(listed, list) or not any(
        isinstance(each, dict) and each.get("name") == kit.name for each in listed
    ):
        raise Failed(f"{answer}; an array with an entry of name {kit.name!r} is due")


@CHECKS.add("gzip-request", "a request's body in gzip")
def gzip_request(kit: Kit) -> None:
    _compressed(kit, "gzip", gzip.compress)


@CHECKS.add("deflate-request", "a request's body in deflate")
def deflate_request(kit: Kit) -> None:
    _compressed(kit, "deflate", zlib.compress)


@CHECKS.add("gzip-binary", f"gzip over inputs as bytes; {HEADER} is of what is in it")
def gzip_binary(kit: Kit) -> None:
    _compressed(kit, "gzip", gzip.compress, binary=True)


@CHECKS.add("gzip-answer", "the answer in gzip, by Accept-Encoding")
def gzip_answer(kit: Kit) -> None:
    _compressed_answer(kit, "gzip")


@CHECKS.add("deflate-answer", "the answer in deflate, by Accept-Encoding")
def deflate_answer(kit: Kit) -> None:
    _compressed_answer(kit, "deflate")


def _binary(found: dict[str, Tensor], due: set[str]) -> None:
    binary = {name for name, tensor in found.items() if tensor.came_binary}
    if binary != due:
        raise Failed(f"{sorted(binary)} came as bytes; {sorted(due)} are due")


def _highest(kit: Kit, plain: Tensor, count: int, outputs: Any) -> None:
    """Hold what came as classes against the numbers of the plain answer, or Failed."""
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise Failed(f"outputs are {told(outputs)}; {plain.name} alone is due")
    datatype, shape, data = (outputs[0].get(key) for key in ("datatype", "shape", "data"))
    if datatype != "BYTES" or not isinstance(shape, list) or shape[-1:] != [count]:
        raise Failed(
            f"{plain.name} is {told((datatype, shape))}; BYTES with {count} at the end is due"
        )
    if not isinstance(data, list):
        raise Failed(f"data is {told(data)}; strings are due")
    classes = [each for each in plain.elements[: plain.shape[-1]] if not isinstance(each, bytes)]
    highest = sorted(classes, reverse=True)[:count]
    given = data[0] if data and isinstance(data[0], list) else data[:count]
    if len(given) != count:
        raise Failed(f"data is {told(data)}; {count} strings are due")
    for text, due in zip(given, highest, strict=True):
        parts = re.fullmatch(r"([^:]+):(\d+)(:.*)?", text) if isinstance(text, str) else None
        try:
            value, index = (float(parts[1]), int(parts[2])) if parts else (None, 0)
        except ValueError:
            value, index = None, 0
        if value is None or index >= len(classes):
            raise Failed(f"{told(text)} came; value:index or value:index:label is due")
        if difference([value], [classes[index]]) > kit.tolerance:
            raise Failed(
                f"{told(text)} came; class {index} of the plain answer is {classes[index]}"
            )
        if difference([value], [due]) > kit.tolerance:
            raise Failed(f"{told(text)} came; {due} is due: the highest comes first")


def _sequence(kit: Kit, name: int | str) -> None:
    """Three requests of a sequence; what comes may depend on those before, as it is there for."""
    for start, end in ((True, False), (False, False), (False, True)):
        request = kit.with_parameters(
            kit.inference(), sequence_id=name, sequence_start=start, sequence_end=end
        )
        kit.same(kit.answer(request), numbers=False)


def _counted(kit: Kit, path: str) -> int:
    answer = kit.server.get(path).expect(200)
    listed = answer.object().get("model_stats")
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict) and each.get("name") == kit.name:
            count = each.get("inference_count")
            if isinstance(count, int):
                return count
    raise Failed(f"{answer}; model_stats with {kit.name!r} and its inference_count are due")


def _compressed(
    kit: Kit, coding: str, compress: Callable[[bytes], bytes], *, binary: bool = False
) -> None:
    _ = kit.plain
    request = kit.inference(binary=binary)
    headers = {**request.all_headers, "Content-Encoding": coding}
    kit.same(kit.send_content(compress(request.content), headers).expect(200))


def _compressed_answer(kit: Kit, coding: str) -> None:
    request = kit.inference()
    request.headers["Accept-Encoding"] = coding
    answer = kit.answer(request)
    kit.same(answer)
    came = answer.headers.get("Content-Encoding", "none")
    if came != coding:
        raise Failed(
            f"Content-Encoding of {len(answer.content)} bytes is {told(came)}; {coding} is due"
        )
