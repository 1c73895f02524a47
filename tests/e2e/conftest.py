"""A real server in a thread of the test process, on a free port, with the bundled model.

What needs a process of its own (signals, exit statuses) starts one with `service.launch`.
"""

import contextlib
import io
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from service.app import build
from service.cli import main
from service.replay import to_png
from service.server import configure
from service.settings import Settings
from ttc_core.datasets import Geometry, open_data
from ttc_core.guard import default_mode
from ttc_core.load import load
from ttc_core.methods import create, settings_for

PATIENCE = 60.0


class ServerInThread(uvicorn.Server):
    """uvicorn without signal handlers, which only a main thread may have.

    It ends as ours does: those who read events would keep it waiting else.
    """

    def __init__(self, config, service):
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets=None):
        self._service().live.end()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@dataclass
class Running:
    """A server at work: its address, its application's parts, and a client."""

    url: str
    service: object
    http: httpx.Client

    def status(self):
        return self.http.get("/status").json()

    def wait_for(self, condition):
        """Ask until the answer is true; return it."""
        return wait_for(condition)

    def at_rest(self):
        """Wait until nothing is queued, predicted or adapted; return the status."""
        return wait_for(lambda: (status := self.status())["idle"] and status)

    def metric(self, name):
        """The value of one sample of /metrics, given as it stands there."""
        return sample(self.http.get("/metrics").text, name)


def sample(text, name):
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} is not among the metrics")


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
    return answer


@dataclass
class Gates:
    """Where a held method stops until the test lets it go on."""

    predict: threading.Event = field(default_factory=threading.Event)
    adapt: threading.Event = field(default_factory=threading.Event)
    predicting: threading.Event = field(default_factory=threading.Event)
    images: int = 0  # of the batch that stands at the first gate, or went through it last
    adapting: threading.Event = field(default_factory=threading.Event)

    def open(self):
        self.predict.set()
        self.adapt.set()


class Held:
    """A real method that stops at its gates, like a slow device."""

    def __init__(self, inner, gates):
        self._inner, self._gates = inner, gates

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def predict(self, images, **options):
        self._gates.images = len(images)
        self._gates.predicting.set()
        assert self._gates.predict.wait(PATIENCE)
        return self._inner.predict(images, **options)

    def adapt(self, prediction, *, learn=True):
        self._gates.adapting.set()
        assert self._gates.adapt.wait(PATIENCE)
        return self._inner.adapt(prediction, learn=learn)

    def fork(self):
        return Held(self._inner.fork(), self._gates)


@pytest.fixture
def ttc(monkeypatch, capsys):
    """Run the command in this process: (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ttc", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No TTC_ variable of the machine at hand changes what is tested."""
    for name in [name for name in os.environ if name.startswith("TTC_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def model():
    """The bundled model; one thread, so that sums come in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load("bundled", device="cpu")
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_method(model):
    """Make a method as `ttc serve` would from the same settings."""

    def make(name="ttc", *, paper=False, guard=None, on_shift=False, **settings):
        given = {f"{name}.{key}": str(value) for key, value in settings.items()}
        chosen = settings_for(name, given, statistics=None if paper else "moving")
        guard = guard or default_mode(name, paper=paper)
        return create(name, model, guard=guard, on_shift=on_shift, **chosen)

    return make


@pytest.fixture(scope="session")
def serve(make_method):
    """Serve a method over HTTP: `with serve(method="ttc", max_batch=4) as running`."""

    @contextlib.contextmanager
    def running(method="ttc", *, source=None, load=None, wrap=lambda app: app, **settings):
        chosen = Settings(method=method, threads=1, **settings)
        source = source or make_method(method, paper=chosen.paper)
        app = build(chosen, source, load)
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
            config = configure(wrap(app), chosen, lambda: app.state.service)
            server = ServerInThread(config, lambda: app.state.service)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                wait_for(lambda: server.started or not thread.is_alive())
                assert server.started
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                    yield Running(url, app.state.service, client)
            finally:
                server.should_exit = True
                thread.join(PATIENCE)
                assert not thread.is_alive()

    return running


@pytest.fixture(scope="session")
def held(make_method):
    """Make a method that stops at gates, and the gates, open."""

    def make(name="ttc", **settings):
        gates = Gates()
        gates.open()
        return Held(make_method(name, **settings), gates), gates

    return make


@pytest.fixture(scope="session")
def pictures():
    """The first 256 foggy images of the bundled stream as PNG files."""
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=256)
    return [to_png(pixels) for pixels in stream.read(stream.positions)]


@pytest.fixture(scope="session")
def arrays(pictures):
    """The pixels of `pictures`."""
    return np.stack([np.asarray(Image.open(io.BytesIO(each))) for each in pictures])


@pytest.fixture(scope="session")
def labels():
    """The classes of `pictures`."""
    return open_data("bundled", Geometry(32)).open("clean", 5, limit=256).labels.tolist()


@pytest.fixture(scope="module")
def source_server(serve):
    """A server whose answers never change, so that tests may share it."""
    with serve(method="source", max_batch=8) as running:
        yield running


@pytest.fixture
def http(server):
    """A client of the server that a file starts for itself."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def often_kept(monkeypatch):
    """A good state is kept after each batch, not after 500 images."""
    monkeypatch.setattr("ttc_core.guard.guarded.SNAPSHOT_EVERY", 10)
