"""The clients against a real service: what docs/client.md says, whatever form an image has."""

import asyncio
import io
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.client import AsyncClient, Client
from tests.e2e.conftest import wait_for

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ALONE = """
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from service.client import Client

with Client(sys.argv[1]) as client:
    print(client.predict(sys.argv[2]).predictions[0].class_, client.status().ready)
"""


@pytest.fixture(scope="module")
def server(source_server):
    return source_server


def test_the_code_of_its_page_does_what_the_page_says(serve, pictures, tmp_path, monkeypatch):
    """One block after another, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    Image.open(io.BytesIO(pictures[0])).save("photo.jpg", quality=100)
    blocks = CODE.findall((ROOT / "docs" / "client.md").read_text())
    assert len(blocks) == 6
    known: dict[str, object] = {}
    with serve("ttc_stream", admin_token="open the safe") as running:
        for block in blocks:
            there = re.sub(r'Client\((?!")', f'Client("{running.url}", ', block)
            exec(there.replace("http://127.0.0.1:8000", running.url), known)
        assert set(running.at_rest()["streams"]) == {f"gate-{number}" for number in range(4)}


def test_one_picture_has_one_answer_whatever_form_it_comes_in(server, pictures, tmp_path):
    """A path, bytes, an array, a picture of Pillow's; alone or among others."""
    (tmp_path / "a.png").write_bytes(pictures[3])
    picture = Image.open(io.BytesIO(pictures[3]))
    forms = [
        pictures[3],
        bytearray(pictures[3]),
        memoryview(pictures[3]),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        np.asarray(picture),
        np.asarray(picture)[:, :, ::-1][:, :, ::-1],
        picture,
        picture.convert("RGBA"),
    ]
    with Client(server.url) as client:
        together = client.predict(forms, top_k=10).predictions
        alone = [client.predict(form, top_k=10).predictions[0] for form in forms]

    async def ask():
        async with AsyncClient(server.url) as other:
            return (await other.predict(forms, top_k=10)).predictions

    for found in (together, alone, asyncio.run(ask())):
        assert [each.class_ for each in found] == [together[0].class_] * len(forms)
        scores = [each.confidence for each in found]
        assert scores == pytest.approx([together[0].confidence] * len(forms), abs=1e-5)


def test_a_grey_array_is_a_grey_picture(server, pictures):
    """Two dimensions are one channel, which a PNG of one channel says as well."""
    grey = Image.open(io.BytesIO(pictures[0])).convert("L")
    with Client(server.url) as client:
        first, second = client.predict([np.asarray(grey), grey]).predictions
    assert first.confidence == pytest.approx(second.confidence, abs=1e-5)


def test_a_picture_opened_from_a_photo_lies_as_the_photo_does(server, pictures, tmp_path):
    """The orientation of its EXIF goes along: Pillow's pixels are those of the sensor."""
    upright = Image.open(io.BytesIO(pictures[5]))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to be upright
    turned = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    with Client(server.url) as client:
        found = client.predict([upright, turned, Image.open(turned)], top_k=10).predictions
    scores = [[each.confidence for each in one.top_k] for one in found]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    assert scores[2] == pytest.approx(scores[0], abs=1e-5)


def test_the_client_needs_no_torch_and_imports_nothing_it_does_not_use(server, pictures, tmp_path):
    """It runs where torch, NumPy and Pillow are not even installed, as long as files are sent."""
    (tmp_path / "a.png").write_bytes(pictures[0])
    absent = {"torch", "torchvision", "numpy", "scipy", "PIL", "fastapi", "uvicorn"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(absent=absent), server.url, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "True"


def test_clients_that_find_the_queue_full_are_all_answered(serve, held, pictures):
    """They come back when the service said; each image is learned from once."""
    source, gates = held("source")
    with (
        serve("source", source=source, max_batch=2, max_queue=2) as running,
        Client(running.url, retry_budget=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        gates.predict.clear()
        answers = [pool.submit(client.predict, image) for image in pictures[:8]]
        wait_for(lambda: 'code="429"' in running.http.get("/metrics").text)
        gates.open()
        assert all(answer.result(60).predictions for answer in answers)
        assert running.at_rest()["streams"]["default"]["images"] == 8


def test_a_service_that_is_started_meanwhile_is_found(serve, pictures):
    """Nothing listens yet: the client tries until something does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    listening = threading.Event()

    def answer_late():
        listening.wait(0.5)
        with socket.create_server(("127.0.0.1", port)) as late:
            connection, _ = late.accept()
            with connection:
                connection.recv(65536)
                body = b'{"streams": ["default"], "discarded": {}}'
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)

    late = threading.Thread(target=answer_late)
    late.start()
    with Client(f"http://127.0.0.1:{port}", retry_budget=30) as client:
        assert client.reset().streams == ["default"]
    late.join()
