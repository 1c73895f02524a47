"""Of which stream a request is: in the query, in X-Session-Id, or in the JSON of a /v2 request."""

from starlette.requests import Request

from service.bounds import count_values
from service.errors import Refused
from service.schemas import DEFAULT_STREAM, STREAM_NAME
from service.uploads import memory_to_parse
from service.v2.datatypes import Buffer
from service.v2.parameters import parameters_in, sequence
from service.v2.reading import HEADER_LENGTH, json_length, json_of, object_of


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
