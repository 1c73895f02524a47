"""Intake takes nothing that has not been set aside before, and gives all of it back."""

import asyncio
import base64
import contextlib
import gzip
import json
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image as Picture
from starlette.requests import Request

from service.answering import Image
from service.decoding import DECODE_CHUNK
from service.errors import (
    ClientGone,
    OutOfRange,
    QueueFull,
    TooLarge,
    UnknownType,
    Unreadable,
)
from service.intake import Submission
from service.uploads import memory_to_parse, parse_upload
from tests.fixtures.intake import GOOD, MEBIBYTE, PIXELS, Door, as_form, as_json, run_one, write


@pytest.mark.parametrize("send", [as_json, as_form])
def test_images_reach_the_queue_in_order(send):
    """Over several chunks and threads."""
    pictures = [
        Picture.new("RGB", (8, 8), (number, 0, 0)) for number in range(2 * DECODE_CHUNK + 3)
    ]
    reds = [pixels[0, 0, 0] for pixels in run_one(send(*map(write, pictures)))]
    assert reds == list(range(len(pictures)))


@contextlib.contextmanager
def at_most(size_bytes):
    """Fail if Python's memory grows by more meanwhile."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size_bytes
    finally:
        tracemalloc.stop()


BOMB = write(Picture.new("RGB", (2000, 2000)), compress_level=9)  # 12 MB of pixels in 12 kB


def test_a_request_whose_pixels_never_fit_is_too_large_before_any_is_decoded():
    """Fifty small files of 12 MB of pixels each: known from their headers."""
    with at_most(9_000_000), pytest.raises(TooLarge, match=r"600,\d+,\d+ bytes of memory"):
        run_one(as_form(*[BOMB] * 50), max_queue_bytes=256 * MEBIBYTE)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP"])
def test_one_picture_that_never_fits_is_too_large(file_format):
    """What decoding takes for a while counts too, though little of it remains."""
    body = write(Picture.new("RGB", (1200, 1200)), file_format)
    with pytest.raises(TooLarge, match="Send fewer or smaller images at once"):
        run_one((body, None), size=32, max_queue_bytes=16 * MEBIBYTE)
    assert run_one((body, None), size=32, max_queue_bytes=32 * MEBIBYTE)[0].shape == (32, 32, 3)


def test_a_request_waits_for_the_memory_that_its_own_and_other_decoding_gives_back(monkeypatch):
    """Pictures that fit one after another are answered, though not two at a time."""
    at_once, most = 0, 0
    lock = threading.Lock()

    def decode(picture, geometry):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1
        return np.zeros((32, 32, 3), np.uint8), None

    monkeypatch.setattr("service.decoding.decode", decode)
    door = Door(size=32, decode_threads=4, max_queue_bytes=80 * MEBIBYTE)  # one takes 48 MB
    answers = door.run(*(door.post(*as_form(*[BOMB] * (DECODE_CHUNK + 1))) for _ in range(3)))
    assert [len(answer) for answer in answers] == [DECODE_CHUNK + 1] * 3
    assert most == 1


def test_nothing_more_is_decoded_for_a_client_that_went_away(monkeypatch):
    """Else a few that send much and leave would keep all threads busy for minutes."""
    decoded = []
    gone = asyncio.Event()

    def decode(picture, geometry):
        decoded.append(picture)
        loop.call_soon_threadsafe(gone.set)
        threading.Event().wait(0.01)
        return np.zeros((1, 1, 3), np.uint8), None

    async def post():
        nonlocal loop
        loop = asyncio.get_running_loop()
        return await door.post(*as_form(*[GOOD] * 200), gone=gone)

    loop = None
    monkeypatch.setattr("service.decoding.decode", decode)
    door = Door()
    (answer,) = door.run(post())
    assert isinstance(answer, ClientGone)
    assert len(decoded) < DECODE_CHUNK


def test_what_does_not_fit_beside_others_is_told_to_come_back():
    """Memory that lasts until the answer is there, or it is not."""
    door = Door(max_queue_bytes=20 * MEBIBYTE, max_side=3000)
    body = write(Picture.new("RGB", (700, 700)))

    async def full(door, body):
        door.intake.memory.held += 19 * MEBIBYTE
        try:
            await door.post(body)
        finally:
            door.intake.memory.held -= 19 * MEBIBYTE

    (answer,) = door.run(full(door, body))
    assert isinstance(answer, QueueFull)
    assert answer.retry_after == 1.0


@pytest.mark.parametrize("send", [as_json, as_form])
def test_the_copies_made_while_parsing_are_within_what_is_set_aside(send):
    """As little is taken as is lent: it is measured."""
    body, content_type = send(*[bytes(400_000)] * 10)
    body = bytearray(body)
    with at_most(memory_to_parse(body, content_type) + 100_000):
        parse_upload(body, content_type, ids=[], labels=[], max_images=10)
    with pytest.raises(TooLarge):
        run_one((bytes(body), content_type), max_queue_bytes=len(body) + 1000)


def test_a_raw_body_is_not_copied():
    """It is the image."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    body = write(Picture.fromarray(noise), "BMP")
    with at_most(1.7 * len(body)), pytest.raises(TooLarge, match="memory"):
        run_one((body, None), max_queue_bytes=len(body) + 1000)


