"""From the bytes of a request to its images: raw bodies, forms, JSON. Knows no queue, no torch."""

import binascii
import contextlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

from service.bounds import (
    MOST_CONTAINERS,
    MOST_HEADER_CHARACTERS,
    MOST_NAMES,
    PIECE_BYTES,
    count_containers,
    count_names,
    count_values,
)
from service.errors import OutOfRange, TooLarge, UnknownType, Unreadable, of_image
from service.images import check_media_type
from service.schemas import FeedbackRequest, LateLabel, PredictRequest, check_written, in_words
from ttc_core.pictures import Buffer

ACCEPTED = "image/*, multipart/form-data with fields named image, or application/json"
MAX_ID_CHARACTERS = 128
# Between them stand the values of a JSON body. An image has three, and may have some in its id.
_MARKS_A_LABEL = 4 + MAX_ID_CHARACTERS
_MARKS_AN_IMAGE = 3 * _MARKS_A_LABEL
# No object of a request has more names.
_MOST_NAMES = 3
# An item's names, and colons in its id.
_COLONS_AN_ITEM = 10
MOST_LABELS = 10_000
_MAX_GZIP_MEMBERS = 100
# Read of a Content-Encoding; what stands behind them is no coding of ours.
_MOST_CODINGS = 10
# What zlib is told of each coding; deflate is zlib's own form (RFC 9110 §8.4.1.2).
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_BASE64_PIECE = 1 << 16
_HEADER_NAME = re.compile(rb"[!#-'*+.0-9A-Z^-z|~-]+")
_MOST_DIGITS = 18  # what has more is cut: any such number is no class

# What a JSON body is like, and what goes in the query instead.
_FORMS: dict[type[BaseModel], tuple[str, str]] = {
    PredictRequest: (
        '{"images": [{"b64": …, "id": …, "label": …}]}',
        "stream, top_k, timeout, learn and context go in the query",
    ),
    FeedbackRequest: (
        '{"labels": [{"stream": …, "id": …, "label": …}]}',
        "a stream of all goes in the query",
    ),
}

T = TypeVar("T")
Form = TypeVar("Form", bound=BaseModel)


@dataclass
class Upload:
    """The images of a request as files, each with its id and label if they were given."""

    images: list[Buffer] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)


def packing(coding: str) -> str | None:
    """How a body is packed, by its Content-Encoding: with gzip, with deflate, or not.

    Raises:
        UnknownType: a coding other than one of them, once, and identity.
    """
    codings = [name.strip().lower().removeprefix("x-") for name in coding.split(",", _MOST_CODINGS)]
    codings = [name for name in codings if name not in ("", "identity")]
    if len(codings) > 1 or not {*codings} <= {*_WINDOW_BITS}:
        raise UnknownType(
            f"The Content-Encoding {coding[:80]!r} is not accepted; accepted are gzip or deflate, "
            "once, and identity."
        )
    return codings[0] if codings else None


