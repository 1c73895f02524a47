"""What cannot be used of a request to /v2 is a sentence, costs nothing, and teaches nothing."""

import base64
import gzip
import json
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from service.memory import Share
from tests.e2e.conftest import wait_for
from tests.fixtures.requests import ask, problem
from tests.fixtures.v2 import HEADER, binary, error, files, framed, outputs_of, pixels
from tests.fixtures.wire import status_of, talk
from ttc_core.methods.source import Source

INFER = "/v2/models/bundled/infer"
MEBIBYTE = 1 << 20
IMAGE = np.full((1, 32, 32, 3), 100, np.uint8)
FLOATS = np.full((1, 32, 32, 3), 0.4, np.float32)


@pytest.fixture(scope="module")
def running(serve):
    with serve(method="ttc", max_images=50, max_pixels=16_000) as running:
        yield running


@pytest.fixture
def spared(running):
    """Post to /v2; in the end all is as it was."""
    before = running.at_rest()["counters"]["images_total"]
    yield lambda request, **more: running.http.post(
        INFER, content=request[0], headers=request[1], **more
    )
    assert running.at_rest()["counters"]["images_total"] == before
    assert running.service.intake.memory.held == 0
    assert all(each["version"] == 0 for each in running.status()["streams"].values())


def changed(value, at=0):
    floats = FLOATS.copy()
    floats.ravel()[at] = value
    return floats


def shaped(shape, content=None, datatype="UINT8"):
    content = IMAGE.tobytes() if content is None else content
    return binary(("images", datatype, shape, content))


