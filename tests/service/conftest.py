"""A fake service, and data to send to it."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from tests.fixtures.fake_service import FakeService, pictures, register


@pytest.fixture
def fake() -> Iterator[FakeService]:
    service = FakeService()
    listener = socket.create_server(("127.0.0.1", 0))
    # Else each answer waits 40 ms for the client to acknowledge the headers before it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    service.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(service.app, log_level="critical", ws="none", lifespan="off", loop="asyncio")
    )
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield service
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def data(monkeypatch) -> str:
    """A DATA spec of 25 images."""
    return register(monkeypatch, "own_pictures", *pictures())
