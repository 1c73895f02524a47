"""The service beside other servers: the same network, the same JPEG files, the same limits.

    python -m benchmarks.peers.compare [--only NAME]... [--model NAME]... [--connections N]...
        [--rounds 5] [--seconds 10] [--rows results/peers.jsonl]

Each server in turn, round after round: images a second over 1, 16 and 64 connections that each wait
for their answer (wrk), then latencies at 30 and 70 % of what the best peer could do at most, in an
open loop whose own lateness is told. Ours is SOURCE, with all its checks, logs and metrics. A row
a measurement goes to --rows; what is there is not measured again, so code that has changed since
wants another file. One server runs at a time, on 127.0.0.1; what it says is in --environments.

Each peer has a virtual environment of its own (--environments); torch and torchvision come from
this project's, through a .pth file, so that all run the very same arithmetic.
"""

import itertools
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import pictures
from benchmarks.closed_loop import LoadError, Request, closed_loop
from benchmarks.open_loop import open_loop
from benchmarks.peers.model import SPECS, Asked
from benchmarks.processes import (
    StartError,
    peak_mib,
    processor_seconds,
    running,
    tree,
    unwind_on_term,
)
from benchmarks.telling import device_name, spread

HERE = Path(__file__).parent
OURS = "ttc"
CONNECTIONS = (1, 16, 64)
SHARES = (0.3, 0.7)
EDGE = "edge-of-a-part"

Row = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """One that is compared.

    Attributes:
        command: from its environment's bin folder on.
        environment: the variables it needs besides those of `Asked`.
        form: bodies are forms of one file, named so; "": they are the file.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    form: str = ""

    def request(self, body: bytes) -> Request:
        """What posts a JPEG file."""
        if not self.form:
            return Request("/predict", "image/jpeg", body)
        head = (
            f'--{EDGE}\r\nContent-Disposition: form-data; name="{self.form}"; filename="a.jpg"'
            "\r\nContent-Type: image/jpeg\r\n\r\n"
        )
        whole = head.encode() + body + f"\r\n--{EDGE}--\r\n".encode()
        return Request("/predict", f"multipart/form-data; boundary={EDGE}", whole)


def _module(name: str, **environment: str) -> Server:
    return Server(("python", "-m", f"benchmarks.peers.{name}"), environment)


PEERS: Mapping[str, Server] = {
    "fastapi": _module("fastapi_queue"),
    "litserve": _module("litserve_server"),
    "mosec": _module("mosec_server"),
    "bentoml": Server(
        ("bentoml", "serve", "benchmarks.peers.bentoml_service:Peer", "--host", "127.0.0.1"),
        {"BENTOML_DO_NOT_TRACK": "True"},
        form="images",
    ),
    "ray": _module("ray_serve", RAY_USAGE_STATS_ENABLED="0"),
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        names: of servers, ours among them.
        connections: of the closed loops, one after another.
        seconds: of each measurement.
        environments: the folder that has a virtual environment a peer.
    """

    names: Sequence[str]
    models: Sequence[str]
    connections: Sequence[int]
    rounds: int
    seconds: float
    max_batch: int
    max_wait: float
    threads: int
    environments: Path

    @property
    def settings(self) -> Row:
        """What rows have to agree in to be of one comparison."""
        return {
            "seconds": self.seconds,
            "max_batch": self.max_batch,
            "max_wait": self.max_wait,
            "threads": self.threads,
            "device": device_name(),
            "torch": torch.__version__,
        }