def bodies(pictures):
    """What is refused: the request, its status, what the sentence has."""
    one = files(pictures[0])
    late, small = gzip.compress(one[0]), one[1] | {"Content-Encoding": "gzip"}
    return {
        "NaN": (pixels(changed(np.nan)), 400, "finite"),
        "infinity": (pixels(changed(np.inf, 7)), 400, "finite"),
        "below 0": (pixels(changed(-0.1)), 400, "from 0 to 1"),
        "above 1": (pixels(changed(1.1)), 400, "scale 255"),
        "above 255": (pixels(changed(256), more={"scale": 255}), 400, "0 to 255"),
        "another scale": (pixels(FLOATS, more={"scale": 2}), 400, "1 or 255"),
        "a scale beyond all numbers": (pixels(FLOATS, more={"scale": 10**400}), 400, "1 or 255"),
        "a scale that is text": (pixels(FLOATS, more={"scale": "1.0"}), 400, "1 or 255"),
        "a scale that is true": (pixels(FLOATS, more={"scale": True}), 400, "1 or 255"),
        "a scale that is a list": (pixels(FLOATS, more={"scale": [1]}), 400, "a list of 1"),
        "another layout": (pixels(IMAGE, more={"format": "HWC"}), 400, "NHWC or NCHW"),
        "not that layout": (pixels(IMAGE, more={"format": "NCHW"}), 400, "3 channels"),
        "either layout": (pixels(np.zeros((1, 3, 32, 3), np.uint8)), 400, "format"),
        "one channel": (pixels(np.zeros((1, 32, 32, 1), np.uint8)), 400, "shape"),
        "no batch": (pixels(IMAGE[0]), 400, "shape"),
        "no image": (shaped([0, 32, 32, 3], b""), 400, "image"),
        "no image of sides without end": (shaped([0, 2**62, 2**62, 3], b""), 400, "2^63"),
        "no pixel of sides without end": (shaped([1, 2**62, 0, 3], b""), 400, "2^63"),
        "no pixel": (shaped([1, 0, 32, 3], b""), 400, "no pixels"),
        "no file": (files(), 400, "image"),
        "another datatype": (shaped([1, 32, 32, 3], datatype="INT8"), 400, "UINT8, FP32, BYTES"),
        "51 images": (shaped([51, 1, 1, 3], bytes(153)), 413, "at most 50"),
        "51 files": (files(*[b""] * 51), 413, "at most 50"),
        "2^60 images": (shaped([2**60, 32, 32, 3]), 413, "at most 50"),
        "a shape that overflows": (shaped([16, 2**60 + 2, 1, 3]), 400, "bytes"),
        "a negative shape": (shaped([1, -32, -32, 3]), 400, "from 0"),
        "70,000 lists": (
            (b'{"inputs":[{"data":[%s[]]}]}' % (b"[0]," * 70_000), {}), 413, "flat list",
        ),
        "9,000 pixels a side": (shaped([1, 9000, 1, 3], bytes(27_000)), 413, "8,192"),
        "20,000 pixels": (shaped([1, 200, 100, 3], bytes(60_000)), 413, "16,000"),
        "no image file": (files(b"hello"), 400, "not an image"),
        "an empty file": (files(b""), 400, "empty"),
        "one bad file of two": (files(pictures[0], b"x"), 400, "Image 2 of 2"),
        "a file cut short": (files(pictures[0][:-40]), 400, "cut short"),
        "elements beyond the bytes": (
            binary(("images", "BYTES", [2], framed(pictures[0]))), 400, "element 2",
        ),
        "elements in a bare body": (
            (framed(pictures[0], pictures[1]), {HEADER: "0"}), 400, "not an image",
        ),
        "one element in a bare body": ((framed(pictures[0]), {HEADER: "0"}), 400, "not an image"),
        "an empty bare body": ((b"", {HEADER: "0"}), 400, "empty"),
        "no body": ((b"", {}), 400, "JSON"),
        "a header beyond the body": ((one[0], {HEADER: str(10**17)}), 400, HEADER),
        "a negative header": ((one[0], {HEADER: "-1"}), 400, HEADER),
        "a header that is no number": ((one[0], {HEADER: "many"}), 400, HEADER),
        "a header in the middle of a file": ((one[0], {HEADER: "400"}), 400, ""),
        "an output twice": (
            files(pictures[0], outputs=[{"name": "label"}, {"name": "label"}]), 400, "twice",
        ),
        "an id of 129 characters": (files(pictures[0], id="a" * 129), 400, "129 characters"),
        "an id of 127 with /0": (files(*pictures[:2], id="a" * 127), 400, "129 characters"),
        "an id with a tab": (files(pictures[0], id="a\tb"), 400, "control"),
        "no output of ours": (files(pictures[0], outputs=[{"name": "boxes"}]), 400, "'label'"),
        "a parameter of Triton's own": (
            files(pictures[0], parameters={"triton_enable_empty_final_response": True}),
            400,
            "reserved",
        ),
        "headers": (files(pictures[0], parameters={"headers": {"a": "b"}}), 400, "reserved"),
        "a switch that is none": (files(pictures[0], parameters={"learn": "no"}), 400, "learn"),
        "a switch that is a list": (
            files(pictures[0], parameters={"learn": [0.5] * 9}), 400, "a list of 9",
        ),
        "a stream that is an object": (
            files(pictures[0], parameters={"stream": {"a": 1}}), 400, "an object of 1",
        ),
        "a stream without end": (
            files(pictures[0], parameters={"stream": "x" * 5000}), 400, "1,000 characters",
        ),
        "a negative timeout": (files(pictures[0], parameters={"timeout": -3}), 400, "timeout"),
        "gzip that fails at its end": ((late[:-8] + bytes(8), small), 400, "damaged"),
        "gzip cut short": ((late[:-9], small), 400, "cut short"),
        "gzip without end": ((gzip.compress(bytes(40 * MEBIBYTE)), small), 413, "33,554,432"),
        "deflate without end": (
            (zlib.compress(bytes(40 * MEBIBYTE)), small | {"Content-Encoding": "deflate"}),
            413,
            "33,554,432",
        ),
        "more behind deflate": (
            (zlib.compress(one[0]) + b"x", small | {"Content-Encoding": "deflate"}), 400, "follows",
        ),
        "another coding": ((one[0], one[1] | {"Content-Encoding": "br"}), 415, "deflate"),
    }  # fmt: skip


NAMES = list(bodies([b"x" * 100] * 2))


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_used_is_refused_with_a_sentence(spared, pictures, name):
    request, status, words = bodies(pictures)[name]
    assert words in error(spared(request), status)


@pytest.mark.parametrize("depth", [120, 250_000])
@pytest.mark.parametrize("path", [INFER, "/predict", "/feedback", "/v2/repository/index"])
def test_json_nested_without_end_is_refused_wherever_json_goes(running, spared, path, depth):
    """Lists and objects."""
    for text in (b"[" * depth + b"]" * depth, b'{"inputs":' * depth + b"1" + b"}" * depth):
        answer = running.http.post(path, content=text, headers={"Content-Type": "application/json"})
        # Of names that it does not know the index reads nothing.
        known = depth > 120 or path != "/v2/repository/index" or text.startswith(b"[")
        assert answer.status_code // 100 == (4 if known else 2)
        assert len(answer.text) < 2000


