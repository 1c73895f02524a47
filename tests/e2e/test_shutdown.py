"""SIGTERM: what was accepted is answered, streams are saved, the exit status is 0."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.cli import cli
from service.client import Client, ServiceError
from service.launch import launch
from tests.fixtures.wire import connect, read, status_of

SLOW_METHOD = """
    import time

    from ttc_core.methods.source import Source
    from ttc_core.methods.tent import Tent


    class SlowTent(Tent):
        def __init__(self, model, *, seconds=0.25, **settings):
            super().__init__(model, **settings)
            self._seconds = seconds

        @property
        def settings(self):
            return {**super().settings, "seconds": self._seconds}

        def predict(self, images):
            time.sleep(self._seconds)
            return super().predict(images)


    class StuckSource(Source):
        def predict(self, images):
            if not images.equal(images.mT):  # the warm-up's are their own transposes
                time.sleep(100)
            return super().predict(images)
"""


@pytest.fixture
def slow_method(tmp_path):
    """The environment in which a server finds a method of one's own, as slow as it is told."""
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW_METHOD))
    return {"PYTHONPATH": str(tmp_path)}


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.slow
def test_sigterm_in_mid_load_answers_every_accepted_image(slow_method, pictures, tmp_path, capsys):
    """Twelve requests wait in a queue; all are answered, new ones refused, the stream is saved."""
    states = tmp_path / "states"
    options = ("--method", "slow:SlowTent", "--adapt", "always", "--max-batch", "1")
    options += ("--state-dir", str(states))
    with (
        launch(*options, "--device", "cpu", environment=slow_method) as server,
        Client(server.url, timeout=60) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = [pool.submit(client.predict, [image]) for image in pictures[:12]]
        # All but the one in the forward pass wait or are answered: each was accepted.
        wait_for(lambda: accepted_images(server.url) >= 11)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ServiceError) as refused, Client(server.url, retry_budget=0) as late:
            late.predict([pictures[12]])
        assert refused.value.status in (None, 503)
        versions = sorted(answer.result(60).version for answer in answers)
        assert versions == list(range(12))
        assert server.process.wait(30) == 0
    cli.main(["state", str(states), "--json"], standalone_mode=False)
    saved = json.loads(capsys.readouterr().out)
    assert (saved["method"], saved["counters"]["counters"]["steps"]) == ("slow:SlowTent", 12)
    assert any("1 of 1 streams saved" in line for line in server.lines)


def accepted_images(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    samples = dict(line.split(" ", 1) for line in lines if line.startswith("ttc_"))
    return float(samples["ttc_images_total"]) + float(samples["ttc_queue_images"])


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once(slow_method, pictures):
    """Whoever is in a hurry need not wait for a batch that hangs; the status says it was cut."""
    options = ("--method", "slow:StuckSource", "--device", "cpu", "--drain-timeout", "90")
    with (
        launch(*options, environment=slow_method) as server,
        Client(server.url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        stuck = pool.submit(client.predict, [pictures[0]])
        wait_for(lambda: not client.status().idle)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not client.ready())
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 1
        with pytest.raises(ServiceError):
            stuck.result(60)


@pytest.mark.slow
def test_sigterm_that_comes_twice_together_is_one(pictures, tmp_path):
    """As of `timeout`, or of a terminal and its supervisor: the stream is saved all the same."""
    options = ("--method", "tent", "--device", "cpu", "--state-dir", str(tmp_path))
    with launch(*options) as server, Client(server.url) as client:
        client.predict([pictures[0]])
        # Both are there when it goes on: the system lets it run between them otherwise.
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            server.process.send_signal(number)
        assert server.process.wait(30) == 0
    assert (tmp_path / "default.safetensors").exists()


@pytest.mark.slow
def test_readiness_falls_at_once_and_work_is_taken_for_the_drain_delay(pictures):
    """A balancer sees 503 on /readyz while what it still sends is answered."""
    options = ("--method", "source", "--device", "cpu", "--drain-delay", "1.5")
    with launch(*options) as server, Client(server.url) as client:
        assert client.ready()
        server.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=server.url) as http:
            wait_for(lambda: http.get("/readyz").status_code == 503)
            assert http.get("/readyz").json()["title"] == "Not ready"
            assert http.get("/healthz").status_code == 200
        assert len(client.predict([pictures[0]]).predictions) == 1
        assert server.process.wait(30) == 0


def test_an_upload_that_has_stalled_does_not_hold_the_drain_up(pictures):
    """It is told so, as whoever comes then; the process ends at once."""
    options = ("--method", "source", "--device", "cpu", "--drain-timeout", "60")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(pictures[0])
    with launch(*options) as server, connect(server.url, timeout=60) as upload:
        upload.sendall(head + pictures[0][:10])
        with httpx.Client(base_url=server.url) as http:
            wait_for(lambda: "in_progress 1" in http.get("/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        answer = read(upload)
        assert status_of(answer) == 503
        assert b"application/problem+json" in answer
        assert server.process.wait(30) == 0


def test_a_draining_service_refuses_with_503(serve, held, pictures):
    """What comes after the drain began is told so, and what was accepted before is answered."""
    source, gates = held("source")
    with serve(source=source, method="source") as running, ThreadPoolExecutor(1) as pool:
        gates.predict.clear()
        gates.predicting.clear()
        accepted = pool.submit(running.http.post, "/predict", content=pictures[0])
        try:
            assert gates.predicting.wait(30)
            running.service.batcher.drain()
            refused = running.http.post("/predict", content=pictures[1])
            assert refused.status_code == 503
            assert refused.json()["title"] == "Not ready"
            assert running.http.get("/readyz").status_code == 503
            assert running.metric('ttc_rejected_images_total{reason="draining"}') == 1
        finally:
            gates.open()
        assert accepted.result(60).status_code == 200


@pytest.mark.slow
def test_a_second_service_on_a_state_folder_ends_with_a_sentence(tmp_path):
    """It names the process that has it, and does not touch what is there; exit status 1."""
    options = ("--method", "source", "--device", "cpu", "--state-dir", str(tmp_path))
    with launch(*options) as server:
        command = (sys.executable, "-m", "service.cli", "serve", "--port", "0", *options)
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert second.returncode == 1
        assert f"held by process {server.process.pid} on " in second.stderr
        assert "Traceback" not in second.stderr
        assert server.stop() == 0
