"""Bodies become files with ids and labels, or a Refused with a sentence; never anything else."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OutOfRange, Refused, TooLarge, UnknownType, Unreadable
from service.images import MEDIA_TYPES
from service.uploads import MAX_ID_CHARACTERS, Upload
from tests.fixtures.uploads import parse

FORM = "multipart/form-data; boundary=b"


def form(*parts):
    """A form of (name, content) pairs, as browsers write it."""
    return (
        b"".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n"
            for name, content in parts
        )
        + b"--b--\r\n"
    )


def encode(*images, **lists):
    entries = [{"b64": base64.b64encode(image).decode()} for image in images]
    for name, values in lists.items():
        for entry, value in zip(entries, values, strict=True):
            entry[name] = value
    return json.dumps({"images": entries}).encode()


# What is taken


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/octet-stream", *MEDIA_TYPES, "IMAGE/PNG; charset=binary", "image/png;"],
)
def test_a_raw_body_is_one_image(content_type):
    """Whatever its stated type, as long as it is one of an image or none at all."""
    assert parse(b"bytes", content_type) == Upload([b"bytes"], [None], [None])


def test_a_form_is_its_images_in_order():
    """Ids and labels belong to the images by their order, wherever they stand."""
    images, labels = [("image", b"A"), ("image", b"B")], [("label", b"3"), ("label", b"0")]
    ids = [("id", b"a"), ("id", "ü".encode())]
    body = form(labels[0], images[0], *ids, images[1], labels[1])
    assert parse(body, FORM) == Upload([b"A", b"B"], ["a", "ü"], [3, 0])


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"--b", b"\r\n--c\r\n", bytes(range(256)), b"\r\n--b-\r\n"]
)
def test_the_bytes_of_a_part_are_kept_as_they_are(content):
    """Line ends and half a boundary within a file are the file's own."""
    body = form(("image", content), ("image", b"next"))
    assert parse(body, FORM, max_image_bytes=1000).images == [content, b"next"]


@pytest.mark.parametrize(
    "header",
    [
        'Content-Disposition: form-data; name="image"; filename="a;b.png"',
        "content-disposition: form-data; name=image",
        'CONTENT-DISPOSITION: form-data; filename="x.png"; name="image"\r\nContent-Type: image/png',
        'Content-Type: application/octet-stream\r\nContent-Disposition: form-data; name="image"',
    ],
)
def test_the_headers_of_a_part_may_be_written_in_many_ways(header):
    """As curl, browsers and libraries do."""
    body = f"--b\r\n{header}\r\n\r\nA\r\n--b--\r\n".encode()
    assert parse(body, FORM).images == [b"A"]


def test_json_is_its_images_in_order():
    """Each with its id and label; either may be absent."""
    body = encode(b"A", b"B", id=["a", None], label=[None, 9])
    assert parse(body, "application/json; charset=utf-8") == Upload(
        [b"A", b"B"], ["a", None], [None, 9]
    )


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"A", "image/png"), (form(("image", b"A")), FORM), (encode(b"A"), "application/json")],
    ids=["raw", "form", "json"],
)
def test_ids_and_labels_may_come_in_the_query(body, content_type):
    """Of any kind of body."""
    assert parse(body, content_type, ids=["x"], labels=["7"]) == Upload([b"A"], ["x"], [7])


# What is refused