def test_data_nested_120_deep_is_refused(spared):
    data = IMAGE.ravel().tolist()
    for _ in range(120):
        data = [data]
    entry = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": data}
    error(spared((json.dumps({"inputs": [entry]}).encode(), {})), 400)


@pytest.mark.parametrize("path", [INFER, "/predict"])
def test_a_million_chunks_of_one_byte_are_one_body(running, spared, path):
    """Refused as any other that is no request, and others are answered meanwhile."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
    answer = talk(running.url, head, b"1\r\nx\r\n" * 1_000_000, b"0\r\n\r\n")
    assert status_of(answer) == 400
    assert running.http.get("/healthz").status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(running, spared):
    """By its length, and by what comes where none is stated."""
    error(spared((bytes(33 * MEBIBYTE), {})), 413)
    endless = (bytes(MEBIBYTE) for _ in range(40))
    error(running.http.post(INFER, content=endless), 413)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (INFER, b'{"error":'),
        (f"http://x{INFER}", b'{"error":'),
        ("/predict", b"problem+json"),
        ("http://x/predict?to=/v2", b"problem+json"),
        ("http://v2/", b"problem+json"),
    ],
)
def test_a_head_that_is_too_long_is_told_in_the_form_of_the_path(running, path, form):
    """Before there is a request, be it the URL or a header that is too long."""
    for head in (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX: ".encode() + b"a" * 300_000,
        f"POST {path}{'&' if '?' in path else '?'}".encode() + b"a" * 300_000,
    ):
        answer = talk(running.url, head)
        assert status_of(answer) == 431
        assert form in answer


def test_strangers_do_not_fill_the_memory_of_those_who_have_the_token(serve, pictures):
    """What takes a body and asks for no token takes 4,096 bytes of it, packed or not."""
    with serve(method="source", token="open sesame", max_queue_bytes=1 << 20) as running:
        held = []

        def slowly():
            for _ in range(20):
                yield bytes(1000)
                held.append(running.service.intake.memory.held)

        for content, headers in (
            (bytes(5000), {}),
            (slowly(), {}),
            (gzip.compress(bytes(900_000)), {"Content-Encoding": "gzip"}),
        ):
            refused = running.http.post("/v2/repository/index", content=content, headers=headers)
            assert "4,096" in error(refused, 413)
        assert max(held) <= 4096
        assert running.http.post("/v2/repository/index", content=b" " * 4096).status_code == 200


def test_tokens_are_asked_for_as_elsewhere(serve, pictures):
    """`infer` asks for --token, statistics for one with --token-reads; what is asked by machines
    for health needs none."""
    body, headers = files(pictures[0])
    with serve(method="source", token="open sesame", token_reads=True) as running:
        refused = running.http.post(INFER, content=body, headers=headers)
        assert "token" in error(refused, 401)
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        error(running.http.get("/v2/models/stats"), 401)
        right = headers | {"Authorization": "Bearer open sesame"}
        assert outputs_of(running.http.post(INFER, content=body, headers=right))
        assert running.http.get("/v2/models/stats", headers=right).status_code == 200
        assert running.http.get("/v2/health/ready").status_code == 200
        foreign = running.http.post(
            INFER, content=body, headers=right | {"Origin": "https://evil.example"}
        )
        error(foreign, 403)


def test_a_full_queue_is_told_in_the_form_of_the_protocol(serve, held, pictures):
    """429 with Retry-After, while others' images wait for the device."""
    body, headers = files(*pictures[:2])
    source, gates = held("source")
    with serve(source=source, max_queue=2) as running, ThreadPoolExecutor(2) as pool:
        gates.predict.clear()
        gates.predicting.clear()
        try:
            first = pool.submit(ask, running, pictures[:2])
            assert gates.predicting.wait(30)
            waiting = pool.submit(ask, running, pictures[:2])
            wait_for(lambda: running.service.batcher.waiting_images == 2)
            full = running.http.post(INFER, content=body, headers=headers)
            assert "queue" in error(full, 429)
            assert int(full.headers["Retry-After"]) >= 1
        finally:
            gates.open()
        assert len(first.result(60)["predictions"]) == len(waiting.result(60)["predictions"]) == 2


class Nan(Source):
    """Answers with numbers that are none."""

    def predict(self, images, *, learn=True):
        prediction = super().predict(images, learn=learn)
        prediction.logits.fill_(torch.nan)
        return prediction


