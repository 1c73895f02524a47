"""How near the service is to its limit, and what it costs: `make bench`, under ten minutes.

    python -m benchmarks.bench [--rounds 5] [--size 32|224]... [--streams 1000] [--out docs]

The limit is a bare loop of the same arithmetic on the same arrays in plain PyTorch (`bare_loop`).
Beside it, on the same images: `ttc evaluate`, lockstep replay over HTTP, and single JPEG files from
64 connections in a closed loop (wrk). The four take turns, round after round, so that a ratio is of
one run on one machine. TENT and TTC are the paper's (`--paper`), the default is as it is served.
Then curves: the size of batches, the number of streams, the size of images; processor time and
memory. On a GPU where torch sees one, else on the processor.
"""

import asyncio
import math
import multiprocessing
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from benchmarks import pictures
from benchmarks.bare_loop import bare
from benchmarks.closed_loop import Request, closed_loop
from benchmarks.cost import SERVED, measure
from benchmarks.passes import Passes, recorded
from benchmarks.processes import processor_seconds, unwind_on_term
from benchmarks.telling import device_name, spread
from service.cli.options import keep_freed_memory
from service.launch import launch
from service.replay import ReplayPlan, replay
from service.view import View
from ttc_core.datasets import Geometry, Stream, open_data
from ttc_core.evaluate import as_batch, run_stream, warm_up
from ttc_core.load import load, pick_device
from ttc_core.methods import DEFAULT_METHOD, Method
from ttc_core.model import SourceModel
from ttc_core.presets import Variant
from ttc_core.rows import Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHODS = ("source", "tent", "ttc", DEFAULT_METHOD)
WAYS = ("bare loop", "evaluate", "lockstep", "64 clients")
CLIENTS = 64
GOALS = {"evaluate": 0.98, "lockstep": 0.95}
CLIENTS_GOAL = {32: 0.65, 224: 0.85}
MOST_PROCESSOR = 1.05
"""At 224 pixels, of the server's processor time an image over that of `evaluate`."""
BATCHES = (1, 4, 16, 64, 256)
SIDES = (32, 64, 128, 224)


@dataclass(frozen=True)
class Job:
    """What one of the ways does in a round.

    Attributes:
        spec: of the network.
        data: a DATA spec.
        images: how many.
        size: of the batches.
        seconds: that the clients of the closed loop go on at least.
    """

    method: str
    spec: str
    data: str
    corruption: str
    images: int
    size: int
    seconds: float


class Took(NamedTuple):
    """Images a second, and processor seconds for 1,000 of them."""

    rate: float
    processor: float


# What runs in processes of their own.


@cache
def _model(spec: str) -> SourceModel:
    keep_freed_memory()
    return load(spec, device=pick_device("auto"))


@cache
def _stream(data: str, corruption: str, images: int, spec: str) -> Stream:
    model = _model(spec)
    geometry = Geometry(model.size, model.crop)
    opened = open_data(data, geometry, model.class_names, limit=images)
    return opened.open(corruption, 5, limit=images)


@cache
def _batches(job: Job) -> list[Tensor]:
    stream = _stream(job.data, job.corruption, job.images, job.spec)
    return [as_batch(images).contiguous() for images, _ in stream.batches(job.size)]


@cache
def _made(job: Job) -> list[tuple[Passes, bool]]:
    """The passes of the default over each batch, behind one that both loops warm up with."""
    method = _method(job)
    found: list[tuple[Passes, bool]] = []
    for batch in [_batches(job)[0], *_batches(job)]:
        if len(found) == 1:
            method.reset()
        with recorded() as passes:
            outcome = method.adapt(method.predict(batch))
        found.append((passes, outcome.stepped))
    return found


def _method(job: Job) -> Method:
    return Variant(job.method).create(_model(job.spec), {})


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_bare(job: Job) -> Took:
    """The method typed in whole, on arrays."""
    model, batches = _model(job.spec), _batches(job)
    made = _made(job) if job.method == DEFAULT_METHOD else ()
    answer = bare(job.method, model, job.size, made)
    answer(batches[0].to(model.device)).cpu()
    _synchronize()
    started, processor = time.perf_counter(), time.process_time()
    for batch in batches:
        answer(batch.to(model.device)).cpu()
    _synchronize()
    return _took(job.images, time.perf_counter() - started, time.process_time() - processor)


def run_evaluate(job: Job) -> Took:
    """As `ttc evaluate`: seconds are those it states, processor time is with reading the images."""
    method = _method(job)
    stream = _stream(job.data, job.corruption, job.images, job.spec)
    warm_up(method, images=job.size)
    _synchronize()
    processor = time.process_time()
    tally = run_stream(method, stream, job.size)
    return _took(tally.images, tally.seconds, time.process_time() - processor)


