"""A service for the examples, pictures to send to it, and the examples as processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from service.launch import Launched, launch
from tests.fixtures.scripted_service import ScriptedService, scripted_service
from ttc_core.datasets import Geometry, open_data

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 60.0


@pytest.fixture(scope="session")
def server() -> Iterator[Launched]:
    """`ttc serve` as it is started without a flag; each test has streams of its own."""
    with launch() as running:
        yield running


@pytest.fixture
def scripted() -> Iterator[ScriptedService]:
    with scripted_service() as running:
        yield running


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    """Six foggy pictures as JPEG files, 0.jpg to 5.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    stream = open_data("bundled", Geometry(32)).open("fog", 5, limit=6)
    pixels = stream.read(stream.positions)
    paths = [folder / f"{number}.jpg" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path, quality=98)
    return paths


@pytest.fixture
def start():
    """Start an example as a process; it is ended with the test, if it has not ended."""
    started: list[subprocess.Popen] = []

    def run(*command, url, **options):
        first, *rest = map(str, command)
        words = [sys.executable, str(EXAMPLES / first)] if first.endswith(".py") else [first]
        # The package lies beside the examples here; else it is installed.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TTC_URL": url}
        environment |= {"TTC_STREAM": "example", "NO_PROXY": "127.0.0.1"}
        environment["NODE_NO_WARNINGS"] = "1"  # Node 18 warns of its own fetch
        started.append(
            subprocess.Popen(
                [*words, *rest],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=options.pop("text", True),
                env=environment,
                **options,
            )
        )
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def terminate(process):
    """Ask a process to end; its status, standard output and standard error."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def finish(process):
    """Wait for a process to end by itself; the same."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err
