"""A fake service, data to send to it, and engines with tables of streams."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from service import saving as saving_module
from service import streams as streams_module
from service.engine import Engine
from service.metrics import Metrics
from tests.fixtures.fake_service import FakeService, pictures, register
from tests.fixtures.networks import make_model
from ttc_core.methods import create


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


@pytest.fixture(scope="module")
def source():
    return create("ttc", make_model("batch-norm"), statistics="moving", samples_per_step=8)


@pytest.fixture
def clock(monkeypatch):
    """The table's clock, which a test may put forward."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    for module in (saving_module, streams_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def engine(source):
    """Make engines; all are closed in the end."""
    made = []

    def make(state_dir=None, source=source, **options):
        metrics = Metrics(CollectorRegistry(), classes=source.model.classes, model={})
        made.append(
            Engine(
                source,
                metrics,
                method_name="ttc",
                model_spec="small",
                state_dir=state_dir,
                **options,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()
