"""Run a real Prometheus and Alertmanager beside a service, and ask them; for tests and pictures."""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

START_SECONDS = 30.0
PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"


def missing() -> list[str]:
    """The programs that are not installed (on Debian they are packages of these names)."""
    return [name for name in (PROMETHEUS, ALERTMANAGER) if shutil.which(name) is None]


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Line:
    """One series: its labels, and its values at the times asked for."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str, at: float | None = None) -> list[Line]:
        """The value at a Unix time, by default now; one a series.

        Raises:
            ValueError: the expression is refused; the text is Prometheus' own.
        """
        when = {} if at is None else {"time": str(at)}
        found = self._ask("query", {"query": expression, **when})
        return [_line(each["metric"], [each["value"]]) for each in found["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Line]:
        """The values from start to end, Unix times, every `step` seconds."""
        span = {"start": str(start), "end": str(end), "step": str(step)}
        found = self._ask("query_range", {"query": expression, **span})
        return [_line(each["metric"], each["values"]) for each in found["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health, last error and, for an alert, its state."""
        return [rule for group in self._ask("rules", {})["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """The targets that are scraped, with their health."""
        found: list[dict[str, Any]] = self._ask("targets", {})["activeTargets"]
        return found

    def exemplars(self, selector: str, start: float, end: float) -> list[dict[str, Any]]:
        """The exemplars of a series."""
        asked = {"query": selector, "start": str(start), "end": str(end)}
        return [one for each in self._ask("query_exemplars", asked) for one in each["exemplars"]]

    def _ask(self, what: str, parameters: Mapping[str, str]) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=dict(parameters), timeout=30)
        body = answer.json()
        if body["status"] != "success":
            raise ValueError(f"{body['error']} in {parameters.get('query')}")
        return body["data"]


def _line(labels: Mapping[str, str], pairs: Sequence[tuple[float, str]]) -> Line:
    return Line(labels, [float(time) for time, _ in pairs], [float(value) for _, value in pairs])


@contextlib.contextmanager
def run_prometheus(
    folder: Path,
    targets: Sequence[str],
    *,
    rules: Sequence[Path] = (),
    alertmanager: str | None = None,
    interval: str = "1s",
) -> Iterator[Prometheus]:
    """Scrape the targets until the block ends.

    Args:
        folder: an empty one, for its configuration and data.
        targets: HOST:PORT each.
        alertmanager: HOST:PORT of one, or None.
        interval: of scraping and of evaluating rules.

    Raises:
        RuntimeError: it did not become ready.
    """
    config: dict[str, Any] = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {"job_name": "ttc", "static_configs": [{"targets": list(targets)}]},
        ],
    }
    if alertmanager:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    with _process(command, f"http://{address}", folder / "prometheus.log"):
        yield Prometheus(f"http://{address}")


@contextlib.contextmanager
def run_alertmanager(folder: Path, config: Path) -> Iterator[str]:
    """Run an Alertmanager with a configuration until the block ends; yield its HOST:PORT."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        ALERTMANAGER,
        f"--config.file={config}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with _process(command, f"http://{address}", folder / "alertmanager.log"):
        yield address


@contextlib.contextmanager
def _process(command: Sequence[str], url: str, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=1).is_success
    except httpx.TransportError:
        return False
