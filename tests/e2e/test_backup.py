"""A copy of the state folder that was made while it was served is a backup (docs/operations.md)."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from benchmarks import pictures
from service.client import Client
from tests.e2e.conftest import wait_for
from tests.fixtures.forked import launch
from tests.fixtures.requests import at_rest

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ARGUMENTS = ("--method", "tent", "--paper", "--save-interval", "0.1", "--threads", "1")


def stream(client):
    return at_rest(client).streams["gate"]


@pytest.mark.slow
def test_a_copy_of_a_folder_in_use_brings_streams_back(tmp_path):
    """By the command that the page has; they go on where they were saved."""
    served = tmp_path / "ttc"
    files = pictures.bundled(10)
    with launch(*ARGUMENTS, "--state-dir", str(served)) as server, Client(server.url) as client:
        client.predict(files, stream="gate")
        wait_for(lambda: stream(client).version == 1)
        wait_for(lambda: "ttc_unsaved_streams 0.0" in httpx.get(f"{server.url}/metrics").text)
        (copying,) = re.findall(r"^(cp .+)$", PAGE.read_text(), re.MULTILINE)
        subprocess.run(
            copying.replace("/var/lib/ttc", str(served)).split(), cwd=tmp_path, check=True
        )
    again = (*ARGUMENTS, "--state-dir", str(tmp_path / "backup"))
    with launch(*again) as server, Client(server.url) as client:
        client.predict(files, stream="gate")
        wait_for(lambda: stream(client).version == 2)
        assert stream(client).images == 20
