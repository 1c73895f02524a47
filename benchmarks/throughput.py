"""Images a second: a bare loop, `ttc evaluate`, and lockstep replay over HTTP.

    python -m benchmarks.throughput [--method ttc|tent] [--model SPEC] [--images 1000] [--rounds 5]

The three run in turn, round after round, on the same images, with batches of 100 on the CPU; the
medians are compared. The bare loop is the method typed in whole with plain PyTorch. Ratios mean
something on a busy machine, absolute times do not.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.bare_loop import BATCH, CORRUPTION
from service.launch import launch
from service.replay import ReplayPlan, replay
from service.view import View
from ttc_core.rows import Rows, read_rows


@click.command()
@click.option("--method", type=click.Choice(["ttc", "tent"]), default="ttc", show_default=True)
@click.option("--model", "spec", default="bundled", show_default=True)
@click.option("--images", default=1000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(method: str, spec: str, images: int, rounds: int) -> None:
    """Print the medians and their ratios."""
    seconds: dict[str, list[float]] = {"bare": [], "evaluate": [], "replay": []}
    with launch("--method", method, "--paper", "--model", spec, "--device", "cpu") as server:
        plan = ReplayPlan("bundled", server.url, (CORRUPTION,), limit=images, reset_between=True)
        for number in range(rounds):
            seconds["bare"].append(_bare(method, spec, images))
            seconds["evaluate"].append(_evaluate(method, spec, images))
            seconds["replay"].append(_replay(plan))
            line = ", ".join(f"{name} {images / runs[-1]:.0f}" for name, runs in seconds.items())
            click.echo(f"round {number + 1}: {line} images/s")
    median = {name: images / statistics.median(runs) for name, runs in seconds.items()}
    click.echo(
        f"{method} on {spec}, {images} images in batches of {BATCH}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, speed in median.items():
        click.echo(f"median {name}: {speed:.0f} images/s")
    click.echo(f"evaluate / bare loop: {median['evaluate'] / median['bare']:.3f}")
    click.echo(f"replay / evaluate: {median['replay'] / median['evaluate']:.3f}")


def _bare(method: str, spec: str, images: int) -> float:
    """Seconds of the bare loop; as a process of its own, like the others."""
    command = [sys.executable, "-m", "benchmarks.bare_loop", method, spec, str(images)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _evaluate(method: str, spec: str, images: int) -> float:
    """Seconds that `ttc evaluate` states; as a process, since it sets how its threads wait."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "service.cli", "evaluate", "bundled", "--model", spec]
        options = ["--methods", method, "--corruptions", CORRUPTION, "--limit", str(images)]
        subprocess.run(
            [*command, *options, "--device", "cpu", "--json", str(rows)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (row,) = read_rows(rows)
    return float(row["seconds"])


def _replay(plan: ReplayPlan) -> float:
    silent = View(Console(quiet=True))
    (row,) = asyncio.run(replay(plan, Rows(None), silent, table=False))
    return float(row["seconds"])


if __name__ == "__main__":
    main()
