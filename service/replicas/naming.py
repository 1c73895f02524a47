"""Of which stream a request is: in the query, in X-Session-Id, or in the JSON of a /v2 request."""

import re

from starlette.requests import Request

from service.bounds import count_values
from service.errors import Refused
from service.problems import path_in
from service.schemas import DEFAULT_STREAM, STREAM_NAME
from service.uploads import memory_to_parse
from service.v2.datatypes import Buffer
from service.v2.parameters import parameters_in, sequence
from service.v2.reading import HEADER_LENGTH, json_length, json_of, object_of

# The routes that are of one stream, whose replica is to answer.
_OF_ONE = frozenset({"/predict", "/reset", "/rollback", "/snapshots"})
_INFER = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")


def is_of_a_stream(request: Request) -> bool:
    """Whether a request is of one stream; it may name it or not."""
    path = path_in(request.scope)
    return path in _OF_ONE or is_inference(path)


def is_inference(path: str) -> bool:
    """Whether a path is that of a /v2 inference, whose body may name the stream."""
    return _INFER.fullmatch(path) is not None


def stream_of(request: Request, in_body: frozenset[str] | None) -> str | None:
    """The stream that a request is of; None: it names none that is one, and any replica says so.

    Args:
        in_body: what `names_in` found; None: nothing could be read.
    """
    if in_body is None:
        return None
    named = {*request.headers.getlist("x-session-id"), *request.query_params.getlist("stream")}
    names = (named | in_body) - {""} or {DEFAULT_STREAM}
    name = names.pop()
    return name if not names and STREAM_NAME.fullmatch(name) else None


def names_in(body: Buffer, stated: str | None) -> frozenset[str] | None:
    """The streams that the JSON of a /v2 request names; None: it cannot be read.

    Args:
        stated: the header Inference-Header-Content-Length, as `read_request` has it.
    """
    try:
        length = json_length(body, stated)
        if stated is not None and length == 0:
            return frozenset()
        parameters = parameters_in(object_of(json_of(body, length)))
        found = {sequence(parameters), parameters.get("stream") or ""}
    except Refused:
        return None
    return frozenset(found) if all(isinstance(each, str) for each in found) else None


def memory_for_names(body: Buffer, stated: str | None) -> int:
    """The bytes that `names_in` takes at most besides the body."""
    try:
        text = json_of(body, json_length(body, stated))
    except Refused:
        return 0
    return memory_to_parse(text, "application/json") + 8 * count_values(text)


def header_length(request: Request) -> str | None:
    """What a request states of its JSON's length."""
    return request.headers.get(HEADER_LENGTH)
