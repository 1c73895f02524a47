"""A lone camera's latency alone, and beside one client that sends large requests without end.

    python -m benchmarks.beside [--flood NAME]... [--rounds 3] [--seconds 20]

The camera posts one small PNG after another. The other client is a process of its own; its
requests have some 4.7 MB of images each: a hundred blank pictures of 16 megapixels (ten seconds
of decoding), photographs, nine hundred small pictures, or one that is none; as JSON, as a form or
gzipped. Where `unsound` stands the last is damaged, so that none reaches the device: the camera
would wait for batches of a hundred too. Alone and beside take turns on one server; the ratio of
their p99 means something on a busy machine, times do not.
"""

import base64
import contextlib
import gzip
import io
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator

import click
import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from service.launch import launch

Request = tuple[bytes, dict[str, str]]


def _file(pixels: NDArray[np.uint8], file_format: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format, **options)
    return file.getvalue()


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _blank() -> list[bytes]:
    return [_file(np.zeros((4000, 4000, 3), np.uint8), "PNG", compress_level=9)] * 100


def _photographs() -> list[bytes]:
    coarse = Image.fromarray(_noise(135, 240)).resize((1920, 1080), Image.Resampling.BICUBIC)
    one = _file(np.asarray(coarse), "JPEG", quality=90)
    return [one] * (4_700_000 // len(one))


def _small() -> list[bytes]:
    return [_file(_noise(40, 42), "PNG")] * 900


def _damaged() -> bytes:
    """Its header is sound, its pixels are not all there."""
    return _file(_noise(40, 42), "PNG")[:2000]


def _json(images: list[bytes]) -> Request:
    entries = [{"b64": base64.b64encode(image).decode()} for image in images]
    return json.dumps({"images": entries}).encode(), {"Content-Type": "application/json"}


def _form(images: list[bytes]) -> Request:
    head = b'--edge-of-a-part\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    body = b"".join(head + image + b"\r\n" for image in images) + b"--edge-of-a-part--"
    return body, {"Content-Type": "multipart/form-data; boundary=edge-of-a-part"}


def _gzip(images: list[bytes]) -> Request:
    body, headers = _form(images)
    return gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}


FLOODS: dict[str, Callable[[], Request]] = {
    "16 megapixels, JSON": lambda: _json(_blank()),
    "16 megapixels, form": lambda: _form(_blank()),
    "photographs, JSON": lambda: _json(_photographs()),
    "photographs, JSON, unsound": lambda: _json([*_photographs(), _damaged()]),
    "small pictures, JSON, unsound": lambda: _json([*_small(), _damaged()]),
    "small pictures, gzip, unsound": lambda: _gzip([*_small(), _damaged()]),
    "one that is none, JSON": lambda: _json([_noise(1, 1_566_000).tobytes()]),
}


@click.command()
@click.option("--flood", "floods", type=click.Choice(list(FLOODS)), multiple=True)
@click.option("--rounds", default=3, show_default=True, help="times alone and beside, in turns")
@click.option("--seconds", default=20.0, show_default=True, help="of each")
@click.option("--threads", default="1", show_default=True)
@click.option("--adapt", default="never", show_default=True)
def main(floods: tuple[str, ...], rounds: int, seconds: float, threads: str, adapt: str) -> None:
    """Print a line for each kind of request that the other client sends."""
    table = Table(
        "beside", "images", "p50 ms", "p99 ms", "alone p50", "p99", "ratio of p99", "sent"
    )
    with launch("--threads", threads, "--adapt", adapt) as server:
        for name in floods or FLOODS:
            alone: list[float] = []
            beside: list[float] = []
            sent = 0
            for _ in range(rounds):
                alone += _latencies(server.url, seconds)
                with _flooding(server.url, name) as count:
                    beside += _latencies(server.url, seconds)
                    sent += count.value
            (p50, p99), (alone_p50, alone_p99) = _percentiles(beside), _percentiles(alone)
            table.add_row(
                name,
                str(len(beside)),
                *(f"{1000 * value:.1f}" for value in (p50, p99, alone_p50, alone_p99)),
                f"{p99 / alone_p99:.2f}",
                str(sent),
            )
    Console(width=120).print(table)


def _percentiles(latencies: list[float]) -> tuple[float, float]:
    return float(np.percentile(latencies, 50)), float(np.percentile(latencies, 99))


def _latencies(url: str, seconds: float) -> list[float]:
    """Post a picture again and again; return the seconds of each request."""
    picture, latencies = _file(_noise(32, 32), "PNG"), []
    with httpx.Client(base_url=url, timeout=120) as client:
        for number in range(1_000_000):
            began = time.perf_counter()
            answer = client.post("/predict?stream=camera", content=picture)
            answer.raise_for_status()
            if number >= 5:
                latencies.append(time.perf_counter() - began)
            if sum(latencies) > seconds:
                break
    return latencies


@contextlib.contextmanager
def _flooding(url: str, name: str) -> "Iterator[multiprocessing.sharedctypes.Synchronized[int]]":
    """Have a process send requests, one after another, until the block ends."""
    context = multiprocessing.get_context("spawn")
    count, ready = context.Value("i", 0), context.Event()
    process = context.Process(target=_flood, args=(url, name, count, ready), daemon=True)
    process.start()
    try:
        ready.wait(120)
        yield count
    finally:
        process.kill()
        process.join()


def _flood(
    url: str,
    name: str,
    count: "multiprocessing.sharedctypes.Synchronized[int]",
    ready: "multiprocessing.synchronize.Event",
) -> None:
    body, headers = FLOODS[name]()
    ready.set()
    with httpx.Client(base_url=url, timeout=600) as client:
        while True:
            client.post("/predict?stream=other", content=body, headers=headers)
            count.value += 1


if __name__ == "__main__":
    main()
