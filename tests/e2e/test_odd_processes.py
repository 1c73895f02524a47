"""`ttc serve` in a process that somebody started oddly: it works, or says why not."""

import shlex
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

SERVE = f"{shlex.quote(sys.executable)} -m service.cli serve --threads 1 --method source --port "


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("exec {serve} <&- >&- 2>&-", id="closed-streams"),
        pytest.param("exec {serve} > >(head -1)", id="a-reader-that-goes-away"),
        pytest.param("TMPDIR=/nowhere exec {serve}", id="no-folder-for-temporary-files"),
        pytest.param("ulimit -n 64; exec {serve}", id="few-descriptors"),
    ],
)
def test_an_odd_process_serves_and_ends_well(command, tmp_path):
    """Health is answered, and SIGTERM ends it with status 0."""
    port = free_port()
    line = command.format(serve=f"{SERVE}{port}", tmp=shlex.quote(str(tmp_path)))
    process = subprocess.Popen(["bash", "-c", line], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (("--host", "no.such.host.invalid"), 1, "Cannot listen on"),
        (("--host", "a..b"), 1, "no name of a host"),
        (("--host", "x" * 300), 1, "Cannot listen on"),
        (("--host", "192.0.2.1"), 1, "Cannot listen on"),
    ],
)
def test_an_address_that_cannot_be_had_is_a_sentence(flags, status, said):
    """Not a trace."""
    command = [sys.executable, "-m", "service.cli", "serve", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == status
    assert said in result.stderr
    assert "Traceback" not in result.stderr