def refusal(error, *arguments, **options):
    with pytest.raises(error) as refused:
        parse(*arguments, **options)
    assert str(refused.value).endswith(".")
    return refused.value


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"", "image/png", id="empty"),
        pytest.param(b"", "application/json", id="empty-json"),
        pytest.param(b"{", "application/json", id="half-json"),
        pytest.param(b'"\xff"', "application/json", id="json-not-utf-8"),
        pytest.param(b'{"images": [{"b64": "***"}]}', "application/json", id="no-base64"),
        pytest.param(b'{"images": [{"b64": "aaa"}]}', "application/json", id="bad-padding"),
        pytest.param('{"images": [{"b64": "ü"}]}'.encode(), "application/json", id="umlaut"),
        pytest.param(form(("image", b"A")), "multipart/form-data", id="no-boundary"),
        pytest.param(form(("image", b"A"))[:-4], FORM, id="no-end"),
        pytest.param(form(("image", b"A")).replace(b": form", b" form"), FORM, id="no-colon"),
        pytest.param(form(("image", b"A")).replace(b"Content-", b"Con tent-"), FORM, id="no-token"),
        pytest.param(form(("image", b"A"))[3:], FORM, id="no-start"),
        pytest.param(b"no form at all", FORM, id="no-form"),
        pytest.param(form(), FORM, id="no-part"),
        pytest.param(form(("label", b"1")), FORM, id="no-image"),
        pytest.param(form(("image", b"A"), ("label", b"\xff")), FORM, id="label-not-utf-8"),
        pytest.param(form(("image", b"A")), FORM + 300 * "b", id="long-boundary"),
    ],
)
def test_what_cannot_be_parsed_is_unreadable(body, content_type):
    """400: the bytes are not what their type says."""
    refusal(Unreadable, body, content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        "text/html",
        "image/tiff",
        "image",
        "multipart/mixed; boundary=b",
        "application/xml",
        "ÿþ",
    ],
)
def test_other_types_are_refused_with_those_accepted(content_type):
    """415, and the sentence has the way out."""
    sentence = str(refusal(UnknownType, b"A", content_type))
    assert "image/png" in sentence
    assert "JSON" in sentence


def test_a_file_of_another_type_in_a_form_is_refused_by_its_index():
    """Each file's own type is looked at."""
    css = b'Content-Disposition: form-data; name="image"\r\nContent-Type: text/css\r\n\r\nB'
    body = form(("image", b"A")).replace(b"--b--", b"--b\r\n" + css + b"\r\n--b--")
    error = refusal(UnknownType, body, FORM)
    assert error.index == 1
    assert "Image 2" in str(error)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(*[("image", b"A")] * 5), FORM),
        (form(*[("image", b"A")] * 5000), FORM),
        (encode(*[b"A"] * 5), "application/json"),
    ],
    ids=["form", "long-form", "json"],
)
def test_too_many_images_are_refused_with_the_limit(body, content_type):
    """413; a form of thousands of parts is not even read to its end."""
    assert "4" in str(refusal(TooLarge, body, content_type)) or "12 parts" in str(
        refusal(TooLarge, body, content_type)
    )


@pytest.mark.parametrize(
    ("body", "content_type", "index"),
    [
        (bytes(101), "image/png", 0),
        (form(("image", b"A"), ("image", bytes(101))), FORM, 1),
        (encode(b"A", bytes(101)), "application/json", 1),
    ],
    ids=["raw", "form", "json"],
)
def test_an_image_of_too_many_bytes_is_named(body, content_type, index):
    """413 with its size and the limit; at the limit it is taken."""
    error = refusal(TooLarge, body, content_type)
    assert error.index == index
    assert "101 bytes; at most 100" in str(error)
    assert parse(bytes(100)).images == [bytes(100)]


@pytest.mark.parametrize("label", ["10", "-1", "99999999999999999999", "1.5", "cat", "", "1e0"])
def test_a_label_outside_the_classes_is_named(label):
    """422, with the image's index, in the query as in a form."""
    for error in (
        refusal(
            OutOfRange,
            form(("image", b"A"), ("image", b"B"), ("label", b"1"), ("label", label.encode())),
            FORM,
        ),
        refusal(OutOfRange, form(("image", b"A"), ("image", b"B")), FORM, labels=["1", label]),
    ):
        assert error.index == 1
        assert "Image 2 of 2" in str(error)


@pytest.mark.parametrize(("labels", "ids"), [(["1"], []), ([], ["a"]), (["1", "2", "3"], [])])
def test_labels_and_ids_come_for_each_image_or_for_none(labels, ids):
    """Otherwise nobody could tell which image they belong to."""
    body = form(("image", b"A"), ("image", b"B"))
    sentence = str(refusal(OutOfRange, body, FORM, labels=labels, ids=ids))
    assert "2 images" in sentence


