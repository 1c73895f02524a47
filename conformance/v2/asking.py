"""What the checks ask with: inferences of a model, and what came of the plain one."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from conformance.v2.server import HEADER, Answer, Failed, Server, told
from conformance.v2.tensors import (
    DATATYPES,
    Declared,
    Tensor,
    difference,
    example,
    from_binary,
    from_json,
    sizes,
)


class NotAsked(Exception):
    """What has to hold first does not; the text says what."""


class NotApplicable(Exception):
    """The question has no meaning for this model; the text says why."""


class CannotAsk(Exception):
    """There is no such server or no such model; the text says what to do."""


@dataclass
class Inference:
    """The request of an inference, to be changed before it is sent.

    `content` is the JSON object, its inputs last so that what is special of it comes first, with
    the tensors that go as bytes behind it.
    """

    body: dict[str, Any]
    tail: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self._json + self.tail

    @property
    def all_headers(self) -> dict[str, str]:
        """Those that go with the content, and its own in place of them."""
        usual = {"Content-Type": "application/json"}
        if self.tail:
            usual = {
                "Content-Type": "application/octet-stream",
                HEADER: str(len(self._json)),
            }
        return {**usual, **self.headers}

    @property
    def _json(self) -> bytes:
        others = {key: value for key, value in self.body.items() if key != "inputs"}
        value = {**others, "inputs": self.body["inputs"]}
        return json.dumps(value, separators=(",", ":")).encode()


class Kit:
    """A server and a model of it: what the checks ask with.

    Args:
        given: inputs in place of those of the metadata.
        side: the size of dimensions that may be any.
        element: each element of BYTES.
        parameters: go with every inference.
        tolerance: by how much numbers of two answers may differ; see `difference`.
    """

    def __init__(
        self,
        server: Server,
        name: str,
        *,
        given: tuple[Declared, ...] = (),
        side: int | None = None,
        element: bytes = b"conformance",
        parameters: Mapping[str, Any] | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        self.server = server
        self.name = name
        self.tolerance = tolerance
        self._given = given
        self._side = side
        self._element = element
        self._parameters = parameters or {}

    # What the server says of itself.

    def path(self, rest: str = "", *, name: str | None = None) -> str:
        """A path below the model's."""
        return f"/v2/models/{quote(name or self.name, safe='')}{rest}"

    @cached_property
    def extensions(self) -> tuple[str, ...]:
        """Those that the server lists; none where it cannot be asked."""
        shown = self.server.shown
        try:
            listed = self.server.get("/v2").expect(200).object().get("extensions")
        except Failed:
            listed = None
        self.server.shown = shown
        return tuple(map(str, listed)) if isinstance(listed, list) else ()

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The model's, as it comes.

        Raises:
            NotAsked: there is none.
        """
        try:
            return self.server.get(self.path()).expect(200).object()
        except Failed:
            raise NotAsked("there is no model metadata to build a request from") from None

    @cached_property
    def declared_inputs(self) -> tuple[Declared, ...]:
        """What the model declares to take, or what was given in its place."""
        inputs = self._given or declared(self.metadata, "inputs")
        if not inputs:
            raise NotAsked("the model metadata names no inputs: give them with --input")
        return inputs

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """What is sent: a tensor for each input."""
        return tuple(
            example(each, sizes(each.shape, self._side), self._element, place)
            for place, each in enumerate(self.declared_inputs)
        )

    @cached_property
    def outputs(self) -> tuple[Declared, ...]:
        """What the model declares to answer."""
        return declared(self.metadata, "outputs")

    # Inferences.

    def inference(
        self, *, binary: bool = False, only: str | None = None, nested: bool = False
    ) -> Inference:
        """A request that any server should answer.

        Args:
            binary: inputs go as bytes (those that JSON cannot carry do in any case).
            only: the one input that goes as bytes.
            nested: data as nested arrays.
        """
        inputs: list[dict[str, Any]] = []
        tail = b""
        for tensor in self.inputs:
            entry: dict[str, Any] = {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
            }
            if binary or tensor.name == only or not tensor.has_json:
                data = tensor.binary()
                entry["parameters"] = {"binary_data_size": len(data)}
                tail += data
            else:
                entry["data"] = tensor.nested() if nested else tensor.flat()
            inputs.append(entry)
        body: dict[str, Any] = {"inputs": inputs}
        if self._parameters:
            body["parameters"] = dict(self._parameters)
        return Inference(body, tail)

    def with_parameters(self, inference: Inference, **parameters: Any) -> Inference:
        """The request with further parameters."""
        inference.body["parameters"] = {**inference.body.get("parameters", {}), **parameters}
        return inference

    def send(self, inference: Inference, path: str = "/infer") -> Answer:
        """Send an inference as it is."""
        return self.server.send("POST", self.path(path), inference.content, inference.all_headers)

    def send_content(
        self, content: bytes | Sequence[bytes], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send bytes to where inferences go."""
        given = {"Content-Type": "application/json"} if headers is None else headers
        return self.server.send("POST", self.path("/infer"), content, given)

    @cached_property
    def plain(self) -> dict[str, Tensor]:
        """What came for the plain request.

        Raises:
            NotAsked: it failed, which another line says.
        """
        try:
            return tensors(self.send(self.inference()).expect(200))
        except Failed:
            raise NotAsked("the plain inference failed") from None

    def ask_plain_again(self) -> None:
        """Have `plain` be what comes now: a model may have moved since."""
        shown = self.server.shown
        del self.plain
        _ = self.plain
        self.server.shown = shown

    def answer(self, inference: Inference, path: str = "/infer") -> Answer:
        """The answer to a request that is due, once the plain one is answered."""
        _ = self.plain
        return self.send(inference, path).expect(200)

    def refuses(self, inference: Inference) -> None:
        """Failed unless a request has a 4xx, though the plain one is answered."""
        _ = self.plain
        self.send(inference).expect_refusal()

    def bears(self, inference: Inference) -> Answer:
        """Failed where a request has a 5xx, though the plain one is answered."""
        _ = self.plain
        return self.send(inference).expect_no_crash()

    def same(
        self,
        answer: Answer,
        names: Iterable[str] | None = None,
        *,
        numbers: bool = True,
    ) -> dict[str, Tensor]:
        """The tensors of an answer, which are those of the plain request.

        Args:
            names: the outputs that it has; None: the same.
            numbers: whether their elements are the same, too; where they are not, the plain request
                is sent again, and what comes is what counts.

        Raises:
            Failed: they are not; the text says which.
        """
        expected = self.plain
        found = tensors(answer)
        due = set(expected if names is None else names)
        if set(found) != due:
            raise Failed(f"outputs are {told(sorted(found))}; {sorted(due)} are due")
        for name, tensor in found.items():
            other = expected[name]
            if (tensor.datatype, tensor.shape) != (other.datatype, other.shape):
                raise Failed(
                    f"{name} is {tensor.datatype} {list(tensor.shape)}; in the plain answer it is "
                    f"{other.datatype} {list(other.shape)}"
                )
        if numbers and self._gap(found) > self.tolerance:
            self.ask_plain_again()
            if (gap := self._gap(found)) > self.tolerance:
                raise Failed(
                    f"numbers differ by {gap:.2g} from the plain answer; --tolerance is "
                    f"{self.tolerance:g} (a model that moves while it is asked needs more, or inf)"
                )
        return found

    def _gap(self, found: Mapping[str, Tensor]) -> float:
        """The largest difference of outputs from those of the plain request."""
        return max(
            (
                difference(tensor.elements, self.plain[name].elements)
                for name, tensor in found.items()
            ),
            default=0.0,
        )


