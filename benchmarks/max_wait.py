"""What --max-wait does to latency and throughput, from which its default was chosen.

    python -m benchmarks.max_wait [--images 400]

For each value a server of its own, TTC at its defaults on the bundled model; single images from
one camera, from sixteen that each wait for their answer, and at a Poisson rate.
"""

import asyncio

import click
from rich.console import Console
from rich.table import Table

from service.client import Client
from service.launch import launch
from service.replay import ReplayPlan, replay
from service.view import View
from ttc_core.rows import Row, Rows

WAITS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)
LOADS = {
    "1 camera": {"mode": "closed", "concurrency": 1},
    "16 cameras": {"mode": "closed", "concurrency": 16},
    "40 images/s": {"mode": "open", "rate": 40.0},
}


@click.command()
@click.option("--images", default=400, show_default=True)
def main(images: int) -> None:
    """Print a line for each waiting time and load."""
    table = Table("max wait ms", "load", "images/s", "p50 ms", "p99 ms", "images a batch")
    for wait in WAITS:
        with launch("--max-wait", str(wait)) as server, Client(server.url) as client:
            for name, load in LOADS.items():
                before = client.status().streams
                done = sum(stream.batches for stream in before.values())
                plan = ReplayPlan(
                    "bundled", server.url, ("fog",), batch_size=1, limit=images, **load
                )
                row = _run(plan)
                batches = sum(s.batches for s in client.status().streams.values()) - done
                table.add_row(
                    f"{1000 * wait:g}",
                    name,
                    f"{row['images_per_second']:.0f}",
                    f"{1000 * row['latency_p50']:.1f}",
                    f"{1000 * row['latency_p99']:.1f}",
                    f"{images / batches:.1f}",
                )
    Console(width=100).print(table)


def _run(plan: ReplayPlan) -> Row:
    (row,) = asyncio.run(replay(plan, Rows(None), View(Console(quiet=True)), table=False))
    return row


if __name__ == "__main__":
    main()