class Cells:
    """The rows of measurements, in a file of one JSON object a line, or nowhere.

    Attributes:
        rows: of this comparison alone, those that were there before too.
    """

    KEY = ("model", "server", "round", "cell")

    def __init__(self, path: Path | None, settings: Row) -> None:
        self._path, self._settings = path, settings
        text = path.read_text() if path is not None and path.exists() else ""
        whole, _, cut = text.rpartition("\n")
        if cut and path is not None:  # whoever wrote it was stopped
            path.write_text(whole and f"{whole}\n")
        rows = map(json.loads, whole.splitlines())
        self.rows: list[Row] = [row for row in rows if self._fits(row)]

    def _fits(self, row: Row) -> bool:
        return all(row.get(name) == value for name, value in self._settings.items())

    def has(self, **key: object) -> bool:
        """Whether it has been measured."""
        return any(all(row[name] == key[name] for name in self.KEY) for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep a measurement."""
        row = {**row, **self._settings}
        self.rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def values(self, field: str, model: str, server: str, cell: str) -> dict[int, float]:
        """A field of one server's cell, by round; what JSON has no number for is infinite."""
        return {
            row["round"]: math.inf if row[field] is None else row[field]
            for row in self.rows
            if (row["model"], row["server"], row["cell"]) == (model, server, cell)
        }


def closed(connections: int) -> str:
    """The cell of so many connections that each wait for their answer."""
    return f"closed-{connections}"


def opened(share: float) -> str:
    """The cell of a rate that is so much of the best peer's most."""
    return f"open-{share:g}"


def saturation(cells: Cells, model: str) -> float:
    """Images a second that the best peer can do at most, by medians; 0 where none was measured."""
    medians = [
        statistics.median(values)
        for name in PEERS
        for count in CONNECTIONS
        if (values := cells.values("rate", model, name, closed(count)).values())
    ]
    return max(medians, default=0.0)


def measure(plan: Plan, cells: Cells, say: Callable[[str], None]) -> None:
    """Measure what is missing; a server that fails is said and left out of the round."""
    loads: Iterator[tuple[str, Sequence[str]]] = itertools.chain(
        ((model, [closed(count) for count in plan.connections]) for model in plan.models),
        ((model, [opened(share) for share in SHARES]) for model in plan.models),
    )
    for model, names in loads:
        for number, server in itertools.product(range(plan.rounds), plan.names):
            missing = [
                name
                for name in names
                if not cells.has(model=model, server=server, round=number, cell=name)
            ]
            if missing:
                _visit(plan, cells, model, server, number, missing, say)


def _visit(
    plan: Plan,
    cells: Cells,
    model: str,
    name: str,
    number: int,
    missing: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Start a server, measure the cells, end it."""
    server = PEERS.get(name)
    asked = Asked(model, free_port(), plan.max_batch, plan.max_wait, plan.threads)
    url = f"http://127.0.0.1:{asked.port}"
    files = pictures.bundled(256) if model == "resnet20" else pictures.photographs()
    requests = [
        server.request(file) if server else Request("/predict", "image/jpeg", file)
        for file in files
    ]
    if server is None:
        command, environment = _our_command(asked), {}
    else:
        bin_folder = plan.environments / name / "bin"
        command = [str(bin_folder / server.command[0]), *server.command[1:]]
        environment = {**server.environment, **asked.environment}
        environment["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        if server.command[0] == "bentoml":
            command += ["--port", str(asked.port)]
    log = plan.environments / f"{name}.log"
    first = requests[0]
    try:
        with running(
            command, environment, url + first.target, first.body, first.content_type, log
        ) as pid:
            closed_loop(url, requests, 16, min(2.0, plan.seconds))  # to warm up
            for cell in missing:
                row = {"model": model, "server": name, "round": number, "cell": cell}
                cells.add(row | _measure(plan, cells, model, cell, url, requests, pid, number))
                say(_line(cells.rows[-1]))
    except (StartError, LoadError, OSError) as error:
        say(f"{model}, {name}, round {number + 1}: {error}")


def _measure(
    plan: Plan,
    cells: Cells,
    model: str,
    cell: str,
    url: str,
    requests: Sequence[Request],
    pid: int,
    number: int,
) -> Row:
    kind, _, value = cell.partition("-")
    pids = tree(pid)
    if kind == "closed":
        found = closed_loop(url, requests, int(value), plan.seconds, pids=pids)
        return {
            "rate": found.rate,
            "images": found.images,
            "processor": 1000 * found.processor / found.images,
            "peak_mib": peak_mib(pids),
        }
    rate = float(value) * saturation(cells, model)
    if not rate:
        raise LoadError("no peer was measured in a closed loop, which an open one's rate is of.")
    before = processor_seconds(pids)
    # At least fifty requests, or their p99 is nothing.
    timed = open_loop(url, requests, rate, max(plan.seconds, 50 / rate), seed=number)
    answered = len(timed.latencies) - timed.unanswered
    p50, p99 = (timed.latency(percent) for percent in (50, 99))
    return {
        "offered": rate,
        "images": len(timed.latencies),
        "unanswered": timed.unanswered,
        # JSON has no infinity.
        "p50_ms": 1000 * p50 if math.isfinite(p50) else None,
        "p99_ms": 1000 * p99 if math.isfinite(p99) else None,
        "lateness_p99_ms": 1000 * float(sorted(timed.lateness)[int(0.99 * len(timed.lateness))]),
        "processor": 1000 * (processor_seconds(pids) - before) / max(1, answered),
    }


def _line(row: Row) -> str:
    told = {name: row[name] for name in ("rate", "p50_ms", "p99_ms", "processor") if row.get(name)}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
    return f"{row['model']}, {row['server']}, round {row['round'] + 1}, {row['cell']}: {numbers}"


def _our_command(asked: Asked) -> list[str]:
    return [
        *(sys.executable, "-m", "service.cli", "serve", "--method", "source"),
        *("--model", SPECS[asked.model], "--port", str(asked.port)),
        *("--max-batch", str(asked.max_batch), "--max-wait", str(asked.max_wait)),
        *("--threads", str(asked.threads), "--log-format", "json"),
    ]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def tables(cells: Cells, model: str, names: Sequence[str], connections: Sequence[int]) -> str:
    """Markdown: images a second with ours as a multiple, then latencies; medians and spreads."""
    lines = [
        f"**{model}: images a second, and ours / theirs**",
        "",
        "| | "
        + " | ".join(f"{count} connections | ours / theirs" for count in connections)
        + " | processor s / 1,000 | peak MiB |",
        "|---" * (2 * len(connections) + 3) + "|",
    ]
    for name in names:
        line = [name]
        for count in connections:
            rates = cells.values("rate", model, name, closed(count))
            ours = cells.values("rate", model, OURS, closed(count))
            ratios = [ours[number] / rates[number] for number in rates.keys() & ours.keys()]
            line += [spread(rates.values()), "" if name == OURS else spread(ratios)]
        last = closed(connections[-1])
        line += [
            spread(cells.values(f, model, name, last).values()) for f in ("processor", "peak_mib")
        ]
        lines.append(f"| {' | '.join(line)} |")
    best = saturation(cells, model)
    heads = [
        f"{100 * share:g} %, {share * best:.3g}/s: p50 ms | p99 ms | no answer" for share in SHARES
    ]
    lines += [
        "",
        f"**{model}: latency at rates of the best peer's most, {best:.3g} images/s**",
        "",
        f"| | {' | '.join(heads)} | client late, p99 ms |",
        "|---" * (3 * len(SHARES) + 2) + "|",
    ]
    for name in names:
        line, late = [name], list[float]()
        for share in SHARES:
            for field in ("p50_ms", "p99_ms"):
                line.append(spread(cells.values(field, model, name, opened(share)).values()))
            lost = cells.values("unanswered", model, name, opened(share)).values()
            line.append(f"{sum(lost):g}" if lost else "")
            late += cells.values("lateness_p99_ms", model, name, opened(share)).values()
        lines.append(f"| {' | '.join([*line, f'{max(late):.1f}' if late else ''])} |")
    return "\n".join(lines)


def prepare(environments: Path, names: Sequence[str]) -> None:
    """Make the virtual environments that are missing.

    Torch is this project's: its folder is in each one's path, behind what the peer installs.

    Raises:
        click.ClickException: a package could not be installed.
    """
    uv = Path(sys.executable).with_name("uv")
    for name in names:
        folder, wanted = environments / name, HERE / f"requirements-{name}.txt"
        installed = folder / "installed.txt"
        if installed.exists() and installed.read_text() == wanted.read_text():
            continue
        python = folder / "bin" / "python"
        commands: Sequence[Sequence[str | Path]] = (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder],
            [uv, "pip", "install", "--quiet", "--python", python, "--requirement", wanted],
        )
        for command in commands:
            if subprocess.run(command).returncode:
                raise click.ClickException(f"{name} cannot be installed: see above.")
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "torch_of_the_project.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
        installed.write_text(wanted.read_text())


@click.command()
@click.option("--only", type=click.Choice([OURS, *PEERS]), multiple=True, help="a server [all]")
@click.option("--model", "models", type=click.Choice(list(SPECS)), multiple=True, help="[both]")
@click.option(
    "--connections",
    type=click.Choice([str(count) for count in CONNECTIONS]),
    multiple=True,
    help="of a closed loop [all of them]",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    *("--seconds", "seconds"),
    type=click.FloatRange(0.5),
    default=10.0,
    show_default=True,
    help="of each measurement, at least",
)
@click.option("--max-batch", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--max-wait", type=click.FloatRange(0), default=0.005, show_default=True, help="seconds"
)
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count(), help="torch's [cores]")
@click.option("--rows", type=click.Path(path_type=Path), default="results/peers.jsonl")
@click.option("--environments", type=click.Path(path_type=Path), default="results/peers")
def main(
    only: tuple[str, ...],
    models: tuple[str, ...],
    connections: tuple[str, ...],
    rounds: int,
    seconds: float,
    max_batch: int,
    max_wait: float,
    threads: int,
    rows: Path,
    environments: Path,
) -> None:
    """Measure what is missing, then print the tables."""
    unwind_on_term()
    names = [name for name in (OURS, *PEERS) if name in (only or (OURS, *PEERS))]
    plan = Plan(
        names,
        models or list(SPECS),
        sorted({int(count) for count in connections}) or CONNECTIONS,
        rounds,
        seconds,
        max_batch,
        max_wait,
        threads,
        environments.resolve(),
    )
    prepare(environments, [name for name in names if name != OURS])
    cells = Cells(rows, plan.settings)
    began = time.monotonic()
    measure(plan, cells, click.echo)
    for model in plan.models:
        click.echo(f"\n{tables(cells, model, names, plan.connections)}")
    click.echo(
        f"\n{device_name()}; SOURCE, batches of at most {max_batch} after at most {max_wait:g} s, "
        f"{threads} threads of torch; medians of {rounds} rounds (least to most), measured in "
        f"{(time.monotonic() - began) / 60:.0f} minutes."
    )


if __name__ == "__main__":
    main()