def _took(images: int, seconds: float, processor: float) -> Took:
    return Took(images / seconds, 1000 * processor / images)


def run_batches(number: int, sizes: Sequence[int]) -> list[float]:
    """Images a second of one of the served methods, on the bundled network, by batch size."""
    method, rates = SERVED[number].create(_model("bundled"), {}), []
    for size in sizes:
        job = Job("", "bundled", "bundled", pictures.CORRUPTION, max(size, 64), size, 0)
        rates.append(_rate(method, _batches(job)))
    return rates


def run_sides(number: int, sides: Sequence[int]) -> list[float]:
    """Images a second of one of the served methods, on the bundled network, by image size."""
    method, rates = SERVED[number].create(_model("bundled"), {}), []
    stream = _stream("bundled", pictures.CORRUPTION, 16, "bundled")
    small = [Image.fromarray(pixels) for pixels in stream.read(stream.positions)]
    for side in sides:
        large = np.stack([np.asarray(each.resize((side, side))) for each in small])
        rates.append(_rate(method, [as_batch(half).contiguous() for half in np.split(large, 2)]))
    return rates


def _rate(method: Method, batches: Sequence[Tensor]) -> float:
    method.reset()
    warm_up(method, batches[0].shape[-1], images=len(batches[0]))
    _synchronize()
    started = time.perf_counter()
    for batch in batches:
        prediction = method.predict(batch)
        prediction.to_host()
        method.adapt(prediction)
    _synchronize()
    return sum(map(len, batches)) / (time.perf_counter() - started)


# The parent's side.


