"""Requests to a server and what its answers say; what is asked for is in the checks."""

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

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

HEADER = "Inference-Header-Content-Length"
SHOWN_CHARACTERS = 400
TOLD_CHARACTERS = 160
# An array of more than six numbers or texts: its first four.
LONG_ARRAY = re.compile(r"(\[(?:[^][{},]*,){4})(?:[^][{},]*,){2,}[^][{},]*\]")


class Failed(Exception):
    """The server did otherwise than it was asked for; the text says what, in a line."""


class NotAsked(Exception):
    """What has to hold first does not; the text says what."""


class NotApplicable(Exception):
    """The question has no meaning for this model; the text says why."""


class CannotAsk(Exception):
    """There is no such server or no such model; the text says what to do."""


@dataclass(frozen=True)
class Answer:
    """What came for a request."""

    status: int
    headers: httpx.Headers
    content: bytes

    def __str__(self) -> str:
        text = told(self.content.decode(errors="replace"))
        return f"answered {self.status}" + (f": {text}" if text else " without a body")

    def expect(self, status: int) -> "Answer":
        """Itself, or Failed where the status is another one."""
        if self.status != status:
            raise Failed(f"{self._redirected() or self}; {status} is due")
        return self

    def expect_refusal(self) -> "Answer":
        """Itself, or Failed where it is not a 4xx."""
        if not 400 <= self.status < 500:
            raise Failed(f"{self}; a 4xx is due")
        return self

    def expect_no_crash(self) -> "Answer":
        """Itself, or Failed where it is a 5xx."""
        if self.status >= 500:
            raise Failed(f"{self}; no 5xx is due")
        return self

    def parts(self) -> tuple[bytes, bytes]:
        """The body's JSON, and the bytes of tensors behind it."""
        length = self.headers.get(HEADER)
        if length is None:
            return self.content, b""
        if not (length.isascii() and length.isdigit()) or int(length) > len(self.content):
            raise Failed(
                f"{HEADER} of the answer is {told(length)}, it has {len(self.content)} bytes"
            )
        return self.content[: int(length)], self.content[int(length) :]

    def json(self) -> Any:
        """The body's JSON; NaN and Infinity are none."""

        def refuse(constant: str) -> NoReturn:
            raise Failed(f"the answer has {constant}, which JSON has not")

        try:
            return json.loads(self.parts()[0], parse_constant=refuse)
        except ValueError:
            raise Failed(f"{self}; JSON is due") from None

    def object(self) -> dict[str, Any]:
        """The body's JSON, which is an object."""
        if not isinstance(value := self.json(), dict):
            raise Failed(f"{self}; a JSON object is due")
        return value

    def _redirected(self) -> str | None:
        place = self.headers.get("location")
        return f"answered {self.status}, a redirect to {told(place)}" if place else None


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


class Server:
    """A server that is asked; `shown` is its last request as a curl command."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.shown = ""

    def send(
        self,
        method: str,
        path: str,
        content: bytes | Sequence[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; a sequence goes in chunks.

        Raises:
            Failed: no answer came.
        """
        headers = dict(headers or {})
        if content is None or isinstance(content, bytes):
            self.shown = self._curl(method, path, content or b"", headers)
            body: bytes | Iterator[bytes] | None = content
        else:
            chunked = {**headers, "Transfer-Encoding": "chunked"}
            self.shown = self._curl(method, path, b"".join(content), chunked)
            body = iter(content)
        try:
            response = self._client.request(method, path, content=body, headers=headers)
        except httpx.TimeoutException:
            raise Failed(f"no answer within {self._client.timeout.read:g} s") from None
        except httpx.ConnectError as error:
            raise Failed(f"takes no connection ({error})") from None
        except httpx.HTTPError as error:
            raise Failed(f"ended the connection without an answer: {error}") from None
        return Answer(response.status_code, response.headers, response.content)

    def get(self, path: str) -> Answer:
        return self.send("GET", path)

    def _curl(self, method: str, path: str, content: bytes, headers: Mapping[str, str]) -> str:
        words = ["curl", "-s"]
        if method != "GET":
            words += ["-X", method]
        for name, value in headers.items():
            words += ["-H", f"{name}: {value}"]
        if content:
            words += ["--data-binary", _shortened(content, headers.get(HEADER, ""))]
        return shlex.join([*words, str(self._client.base_url).rstrip("/") + path])


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


def told(value: object) -> str:
    """What a server sent, in a line that a terminal can show."""
    text = " ".join(str(value).split())
    text = text if len(text) <= TOLD_CHARACTERS else f"{text[:TOLD_CHARACTERS]}…"
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _shortened(content: bytes, header: str) -> str:
    """A body as text: long arrays cut, and what is no text told as a number of bytes."""
    json_end = int(header) if header.isascii() and header.isdigit() else len(content)
    text = content[:json_end].decode(errors="surrogateescape")  # surrogates are not printable
    end = next((place for place, each in enumerate(text) if not each.isprintable()), len(text))
    behind = len(content) - len(text[:end].encode())
    text = LONG_ARRAY.sub(r"\1…]", text[:end])
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}… ({len(content) - behind} bytes)"
    return f"{text}<{behind} bytes>" if behind else text
