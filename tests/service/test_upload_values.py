"""Names, labels and ids are held to one rule, whichever way they come."""

import base64
import json
from types import SimpleNamespace

import pytest

from service.errors import OutOfRange, Refused, TooLarge, UnknownType, Unreadable
from service.uploads import MOST_LABELS, parse_labels
from tests.fixtures.uploads import parse

FORM = "multipart/form-data; boundary=b"
B64 = base64.b64encode(b"A").decode()


def in_query(name, value):
    return parse(b"A", **{f"{name}s": [value]})


def in_form(name, value):
    parts = (("image", b"A"), (name, value.encode("utf-8", "surrogatepass")))
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    return parse(b"".join(part % (key.encode(), value) for key, value in parts) + b"--b--", FORM)


def in_json(name, value):
    """As a string for an id; a label as it would stand in the text."""
    written = json.dumps(value) if name == "id" else value
    body = f'{{"images": [{{"b64": "{B64}", "{name}": {written}}}]}}'
    return parse(body.encode(), "application/json")


def feedback(body, content_type="application/json"):
    return parse_labels(body.encode(), content_type, classes=10)


def in_feedback(name, value):
    """Later, by itself."""
    fields = {"id": '"a"', "label": "0", name: json.dumps(value) if name == "id" else value}
    (one,) = feedback(f'{{"labels": [{{"id": {fields["id"]}, "label": {fields["label"]}}}]}}')
    return SimpleNamespace(ids=[one.id], labels=[one.label])


WAYS = pytest.mark.parametrize("way", [in_query, in_form, in_json, in_feedback])


@WAYS
@pytest.mark.parametrize("label", ["0", "9"])
def test_a_class_is_a_label(way, label):
    """The same number, however it came."""
    assert way("label", label).labels == [int(label)]


@WAYS
@pytest.mark.parametrize(
    "label",
    ["10", "-1", "9" * 30, "1" + "0" * 400, "-" + "9" * 5000, "3.0", "1e0", "true", '"3"', "NaN"],
)
def test_what_is_no_class_is_refused(way, label):
    """Numbers out of range, those that are not whole, and what only looks like one."""
    with pytest.raises((OutOfRange, Unreadable), match=r"\.$"):
        way("label", label)


@WAYS
@pytest.mark.parametrize("label", [" 1", "1 ", "+1", "1_0", "١", "0x1", "1,2", "²", "", "1\n"])  # noqa: RUF001
def test_a_label_is_written_as_in_json(way, label):
    """Python takes some of these for numbers; a client that sends them means something else."""
    if way in (in_json, in_feedback) and label.strip() == "1":
        assert way("label", label).labels == [1]  # between values, blanks are JSON's own
    else:
        with pytest.raises((OutOfRange, Unreadable)):
            way("label", label)


@WAYS
@pytest.mark.parametrize("name", ["", "frame 1", "Ä/ö.png", "图", "a" * 128, '"quoted"'])
def test_an_id_is_any_printable_text(way, name):
    """It comes back as it went in."""
    assert way("id", name).ids == [name]


@WAYS
@pytest.mark.parametrize("name", ["a" * 129, "a\nb", "\0", "\x7f", "\x1b[31m", "\ud800"])
def test_an_id_has_no_control_characters_and_an_end(way, name):
    """It is echoed, and may land in a terminal."""
    with pytest.raises((OutOfRange, Unreadable)):
        way("id", name)


def sentence(body, error=OutOfRange, content_type="application/json", **more):
    with pytest.raises(Refused) as caught:
        parse(body.encode() if isinstance(body, str) else body, content_type, **more)
    assert type(caught.value) is error
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 500
    return str(caught.value)


IMAGES = f'"images": [{{"b64": "{B64}"}}]'


@pytest.mark.parametrize("name", ["stream", "top_k", "timeout", "labels", "Images", "x" * 9000])
def test_an_unknown_key_of_the_body_is_named(name):
    """As a form's field is, and the sentence says where the options go."""
    told = sentence(f'{{{IMAGES}, "{name}": 1}}')
    assert told.startswith(f"{name[:40]}: no such key")
    assert '{"images": [{"b64"' in told
    assert "stream, top_k, timeout, learn and context go in the query" in told


@pytest.mark.parametrize("name", ["lable", "B64", "stream", "ID", "url"])
def test_an_unknown_key_of_an_image_is_named_with_its_image(name):
    """A label that is misspelt would never count."""
    body = f'{{"images": [{{"b64": "{B64}"}}, {{"b64": "{B64}", "{name}": 3}}]}}'
    with pytest.raises(OutOfRange, match=rf"images\.1\.{name}: no such key") as caught:
        parse(body.encode(), "application/json")
    assert caught.value.index == 1


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (f"{{{IMAGES}, {IMAGES}}}", "images"),
        (f'{{"images": [{{"b64": "{B64}", "label": 1, "label": 2}}]}}', "label"),
        (f'{{"images": [{{"b64": "{B64}", "b\\u00364": "{B64}"}}]}}', "b64"),
    ],
)
def test_a_key_twice_is_named(body, name):
    """Which of them holds depends on the reader."""
    assert f"'{name}' twice" in sentence(body)


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"images": ' * 5000,
        f'{{{IMAGES}, "x": NaN}}',
        f"{{{IMAGES}}} {{}}",
        "",
        "\ufeff",
        b'{"images": "\xff"}',
        f"{{{IMAGES}}}".encode("utf-16"),
    ],
)
def test_what_is_no_json_is_unreadable(body):
    """However deep, and in UTF-8 alone."""
    with pytest.raises((Unreadable, TooLarge), match=r"JSON|no body"):
        parse(body.encode() if isinstance(body, str) else body, "application/json")


