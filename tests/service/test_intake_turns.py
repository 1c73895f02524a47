"""Small requests do not wait for large ones; large ones, and large answers, are done in turns."""

import asyncio
import json
import os
import struct
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Picture

from service import decoding
from service.answering import ImageAnswer
from service.decoding import AT_ONCE_BYTES, CHUNK_PIXELS, DECODE_CHUNK, SMALL_PIXELS, step_back
from service.errors import DeadlineExpired
from service.images import TINY_BYTES, TINY_PIXELS
from service.intake import Submission
from service.memory import Share
from service.routes import predict
from service.uploads import Upload
from tests.fixtures.intake import GOOD, MEBIBYTE, PIXELS, Door, as_form, as_json, write

PATIENCE = 30.0
# More pixels than a small request has, in few bytes.
LARGE = write(Picture.new("L", (SMALL_PIXELS // 1000 + 1, 1000)), compress_level=9)
MIDDLE = write(Picture.new("L", (CHUNK_PIXELS // 1000, 1000)), compress_level=9)
# More pixels than a tiny image has.
SMALL = write(Picture.new("L", (TINY_PIXELS // 50 + 1, 50)))


def forms(image):
    return [
        pytest.param((image, "image/png"), id="raw"),
        pytest.param(as_form(image), id="form"),
        pytest.param(as_json(image), id="json"),
    ]


FORMS = forms(GOOD)


class Gate:
    """Stands before `decode`: large pictures stop there until it is opened; all are noted."""

    def __init__(self, monkeypatch):
        self.opened, self.reached = threading.Event(), threading.Event()
        self.decoded, self._decode = [], decoding.decode
        monkeypatch.setattr("service.decoding.decode", self)

    def __call__(self, picture, geometry):
        name = threading.get_ident()
        self.decoded.append((picture.width, name, os.getpriority(os.PRIO_PROCESS, 0)))
        if picture.width > 100:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
        return self._decode(picture, geometry)


@pytest.fixture
def gate(monkeypatch):
    return Gate(monkeypatch)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("small", FORMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_small_request_does_not_wait_for_large_ones(gate, small, threads):
    """Not for their threads, though more of them came before it than there are threads."""
    door = Door(decode_threads=threads)

    async def walk():
        large = [asyncio.create_task(door.post(*as_form(*[LARGE] * 3))) for _ in range(3)]
        await until(gate.reached.is_set)
        async with asyncio.timeout(PATIENCE):
            assert len(await door.post(*small)) == 1
            assert len(await door.post(*as_form(*[GOOD] * (DECODE_CHUNK + 1)))) == DECODE_CHUNK + 1
        assert not any(task.done() for task in large)
        gate.opened.set()
        assert [len(pixels) for pixels in await asyncio.gather(*large)] == [3, 3, 3]

    (failed,) = door.run(walk())
    assert failed is None, failed


def test_a_small_request_does_not_wait_for_the_memory_of_large_ones(gate):
    """One large piece has what another waits for; a small one needs little, and has it at once."""
    door = Door(size=32, decode_threads=2, max_queue_bytes=80 * MEBIBYTE)  # a large one takes 48 MB

    async def walk():
        large = [asyncio.create_task(door.post(LARGE, "image/png")) for _ in range(2)]
        await until(gate.reached.is_set)
        async with asyncio.timeout(PATIENCE):
            assert len(await door.post(GOOD, "image/png")) == 1
        gate.opened.set()
        await asyncio.gather(*large)

    (failed,) = door.run(walk())
    assert failed is None, failed


def test_large_requests_take_turns(gate):
    """The one that came second has its first images decoded before the first has its last."""
    first, second = write(Picture.new("L", (1000, 1001))), write(Picture.new("L", (1001, 1000)))
    door = Door(decode_threads=1)

    async def walk():
        tasks = [asyncio.create_task(door.post(*as_form(*[first] * 6)))]
        await until(gate.reached.is_set)
        tasks.append(asyncio.create_task(door.post(*as_form(*[second] * 6))))
        await until(lambda: door.intake.threads._turns[False]._waiters)
        gate.opened.set()
        await asyncio.gather(*tasks)

    (failed,) = door.run(walk())
    assert failed is None, failed
    order = [width for width, _, _ in gate.decoded]
    assert order.index(1001) <= 2
    assert 1000 in order[order.index(1001) :]


def test_a_request_whose_time_is_over_is_not_decoded_to_its_end(gate):
    """It is told so at once, and its images hold no thread any more."""
    door = Door(decode_threads=1)

    async def walk():
        task = asyncio.create_task(door.post(*as_form(*[LARGE] * 6)))
        await until(gate.reached.is_set)
        door.places[0].fail(DeadlineExpired("Its time is over."))
        gate.opened.set()
        with pytest.raises(DeadlineExpired):
            await task

    (failed,) = door.run(walk())
    assert failed is None, failed
    assert len(gate.decoded) == 1


@pytest.fixture
def threads(monkeypatch):
    """In which an image is checked, opened and decoded."""
    noted_in = set()

    def noted(function):
        def call(*arguments, **options):
            noted_in.add(threading.get_ident())
            return function(*arguments, **options)

        return call

    for name in ("decode", "read_header", "check_upload"):
        monkeypatch.setattr(f"service.decoding.{name}", noted(getattr(decoding, name)))
    return noted_in


@pytest.mark.parametrize("small", forms(SMALL))
def test_a_small_image_crosses_two_threads(threads, small):
    """The event loop's, and one in which it is parsed, checked and decoded; many times over."""
    door, loops = Door(decode_threads=4), {threading.get_ident()}

    async def walk():
        for _ in range(20):
            threads.clear()
            assert len(await door.post(*small)) == 1
            assert len(threads - loops) == 1

    (failed,) = door.run(walk())
    assert failed is None, failed


def tiny(width, height, kind):
    return write(Picture.fromarray(PIXELS).resize((width, height)), kind)


LARGEST = tiny(64, 64, "PNG")
assert len(LARGEST) <= TINY_BYTES


@pytest.mark.parametrize("image", [tiny(32, 24, "PNG"), tiny(32, 24, "JPEG"), LARGEST])
def test_a_tiny_image_crosses_no_thread(threads, image):
    """The way to another and back would take longer than to decode it."""
    door = Door()
    (answer,) = door.run(door.post(image))
    assert len(answer) == 1
    assert threads == {threading.get_ident()}


def with_text(image):
    """A PNG with a text that unpacks to a thousand times its size."""
    text = zlib.compress(b"\n" * 1_000_000)
    chunk = b"zTXtRaw profile type exif\0\0" + text
    sum_of = struct.pack(">I", zlib.crc32(chunk))
    return image[:33] + struct.pack(">I", len(chunk) - 4) + chunk + sum_of + image[33:]


def with_comments(image):
    """A JPEG with a thousand of them before its frame."""
    return image[:2] + 1000 * b"\xff\xfe\0\2" + image[2:]


def with_another_size(image):
    """A JPEG with a small frame in a part that some readers step over: TEM has no length."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + bytes(9)
    part = b"\xff\xe5" + struct.pack(">H", 2 + len(frame)) + frame
    return image[:2] + b"\xff\x01" + struct.pack(">H", 6) + part + image[2:]


def test_what_proves_larger_than_it_seemed_is_decoded_elsewhere(threads, monkeypatch):
    """Decoders find the size in ways of their own."""
    monkeypatch.setattr("service.decoding.is_tiny", lambda _: True)
    decoded_in, door, real = set(), Door(), decoding.decode

    def decode(*arguments, **options):
        decoded_in.add(threading.get_ident())
        return real(*arguments, **options)

    monkeypatch.setattr("service.decoding.decode", decode)
    (answer,) = door.run(door.post(tiny(65, 64, "JPEG")))
    assert len(answer) == 1
    assert threading.get_ident() not in decoded_in


@pytest.mark.parametrize(
    "post",
    [
        pytest.param((with_another_size(tiny(65, 64, "JPEG")),), id="JPEG of two sizes"),
        pytest.param((with_comments(tiny(32, 24, "JPEG")),), id="comments"),
        pytest.param((tiny(65, 64, "PNG"),), id="larger PNG"),
        pytest.param((tiny(65, 64, "JPEG"),), id="larger JPEG"),
        pytest.param((GOOD + bytes(TINY_BYTES),), id="many bytes"),
        pytest.param((with_text(GOOD),), id="text"),
        pytest.param((tiny(32, 24, "WEBP"),), id="WebP"),
        pytest.param((tiny(32, 24, "BMP"),), id="BMP"),
        pytest.param((tiny(32, 24, "GIF"),), id="GIF"),
        *FORMS[1:],
    ],
)
def test_what_may_take_long_is_not_for_the_event_loop(threads, post):
    """However few its bytes."""
    door = Door()
    (answer,) = door.run(door.post(*post))
    assert len(answer) == 1, answer
    assert threading.get_ident() not in threads


def test_a_tiny_image_needs_no_more_memory_than_there_is():
    """Where others have most, it is decoded with the little that it takes."""
    door = Door(size=32, max_queue_bytes=80 * MEBIBYTE)
    memory, others = door.intake.memory, Share(door.intake.memory)
    others.take(memory.limit - MEBIBYTE)
    assert not memory.has(AT_ONCE_BYTES)

    async def walk():
        assert len(await door.post(GOOD)) == 1
        others.take(-others.held)

    (failed,) = door.run(walk())
    assert failed is None, failed


def test_threads_at_large_requests_step_back(gate):
    """The event loop and the device come first; small requests too."""
    gate.opened.set()
    door = Door()
    door.run(door.post(GOOD, "image/png"), door.post(LARGE, "image/png"))
    niceness = {width: nice for width, _, nice in gate.decoded}
    assert niceness[32] == os.getpriority(os.PRIO_PROCESS, 0) < niceness.popitem()[1]


def test_where_the_whole_process_would_step_back_no_thread_does(monkeypatch):
    """Niceness is a thread's own on Linux only."""
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("os.nice", lambda by: pytest.fail("it stepped back"))
    step_back()


def test_files_and_pixels_of_another_origin_need_no_http(gate):
    """A camera's feed enters at the second stage or at the third; what it lacks is not asked."""
    door = Door(max_images=2)

    async def walk():
        async with Submission(door.intake, "feed") as submission:
            images = await submission.decode(lambda _: Upload([GOOD, GOOD]))
            await submission.answer(images)
        assert [image.id for image in images] == [None, None]
        async with Submission(door.intake, "feed") as submission:
            await submission.answer(images)
        for place in door.places:
            assert len(place.items) == 2
            assert place.delivered.is_set()  # nobody waits for an answer to leave

    (failed,) = door.run(walk())
    assert failed is None, failed


@pytest.mark.parametrize(
    ("shape", "kind"), [((8, 9, 4), "uint8"), ((8, 9), "uint8"), ((8, 9, 3), "float32")]
)
def test_pixels_of_another_kind_are_refused(shape, kind):
    """With what they are and what is taken."""
    door = Door()

    async def walk():
        async with Submission(door.intake, "feed") as submission:
            await submission.answer([decoding.Image(np.zeros(shape, kind))])

    (error,) = door.run(walk())
    assert "not (8, 9, 3) uint8" in str(error)
    assert error.index == 0


# Answers


def answered(images, classes):
    logits = np.random.default_rng(0).normal(size=(images, classes)).astype(np.float32)
    batch = SimpleNamespace(
        logits=logits,
        probabilities=np.exp(logits),
        entropy=logits[:, 0],
        selected=logits[:, 0] > 0,
        version=3,
        suspects=(),
        modes=(),
    )
    rows = [ImageAnswer(batch, row, 0.0, None, "0") for row in range(images)]
    return SimpleNamespace(answers=rows), batch


def encode(images, classes, top_k, learn=True):
    """Write an answer; return it and how many turns the event loop had meanwhile."""
    turns = 0

    async def tick():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def walk():
        nonlocal turns
        other = asyncio.create_task(tick())
        await asyncio.sleep(0)
        turns = 0
        ids = [None] * images
        asked = predict.Asked("a", top_k=top_k, learn=learn)
        content = await predict._encode(service, asked, given, ids)
        other.cancel()
        return json.loads(content), turns

    given, batch = answered(images, classes)
    names = tuple(f"name {number}" for number in range(classes))
    model = SimpleNamespace(class_names=names)
    source = SimpleNamespace(model=model, contextual=False)
    service = SimpleNamespace(settings=SimpleNamespace(method="ttc"), source=source, told=str)
    return *asyncio.run(walk()), batch


@pytest.mark.parametrize(("images", "classes"), [(1000, 100), (1, 100_000)])
def test_a_large_answer_lets_the_event_loop_have_its_turns(images, classes):
    """Of many images, and of one with many classes; nothing is lost at the seams."""
    content, turns, batch = encode(images, classes, classes)
    assert turns > 10
    for row, one in enumerate(content["predictions"]):
        best = np.argsort(-batch.logits[row], kind="stable")
        assert [score["class"] for score in one["top_k"]] == best.tolist()
        assert one["top_k"][0]["confidence"] == one["confidence"]
        assert one["confidence"] == float(batch.probabilities[row, best[0]])


def test_a_small_answer_is_written_in_one_go():
    """With everything in it, in its order."""
    content, _, batch = encode(2, 10, 2, learn=False)
    one = content["predictions"][0]
    assert list(one) == [
        *("id", "class", "name", "confidence", "top_k"),
        *("entropy", "selected", "mode", "suspect", "shed"),
    ]
    assert one["entropy"] == float(batch.entropy[0])
    assert [each["selected"] for each in content["predictions"]] == [False, False]
    assert (content["stream"], content["version"], content["batch_size"]) == ("a", 3, 2)
