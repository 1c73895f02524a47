"""Load in a closed loop, by Debian's wrk: connections that each wait for their answer."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).with_name("closed_loop.lua")


class LoadError(RuntimeError):
    """There is no wrk, or it could not measure; the text says why."""


@dataclass(frozen=True)
class Request:
    """A POST.

    Attributes:
        target: path and query.
    """

    target: str
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Measured:
    """What a closed loop found.

    Attributes:
        images: answered in the seconds.
        processor: seconds of processor time that the server had meanwhile.
    """

    images: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def closed_loop(
    url: str,
    requests: Sequence[Request],
    connections: int,
    seconds: float,
    *,
    period: int | None = None,
    warm: int | None = None,
    pids: Iterable[int] = (),
    most: float = 120.0,
) -> Measured:
    """Send the requests in turn over so many connections, at least for so many seconds.

    Time runs from an answer, once all is warm, to one a whole number of periods later, since
    answers that come in batches come all at once.

    Args:
        period: answers after which all repeats; None: as many as there are connections.
        warm: answers before time runs; None: two or three periods.
        pids: whose processor time counts.
        most: seconds, all told.

    Raises:
        LoadError: wrk is missing or failed, an answer is not 200, or too few came within `most`.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise LoadError("There is no wrk, which sends the load: apt-get install wrk.")
    host = urlsplit(url)
    with tempfile.TemporaryDirectory() as name:
        lines = []
        paths: dict[bytes, Path] = {}
        for request in requests:
            if request.body not in paths:
                paths[request.body] = path = Path(name) / f"{len(paths)}.body"
                path.write_bytes(request.body)
            lines.append(f"{request.target}\t{request.content_type}\t{paths[request.body]}\n")
        listed = Path(name) / "requests"
        listed.write_text("".join(lines))
        period = period or connections
        if warm is None:
            # At first as many requests are decoded at once as there are connections.
            warm = max(2 * period, min(3 * period, connections))
        command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(most))}s", "--timeout", "120s"]
        command += ["-s", str(SCRIPT), f"{host.scheme}://{host.netloc}", "--", str(seconds)]
        command += [str(period), str(warm), ",".join(map(str, pids)), str(listed)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=most + 60)
    return read_output(found.stdout, found.stderr)


def read_output(said: str, complaint: str = "") -> Measured:
    """What `closed_loop.lua` wrote, in the midst of what wrk says.

    Raises:
        LoadError: it holds no whole measurement, or an answer was not 200.
    """
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadError(f"wrk did not measure: {(complaint or said).strip()[-500:]}")
    told = json.loads(lines[-1])
    if told["failed"]:
        raise LoadError(f"{told['failed']} of {told['answers']} answers were not 200.")
    if not told["whole"]:
        raise LoadError(f"Too few answers came in time: {told['answers']}.")
    return Measured(told["images"], told["seconds"], told["ticks"] / os.sysconf("SC_CLK_TCK"))
