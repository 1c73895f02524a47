"""Photograph the live page over a real replay: python -m monitoring.screenshots [--out FOLDER].

A real server is sent the bundled stream by several cameras at once, while a real browser has the
page open: wide and light, wide and dark, as on a telephone. One camera sees one class only, on
which the method breaks, so that the guard has the frozen model answer; another's frames turn black.
"""

import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from service.client import Client
from service.launch import launch
from service.replay import to_png
from ttc_core.datasets import Geometry, open_data

OUT = Path(__file__).parents[1] / "docs"
# The paper's method, with statistics that follow the stream: one class alone breaks it.
SERVED = ("--method", "ttc", "--guard", "on", "--adapt", "always", "--threads", "1")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
IMAGES = 1000


@dataclass(frozen=True)
class Camera:
    """What a camera sees, and how it sends it.

    Attributes:
        seconds: between its requests of `size` images.
        labelled: labels come with the images.
        black_after: a share of the replay, after which its frames are black.
    """

    name: str
    corruption: str
    seconds: float
    size: int = 2
    order: str = "file"
    labelled: bool = False
    black_after: float = math.inf

    def send(self, url: str, started: float, length: float, stop: threading.Event) -> None:
        """Send images until there are enough."""
        data = open_data("bundled", Geometry(None))
        stream = data.open(self.corruption, 5, limit=IMAGES, order=self.order)
        images = [to_png(pixels) for pixels in stream.read(stream.positions)]
        labels = stream.labels.tolist()
        black = to_png(np.zeros_like(stream.read(stream.positions[:1])[0]))
        with Client(url) as client:
            for at in cycle(range(0, IMAGES - self.size + 1, self.size)):
                if stop.wait(self.seconds):
                    return
                is_black = time.monotonic() - started > self.black_after * length
                sent = [black] * self.size if is_black else images[at : at + self.size]
                told = labels[at : at + self.size] if self.labelled else None
                client.predict(sent, stream=self.name, labels=told)


CAMERAS = (
    Camera("gate-1", "gaussian_noise", 0.7, size=8, labelled=True),
    Camera("gate-2", "fog", 0.9, size=8, labelled=True),
    Camera("gate-3", "contrast", 0.8),
    Camera("hall", "defocus_blur", 1.1, labelled=True),
    Camera("ramp", "pixelate", 1.6),
    Camera("roof", "frost", 1.3),
    Camera("dock", "clean", 1.0, order="one:1"),
    Camera("yard", "jpeg_compression", 1.2, black_after=0.8),
)
# File, its viewport, its scheme.
SHOTS: Sequence[tuple[str, tuple[int, int], Any]] = (
    ("page.png", (1440, 1000), "light"),
    ("page-dark.png", (1440, 1000), "dark"),
    ("page-narrow.png", (375, 812), "light"),
)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=OUT, show_default=True)
@click.option("--seconds", default=240.0, show_default=True, help="that the replay takes")
def main(out: Path, seconds: float) -> None:
    """Run the replay and photograph the page."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise click.ClickException("Not installed: chromium.")
    with launch(*SERVED) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        pages = [_open(browser, server.url, size, scheme) for _, size, scheme in SHOTS]
        with _replay(server.url, seconds):
            # Waiting in the browser keeps its events coming.
            pages[0].wait_for_timeout(600 * seconds)
            with Client(server.url) as client:
                client.reset("gate-3")
            pages[0].wait_for_timeout(400 * seconds)
            out.mkdir(parents=True, exist_ok=True)
            for page, (name, _, _) in zip(pages, SHOTS, strict=True):
                page.screenshot(path=out / name)
                click.echo(out / name)
        browser.close()


def _open(browser: Browser, url: str, size: tuple[int, int], scheme: Any) -> Page:
    width, height = size
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=2 if width < 500 else 1,
    )
    page.goto(f"{url}/")
    page.wait_for_selector("body[data-live]", state="attached")
    page.select_option("#minutes", "5")
    return page


@contextmanager
def _replay(url: str, seconds: float) -> Iterator[None]:
    """Have all cameras send until the block ends."""
    stop, started = threading.Event(), time.monotonic()
    threads = [
        threading.Thread(target=camera.send, args=(url, started, seconds, stop))
        for camera in CAMERAS
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