def test_json_of_countless_values_is_refused_before_it_is_parsed():
    """Each value costs an object a hundred times its size in the text."""
    for values in ("[" + "0," * 2_000_000 + "0]", '{"images": [' + "{}," * 1_000_000 + "{}]}"):
        assert "more values than 4 images have" in sentence(values, TooLarge)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        " application/json ; charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/json;",
        "application/json; x",
    ],
)
def test_the_type_of_json_may_be_written_in_many_ways(content_type):
    """Case, blanks and parameters do not matter."""
    assert parse(f"{{{IMAGES}}}".encode(), content_type).images == [b"A"]


def test_json_of_another_charset_is_an_unknown_type():
    """RFC 8259 knows UTF-8 alone."""
    content_type = "application/json; charset=latin-1"
    assert "UTF-8" in sentence(f"{{{IMAGES}}}", UnknownType, content_type)


@pytest.mark.parametrize("name", ["boundary", "Boundary", "BOUNDARY"])
def test_the_boundary_may_be_written_in_any_case(name):
    """Parameters of a media type have no case."""
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nA\r\n--b--'
    assert parse(body, f"multipart/form-data; {name}=b").images == [b"A"]


@pytest.mark.parametrize("boundary", ["", "; boundary", "; boundary=", "; boundary=" + "b" * 10**6])
def test_a_form_without_a_usable_boundary_is_unreadable(boundary):
    """None, an empty one, an endless one."""
    told = sentence(b"--b\r\n\r\n--b--", Unreadable, "multipart/form-data" + boundary)
    assert "oundary" in told


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        ("", Unreadable, "not JSON"),
        ("{}", OutOfRange, r'labels: Field required; accepted is {"labels": \[{"stream"'),
        ('{"labels": []}', OutOfRange, "labels: .*at least 1"),
        ('{"labels": [{"id": "a", "label": 1}], "stream": "s"}', OutOfRange, "in the query"),
        ('{"labels": [{"id": "a", "label": 1, "lable": 2}]}', OutOfRange, r"labels\.0\.lable: no"),
        ('{"labels": [{"id": "a", "label": 1, "label": 2}]}', OutOfRange, "'label' twice"),
        ('{"labels": [{"label": 1}]}', OutOfRange, r"labels\.0\.id: Field required"),
        ('{"labels": [{"id": "a"}]}', OutOfRange, r"labels\.0\.label: Field required"),
        ('{"labels": [{"id": 7, "label": 1}]}', OutOfRange, r"labels\.0\.id: .*string"),
        ('{"labels": [{"id": "a", "label": 1, "stream": "a b"}]}', OutOfRange, r"0\.stream"),
        ('{"labels": [{"id": "a", "label": 1, "stream": ""}]}', OutOfRange, r"0\.stream"),
        ('{"labels": {"a": 1}}', OutOfRange, "labels: .*list"),
        ("[" * 50_000, Unreadable, "not JSON"),
        ("[" * 100_000, TooLarge, "75,536 lists and objects"),
        ("[" * 2_000_000, TooLarge, "10,000 labels"),
    ],
)
def test_labels_of_another_form_are_refused_with_a_sentence(body, error, said):
    """What is wrong, and what is accepted."""
    with pytest.raises(Refused, match=said) as caught:
        feedback(body)
    assert type(caught.value) is error
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "read",
    [feedback, lambda body: parse(body.encode(), "application/json", max_images=1000)],
)
def test_names_without_end_are_not_read(read):
    """A million different ones would keep every thread waiting for seconds."""
    names = ",".join(f'"{number}":1' for number in range(200_000))
    with pytest.raises(TooLarge, match="names, or colons"):
        read(f"{{{names}}}")


def test_ids_may_have_colons():
    """As times do."""
    entries = [{"id": f"2026-11-29T20:14:{n}", "label": 1, "stream": "a:b"} for n in range(10_000)]
    assert len(feedback(json.dumps({"labels": entries}))) == 10_000


def test_labels_are_checked_all_before_any_is_taken():
    """The sentence has the place of the first that is no class."""
    entries = [{"id": str(n), "label": n, "stream": "s"} for n in range(12)]
    with pytest.raises(OutOfRange, match=r"Label 11 of 12: the label 10 is not a class") as caught:
        feedback(json.dumps({"labels": entries}))
    assert caught.value.index == 10
    assert len(feedback(json.dumps({"labels": entries[:10]}))) == 10


def test_labels_are_bounded_in_count_and_are_json():
    """As many as a request may have, not one more; no form, no text."""
    entries = [{"id": str(n), "label": 1} for n in range(MOST_LABELS + 1)]
    assert len(feedback(json.dumps({"labels": entries[:-1]}))) == MOST_LABELS
    with pytest.raises(TooLarge, match="more than 10,000 labels"):
        feedback(json.dumps({"labels": entries}))
    for content_type in (None, "text/plain", FORM):
        with pytest.raises(UnknownType, match="application/json"):
            feedback("{}", content_type)