# Content-Encoding


GZIP = (b"content-encoding", b"gzip")


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(GOOD), b"gzip"),
        (gzip.compress(GOOD), b"X-GZip"),
        (gzip.compress(GOOD), b"identity, gzip"),
        (gzip.compress(GOOD, 0), b"gzip"),
        (gzip.compress(GOOD[:500]) + gzip.compress(b"") + gzip.compress(GOOD[500:]), b"gzip"),
        (GOOD, b"identity"),
        (GOOD, b""),
    ],
)
def test_gzip_is_unpacked(body, coding):
    """In one member or several; `identity` says nothing."""
    (pixels,) = run_one((body, "image/png", (b"content-encoding", coding)))
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    "coding", [b"br", b"zstd", b"gzip, gzip", b"gzip, deflate", b"gzip;q=1", b"x"]
)
def test_another_coding_is_refused_with_what_is_accepted(coding):
    """Before the body is read."""
    with pytest.raises(UnknownType, match="accepted are gzip or deflate, once, and identity"):
        run_one((b"", "image/png", (b"content-encoding", coding)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(GOOD, id="not packed"),
        pytest.param(gzip.compress(GOOD)[:-1], id="cut"),
        pytest.param(gzip.compress(GOOD)[:5], id="half a header"),
        pytest.param(gzip.compress(GOOD) + b"junk", id="junk behind"),
        pytest.param(gzip.compress(GOOD)[:-8] + bytes(8), id="wrong checksum"),
        pytest.param(zlib.compress(GOOD), id="zlib"),
        pytest.param(gzip.compress(b"") * 5000, id="members"),
    ],
)
def test_damaged_gzip_is_unreadable(body):
    """A sentence, whatever is wrong with it."""
    with pytest.raises(Unreadable, match="gzip"):
        run_one((body, "image/png", GZIP))


@pytest.mark.parametrize("coding", [b"deflate", b"identity, Deflate"])
@pytest.mark.parametrize("level", [0, 9])
def test_deflate_is_unpacked(coding, level):
    """As RFC 9110 has it: zlib's form."""
    body = zlib.compress(GOOD, level)
    (pixels,) = run_one((body, "image/png", (b"content-encoding", coding)))
    assert np.array_equal(pixels, PIXELS)


@pytest.mark.parametrize(
    "body",
    [b"", GOOD, zlib.compress(GOOD)[:-1], zlib.compress(GOOD) + b"junk", zlib.compress(GOOD) * 2,
     zlib.compress(GOOD)[:-4] + bytes(4), gzip.compress(GOOD)],
    ids=["nothing", "not packed", "cut", "junk behind", "twice", "wrong checksum", "gzip"],
)  # fmt: skip
def test_damaged_deflate_is_unreadable(body):
    """It is zlib's form, once."""
    with pytest.raises(Unreadable, match="deflate"):
        run_one((body, "image/png", (b"content-encoding", b"deflate")))


def test_a_gzip_bomb_is_refused_with_little_memory():
    """300 MB in 0.3 MB end at the most that a request may have."""
    body = gzip.compress(bytes(300 * MEBIBYTE), 1)
    with at_most(16 * MEBIBYTE), pytest.raises(TooLarge, match="than 4,194,304 bytes"):
        run_one((body, "image/png", GZIP), max_body=4 * MEBIBYTE)
    with pytest.raises(TooLarge, match="memory"):
        run_one((body, "image/png", GZIP), max_queue_bytes=8 * MEBIBYTE)


def test_a_request_that_comes_slowly_holds_no_streams_place():
    """A thousand heads alone, each of another camera, shut nobody out."""
    door = Door()
    admitted = []
    door.intake.engine.table.admit = lambda stream, _: admitted.append(stream)

    async def silent():
        await asyncio.Event().wait()

    async def walk():
        scope = {"type": "http", "headers": [], "method": "POST", "path": "/"}

        async def receive():
            async with Submission(door.intake, "slow", http=Request(scope, silent)) as submission:
                await submission.receive()

        slow = asyncio.create_task(receive())
        await door.post(GOOD, "image/png")
        assert admitted == ["default"]
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    door.run(walk())
    assert admitted == ["default"]


def test_an_odd_size_among_others_is_refused():
    """The model takes them as they come."""
    small = write(Picture.new("RGB", (8, 8)))
    with pytest.raises(OutOfRange, match="of one size"):
        run_one(as_form(GOOD, small))


def test_a_damaged_picture_is_named_and_takes_nothing():
    """With its index; all that was set aside is given back, which `run` sees."""
    noise = Picture.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    jpeg = write(noise, "JPEG")
    damaged = jpeg[: len(jpeg) // 2] + b"\xff\xd9"
    with pytest.raises(Unreadable, match=r"Image 2 of 2: The JPEG image is damaged") as caught:
        run_one(as_json(jpeg, damaged))
    assert caught.value.index == 1


def test_pixels_carry_their_label():
    """What the queue holds is an image with its label."""
    door = Door()
    body = json.dumps({"images": [{"b64": base64.b64encode(GOOD).decode(), "label": 3}]})
    door.run(door.post(body.encode(), "application/json"))
    (item,) = door.places[0].items
    assert isinstance(item, Image)
    assert item.label == 3
