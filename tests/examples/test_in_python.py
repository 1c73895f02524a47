"""The library without a server, and the service inside another application."""

import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.client import Client, ServiceError
from service.launch import START_SECONDS
from tests.examples.conftest import EXAMPLES, PATIENCE, finish, terminate
from tests.fixtures.requests import at_rest
from ttc_core.state_file import read_header


def test_the_library_answers_as_the_service_does(server, photos, start):
    """The same pictures in the same order, each learned from before the next."""
    status, out, err = finish(start("library.py", photos[0].parent, url=""))
    assert (status, err) == (0, "")
    with Client(server.url) as client:
        names = [client.predict(path, stream="library").predictions[0].name for path in photos]
    expected = [f"{path.name} {name}" for path, name in zip(photos, names, strict=True)]
    assert out.splitlines() == expected


def test_the_library_is_used_in_ten_lines():
    """Without imports, blank lines and the docstring."""
    text = (EXAMPLES / "library.py").read_text().rpartition('"""\n')[2]
    lines = [line for line in text.splitlines() if line and not re.match("import |from ", line)]
    assert len(lines) <= 10


@pytest.fixture
def mounted(start, tmp_path, monkeypatch):
    """The example served by uvicorn's own command: its process and its address."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("TTC_STATE_DIR", str(tmp_path))
    words = ("-m", "uvicorn", "mounted:app", "--port", port)
    process = start(sys.executable, *words, url="", cwd=EXAMPLES)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    with Client(f"{url}/ttc") as client:
        while not client.ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    return process, url


def test_a_mounted_service_serves_beside_ones_own_routes_and_saves_in_the_end(
    mounted, photos, tmp_path
):
    """Its lifespan is run: the queue is open, and what streams learned is there after SIGTERM."""
    process, url = mounted
    assert httpx.get(url).json() == {"ready": True}
    with Client(f"{url}/ttc") as client:
        answers = client.predict(photos, stream="gate-4", ids=[path.name for path in photos])
        assert [each.id for each in answers.predictions] == [path.name for path in photos]
        assert client.feedback([("0.jpg", 3)], stream="gate-4").taken == 1
        assert at_rest(client).streams["gate-4"].images == len(photos)
        with pytest.raises(ServiceError, match="image") as refused:
            client.predict(b"no image")
        assert refused.value.status in (400, 415)
    for page in ("docs", ""):
        assert "Test-Time Clustering" in httpx.get(f"{url}/ttc/{page}").text
    assert httpx.get(f"{url}/ttc/metrics").status_code == 200
    with httpx.stream("GET", f"{url}/ttc/events", timeout=PATIENCE) as events:
        frames = events.iter_lines()
        assert any(line == "event: tick" for line in frames)
        # Who looks at the page does not hold up the end.
        status, _, err = terminate(process)
        assert "event: end" in list(frames)
    assert status in (0, -15), err  # uvicorn ends by the signal that it was sent
    assert read_header(tmp_path / "gate-4.safetensors")["method"] == "ttc_stream"


def test_a_mounted_service_answers_what_it_accepted(mounted, photos):
    """A signal while requests wait: uvicorn lets them end before the lifespan does."""
    process, url = mounted
    with Client(f"{url}/ttc", retry_budget=0) as client, ThreadPoolExecutor(4) as pool:
        client.predict(photos[0])
        answers = [pool.submit(client.predict, photos * 4) for _ in range(4)]
        deadline = time.monotonic() + PATIENCE
        while client.status().idle:
            assert time.monotonic() < deadline
        terminate(process)
        found = [answer.result(PATIENCE) for answer in answers if answer.exception() is None]
        refused = [answer.exception() for answer in answers if answer.exception()]
    assert found
    assert all(len(each.predictions) == 4 * len(photos) for each in found)
    # Of one that came as uvicorn closed its connections nobody answers.
    assert all(error.may_repeat or error.status is None for error in refused)
