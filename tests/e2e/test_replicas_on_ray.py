"""`ttc serve --ray` with real processes of Ray's: answers, a replica killed, the end."""

import os
import signal
import threading
import time
from importlib.util import find_spec
from itertools import pairwise

import httpx
import pytest

from service import launch as launching
from service.client import Client
from service.launch import launch
from tests.e2e.conftest import wait_for
from ttc_core.state_description import describe
from ttc_core.state_file import StateError

# Not imported: what is set in the environment before counts no more then.
NO_RAY = find_spec("ray") is None
pytestmark = [
    pytest.mark.skipif(NO_RAY, reason="the extra ray is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
PNG = {"content-type": "image/png"}
LEARNING = ("--method", "ttc", "--set", "ttc.samples_per_step=1", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def server(folder):
    """Two replicas on a cluster of our own."""
    patience, launching.START_SECONDS = launching.START_SECONDS, 500.0  # Ray starts six processes
    ray = ("--ray", "--ray-replicas", "2", "--state-dir", str(folder), "--save-interval", "0.5")
    try:
        with launch(*LEARNING, "--threads", "1", *ray) as running:
            yield running
    finally:
        launching.START_SECONDS = patience


def status(server):
    answer = httpx.get(f"{server.url}/status", timeout=30)
    return answer.json() if answer.status_code == 200 else {"replicas": []}


def ready(server):
    return [each for each in status(server)["replicas"] if each["ready"]]


def test_answers_are_those_of_one_process(server, serve, make_method, pictures):
    """Of streams on both replicas, bit for bit, in batches of the same images."""
    streams = [f"same-{number}" for number in range(8)]
    with (
        serve(source=make_method("ttc", samples_per_step=1)) as alone,
        httpx.Client(base_url=server.url, timeout=60) as fleet,
    ):
        for turn in range(3):
            for number, stream in enumerate(streams):
                image = pictures[8 * turn + number]
                of_both = [
                    http.post("/predict", params={"stream": stream}, content=image, headers=PNG)
                    for http in (alone.http, fleet)
                ]
                assert [each.status_code for each in of_both] == [200, 200], of_both[1].text
                assert of_both[0].json() == of_both[1].json()
    told = status(server)
    assert {told["streams"][each]["images"] for each in streams} == {3}
    assert sum(each["owned"] for each in told["replicas"]) == len(streams)
    assert min(each["owned"] for each in told["replicas"]) > 0


def test_a_replica_killed_under_load(server, folder, pictures):
    """All is answered, each stream goes on from its last save, and no file goes back."""
    names, ended, found, files = [f"kill-{n}" for n in range(6)], threading.Event(), {}, {}

    def camera(name):
        with Client(server.url, timeout=120, retry_budget=120) as client:
            turn = 0
            while not ended.is_set():
                answer = client.predict([pictures[turn % 200]], stream=name)
                found.setdefault(name, []).append((time.monotonic(), answer.version))
                turn += 1

    def watch():
        while not ended.wait(0.02):
            for name in names:
                try:
                    steps = describe(folder / f"{name}.safetensors").steps
                except (OSError, StateError):
                    continue
                seen = files.setdefault(name, [0])
                if steps != seen[-1]:
                    seen.append(steps)

    threads = [threading.Thread(target=camera, args=(name,)) for name in names]
    threads.append(threading.Thread(target=watch))
    for each in threads:
        each.start()
    try:
        for _ in range(2):
            wait_for(lambda: len(files) == len(names))
            (first, *_) = wait_for(lambda: ready(server))
            killed = time.monotonic()
            os.kill(first["process"], signal.SIGKILL)
            wait_for(lambda at=killed: all(seen[-1][0] > at + 1 for seen in found.values()))
            wait_for(lambda gone=first: len(ready(server)) == 2 and gone not in ready(server))
    finally:
        ended.set()
        for each in threads:
            each.join(150)
    assert not any(each.is_alive() for each in threads)
    assert all(steps == sorted(steps) for steps in files.values()), files
    went_back = sum(
        later[1] < before[1] for seen in found.values() for before, later in pairwise(seen)
    )
    assert went_back <= 2 * len(names)  # once a kill at most, to its last save


def test_the_end_saves_all(server, folder, pictures):
    """SIGTERM: every stream is saved whole, nothing of Ray's is left, the exit status is 0."""
    with Client(server.url, timeout=60) as client:
        versions = {
            name: client.predict([pictures[0]], stream=name).version
            for name in ("last-0", "last-1", "last-2")
        }
    processes = [each["process"] for each in ready(server)]
    assert server.stop(300) == 0
    for name, version in versions.items():
        assert describe(folder / f"{name}.safetensors").steps == version + 1
    assert not [each for each in processes if os.path.exists(f"/proc/{each}")]
