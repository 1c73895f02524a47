"""Measure what benchmarks/fleet.toml has of one process: python -m benchmarks.fleet_figures.

A server with the bundled model and the default learns from the bundled images in twenty streams,
saves them, is ended by kill -9 and started again. Printed are bytes of an image, an answer and a
stream's file, and seconds from the kill until another process answers, and for a stream's file to
be read: the median of first answers of saved streams, less that of as many new ones.
"""

import tempfile
import time
from pathlib import Path
from statistics import fmean, median

import click
import httpx

from benchmarks import pictures
from service.launch import Launched, launch

STREAMS, IMAGES = 20, 20
SETTINGS = ("--adapt", "always", "--save-interval", "1", "--threads", "1")


def ask(server: Launched, stream: str, image: bytes) -> tuple[float, int]:
    """Seconds that an answer took, and its bytes with its head."""
    began = time.perf_counter()
    answer = httpx.post(
        f"{server.url}/predict",
        params={"stream": stream},
        content=image,
        headers={"Content-Type": "image/jpeg"},
        timeout=60,
    ).raise_for_status()
    head = sum(len(name) + len(value) + 4 for name, value in answer.headers.raw)
    return time.perf_counter() - began, len(answer.content) + head


@click.command()
def main() -> None:
    """Print a line a figure."""
    images = pictures.bundled(IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        asked = ("--state-dir", folder, *SETTINGS)
        with launch(*asked) as server:
            answers = [
                ask(server, f"s{number}", image)[1] for image in images for number in range(STREAMS)
            ]
            time.sleep(3)
            sizes = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
            server.process.kill()
            server.process.wait()
            began = time.monotonic()
        with launch(*asked) as server:
            ask(server, "new", images[0])
            start = time.monotonic() - began
            saved = [ask(server, f"s{number}", images[1])[0] for number in range(STREAMS)]
            new = [ask(server, f"n{number}", images[1])[0] for number in range(STREAMS)]
    click.echo(f"image_bytes {fmean(map(len, pictures.photographs())):,.0f}")
    click.echo(f"answer_bytes {fmean(answers):,.0f}")
    click.echo(f"state_bytes {fmean(sizes):,.0f} (of {len(sizes)} streams)")
    click.echo(f"start_seconds {start:.1f}")
    click.echo(f"load_seconds {median(saved) - median(new):.4f}")


if __name__ == "__main__":
    main()
