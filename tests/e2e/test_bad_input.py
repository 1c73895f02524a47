"""Whatever is sent to a real server process: a defined answer, and a model that did not notice."""

import base64
import gzip
import io
import re
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.forked import launch
from tests.fixtures.requests import problem

PNG, JSON = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server():
    """One process for the whole file: what one test does to it, the others would see."""
    with launch("--method", "tent", "--device", "cpu", "--threads", "1") as launched:
        yield launched


@pytest.fixture(autouse=True)
def unmoved(http):
    """No test of this file may move the stream that it did not name as its own."""
    before = http.get("/status").json()["streams"].get("default")
    yield
    assert http.get("/status").json()["streams"].get("default") == before


def write(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def huge_png(width, height):
    """A file of a few kilobytes that says it is this large, and is."""
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + (width + 7) // 8)
    packed = b"".join(rows.compress(line * 1000) for _ in range(height // 1000)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def multipart(*parts, boundary="b"):
    """A form from (headers, content) pairs, written out so that it may be wrong."""
    body = b"".join(
        f"--{boundary}\r\n{headers}\r\n\r\n".encode() + content + b"\r\n"
        for headers, content in parts
    )
    return body + f"--{boundary}--\r\n".encode()


def image_part(content, name="image", more=""):
    return (f'Content-Disposition: form-data; name="{name}"; filename="x"{more}', content)


def as_json(*images, **more):
    entries = [{"b64": base64.b64encode(image).decode(), **more} for image in images]
    return {"json": {"images": entries}}


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
GOOD = write(Image.fromarray(PIXELS))
JPEG = write(Image.fromarray(PIXELS), "JPEG")
GZIP = PNG | {"Content-Encoding": "gzip"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}

REFUSED = {
    "nothing": (b"", PNG, 400),
    "not an image": (b"GET / HTTP/1.1 is no picture" * 9, PNG, 400),
    "random bytes": (PIXELS.tobytes(), {"Content-Type": "image/jpeg"}, 400),
    "a truncated png": (GOOD[: len(GOOD) // 2], PNG, 400),
    "a truncated jpeg": (JPEG[: len(JPEG) // 2], {"Content-Type": "image/jpeg"}, 400),
    "a jpeg that lost its second half": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", PNG, 400),
    "a jpeg that lost its middle": (JPEG[:700] + JPEG[900:], PNG, 400),
    "a png header alone": (GOOD[:40], PNG, 400),
    "a tiff": (write(Image.fromarray(PIXELS), "TIFF"), PNG, 400),
    "an svg": (
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        {"Content-Type": "image/svg+xml"},
        415,
    ),
    "a text": (b"hello", {"Content-Type": "text/plain"}, 415),
    "a broken content type": (GOOD, {"Content-Type": "image/png/png; ;;="}, 415),
    "an endless content type": (GOOD, {"Content-Type": "x" * 4000}, 415),
    "another form": (b"image=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "30,000 x 30,000 pixels": (huge_png(30_000, 30_000), PNG, 413),
    "20,000 x 1,000 pixels": (huge_png(20_000, 1_000), PNG, 413),
    "an image of 11 MB": (GOOD + b"\0" * (11 * MEBIBYTE), PNG, 413),
    "gzip cut short": (gzip.compress(GOOD)[:-9], GZIP, 400),
    "gzip of 33 MB": (gzip.compress(bytes(33 * MEBIBYTE)), GZIP, 413),
    "another coding": (GOOD, PNG | {"Content-Encoding": "br"}, 415),
    "no boundary": (multipart(image_part(GOOD)), {"Content-Type": "multipart/form-data"}, 400),
    "an empty form": (b"--b--\r\n", FORM, 400),
    "a form of nothing": (b"\r\n", FORM, 400),
    "another boundary": (multipart(image_part(GOOD), boundary="c"), FORM, 400),
    "a form cut short": (multipart(image_part(GOOD))[:-12], FORM, 400),
    "an unknown field": (multipart(image_part(GOOD, name="picture")), FORM, 422),
    "a part without a name": (multipart(("X-Nothing: 1", GOOD)), FORM, 422),
    "a form without an image": (multipart(image_part(b"3", name="label")), FORM, 400),
    "an empty file in a form": (multipart(image_part(b"")), FORM, 400),
    "a part of another type": (
        multipart(image_part(GOOD, more="\r\nContent-Type: application/pdf")),
        FORM,
        415,
    ),
    "a label that is no number": (
        multipart(image_part(GOOD), image_part(b"cat", name="label")),
        FORM,
        422,
    ),
    "two labels for one image": (
        multipart(image_part(GOOD), *[image_part(b"1", name="label")] * 2),
        FORM,
        422,
    ),
    "a label that is no text": (
        multipart(image_part(GOOD), image_part(b"\xff\xfe", name="label")),
        FORM,
        400,
    ),
    "no json": (b"{images}", JSON, 400),
    "half a json": (b'{"images": [{"b64": "', JSON, 400),
    "json that is no utf-8": (b'{"images": [{"b64": "\xff"}]}', JSON, 400),
    "a deep json": (b"[" * 50_000, JSON, 400),
    "json of countless lists": (b"[" * 100_000, JSON, 413),
    "json of another form": (b'{"instances": [1, 2]}', JSON, 422),
    "a json list": (b"[]", JSON, 422),
    "json without images": (b'{"images": []}', JSON, 422),
    "json that names a stream": (b'{"images": [{"b64": ""}], "stream": "gate-7"}', JSON, 422),
    "json with a misspelt label": (b'{"images": [{"b64": "", "lable": 3}]}', JSON, 422),
    "bad base64": (b'{"images": [{"b64": "%%%"}]}', JSON, 400),
    "base64 of no image": (b'{"images": [{"b64": "aGVsbG8="}]}', JSON, 400),
    "a json label that is no number": (b'{"images": [{"b64": "", "label": "x"}]}', JSON, 422),
    "a json label of 5,000 digits": (
        b'{"images": [{"b64": "aGVsbG8=", "label": ' + b"9" * 5000 + b"}]}",
        JSON,
        422,
    ),
    "an id of 10,000 characters": (
        b'{"images": [{"b64": "aGVsbG8=", "id": "' + b"x" * 10_000 + b'"}]}',
        JSON,
        422,
    ),
    "1,001 images": (b'{"images": [' + b",".join([b'{"b64": ""}'] * 1001) + b"]}", JSON, 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_sentence(http, name):
    """The status says what kind of mistake it is, the detail what is accepted."""
    body, headers, status = REFUSED[name]
    document = problem(http.post("/predict", content=body, headers=headers), status)
    assert len(document["detail"]) < 1500
    assert "Traceback" not in document["detail"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("label=10", "0 to 9"),
        ("label=-1", "0 to 9"),
        ("label=cat", "label"),
        ("label=1&label=2", "label"),
        ("label=" + "9" * 5000, "label"),
        ("id=" + "x" * 129, "128"),
        ("top_k=0", "top_k"),
        ("top_k=11", "top_k"),
        ("top_k=many", "top_k"),
        ("stream=a/b", "stream: a stream's name is 1 to 64 of A-Z a-z 0-9 . _ : -; got 'a/b'."),
        ("stream=" + "x" * 65, "1 to 64 of A-Z"),
        ("stream=*", "stream"),
        ("timeout=0", "timeout"),
        ("timeout=nan", "timeout"),
        ("timeout=soon", "timeout"),
    ],
)
def test_an_option_out_of_range_is_named(http, query, named):
    """422, and the sentence has the option and what is accepted."""
    document = problem(http.post(f"/predict?{query}", content=GOOD, headers=PNG), 422)
    assert named in document["detail"]


def test_a_bad_session_id_is_refused(http):
    """A header is held to the same pattern as the query."""
    headers = PNG | {"X-Session-Id": "no/slash"}
    detail = problem(http.post("/predict", content=GOOD, headers=headers), 422)["detail"]
    assert detail.startswith("x-session-id: a stream's name is 1 to 64 of")


BROKEN = GOOD[: len(GOOD) // 2]


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda images: as_json(*images), id="json"),
        pytest.param(
            lambda images: {"content": multipart(*map(image_part, images)), "headers": FORM},
            id="form",
        ),
    ],
)
def test_one_broken_image_of_sixteen_refuses_the_request_and_is_named(http, send):
    """All or nothing: the detail and `index` tell which one; none of the others is processed."""
    counted = http.get("/status").json()["counters"]["images_total"]
    images = [GOOD] * 16
    images[6] = BROKEN
    document = problem(http.post("/predict?stream=sixteen", **send(images)), 400)
    assert document["index"] == 6
    assert "Image 7 of 16" in document["detail"]
    status = http.get("/status").json()
    assert status["counters"]["images_total"] == counted
    assert "sixteen" not in status["streams"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param({"content": multipart(
            image_part(GOOD), image_part(GOOD, more="\r\nContent-Type: text/html")),
            "headers": FORM}, 415, id="type-of-a-part"),
        pytest.param({"content": multipart(
            image_part(GOOD), image_part(GOOD), image_part(b"1", "label"),
            image_part(b"x", "label")), "headers": FORM}, 422, id="form-label"),
        pytest.param({"content": multipart(
            image_part(GOOD), image_part(GOOD), image_part(b"1", "label"),
            image_part(b"77", "label")), "headers": FORM}, 422, id="form-label-out-of-range"),
        pytest.param({"json": {"images": [{"b64": ""}, {"b64": "", "label": "x"}]}}, 422,
            id="json-label"),
        pytest.param({"json": {"images": [{"b64": ""}, {"id": "no image"}]}}, 422,
            id="json-without-image"),
        pytest.param({"json": {"images": [{"b64": "aaaa"}, {"b64": "?"}]}}, 400,
            id="json-base64"),
    ],
)  # fmt: skip
def test_the_second_of_two_is_named_whatever_is_wrong_with_it(http, request_, status):
    """A label, an id or a type at fault has its image's index too."""
    document = problem(http.post("/predict", **request_), status)
    assert document["index"] == 1


def test_a_body_of_100_megabytes_is_refused(http):
    """By its Content-Length at once, without one after the limit; the server lives on."""
    size = 100 * MEBIBYTE
    stated = problem(http.post("/predict", content=bytes(size), headers=PNG), 413)
    assert f"{size:,} bytes" in stated["detail"]

    def chunks():
        for _ in range(100):
            yield bytes(MEBIBYTE)

    counted = problem(http.post("/predict", content=chunks(), headers=PNG), 413)
    assert "more than" in counted["detail"]
    assert http.get("/readyz").status_code == 200


ANSWERED = {
    "grey": write(Image.fromarray(PIXELS).convert("L")),
    "grey with alpha": write(Image.fromarray(PIXELS).convert("LA")),
    "black and white": write(Image.fromarray(PIXELS).convert("1")),
    "palette": write(Image.fromarray(PIXELS).quantize(16), transparency=3),
    "rgba": write(Image.fromarray(PIXELS).convert("RGBA")),
    "16 bits": write(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
    "cmyk": write(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
    "one pixel": write(Image.new("RGB", (1, 1), "red")),
    "one line": write(Image.new("RGB", (4000, 1), "red")),
    "4,000 x 4,000 pixels": huge_png(4000, 4000),
    "an animated gif": write(
        Image.fromarray(PIXELS), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))]
    ),
    "an animated webp": write(
        Image.fromarray(PIXELS),
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (32, 32))],
    ),
    "a bmp called jpeg": write(Image.fromarray(PIXELS), "BMP"),
    "a jpeg without its end": JPEG[:-2],
    "a jpeg with a recorder's trailer": JPEG[:-2] + b"dhav\1\2\3\4",
    "a png without its end": GOOD[:-12],
    "exif of nonsense": write(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM\0*nonsense"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_an_image_is_answered(http, name):
    """Whatever its mode, size or number of frames."""
    response = http.post(
        "/predict?stream=odd", content=ANSWERED[name], headers={"Content-Type": "image/jpeg"}
    )
    assert response.status_code == 200, response.text
    (one,) = response.json()["predictions"]
    assert 0 <= one["class"] < 10


def answer(http, image, stream):
    """What a fresh stream answers to one image."""
    http.post("/reset", params={"stream": stream})
    response = http.post("/predict", params={"stream": stream}, content=image)
    assert response.status_code == 200
    return response.json()["predictions"]


def test_a_rotated_photograph_is_turned_upright(http):
    """EXIF says "turn right": the answer is that of the turned pixels, not of the stored ones."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, :8] = 255  # a bright column on the left; turned right, a bright row on top
    turned = np.ascontiguousarray(np.rot90(picture, -1))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    stored = write(Image.fromarray(picture), "PNG", exif=orientation)
    assert answer(http, stored, "exif") == answer(http, write(Image.fromarray(turned)), "exif")
    assert answer(http, stored, "exif") != answer(http, write(Image.fromarray(picture)), "exif")


def test_of_an_animation_the_first_frame_is_answered(http):
    """Not the last, and not an average."""
    first, second = Image.fromarray(PIXELS), Image.new("RGB", (32, 32))
    animated = write(first, "PNG", save_all=True, append_images=[second])
    assert answer(http, animated, "frames") == answer(http, GOOD, "frames")


def test_bad_requests_leave_the_model_where_it_stood(http, pictures):
    """A stream that got bad input between its batches answers as one that did not, bit for bit."""
    for name in ("calm", "harried"):
        for start in range(0, 48, 16):
            sent = as_json(*pictures[start : start + 16])
            http.post("/predict", params={"stream": name}, **sent).raise_for_status()
            if name == "harried":
                for body, headers, _ in list(REFUSED.values())[::4]:
                    if len(body) < MEBIBYTE:
                        http.post(
                            "/predict", params={"stream": name}, content=body, headers=headers
                        )
                broken = as_json(*pictures[start : start + 15], BROKEN)
                problem(http.post("/predict", params={"stream": name}, **broken), 400)
    calm, harried = (
        http.post("/predict", params={"stream": name}, **as_json(*pictures[48:64])).json()
        for name in ("calm", "harried")
    )
    assert calm["predictions"] == harried["predictions"]
    assert calm["version"] == harried["version"] == 3


def test_bad_requests_cost_no_other_client_its_answer(server, pictures):
    """Good ones in flight beside floods of bad ones and of broken connections are all answered."""
    stop = threading.Event()
    host, port = server.url.removeprefix("http://").split(":")

    def misbehave(seed):
        bad = list(REFUSED.values())
        with httpx.Client(base_url=server.url, timeout=60) as client:
            turn = seed
            while not stop.is_set():
                body, headers, status = bad[turn % len(bad)]
                turn += 1
                if len(body) > MEBIBYTE:
                    continue
                assert client.post("/predict", content=body, headers=headers).status_code == status
                with socket.create_connection((host, int(port))) as connection:
                    connection.sendall(
                        b"POST /predict?stream=flood HTTP/1.1\r\nHost: x\r\n"
                        b"Content-Length: 900\r\n\r\nhalf an image"
                    )

    def behave(number):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            return [
                client.post(
                    "/predict", params={"stream": f"good-{number}"}, **as_json(pictures[n])
                ).status_code
                for n in range(12)
            ]

    with ThreadPoolExecutor(6) as pool:
        floods = [pool.submit(misbehave, seed) for seed in (0, 20)]
        try:
            statuses = [code for codes in pool.map(behave, range(4)) for code in codes]
        finally:
            stop.set()
        for flood in floods:
            flood.result(60)
    assert statuses == [200] * 48


def test_two_content_types_are_refused(source_server, pictures):
    """Which of them holds nobody can say."""
    both = [("Content-Type", "image/png"), ("Content-Type", "application/json")]
    response = source_server.http.post("/predict", content=pictures[0], headers=both)
    assert "2 Content-Types" in problem(response, 400)["detail"]


def test_a_request_that_never_ends_is_given_up(serve, pictures):
    """After --receive-timeout the sender of half a body is told so: 408, and nothing is held."""
    with serve(method="source", receive_timeout=0.2) as running:
        received = send_slowly(running.url)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive whole in 0.2 seconds" in received
        assert running.service.intake.memory.held == 0


def send_slowly(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf")
        return connection.recv(65536)


def test_memory_for_requests_is_bounded(serve, pictures):
    """What can never fit into --max-queue-bytes gets 413 although it is within --max-body."""
    with serve(method="source", max_queue_bytes=50_000) as running:
        response = running.http.post("/predict", content=bytes(60_000))
        assert "50,000 for all requests" in problem(response, 413)["detail"]
        assert running.http.post("/predict", content=pictures[0]).status_code == 200
        assert running.service.intake.memory.held == 0


def test_afterwards_the_process_is_well(server, http):
    """After all of the above: alive, ready, idle, nothing queued, nothing in progress."""
    assert server.process.poll() is None
    assert http.get("/readyz").status_code == 200
    status = http.get("/status").json()
    assert status["idle"]
    assert not any(event["event"] == "adaptation_failed" for event in status["events"])
    assert not any("Traceback" in line for line in server.lines)
    metrics = http.get("/metrics").text
    assert "ttc_http_requests_in_progress 0.0" in metrics
    assert "ttc_queue_images 0.0" in metrics
    assert not re.search(r'code="500"\} [1-9]', metrics)


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"stream": "gate-4"}},
        {"data": {"stream": "gate-4"}},
        {"content": iter([b"stream=gate-4"])},
        {"params": {"stream": "gate-4"}, "headers": {"X-Session-Id": "gate-5"}},
    ],
)
def test_a_reset_that_names_its_stream_where_it_is_not_read_resets_nothing(http, sent):
    """Else it were the stream `default` that forgets what it learned."""
    assert http.post("/reset", **sent).status_code == 422


def test_a_reset_names_its_stream_as_a_prediction_does(http):
    """In the query, or in the header that a proxy sets."""
    named = http.post("/reset", headers={"X-Session-Id": "gate-4"}).json()
    assert named == http.post("/reset", params={"stream": "gate-4"}).json()
    assert named["streams"] == ["gate-4"]
    refused = problem(http.post("/reset", params={"stream": "gate ü"}), 422)["detail"]
    assert "of A-Z a-z 0-9 . _ : -, or * for all; got 'gate ü'." in refused
