"""From the bytes of a request to its images: raw bodies, forms, JSON. Knows no queue, no torch."""

import base64
import binascii
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import OutOfRange, TooLarge, UnknownType, Unreadable
from service.images import check_media_type
from service.schemas import FeedbackRequest, LateLabel, PredictRequest
from ttc_core.pictures import Buffer

ACCEPTED = "image/*, multipart/form-data with fields named image, or application/json"
MAX_ID_CHARACTERS = 128
PIECE_BYTES = 1 << 20
# Between them stand the values of a JSON body. An image has three, and may have some in its id.
_MARKS_A_LABEL = 4 + MAX_ID_CHARACTERS
_MARKS_AN_IMAGE = 3 * _MARKS_A_LABEL
_MAX_GZIP_MEMBERS = 100
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
_MOST_DIGITS = 18  # what has more is cut: any such number is no class

MOST_LABELS = 10_000
# What a JSON body is like, and what goes in the query instead.
_FORMS: dict[type[BaseModel], tuple[str, str]] = {
    PredictRequest: (
        '{"images": [{"b64": …, "id": …, "label": …}]}',
        "stream, top_k, timeout and learn go in the query",
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


def codings(header: str) -> list[str]:
    """Return what a Content-Encoding header says that has to be undone, the last first.

    Raises:
        UnknownType: a coding other than gzip and identity, or gzip twice.
    """
    named = [name.strip().lower().removeprefix("x-") for name in header.split(",")]
    named = [name for name in named if name not in ("", "identity")]
    if named not in ([], ["gzip"]):
        raise UnknownType(
            f"The Content-Encoding {header[:80]!r} is not accepted; accepted are gzip, once, "
            "and identity."
        )
    return named


def gunzip(body: Buffer) -> Iterator[bytes]:
    """Unpack gzip in pieces of 1 to PIECE_BYTES bytes, one for each step.

    Raises:
        Unreadable: damaged, cut short, or followed by something else.
    """
    rest = memoryview(body)
    for _ in range(_MAX_GZIP_MEMBERS):
        inflate = zlib.decompressobj(wbits=31)
        at = 0
        try:
            while not inflate.eof:
                taken = inflate.unconsumed_tail or rest[at : (at := at + (1 << 16))]
                piece = inflate.decompress(taken, PIECE_BYTES)
                if piece:
                    yield piece
                elif not taken:
                    raise Unreadable("The gzip of the request is cut short.")
        except zlib.error as error:
            raise Unreadable(f"The request is not gzip, or damaged ({error}).") from None
        rest = rest[min(at, len(rest)) - len(inflate.unused_data) :]
        if not rest:
            return
    raise Unreadable(f"The gzip of the request has more than {_MAX_GZIP_MEMBERS} members.")


def memory_to_parse(body: Buffer, content_type: str | None) -> int:
    """Return the bytes that `parse_upload` takes at most besides the body."""
    media_type, _ = _media_type(content_type)
    if media_type == b"multipart/form-data":
        return len(body) + len(body) // 4  # its parts, which grow
    if media_type == b"application/json":
        # As text, its strings, those checked, what they encode; and an object for each value.
        return 7 * len(body) // 2 + 100 * _marks(body)
    return 0


def _media_type(content_type: str | None) -> tuple[bytes, dict[bytes, bytes]]:
    media_type, options = parse_options_header(content_type or "")
    return media_type.strip(), {name.lower(): value for name, value in options.items()}


def _marks(body: Buffer) -> int:
    return body.count(b",") + body.count(b"{") + body.count(b"[")


def parse_upload(
    body: Buffer,
    content_type: str | None,
    *,
    ids: list[str],
    labels: list[str],
    classes: int,
    max_images: int,
    max_image_bytes: int,
) -> Upload:
    """Take a request's body apart.

    Args:
        ids, labels: from the query, in the order of the images; empty for none. A form or a JSON
            body may carry them instead.
        classes: K; labels are 0 to K − 1.

    Raises:
        Unreadable: the body is empty or malformed. UnknownType: its media type is another.
        TooLarge: too many images, or one of too many bytes. OutOfRange: a label, an id.
    """
    media_type, options = _media_type(content_type)
    if not body:
        raise Unreadable(f"The request has no body; send {ACCEPTED}.")
    if media_type == b"multipart/form-data":
        upload = _parse_form(body, options.get(b"boundary", b""), max_images)
    elif media_type == b"application/json":
        if _marks(body) > _MARKS_AN_IMAGE * max_images:
            raise TooLarge(
                f"The JSON has more values than {max_images:,} images have, the most accepted."
            )
        upload = _parse_images(body, options, max_images)
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
    upload.ids = _one_each("id", upload.ids, len(upload.images))
    upload.labels = _one_each("label", upload.labels, len(upload.images))
    _check(upload, classes, max_images, max_image_bytes)
    return upload


def _check(upload: Upload, classes: int, max_images: int, max_image_bytes: int) -> None:
    count = len(upload.images)
    if count > max_images:
        raise TooLarge(
            f"The request has {count:,} images; at most {max_images:,} are accepted at once."
        )
    for index, (image, name, label) in enumerate(
        zip(upload.images, upload.ids, upload.labels, strict=True)
    ):
        where = f"Image {index + 1} of {count}: "
        if len(image) > max_image_bytes:
            raise TooLarge(
                f"{where}it has {len(image):,} bytes; at most {max_image_bytes:,} are accepted.",
                index=index,
            )
        _check_truth(where, index, name, label, classes)


def _check_truth(where: str, index: int, name: str | None, label: int | None, classes: int) -> None:
    """Refuse an id that is no short printable text, and a label that is no class."""
    if name is not None and len(name) > MAX_ID_CHARACTERS:
        raise OutOfRange(
            f"{where}its id has {len(name):,} characters; at most {MAX_ID_CHARACTERS} are "
            "accepted.",
            index=index,
        )
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name or ""):
        raise OutOfRange(
            f"{where}its id {name!r} has control characters; accepted is printable text.",
            index=index,
        )
    if label is not None and not 0 <= label < classes:
        raise OutOfRange(
            f"{where}the label {label} is not a class; accepted are 0 to {classes - 1}.",
            index=index,
        )


def _one_each(name: str, values: list[T | None], images: int) -> list[T | None]:
    if not values:
        return [None] * images
    if len(values) != images:
        raise OutOfRange(
            f"The request has {images} images but {len(values)} values of {name}; give one for "
            "each image, in order, or none."
        )
    return values


def _whole_numbers(values: list[str]) -> list[int | None]:
    numbers: list[int | None] = []
    for index, value in enumerate(values):
        # Not all that int() takes: " 1", "+1", "1_0" and other scripts' digits are no JSON either.
        if not _WHOLE_NUMBER.fullmatch(value):
            raise OutOfRange(
                f"Image {index + 1} of {len(values)}: a label is a whole number; "
                f"got {value[:40]!r}.",
                index=index,
            )
        numbers.append(int(value[:_MOST_DIGITS]))
    return numbers


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
    if _marks(body) > _MARKS_A_LABEL * MOST_LABELS:
        raise too_many
    labels = _read_json(body, options, FeedbackRequest).labels
    if len(labels) > MOST_LABELS:
        raise too_many
    for index, each in enumerate(labels):
        where = f"Label {index + 1} of {len(labels)}: "
        _check_truth(where, index, each.id, each.label, classes)
    return labels


def _read_json(body: Buffer, options: dict[bytes, bytes], form: type[Form]) -> Form:
    if options.get(b"charset", b"utf-8").lower().replace(b"-", b"") != b"utf8":
        raise UnknownType("JSON must be UTF-8; its Content-Type names another charset.")
    try:
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


def _parse_images(body: Buffer, options: dict[bytes, bytes], max_images: int) -> Upload:
    request = _read_json(body, options, PredictRequest)
    if len(request.images) > max_images:
        raise TooLarge(
            f"The request has {len(request.images):,} images; at most {max_images:,} are accepted "
            "at once."
        )
    upload = Upload()
    for index, image in enumerate(request.images):
        try:
            upload.images.append(base64.b64decode(image.b64, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Unreadable(
                f"Image {index + 1} of {len(request.images)}: its b64 is not base64 ({error}).",
                index=index,
            ) from None
        upload.ids.append(image.id)
        upload.labels.append(image.label)
    return upload


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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
    message = "no such key is known" if first["type"] == "extra_forbidden" else first["msg"]
    accepted, query = _FORMS[form]
    beside = f"; {query}" if index is None else ""
    return OutOfRange(f"{place}: {message}; accepted is {accepted}{beside}.", index=index)


class _Form:
    """Collects the parts of a form while python-multipart walks through the body."""

    def __init__(self, max_parts: int) -> None:
        self.fields: dict[str, list[Buffer]] = {"image": [], "id": [], "label": []}
        self._max_parts, self._parts = max_parts, 0
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._data = b"", b"", bytearray()
        self.is_whole = False

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise TooLarge(f"The form has more than {self._max_parts:,} parts.")
        self._headers, self._data = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def on_headers_finished(self) -> None:
        """Part of the interface; all is known at the part's end."""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self.fields:
            raise OutOfRange(
                f"The form has a field {name[:40]!r}; accepted are image, id and label."
            )
        if name == "image":
            content_type = self._headers.get(b"content-type")
            index = len(self.fields["image"])
            try:
                check_media_type(content_type.decode("latin-1") if content_type else None)
            except UnknownType as error:
                raise UnknownType(f"Image {index + 1}: {error}", index=index) from None
        self.fields[name].append(self._data)

    def on_end(self) -> None:
        self.is_whole = True


def _parse_form(body: Buffer, boundary: bytes, max_images: int) -> Upload:
    if not boundary:
        raise Unreadable("The form's Content-Type names no boundary.")
    form = _Form(max_parts=3 * max_images)
    callbacks = {name: getattr(form, name) for name in dir(form) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)  # type: ignore[arg-type]  # it only reads
        parser.finalize()
    except FormParserError as error:
        raise Unreadable(f"The form is malformed: {error}.") from None
    if not form.is_whole:
        raise Unreadable("The form is cut short: its closing boundary is missing.")
    if not form.fields["image"]:
        raise Unreadable("The form has no field named image.")
    try:
        ids: list[str | None] = [value.decode() for value in form.fields["id"]]
        labels = [value.decode() for value in form.fields["label"]]
    except UnicodeDecodeError:
        raise Unreadable("The form's ids and labels must be UTF-8 text.") from None
    return Upload(form.fields["image"], ids, _whole_numbers(labels))
