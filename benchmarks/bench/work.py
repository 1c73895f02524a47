"""What runs in processes of their own, on this side of the service: loops over arrays."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from benchmarks import pictures
from benchmarks.bare_loop import bare
from benchmarks.clock import timed
from benchmarks.cost import SERVED
from benchmarks.passes import Passes, recorded
from service.cli.options import keep_freed_memory
from ttc_core.datasets import Stream, open_data
from ttc_core.evaluate import as_batch, run_stream, warm_up
from ttc_core.load import load, pick_device
from ttc_core.methods import DEFAULT_METHOD, Method
from ttc_core.model import SourceModel
from ttc_core.presets import Variant


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


class Processes:
    """A process that runs bare loops, and one that evaluates; each keeps what it has loaded."""

    def __init__(self, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self.bare, self.evaluate = (
            stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(2)
        )


@cache
def _model(spec: str) -> SourceModel:
    keep_freed_memory()
    return load(spec, device=pick_device("auto"))


@cache
def _stream(data: str, corruption: str, images: int, spec: str) -> Stream:
    model = _model(spec)
    geometry = model.geometry
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


def run_bare(job: Job) -> Took:
    """The method typed in whole, on arrays."""
    model, batches = _model(job.spec), _batches(job)
    made = _made(job) if job.method == DEFAULT_METHOD else ()
    answer = bare(job.method, model, job.size, made)
    answer(batches[0].to(model.device)).cpu()
    with timed() as seconds:
        for batch in batches:
            answer(batch.to(model.device)).cpu()
    return _took(job.images, seconds.wall, seconds.processor)


def run_evaluate(job: Job) -> Took:
    """As `ttc evaluate`: seconds are those it states, processor time is with reading the images."""
    method = _method(job)
    stream = _stream(job.data, job.corruption, job.images, job.spec)
    warm_up(method, images=job.size)
    with timed() as seconds:
        tally = run_stream(method, stream, job.size)
    return _took(tally.images, tally.seconds, seconds.processor)


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
    with timed() as seconds:
        for batch in batches:
            prediction = method.predict(batch)
            prediction.to_host()
            method.adapt(prediction)
    return sum(map(len, batches)) / seconds.wall