def unpack(body: Buffer, coding: str, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """Unpack gzip or deflate in pieces of 1 to `piece_bytes` bytes, one for each step.

    Raises:
        Unreadable: damaged, cut short, or followed by something else.
    """
    rest = memoryview(body)
    most_members = _MAX_GZIP_MEMBERS if coding == "gzip" else 1
    for _ in range(most_members):
        inflate = zlib.decompressobj(wbits=_WINDOW_BITS[coding])
        at = 0
        try:
            while not inflate.eof:
                taken = inflate.unconsumed_tail or rest[at : (at := at + (1 << 16))]
                piece = inflate.decompress(taken, piece_bytes)
                if piece:
                    yield piece
                elif not taken:
                    raise Unreadable(f"The {coding} of the request is cut short.")
        except zlib.error as error:
            raise Unreadable(f"The request is not {coding}, or damaged ({error}).") from None
        rest = rest[min(at, len(rest)) - len(inflate.unused_data) :]
        if not rest:
            return
    if coding == "gzip":
        raise Unreadable(f"The gzip of the request has more than {_MAX_GZIP_MEMBERS} members.")
    raise Unreadable("Behind the deflate of the request something follows.")


def memory_to_parse(body: Buffer, content_type: str | None) -> int:
    """Return the bytes that `parse_upload` takes at most besides the body."""
    media_type, _ = _media_type(content_type)
    if media_type == b"multipart/form-data":
        return len(body)  # its parts
    if media_type == b"application/json":
        # As text, its strings, those checked, what they encode; and an object for each value.
        # Text that is not ASCII may have four bytes a character.
        return (7 if body.isascii() else 13) * len(body) // 2 + 100 * count_values(body)
    return 0


def content_type(headers: Headers) -> str | None:
    """The Content-Type of a request.

    Raises:
        Unreadable: it has several. UnknownType: it is longer than any.
    """
    stated = headers.getlist("content-type")
    if len(stated) > 1:
        raise Unreadable(f"The request has {len(stated)} Content-Types; send one.")
    if stated and len(stated[0]) > MOST_HEADER_CHARACTERS:
        raise UnknownType(
            f"The Content-Type has {len(stated[0]):,} characters; at most "
            f"{MOST_HEADER_CHARACTERS:,} are accepted."
        )
    return stated[0] if stated else None


def _media_type(content_type: str | None) -> tuple[bytes, dict[bytes, bytes]]:
    media_type, options = parse_options_header(content_type or "")
    return media_type.strip(), {name.lower(): value for name, value in options.items()}


def _check_json(body: Buffer, items: int, marks: int, too_many: TooLarge) -> None:
    """Raise `too_many` for JSON of more values than so many items have, each of so many marks.

    And TooLarge for more lists, objects and names than the items may have: to read them all others
    wait.
    """
    if count_values(body) > marks * items:
        raise too_many
    if count_containers(body) > MOST_CONTAINERS + items:
        raise TooLarge(
            f"The JSON has more than {MOST_CONTAINERS + items:,} lists and objects, the most "
            "accepted."
        )
    if count_names(body) > (most := MOST_NAMES + _COLONS_AN_ITEM * items):
        raise TooLarge(f"The JSON has more than {most:,} names, or colons, the most accepted.")


def parse_upload(
    body: Buffer,
    content_type: str | None,
    *,
    ids: Sequence[str],
    labels: Sequence[str],
    max_images: int,
) -> Upload:
    """Take a request's body apart; `check_upload` looks at what is in it.

    Args:
        ids, labels: from the query, in the order of the images; empty for none. A form or a JSON
            body may carry them instead.

    Raises:
        Unreadable: the body is empty or malformed. UnknownType: its media type is another.
        TooLarge: too many images. OutOfRange: a name or a value that is none of the form's.
    """
    media_type, options = _media_type(content_type)
    if not body:
        raise Unreadable(f"The request has no body; send {ACCEPTED}.")
    if media_type == b"multipart/form-data":
        upload = _parse_form(body, options.get(b"boundary", b""), max_images)
    elif media_type == b"application/json":
        _check_json(
            body,
            max_images,
            _MARKS_AN_IMAGE,
            TooLarge(
                f"The JSON has more values than {max_images:,} images have, the most accepted."
            ),
        )
        upload = _parse_json(body, options, max_images)
    else:
        try:
            check_media_type(content_type)
        except UnknownType as error:
            raise UnknownType(f"{error} Several images go as a form or as JSON.") from None
        upload = Upload([body])
    if ids or labels:
        if any(upload.ids) or any(label is not None for label in upload.labels):
            raise OutOfRange("Give ids and labels in the query or in the body, not in both.")
        upload.ids, upload.labels = list(ids), _whole_numbers(labels)
    return upload


def check_upload(upload: Upload, classes: int, max_images: int, max_image_bytes: int) -> None:
    """Hold files against their limits, and ids and labels, which may be left out.

    Args:
        classes: K; labels are 0 to K − 1.

    Raises:
        TooLarge: too many images, or one of too many bytes. OutOfRange: a label, an id.
    """
    upload.ids = _one_each("id", upload.ids, len(upload.images))
    upload.labels = _one_each("label", upload.labels, len(upload.images))
    count = len(upload.images)
    check_count(count, max_images)
    for index, image in enumerate(upload.images):
        name, label = upload.ids[index], upload.labels[index]
        with of_image(index, count):
            if len(image) > max_image_bytes:
                raise TooLarge(
                    f"it has {len(image):,} bytes; at most {max_image_bytes:,} are accepted."
                )
            check_id(name)
            check_label(label, classes)


def check_id(name: str | None, what: str = "its id") -> None:
    """Raise OutOfRange for an image's id that later labels could not name it by."""
    if name is None:
        return
    if len(name) > MAX_ID_CHARACTERS:
        raise OutOfRange(
            f"{what} has {len(name):,} characters; at most {MAX_ID_CHARACTERS} are accepted."
        )
    if any(unicodedata.category(each) in ("Cc", "Cs") for each in name):
        raise OutOfRange(f"{what} {name!r} has control characters; accepted is printable text.")


def parse_labels(body: Buffer, content_type: str | None, *, classes: int) -> list[LateLabel]:
    """Take the body of a request with labels that came later apart.

    Args:
        classes: K; labels are 0 to K − 1.

    Raises:
        Unreadable: the body is malformed. UnknownType: it is no JSON. TooLarge: too many labels.
        OutOfRange: a label, an id, a stream, or a key that is not known.
    """
    media_type, options = _media_type(content_type)
    if media_type != b"application/json":
        raise UnknownType("Labels go as application/json.")
    too_many = TooLarge(f"The request has more than {MOST_LABELS:,} labels, the most accepted.")
    _check_json(body, MOST_LABELS, _MARKS_A_LABEL, too_many)
    labels = _read_json(body, options, FeedbackRequest).labels
    if len(labels) > MOST_LABELS:
        raise too_many
    for index, each in enumerate(labels):
        with of_image(index, len(labels), name="Label"):
            check_id(each.id)
            check_label(each.label, classes)
    return labels


def check_count(images: int, max_images: int) -> None:
    """Raise TooLarge for more images than are taken at once, OutOfRange for none."""
    if not images:
        raise OutOfRange("The request has no image; at least one is accepted.")
    if images > max_images:
        raise TooLarge(
            f"The request has {images:,} images; at most {max_images:,} are accepted at once."
        )


def check_label(label: int | None, classes: int) -> None:
    """Raise OutOfRange for a label that is no class."""
    if label is not None and not 0 <= label < classes:
        raise OutOfRange(
            f"the label {_shown(label)} is not a class; accepted are 0 to {classes - 1}."
        )


def _shown(label: int) -> str:
    digits = str(label)
    return digits if len(digits) < _MOST_DIGITS else f"{digits[: _MOST_DIGITS - 1]}…"


def _one_each(name: str, values: list[T | None], images: int) -> list[T | None]:
    if not values:
        return [None] * images
    if len(values) != images:
        raise OutOfRange(
            f"The request has {images} images but {len(values)} values of {name}; give one for "
            "each image, in order, or none."
        )
    return values


def _whole_numbers(values: Sequence[str]) -> list[int | None]:
    numbers: list[int | None] = []
    for index, value in enumerate(values):
        with of_image(index, len(values)):
            check_written("a label", value, int)
        numbers.append(int(value[:_MOST_DIGITS]))
    return numbers


def _parse_json(body: Buffer, options: dict[bytes, bytes], max_images: int) -> Upload:
    images = _read_json(body, options, PredictRequest).images
    check_count(len(images), max_images)
    upload = Upload(ids=[image.id for image in images], labels=[image.label for image in images])
    for index, image in enumerate(images):
        with of_image(index, len(images)):
            upload.images.append(from_base64(image.b64))
    return upload


def _read_json(body: Buffer, options: dict[bytes, bytes], form: type[Form]) -> Form:
    """Read a request in which no object has a key twice.

    json lets no other thread run for 5 ns a byte, pydantic's reader for a twentieth of that. But of
    equal keys it keeps the last: then there are more colons than keys, as where a string has one.
    Those, and all that it cannot read, are for the careful reader.
    """
    if options.get(b"charset", b"utf-8").lower().replace(b"-", b"") != b"utf8":
        raise UnknownType("JSON must be UTF-8; its Content-Type names another charset.")
    content: Any = None
    with contextlib.suppress(ValueError):
        content = from_json(bytes(body), allow_inf_nan=False, cache_strings="none")
    try:
        if content is None or _names(content) != body.count(b":"):
            content = None  # both would be more than was set aside
            content = json.loads(
                body.decode("utf-8-sig"),
                object_pairs_hook=_once_each,
                parse_int=lambda digits: int(digits[:_MOST_DIGITS]),
                parse_constant=_refuse_constant,
            )
        return form.model_validate(content)
    except ValidationError as error:
        raise _json_refusal(error, form) from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"The body is not JSON: {str(error)[:200]}.") from None


