"""What saving costs the cameras: latency with and without it, and a snapshot beside a pass.

    python -m benchmarks.saving [--streams 100] [--interval 5] [--rounds 8]

Two servers with the bundled model answer in turns, four cameras at a time that each wait for their
answer and go through the streams; the one saves every stream that has changed within the interval,
the other at its end only. The snapshot is that of a ResNet-50's
stream with Adam and pending gradients, the pass one image of 224 × 224 pixels.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import click
import httpx
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from service.client import Client
from service.launch import launch
from service.replay import to_png
from ttc_core.load import load
from ttc_core.methods import create

CAMERAS = 4
ROUND_SECONDS = 8.0


def latencies(client: Client, images: list[bytes], streams: int, seconds: float) -> list[float]:
    """Seconds that each request took."""
    end, numbers = time.monotonic() + seconds, count()

    def camera(_: int) -> list[float]:
        took = []
        while time.monotonic() < end:
            number = next(numbers)
            began = time.perf_counter()
            client.predict([images[number % len(images)]], stream=f"s{number % streams}")
            took.append(time.perf_counter() - began)
        return took

    with ThreadPoolExecutor(CAMERAS) as pool:
        return [one for part in pool.map(camera, range(CAMERAS)) for one in part]


def median_seconds(call: Callable[[], object], times: int) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return float(np.median(took))


def saved_streams(url: str) -> float:
    """How many files the server has written."""
    said = httpx.get(f"{url}/metrics").text
    return float(said.split('ttc_saves_total{outcome="saved"} ')[1].split()[0])


def snapshot_cost() -> tuple[float, float]:
    """Seconds that the device thread gives to a snapshot, and to a pass of one image."""
    model = load("torchvision/resnet50?weights=none", device="cpu")
    method = create("ttc", model, statistics="moving", samples_per_step=2)
    image = torch.rand(1, 3, 224, 224)
    for _ in range(3):  # a step, then a batch that waits for one
        method.adapt(method.predict(image))
    return median_seconds(method.state, 200), median_seconds(lambda: method.predict(image), 10)


@click.command()
@click.option("--streams", default=100, show_default=True)
@click.option("--interval", default=5.0, show_default=True, help="seconds")
@click.option("--rounds", default=8, show_default=True)
def main(streams: int, interval: float, rounds: int) -> None:
    """Print latencies of both servers and their ratio, then what a snapshot takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    images = [to_png(each) for each in pixels]
    took: dict[str, list[float]] = {"saving": [], "not saving": []}
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        launch("--state-dir", one, "--save-interval", str(interval)) as saving,
        launch("--state-dir", other, "--save-interval", "86400") as resting,
        Client(saving.url) as saving_client,
        Client(resting.url) as resting_client,
    ):
        clients = {"saving": saving_client, "not saving": resting_client}
        for number in range(rounds + 1):
            for name, client in clients.items():
                found = latencies(client, images, streams, ROUND_SECONDS)
                took[name] += found if number else []  # the first is to warm up
        saved = saved_streams(saving.url)
    table = Table("", "requests", "p50 ms", "p99 ms")
    p99 = {}
    for name, found in took.items():
        p50, p99[name] = 1000 * np.quantile(found, (0.5, 0.99))
        table.add_row(name, f"{len(found):,}", f"{p50:.1f}", f"{p99[name]:.1f}")
    console = Console(width=100)
    console.print(table)
    console.print(f"Files written meanwhile: {saved:,.0f}.")
    console.print(f"p99 with saving over without: {p99['saving'] / p99['not saving']:.2f}")
    snapshot, forward = snapshot_cost()
    console.print(
        f"A snapshot of a ResNet-50's stream: {1000 * snapshot:.3f} ms, "
        f"{snapshot / forward:.2%} of a pass ({1000 * forward:.0f} ms)."
    )


if __name__ == "__main__":
    main()
