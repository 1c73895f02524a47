"""Killed at any moment: every stream goes on from its last save, and each file can be read."""

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.changes.verifying import verify
from service.client import Client, ServiceError
from tests.e2e.conftest import sample, wait_for
from tests.fixtures.forked import launch
from ttc_core.state_description import describe
from ttc_core.state_file import read_header

CAMERAS, STREAMS = 4, 12


def camera(url, number, image, first_answers):
    """Send images of three streams in turn until the server is gone."""
    with Client(url, timeout=60, retry_budget=0) as client:
        while True:
            for stream in range(number, STREAMS, CAMERAS):
                try:
                    answer = client.predict([image], stream=f"s{stream}")
                except ServiceError:
                    return
                first_answers.setdefault(stream, answer.version)


def steps(folder):
    """The optimizer steps that each stream's file has."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found[int(path.stem[1:])] = describe(path).steps
        counts = json.loads(read_header(path)["stream"])
        assert counts["images"] == counts["batches"] >= found[int(path.stem[1:])]
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)  # twenty starts of a server, some five seconds each on a quiet machine
def test_kill_9_at_twenty_moments_under_load(pictures, tmp_path):
    """What is taken up is what was written last, and each life gets further than the one before."""
    options = ("--device", "cpu", "--state-dir", str(tmp_path), "--save-interval", "0.3")
    learning = ("--method", "ttc", "--set", "ttc.samples_per_step=1")
    chance, saved = random.Random(0), {}
    for _ in range(20):
        first_answers = {}
        assert not verify(tmp_path).defects
        with launch(*options, *learning) as server:
            with ThreadPoolExecutor(CAMERAS) as pool:
                cameras = [
                    pool.submit(camera, server.url, number, pictures[number], first_answers)
                    for number in range(CAMERAS)
                ]
                files = chance.randrange(1, 3 * STREAMS)
                wait_for(lambda files=files, url=server.url: saves(url) >= files)
                time.sleep(chance.uniform(0, 0.1))
                server.process.kill()
                for each in cameras:
                    each.result(60)
            assert not any("reject" in line for line in server.lines)
        assert first_answers == {s: saved.get(s, 0) for s in first_answers}
        before, saved = saved, steps(tmp_path)
        assert all(saved[stream] >= before[stream] for stream in before)
    assert len(saved) == STREAMS
    assert min(saved.values()) > 0
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert suffixes <= {".safetensors", ".part", "", ".ids", ".jsonl", ".head"}
    found = verify(tmp_path)
    assert not found.defects
    assert found.files + len(found.unvouched) >= STREAMS


def saves(url):
    return sample(httpx.get(f"{url}/metrics").text, 'ttc_saves_total{outcome="saved"}')