def _names(content: Any) -> int:
    """How many names its objects have, as deep as a request goes."""
    lists = content.values() if isinstance(content, dict) else ()
    items = [item for each in lists if isinstance(each, list) for item in each]
    objects = [each for each in (content, *items) if isinstance(each, dict)]
    for each in objects:
        _check_names(len(each))
    return sum(map(len, objects))


def _check_names(count: int) -> None:
    # A few too many are told by name.
    if count > 2 * _MOST_NAMES:
        raise OutOfRange(
            f"An object of the JSON body has {count:,} keys; at most {_MOST_NAMES} are known."
        )


def from_base64(text: str, what: str = "its b64") -> Buffer:
    """Decode a piece at a time: other threads wait for each.

    Raises:
        Unreadable: it is not base64; the sentence calls it `what`.
    """
    # What is not of whole groups, or padded before its end, is wrong in whole only.
    size = len(text) if len(text) % 4 or "=" in text[:-2] else _BASE64_PIECE
    content = bytearray()
    try:
        for at in range(0, len(text), size):
            content += binascii.a2b_base64(text[at : at + size], strict_mode=True)
    except ValueError as error:
        raise Unreadable(f"{what} is not base64 ({error}).") from None
    return content


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_names(len(pairs))
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise OutOfRange(f"The JSON body has the key {name[:40]!r} twice in one object.")
        content[name] = value
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _json_refusal(error: ValidationError, form: type[BaseModel]) -> OutOfRange:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"]) or "the body"
    index = next((part for part in first["loc"] if isinstance(part, int)), None)
    message = "no such key is known" if first["type"] == "extra_forbidden" else in_words(first)
    accepted, query = _FORMS[form]
    beside = f"; {query}" if index is None else ""
    return OutOfRange(f"{place}: {message}; accepted is {accepted}{beside}.", index=index)


