"""Start `ttc serve` as a process of its own, for the demo, the tests and the benchmarks."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from service.client import Client
from ttc_core.errors import UserError, printable

START_SECONDS = 120.0
LISTENING = re.compile(r"Listening on (http://\S+)")


class LaunchError(UserError, RuntimeError):
    """The server did not become ready; the text is what it said, line by line."""

    def __init__(self, sentence: str, lines: Iterable[str] = ()) -> None:
        super().__init__(sentence)
        self.args = ("\n".join([sentence, *map(printable, lines)]),)


@dataclass(frozen=True)
class Launched:
    """A running server.

    Attributes:
        url: where it listens.
        process: to send it signals.
        lines: what it has said so far; it grows.
    """

    url: str
    process: "subprocess.Popen[str]"
    lines: list[str]

    def stop(self, timeout: float = 60.0) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextlib.contextmanager
def launch(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[Launched]:
    """Run `ttc serve ARGUMENTS` on a free port until the block ends.

    Raises:
        LaunchError: it did not become ready.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    with serving(process) as launched:
        yield launched


@contextlib.contextmanager
def serving(process: "subprocess.Popen[str]") -> Iterator[Launched]:
    """Wait until what was started serves, and end it with the block.

    Raises:
        LaunchError: it did not become ready.
    """
    assert process.stdout is not None
    lines: list[str] = []
    # Somebody has to read to the end: a full pipe would stop the server at its next log line.
    reader = threading.Thread(target=_collect, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        url = _wait_for_url(reader, lines, deadline)
        _wait_until_ready(url, process, deadline)
        yield Launched(url, process, lines)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        process.stdout.close()


def _collect(output: IO[str], lines: list[str]) -> None:
    for line in output:
        lines.append(line.rstrip())


def _wait_for_url(reader: threading.Thread, lines: list[str], deadline: float) -> str:
    seen = 0
    while time.monotonic() < deadline and (reader.is_alive() or seen < len(lines)):
        while seen < len(lines):
            found = LISTENING.search(lines[seen])
            if found:
                return found[1]
            seen += 1
        time.sleep(0.02)
    raise LaunchError("The server did not start:", lines)


def _wait_until_ready(url: str, process: "subprocess.Popen[str]", deadline: float) -> None:
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LaunchError(f"The server at {url} did not become ready.")
            time.sleep(0.05)