def test_ids_and_labels_do_not_come_twice():
    """In the query and in the body they might contradict each other."""
    for body, more in (
        (encode(b"A", id=["a"]), {"ids": ["a"]}),
        (encode(b"A", label=[0]), {"labels": ["0"]}),
    ):
        assert "not in both" in str(refusal(OutOfRange, body, "application/json", **more))


def test_an_id_is_bounded():
    """It is echoed, so it is no way to have the service carry files."""
    longest = "x" * MAX_ID_CHARACTERS
    assert parse(b"A", ids=[longest]).ids == [longest]
    assert refusal(OutOfRange, b"A", ids=[longest + "x"]).index == 0


def test_an_unknown_field_of_a_form_is_named():
    """A misspelt field is a mistake to hear of, not to swallow."""
    assert "'images'" in str(refusal(OutOfRange, form(("images", b"A")), FORM))


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({}, "images"),
        ({"images": []}, "images"),
        ({"images": {}}, "images"),
        ({"images": [{}]}, "images.0.b64"),
        ({"images": [{"b64": 3}]}, "images.0.b64"),
        ({"images": [{"b64": "", "label": "cat"}]}, "images.0.label"),
        ({"images": [{"b64": "", "id": "x" * 129}]}, "images.0.id"),
        ([], "the body"),
        (None, "the body"),
    ],
)
def test_json_of_another_form_is_told_where(document, place):
    """422, with the path to what is wrong and the form that is accepted."""
    sentence = str(refusal(OutOfRange, json.dumps(document).encode(), "application/json"))
    assert sentence.startswith(f"{place}: ")
    assert '{"images": [{"b64"' in sentence


# Whatever comes

PIECES = st.sampled_from(
    [
        b"--b\r\n", b"--b--\r\n", b"\r\n", b"\r\n\r\n", b"--b", b"A", b"\xff", b"\0",
        b'Content-Disposition: form-data; name="image"', b'Content-Disposition: form-data; name="label"',  # noqa: E501
        b"Content-Type: image/png", b"Content-Type: text/plain", b": ", b"3", b'name="image"',
        b'{"images": [', b'{"b64": "aGk="}', b'"label": 3', b"]}", b",", b"null", b"[[", b"{}",
    ]
)  # fmt: skip
BODIES = st.binary(max_size=200) | st.lists(PIECES, max_size=20).map(b"".join)
TYPES = st.sampled_from(
    [None, FORM, "multipart/form-data; boundary=", "application/json", "image/png"]
) | st.text(st.characters(max_codepoint=255), max_size=60)


@given(
    body=BODIES,
    content_type=TYPES,
    ids=st.lists(st.text(max_size=5), max_size=3),
    labels=st.lists(st.sampled_from(["0", "9", "10", "x", ""]), max_size=3),
)
def test_any_bytes_of_any_type_are_an_upload_or_refused(body, content_type, ids, labels):
    """No other error leaves the parser, and what it lets through keeps every promise."""
    refused = None
    try:
        upload = parse(body, content_type, ids=ids, labels=labels)
    except Refused as error:
        refused = error
    if refused is not None:
        assert str(refused).endswith(".")
        assert refused.reason in ("unreadable", "type", "too_large", "range")
    else:
        assert 1 <= len(upload.images) <= 4
        assert len(upload.images) == len(upload.ids) == len(upload.labels)
        assert all(len(image) <= 100 for image in upload.images)
        assert all(label is None or 0 <= label < 10 for label in upload.labels)


@given(
    images=st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4),
    data=st.data(),
)
def test_form_and_json_carry_any_bytes_unharmed(images, data):
    """What was sent is what arrives, with its labels, on both ways."""
    labels = data.draw(st.lists(st.integers(0, 9), min_size=len(images), max_size=len(images)))
    parts = [("image", image) for image in images if b"--b" not in image]
    parts += [("label", str(label).encode()) for label in labels[: len(parts)]]
    if parts:
        upload = parse(form(*parts), FORM)
        assert upload.images == [image for image in images if b"--b" not in image]
        assert upload.labels == labels[: len(upload.images)]
    assert parse(encode(*images, label=labels), "application/json") == Upload(
        images, [None] * len(images), labels
    )