def tensors(answer: Answer) -> dict[str, Tensor]:
    """The outputs of an answered inference, by name, from JSON and bytes.

    Raises:
        Failed: the answer is malformed; the text says how.
    """
    body, rest = answer.object(), answer.parts()[1]
    outputs = body.get("outputs")
    if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
        raise Failed(f"{answer}; an object with outputs is due")
    found: dict[str, Tensor] = {}
    for entry in outputs:
        name, datatype, shape = (entry.get(key) for key in ("name", "datatype", "shape"))
        if not isinstance(name, str) or datatype not in DATATYPES or not _is_shape(shape):
            raise Failed(f"an output is {told(entry)}; name, datatype, shape are due")
        if name in found:
            raise Failed(f"output {told(name)} comes twice")
        parameters = entry.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        try:
            if size is None:
                elements = from_json(datatype, entry.get("data"), math.prod(shape))
            else:
                if not isinstance(size, int) or not 0 <= size <= len(rest):
                    raise ValueError(f"binary_data_size is {size!r}, {len(rest)} bytes are left")
                elements = from_binary(datatype, rest[:size], math.prod(shape))
                rest = rest[size:]
        except ValueError as error:
            raise Failed(f"output {told(name)}: {told(error)}") from None
        found[name] = Tensor(name, datatype, tuple(shape), elements, size is not None)
    if rest:
        raise Failed(f"{len(rest)} bytes of the answer belong to no output")
    return found


def declared(metadata: Mapping[str, Any], key: str) -> tuple[Declared, ...]:
    """Inputs or outputs of a model's metadata.

    Raises:
        NotAsked: they are malformed.
    """
    entries = metadata.get(key, [])
    if not isinstance(entries, list) or not all(is_declared(entry) for entry in entries):
        raise NotAsked(f"the {key} of the model metadata cannot be read")
    return tuple(Declared(each["name"], each["datatype"], tuple(each["shape"])) for each in entries)


def is_declared(entry: object) -> bool:
    """Whether this is a tensor of a model's metadata."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry.get("datatype") in DATATYPES
        and isinstance(entry.get("shape"), list)
        and all(type(size) is int and size >= -1 for size in entry["shape"])
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
