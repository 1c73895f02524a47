"""What the live page costs: a frame's making, and answers beside those who read.

    OMP_NUM_THREADS=1 python -m benchmarks.live [--streams 1000] [--readers 0,1,100] [--seconds 20]

A frame is made of as many streams as named, of which all, one in ten or none have changed, with
estimates, labels and an act each, in a thread; how late an event loop beside it comes to a timer
that is due every millisecond is what it is held up. Then a server with as many streams answers four
cameras, which go through the streams, while pages read: from one thread, so that its own share of
the machine is in the figures.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import click
import httpx
import numpy as np
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from benchmarks.saving import latencies
from service.client import Client
from service.engine import Engine
from service.launch import launch
from service.live.frames import Frames
from service.metrics import Metrics
from service.replay import to_png
from service.schemas import StreamAct, StreamTruth
from service.settings import Settings
from service.stream_record import StreamRecord
from ttc_core.guard.estimate import Estimate, Estimates
from ttc_core.load import load
from ttc_core.methods import create

TIMES = 30
TICK_SECONDS = 0.001


def made(streams: int, share: float) -> tuple[float, int, float, int]:
    """Of frames of so many streams, that share of which changed: the median seconds of a tick, its
    bytes, the worst that the event loop was held up, and a state's bytes."""
    source = create("source", load("bundled", device="cpu"))
    metrics = Metrics(CollectorRegistry(), classes=10, model={})
    engine = Engine(
        source, metrics, method_name="source", model_spec="bundled", max_streams=streams
    )
    queue: Any = SimpleNamespace(waiting_images=0)
    settings = Settings(method="source")
    frames = Frames(settings, metrics, engine, queue, told=lambda mode: mode, page="")
    each = Estimate(0.91234, 0.88, 0.93)
    records = []
    for number in range(streams):
        name = f"camera-{number}"
        act = StreamAct(time=1.7e9, action="hold", reason="harm", evidence={"wealth": 1234.5})
        record = StreamRecord(source, estimates=Estimates(9, each, each, each), acts=(act,))
        engine.table.keep(name, record)
        engine.truth._streams[name] = StreamTruth(labelled=10, correct=9)
        engine.silence.heard(name)
        records.append(record)
    took, sizes, late = [], [], []

    async def walk() -> bytes:
        loop, state = asyncio.get_running_loop(), b""
        for turn in range(TIMES):
            for record in records[: round(share * streams)]:
                record.images, record.drift = record.images + 1, 0.001 * turn
            # The first has all of them, and a state is asked for once.
            work = asyncio.create_task(asyncio.to_thread(timed, wants_state=turn == TIMES - 1))
            while not work.done():
                due = loop.time() + TICK_SECONDS
                await asyncio.sleep(TICK_SECONDS)
                late.append(loop.time() - due)
            found = work.result()
            if turn:
                sizes.append(len(found.tick or b""))
            state = found.state or b""
        return state

    def timed(*, wants_state: bool) -> Any:
        began = time.perf_counter()
        found = frames.make(is_due=True, watched=True, wants_state=wants_state)
        took.append(time.perf_counter() - began)
        return found

    gc.collect()
    gc.freeze()  # as `ttc serve`: else what was imported is looked through meanwhile
    state = asyncio.run(walk())
    engine.close()
    return float(np.median(took[1:])), max(sizes), max(late), len(state)


@contextmanager
def reading(url: str, readers: int) -> Iterator[list[int]]:
    """So many readers that take what comes, until the block ends; the bytes that each has had."""
    had, stop = [0] * readers, threading.Event()

    async def read(number: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not stop.is_set():
            had[number] += len(await reader.read(1 << 20))
        writer.close()

    async def read_all() -> None:
        await asyncio.gather(*map(read, range(readers)))

    thread = threading.Thread(target=asyncio.run, args=(read_all(),))
    thread.start()
    try:
        yield had
    finally:
        stop.set()
        thread.join()


@click.command()
@click.option("--streams", default=1000, show_default=True)
@click.option("--readers", default="0,1,100", show_default=True)
@click.option("--seconds", default=20.0, show_default=True)
def main(streams: int, readers: str, seconds: float) -> None:
    """What the live page costs."""
    table = Table("rows changed", "tick, ms", "tick, kB", "loop held up, ms", "state, kB")
    for share in (1.0, 0.1, 0.0):
        took, size, late, state = made(streams, share)
        row = (f"{1e3 * took:.1f}", f"{size / 1e3:.0f}", f"{1e3 * late:.1f}", f"{state / 1e3:.0f}")
        table.add_row(f"{round(share * streams):,} of {streams:,}", *row)
    Console().print(table)

    images = [to_png(each) for each in np.random.default_rng(0).integers(
        0, 256, (8, 32, 32, 3), dtype=np.uint8)]  # fmt: skip
    table = Table(
        "readers", "requests/s", "median, ms", "99 %, ms", "loop lag, ms", "kB/s a reader"
    )
    arguments = ("--method", "source", "--max-streams", str(2 * streams), "--threads", "1")
    with launch(*arguments) as server, Client(server.url) as client:
        for number in range(streams):
            client.predict(images[:1], stream=f"s{number}")
        for count in map(int, readers.split(",")):
            with reading(server.url, count) as had:
                time.sleep(1.5)
                before = sum(had)
                times = np.array(latencies(client, images, streams, seconds))
                rate = (sum(had) - before) / max(count, 1) / seconds
                lag = _lag(server.url)
            row = (f"{np.median(times) * 1e3:.1f}", f"{np.quantile(times, 0.99) * 1e3:.1f}")
            row += (f"{1e3 * lag:.1f}", f"{rate / 1e3:.0f}")
            table.add_row(str(count), f"{len(times) / seconds:.0f}", *row)
    Console().print(table)


def _lag(url: str) -> float:
    (line,) = (
        line
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("ttc_event_loop_lag_seconds ")
    )
    return float(line.split()[1])


if __name__ == "__main__":
    main()