def _parse_form(body: Buffer, boundary: bytes, max_images: int) -> Upload:
    if not boundary:
        raise Unreadable("The form's Content-Type names no boundary.")
    fields: dict[str, list[Buffer]] = {"image": [], "id": [], "label": []}
    for number, (headers, content) in enumerate(_parts(body, b"\r\n--" + boundary)):
        if number == 3 * max_images:
            raise TooLarge(f"The form has more than {3 * max_images:,} parts.")
        disposition = headers.get(b"content-disposition", b"")
        if len(disposition) > MOST_HEADER_CHARACTERS:
            raise Unreadable(
                f"The form is malformed: a Content-Disposition has {len(disposition):,} "
                f"characters; at most {MOST_HEADER_CHARACTERS:,} are accepted."
            )
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in fields:
            raise OutOfRange(
                f"The form has a field {name[:40]!r}; accepted are image, id and label."
            )
        if name == "image":
            index = len(fields["image"])
            try:
                check_media_type(headers.get(b"content-type", b"").decode("latin-1"))
            except UnknownType as error:  # of how many is not known yet
                raise UnknownType(f"Image {index + 1}: {error}", index=index) from None
        fields[name].append(content)
    if not fields["image"]:
        raise Unreadable("The form has no field named image.")
    try:
        ids: list[str | None] = [value.decode() for value in fields["id"]]
        labels = [value.decode() for value in fields["label"]]
    except UnicodeDecodeError:
        raise Unreadable("The form's ids and labels must be UTF-8 text.") from None
    return Upload(fields["image"], ids, _whole_numbers(labels))


def _parts(body: Buffer, mark: bytes) -> Iterator[tuple[dict[bytes, bytes], Buffer]]:
    """Yield the headers of each part, their names in small letters, and its content."""
    at = 0
    while body[at : at + 1] in (b"\r", b"\n"):
        at += 1
    if not body.startswith(mark[2:], at):
        raise Unreadable("The form is malformed: it does not begin with its boundary.")
    at += len(mark) - 2
    while body[at : at + 2] == b"\r\n":
        end_of_head = body.find(b"\r\n\r\n", at)
        end = body.find(mark, max(end_of_head, at) + 4)
        while end >= 0 and body[end + len(mark) : end + len(mark) + 2] not in (b"\r\n", b"--"):
            end = body.find(mark, end + 1)  # that was the part's own
        if min(end_of_head, end) < 0:
            raise Unreadable("The form is cut short: its closing boundary is missing.")
        lines = bytes(body[at:end_of_head]).split(b"\r\n")
        fields = [line.partition(b":") for line in lines if line]
        if not all(colon and _HEADER_NAME.fullmatch(name) for name, colon, _ in fields):
            raise Unreadable("The form is malformed: a header of a part has no name.")
        headers = {name.lower(): value.strip() for name, _, value in fields}
        yield headers, body[end_of_head + 4 : end]
        at = end + len(mark)
    if body[at : at + 2] != b"--":
        raise Unreadable("The form is malformed: its boundary does not end a line.")
