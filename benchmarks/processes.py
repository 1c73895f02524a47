"""Servers as processes: started, waited for, measured and ended, with all that they start."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

END_SECONDS = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


class StartError(RuntimeError):
    """A server did not answer in time; the text is the end of what it said."""


def unwind_on_term() -> None:
    """Have SIGTERM unwind this process, so that the servers it runs are ended before it is."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def tree(pid: int) -> list[int]:
    """A process and all that come of it, as far as they are its children still."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for each in found:  # it grows meanwhile
        found += children.get(each, [])
    return found


def processor_seconds(pids: Iterable[int]) -> float:
    """Seconds of processor time that living processes have had."""
    return sum(
        (int(fields[11]) + int(fields[12])) / TICKS for pid in pids if (fields := _stat(pid))
    )


def peak_mib(pids: Iterable[int]) -> float:
    """Peak memory in MiB, summed over living processes: what they share counts with each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            total += int((status.partition("VmHWM:")[2].split() or ["0"])[0])
    return total / 1024


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    url: str,
    body: bytes,
    content_type: str,
    log: Path,
    *,
    seconds: float = 120.0,
) -> Iterator[int]:
    """Run a server until the block ends, from when it answers `body` with 200; gives its pid.

    Raises:
        StartError: it ended, or gave no such answer within the seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + seconds
        while not _answers(url, body, content_type):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                raise StartError(f"{' '.join(command)} does not answer at {url}:\n{said}")
            time.sleep(0.2)
        yield process.pid
    finally:
        # Who is orphaned by the end of its parent is not found below it any more.
        started = {pid: fields[19] for pid in tree(process.pid) if (fields := _stat(pid))}
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
        for pid in _waited(started, 2):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        _waited(started, END_SECONDS)


def _answers(url: str, body: bytes, content_type: str) -> bool:
    try:
        answer = httpx.post(url, content=body, headers={"Content-Type": content_type}, timeout=30)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _waited(started: Mapping[int, str], seconds: float) -> list[int]:
    """Those that run still, once so much time has passed, at most.

    Args:
        started: when each began, since its number may be another's by now.
    """
    deadline = time.monotonic() + seconds
    while left := [
        pid
        for pid, began in started.items()
        if (fields := _stat(pid)) and fields[19] == began and fields[0] != "Z"
    ]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, from the state on; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