def test_scores_that_are_no_numbers_are_told_in_the_form_of_the_protocol(serve, model, pictures):
    """500."""
    body, headers = files(*pictures[:2])
    with serve(source=Nan(model), method="source") as running:
        failed = running.http.post(INFER, content=body, headers=headers)
        assert "not finite" in error(failed, 500)


def test_a_drain_is_told_in_the_form_of_the_protocol(serve, pictures):
    """503; what never fits is 413."""
    body, headers = files(*pictures[:3])
    with serve(method="source", max_queue=2) as running:
        error(running.http.post(INFER, content=body, headers=headers), 413)
        running.service.batcher.drain()
        error(running.http.post(INFER, content=body, headers=headers), 503)
        error(running.http.get("/v2/health/ready"), 503)
        error(running.http.get("/v2/models/bundled/ready"), 503)
        assert running.http.get("/v2/health/live").status_code == 200
        states = running.http.post("/v2/repository/index").json()
        assert [each["state"] for each in states] == ["UNAVAILABLE"]
        assert running.http.post("/v2/repository/index", json={"ready": True}).json() == []
    with serve(method="source", max_queue_bytes=1000) as running:
        problem(running.http.post("/predict", content=pictures[0]), 413)
        error(running.http.post(INFER, content=body, headers=headers), 413)


def test_our_own_failure_is_told_in_the_form_of_the_protocol(serve, pictures, monkeypatch):
    """Its reason is in the log."""
    body, headers = files(pictures[0])
    with serve(method="source") as running:
        monkeypatch.setattr("service.routes.v2_infer.read_request", lambda *_: 1 / 0)
        failed = running.http.post(INFER, content=body, headers=headers)
        assert "log has the reason" in error(failed, 500)
        assert running.service.intake.memory.held == 0
        ask(running, pictures[:1])


@pytest.mark.parametrize("form", ["JSON", "elements", "a bare body", "pixels in JSON"])
def test_what_a_request_takes_was_set_aside_for_it(serve, monkeypatch, form):
    """Files that are refused once their headers are read; pixels that are answered."""
    most, take, size = 0, Share.take, 6 * MEBIBYTE
    file = b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(size)

    def noting(share, size_bytes):
        nonlocal most
        take(share, size_bytes)
        most = max(most, share.memory.held)

    text = base64.b64encode(file).decode()
    entry = {"name": "images", "datatype": "BYTES", "shape": [3], "data": [text] * 3}
    values = {"name": "images", "datatype": "FP32", "shape": [90, 32, 32, 3], "data": [0] * 276_480}
    body, headers = {
        "JSON": lambda: (json.dumps({"inputs": [entry]}).encode(), {}),
        "elements": lambda: files(*[file] * 3),
        "a bare body": lambda: (file, {HEADER: "0"}),
        "pixels in JSON": lambda: (json.dumps({"inputs": [values]}).encode(), {}),
    }[form]()
    monkeypatch.setattr(Share, "take", noting)
    with serve(method="source") as running:
        running.http.post(INFER, content=body, headers=headers)
        most = 0
        tracemalloc.start()
        try:
            answer = running.http.post(INFER, content=body, headers=headers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.status_code == (200 if form == "pixels in JSON" else 400)
    assert peak < most + 4 * MEBIBYTE  # on their way through the sockets


def test_a_request_does_not_wait_with_parameters_that_nobody_reads(serve, held, pictures):
    """Of itself and of its input: megabytes each, which no limit counts once they are read."""
    text = "a" * (4 * MEBIBYTE)
    entry = ("images", "UINT8", IMAGE.shape, IMAGE.tobytes(), {"of an input": text})
    body, headers = binary(entry, parameters={"of a request": text})
    source, gates = held("source")
    with serve(source=source) as running, ThreadPoolExecutor(4) as pool:
        gates.predict.clear()
        gates.predicting.clear()
        first = pool.submit(ask, running, pictures[:1])
        assert gates.predicting.wait(30)
        queue, memory = running.service.batcher, running.service.intake.memory
        tracemalloc.start()
        try:
            waiting = [
                pool.submit(running.http.post, INFER, content=body, headers=headers)
                for _ in range(3)
            ]
            wait_for(lambda: queue.waiting_images == 3 and memory.held < MEBIBYTE)
            held_bytes = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gates.open()
        assert held_bytes < 3 * MEBIBYTE
        assert len(first.result(60)["predictions"]) == 1
        assert all(outputs_of(each.result(60)) for each in waiting)
