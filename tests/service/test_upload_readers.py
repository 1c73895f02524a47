"""The quick way through a body and the careful one find the same; pieces make a whole."""

import base64
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import OutOfRange, Refused, Unreadable
from service.schemas import PredictRequest
from service.uploads import _BASE64_PIECE, _read_json, memory_to_parse
from tests.fixtures.uploads import parse


def outcome(body):
    """What a body is, or the sentence for which it is refused."""
    try:
        return parse(body, "application/json")
    except Refused as error:
        return type(error), str(error), error.index


VALUES = st.sampled_from(
    ['"QQ=="', '"QQ:="', "3", "9" * 25, "-1", "3.0", "true", "null", "NaN", '"a:b"', "01"]
) | st.sampled_from(
    [r'"\u003a"', r'"\ud800"', '"ü"', r'"\""', '"\n"', "{}", "[]", '{"b64": "QQ=="}', '"x"']
)
KEYS = st.sampled_from(['"b64"', '"id"', '"label"', '"id"', '"label"', r'"i\u0064"', '"a:b"'])
ENTRIES = st.lists(st.tuples(KEYS, VALUES), max_size=3).map(
    lambda pairs: ", ".join(['{"b64": "QQ=="', *(f"{key} : {value}" for key, value in pairs)]) + "}"
)
TEXTS = st.tuples(
    st.sampled_from(["", "\ufeff", " "]),
    st.sampled_from(['"images"', '"images"', '"images": [], "images"', '"image"']),
    st.lists(ENTRIES, max_size=2).map(", ".join),
    st.sampled_from(["}", "}", "}", ', "images": []}', "", "} x"]),
).map(lambda parts: f"{parts[0]}{{{parts[1]}: [{parts[2]}]{parts[3]}")


@given(text=TEXTS)
def test_both_readers_of_json_say_the_same(text):
    """Whatever is twice, escaped, out of range or no JSON: one rule, one sentence."""
    quick = outcome(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.uploads.from_json", refuse)
        assert outcome(text.encode()) == quick


def refuse(*_, **__):
    raise ValueError


def test_a_key_twice_is_seen_beside_colons_in_strings():
    """They are counted, and tell the careful reader to look."""
    entry = {"b64": "QQ==", "id": "camera:7"}
    assert parse(json.dumps({"images": [entry]}).encode(), "application/json").ids == ["camera:7"]
    twice = b'{"images": [{"b64": "QQ==", "b64": "Qg=="}, {"b64": "QQ==", "id": "a:b"}]}'
    with pytest.raises(OutOfRange, match="'b64' twice"):
        parse(twice, "application/json")


def test_a_large_body_is_read_the_quick_way(monkeypatch):
    """The careful reader would hold all other threads up meanwhile."""
    entries = [{"b64": base64.b64encode(bytes(1000)).decode(), "id": str(n)} for n in range(100)]
    monkeypatch.setattr("service.uploads.json.loads", refuse)
    assert (
        len(_read_json(json.dumps({"images": entries}).encode(), {}, PredictRequest).images) == 100
    )


@pytest.mark.parametrize("beside", [-3, -2, -1, 0, 1, 2, 3, _BASE64_PIECE])
def test_base64_is_whole_over_its_pieces(beside):
    """Files that end before, at and behind the end of a piece."""
    file = bytes(range(256)) * (_BASE64_PIECE // 128)
    file = file[: _BASE64_PIECE // 4 * 3 + beside]
    text = base64.b64encode(file).decode()
    body = json.dumps({"images": [{"b64": text}]}).encode()
    assert parse(body, "application/json", max_image_bytes=len(file)).images == [file]


@pytest.mark.parametrize("wrong", ["=", "==", "-", "\n", "ü"])
@pytest.mark.parametrize("at", [10, _BASE64_PIECE - 2, _BASE64_PIECE, _BASE64_PIECE + 1])
def test_what_is_no_base64_is_seen_in_every_piece(wrong, at):
    """Padding that is not at the end too, wherever the piece ends."""
    text = "QUFB" * (_BASE64_PIECE // 2)
    text = text[:at] + wrong + text[at + len(wrong) :]
    body = json.dumps({"images": [{"b64": text}]}).encode()
    with pytest.raises(Unreadable, match="Image 1 of 1: its b64 is not base64"):
        parse(body, "application/json", max_image_bytes=1 << 30)


COUNTLESS = {
    "values": '{"images": [' + ",".join(["1"] * 390_000) + "]}",
    "lists": '{"images": [' + ",".join(["[]"] * 190_000) + "]}",
    "keys": "{" + ",".join(f'"{n:x}": 1' for n in range(390_000)) + "}",
    "keys-of-an-image": '{"images": [{' + ",".join(f'"{n:x}": 1' for n in range(390_000)) + "}]}",
}


@pytest.mark.parametrize("body", COUNTLESS.values(), ids=COUNTLESS)
def test_countless_mistakes_cost_what_was_set_aside_for_the_body(body):
    """The first is told; a sentence for each took 470 MB and five seconds of all threads."""
    content = body.encode()
    tracemalloc.start()
    with pytest.raises(Refused):
        parse(content, "application/json", max_images=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < memory_to_parse(content, "application/json")


def test_text_of_wide_characters_fits_what_was_set_aside():
    """One emoji, and every character of the text takes four bytes."""
    b64 = base64.b64encode(bytes(3_000_000)).decode()
    content = json.dumps(
        {"images": [{"b64": b64}, {"b64": "\N{CAMERA}" + b64}]}, ensure_ascii=False
    )
    tracemalloc.start()
    with pytest.raises(Refused, match="base64"):
        parse(content.encode(), "application/json")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < memory_to_parse(content.encode(), "application/json") + len(content)