class Processes:
    """A process that runs bare loops, and one that evaluates; each keeps what it has loaded."""

    def __init__(self, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self.bare, self.evaluate = (
            stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(2)
        )


def ratios(
    job: Job, files: Sequence[bytes], rounds: int, processes: Processes
) -> dict[str, list[Took]]:
    """All ways of a method, round after round: way -> what each round took."""
    found: dict[str, list[Took]] = defaultdict(list)
    # Nothing is shed: what is measured is the whole method.
    arguments = ["--method", job.method, "--model", job.spec, "--adapt", "always"]
    arguments += ["--max-batch", str(max(job.size, 8))]
    if job.method in ("tent", "ttc"):
        arguments.append("--paper")
    requests = [Request("/predict", "image/jpeg", file) for file in files]
    with launch(*arguments) as server:
        pid = server.process.pid
        plan = ReplayPlan(
            job.data,
            server.url,
            (job.corruption,),
            batch_size=job.size,
            limit=job.images,
            reset_between=True,
        )
        for number in range(-1, rounds):  # one to warm up
            if number < 0:
                plan_now, job_now = replace(plan, limit=job.size), replace(job, images=job.size)
            else:
                plan_now, job_now = plan, job
            took = {
                "bare loop": processes.bare.submit(run_bare, job_now).result(),
                "evaluate": processes.evaluate.submit(run_evaluate, job_now).result(),
                "lockstep": _lockstep(plan_now, pid),
            }
            if number < 0:
                continue
            # Where all batches are full, all repeats with each of them.
            period = job.size if job.size < CLIENTS / 2 else CLIENTS
            closed = closed_loop(
                server.url, requests, CLIENTS, job.seconds, period=period, pids=[pid]
            )
            took["64 clients"] = Took(closed.rate, 1000 * closed.processor / closed.images)
            for way in WAYS:
                found[way].append(took[way])
    return found


def _lockstep(plan: ReplayPlan, pid: int) -> Took:
    before = processor_seconds([pid])
    silent = View(Console(quiet=True))
    (row,) = asyncio.run(replay(plan, Rows(None), silent, table=False))
    processor = processor_seconds([pid]) - before
    return Took(row["images_per_second"], 1000 * processor / row["images"])


def streams_curve(counts: Sequence[int], rounds: int, seconds: float) -> dict[int, list[float]]:
    """Images a second of the served default, over the streams that 64 clients share."""
    files = pictures.bundled(256)
    found: dict[int, list[float]] = defaultdict(list)
    with launch("--adapt", "always") as server:
        for _ in range(rounds):
            for count in counts:
                requests = [
                    Request(
                        f"/predict?stream={count}-{each % count}",
                        "image/jpeg",
                        files[each % len(files)],
                    )
                    for each in range(max(count, len(files)))
                ]
                found[count].append(closed_loop(server.url, requests, CLIENTS, seconds).rate)
    return found


Line = tuple[str, Mapping[int, Sequence[float]]]
"""A curve: its name, and at each place what the rounds found."""


def in_rounds(
    processes: Processes,
    run: Callable[[int, Sequence[int]], list[float]],
    places: Sequence[int],
    rounds: int,
) -> list[Line]:
    """A curve for each of the served methods, round after round."""
    found: list[dict[int, list[float]]] = [defaultdict(list) for _ in SERVED]
    for _ in range(rounds):
        for number, curve in enumerate(found):
            rates = processes.evaluate.submit(run, number, places).result()
            for place, rate in zip(places, rates, strict=True):
                curve[place].append(rate)
    return [(_name(variant), curve) for variant, curve in zip(SERVED, found, strict=True)]


def _name(variant: Variant) -> str:
    if variant.method == DEFAULT_METHOD:
        return "the default, not learning" if variant.settings else "the default"
    return variant.method.upper()


def against(found: Mapping[str, Sequence[Took]], way: str) -> list[float]:
    """A way's images a second over the bare loop's, of each round."""
    pairs = zip(found[way], found["bare loop"], strict=True)
    return [one.rate / limit.rate for one, limit in pairs]


def goal(method: str, way: str, side: int) -> float | None:
    """What a way is to reach of the bare loop; None where nothing was set."""
    if method not in ("ttc", DEFAULT_METHOD):
        return None
    return CLIENTS_GOAL[side] if way == "64 clients" else GOALS.get(way)


def ratios_table(side: int, found: Mapping[str, Mapping[str, Sequence[Took]]]) -> str:
    """Markdown: images a second of the bare loop, the other ways as shares of it, and the goals."""
    lines = [
        f"| {side} pixels | {' | '.join(WAYS)} | server's processor time / `evaluate`'s |",
        "|---" * (len(WAYS) + 2) + "|",
    ]
    for method, ways in found.items():
        line = [_name(Variant(method)), f"{spread([one.rate for one in ways[WAYS[0]]])} images/s"]
        for way in WAYS[1:]:
            aim = goal(method, way, side)
            line.append(spread(against(ways, way)) + (f", goal {aim:g}" if aim else ""))
        pairs = zip(ways["64 clients"], ways["evaluate"], strict=True)
        most = f", at most {MOST_PROCESSOR:g}" if side == 224 else ""
        line.append(spread([one.processor / other.processor for one, other in pairs]) + most)
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def curve_table(head: str, curves: Sequence[Line]) -> str:
    """Markdown: a line a curve, a column a place."""
    places = list(curves[0][1])
    lines = [f"| {head} | {' | '.join(f'{each:,}' for each in places)} |"]
    lines.append("|---" * (len(places) + 1) + "|")
    for name, curve in curves:
        lines.append(f"| {name} | {' | '.join(spread(curve[place]) for place in places)} |")
    return "\n".join(lines)


def costs_table(images: int) -> str:
    """Markdown: processor seconds and peak memory of each method, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    lines = ["| batches of 100 | processor s / 1,000 | peak MiB |", "|---|---|---|"]
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for variant in [*map(Variant, METHODS), SERVED[-1]]:
            one = pool.submit(measure, "bundled", variant, 100, images).result()
            processor = 1000 * one.processor / images
            lines.append(f"| {_name(variant)} | {processor:.2f} | {one.peak:.0f} |")
    return "\n".join(lines)


def draw(
    folder: Path,
    by_side: Mapping[int, Mapping[str, Mapping[str, Sequence[Took]]]],
    curves: Mapping[str, Sequence[Line]],
) -> None:
    """Write bench.svg and bench.png: ratios with their goals, then a panel a group of curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    plt.rcParams.update({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "bench"})
    panels = len(by_side) + len(curves)
    figure, axes = plt.subplots(math.ceil(panels / 2), 2, figsize=(10, 3.2 * math.ceil(panels / 2)))
    left = iter(axes.flat)
    for side, methods in by_side.items():
        _draw_ratios(next(left), side, methods)
    for head, lines in curves.items():
        axis = next(left)
        for name, curve in lines:
            middle = [statistics.median(curve[place]) for place in curve]
            (line,) = axis.plot(list(curve), middle, marker="o", markersize=3, label=name)
            low, high = ([pick(curve[place]) for place in curve] for pick in (min, max))
            axis.fill_between(list(curve), low, high, color=line.get_color(), alpha=0.15)
        axis.set(xscale="log", yscale="log", xlabel=head, ylabel="images/s")
        axis.set_xticks(list(curve), [f"{each:,}" for each in curve])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.legend(frameon=False)
    for axis in left:
        axis.set_axis_off()
    figure.suptitle(device_name())
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(
            folder / f"bench.{kind}", dpi=100, metadata={"Date": None} if kind == "svg" else None
        )
    plt.close(figure)


def _draw_ratios(
    axis: "Axes", side: int, methods: Mapping[str, Mapping[str, Sequence[Took]]]
) -> None:
    width = 0.8 / len(WAYS[1:])
    for place, way in enumerate(WAYS[1:]):
        for number, (method, ways) in enumerate(methods.items()):
            shares, at = against(ways, way), number + (place - 1) * width
            middle = statistics.median(shares)
            error = [[middle - min(shares)], [max(shares) - middle]]
            axis.bar(
                at,
                middle,
                width,
                yerr=error,
                color=f"C{place}",
                capsize=2,
                label=None if number else way,
            )
            if aim := goal(method, way, side):
                axis.plot(
                    [at - width / 2, at + width / 2], [aim, aim], color="black", linewidth=1.5
                )
    axis.axhline(1, color="gray", linewidth=0.5)
    axis.set_xticks(range(len(methods)), [_name(Variant(method)) for method in methods])
    axis.set(ylabel="share of a bare loop (—: goal)", title=f"{side} pixels")
    axis.margins(y=0.2)
    axis.legend(frameon=False, loc="upper left", ncols=len(WAYS[1:]))


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    *("--size", "sides"),
    type=click.Choice(["32", "224"]),
    multiple=True,
    help="of the images, in pixels [both]",
)
@click.option(
    *("--streams", "most_streams"),
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="the most of the curve; 1000 takes longer",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="docs")
def main(rounds: int, sides: tuple[str, ...], most_streams: int, out: Path) -> None:
    """Print ratios and curves as Markdown, and draw them."""
    unwind_on_term()
    began, fast = time.monotonic(), torch.cuda.is_available()
    by_side: dict[int, dict[str, dict[str, list[Took]]]] = {}
    with ExitStack() as stack:
        processes = Processes(stack)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for side in map(int, sides or ("32", "224")):
            jobs = _jobs(side, Path(folder), fast=fast)
            files = pictures.bundled(256) if side == 32 else pictures.photographs()
            # A round at 224 pixels takes a processor a minute.
            some = rounds if side == 32 or fast else max(1, rounds - 2)
            by_side[side] = {}
            for job in jobs:
                by_side[side][job.method] = ratios(job, files, some, processes)
                click.echo(f"{_minutes(began)}: {side} pixels, {job.method}", err=True)
            click.echo(f"\n{ratios_table(side, by_side[side])}")
        curves: dict[str, list[Line]] = {
            "images a batch": in_rounds(processes, run_batches, BATCHES, min(rounds, 3)),
            "pixels a side": in_rounds(processes, run_sides, SIDES, 1),
        }
    counts = [10**power for power in range(4) if 10**power <= most_streams]
    curves["streams, 64 clients"] = [("the default", streams_curve(counts, min(rounds, 3), 2.0))]
    for head, lines in curves.items():
        click.echo(f"\n{curve_table(head, lines)}")
    click.echo(f"\n{costs_table(300)}")
    draw(out, by_side, curves)
    click.echo(
        f"\n{device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians "
        f"of interleaved rounds (least to most), {_minutes(began)} in all. Drawn: {out}/bench.svg."
    )


def _minutes(began: float) -> str:
    return f"{(time.monotonic() - began) / 60:.1f} minutes"


def _jobs(side: int, folder: Path, *, fast: bool) -> list[Job]:
    """What is run at a size: the bundled network at 32 pixels, a ResNet-50 at 224.

    Args:
        folder: where the photographs are written.
        fast: whether there is a GPU, so that a round may have many images.
    """
    if side == 32:
        images, seconds = (2000, 3.0) if fast else (500, 1.5)
        first = Job("source", "bundled", "bundled", pictures.CORRUPTION, images, 100, seconds)
        return [replace(first, method=method) for method in METHODS]
    (folder / "0").mkdir()
    for number, file in enumerate(pictures.photographs()):
        (folder / "0" / f"{number:03}.jpg").write_bytes(file)
    # Batches of eight on a processor, where TTC takes seconds for one.
    images, size, seconds = (64, 32, 3.0) if fast else (24, 8, 3.0)
    first = Job(
        "source",
        "benchmarks.peers.model:resnet50",
        f"folder:{folder}",
        "clean",
        images,
        size,
        seconds,
    )
    return [replace(first, method=name) for name in ("source", "ttc", DEFAULT_METHOD)]


if __name__ == "__main__":
    main()
