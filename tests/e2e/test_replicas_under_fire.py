"""Ten replicas of Ray's killed under fifty streams, from one to three and back, and a hard end.

It takes ten minutes: `make replicas` runs it, `make test` does not.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.replicas import main

ROOT = Path(__file__).parents[2]
# Not imported: what is set in the environment before counts no more then.
NO_RAY = find_spec("ray") is None
pytestmark = [
    pytest.mark.skipif(NO_RAY, reason="the extra ray is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


@pytest.mark.parametrize(
    "asked", [pytest.param(["--kills", "10"], id="kills"), pytest.param(["--scale"], id="scale")]
)
def test_all_is_answered_and_an_interval_lost_at_most(asked):
    """By what the benchmark checks: each request, each stream's steps, each file."""
    done = CliRunner().invoke(main, asked)
    print(done.output)
    assert done.exit_code == 0, done.output
    assert "images answered" in done.output


def test_a_signal_to_the_whole_group_ends_it_at_once(tmp_path):
    """Ray's processes are gone with it, and nothing waits for them; it says what that means."""
    command = ("-m", "service.cli", "serve", "--ray", "--state-dir", "streams", "--port", "0")
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *command, "--threads", "1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 300
        while "Listening on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "is for that process alone, not for its group" in log.read_text()
    assert "Traceback" not in log.read_text()
