"""How images a second change with batch, image size and number of streams, and what outgrows what.

A curve's time is held against its work, step by step: what an image costs does not grow with the
batch, grows as its pixels, and with the streams as batches become smaller, since 64 clients leave
64 images to be shared among them. A step above 1 is time that grew faster than its work.
"""

import itertools
import math
import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import pictures
from benchmarks.bench.ratios import CLIENTS
from benchmarks.bench.work import Processes, run_batches, run_sides
from benchmarks.closed_loop import Request, closed_loop
from benchmarks.cost import SERVED
from benchmarks.telling import method_name, spread
from service.client import Client
from service.launch import launch
from ttc_core.methods import DEFAULT_METHOD
from ttc_core.presets import Variant

BATCHES = (1, 4, 16, 64, 256)
SIDES = (32, 64, 128, 224)
SEED_STREAM = "grown"
GROWN = 128
"""Images after which a stream is asked about: the source answers its first ones, too."""
SECONDS = 2.0
"""Of each measurement of the clients, at least."""
MOST_SECONDS = 600.0
"""Of one, with asking about a thousand streams first."""


@dataclass(frozen=True)
class Curve:
    """Images a second at each place, of each round.

    Attributes:
        work: of an image at a place, in any unit; nothing where it is not known.
    """

    name: str
    rates: Mapping[int, Sequence[float]]
    work: Mapping[int, float]

    def growth(self) -> dict[int, float]:
        """By how much an image's time grew over its work since the place before; 1 is in step."""
        seconds = {place: 1 / statistics.median(rates) for place, rates in self.rates.items()}
        known = [place for place in seconds if place in self.work]
        return {
            place: seconds[place] / seconds[before] / (self.work[place] / self.work[before])
            for before, place in itertools.pairwise(known)
        }


def batches(processes: Processes, rounds: int) -> list[Curve]:
    """Over the size of batches, in a process, without the service."""
    return _in_rounds(processes, run_batches, rounds, dict.fromkeys(BATCHES, 1.0))


def sides(processes: Processes, rounds: int) -> list[Curve]:
    """Over the size of images, in batches of eight."""
    return _in_rounds(processes, run_sides, rounds, {side: float(side**2) for side in SIDES})


def _in_rounds(
    processes: Processes,
    run: Callable[[int, Sequence[int]], list[float]],
    rounds: int,
    work: Mapping[int, float],
) -> list[Curve]:
    """A curve for each of the served methods, round after round."""
    found: list[dict[int, list[float]]] = [defaultdict(list) for _ in SERVED]
    for _ in range(rounds):
        for number, rates in enumerate(found):
            measured = processes.evaluate.submit(run, number, list(work)).result()
            for place, rate in zip(work, measured, strict=True):
                rates[place].append(rate)
    return [
        Curve(method_name(variant), rates, work)
        for variant, rates in zip(SERVED, found, strict=True)
    ]


def streams(most: int, rounds: int, by_batch: Sequence[Curve]) -> list[Curve]:
    """Over the number of streams that 64 clients share, over HTTP.

    The source; the default on streams that have had GROWN images; and on new ones, where there are
    so many that each has sent a few images only.

    Args:
        by_batch: what `batches` found, which says what an image costs in smaller batches.
    """
    counts = [10**power for power in range(4) if 10**power <= most]
    costs = {curve.name: _cost(curve) for curve in by_batch}
    default, source = method_name(Variant(DEFAULT_METHOD)), method_name(Variant("source"))
    every = ("--adapt", "always", "--max-streams", "10000")
    with tempfile.TemporaryDirectory() as folder:
        grown = (*every, "--state-dir", folder, "--save-interval", "3600")
        _grow(Path(folder), counts[-1], grown)
        found = [
            (source, source, _streams(counts, rounds, ("--method", "source", *every))),
            (f"{default}, grown streams", default, _streams(counts, rounds, grown)),
        ]
    if new := [count for count in counts if count > CLIENTS]:
        rates = _streams(new, rounds, every, new=True)
        found.append((f"{default}, new streams", default, rates))
    return [
        Curve(name, rates, {count: costs[of](max(1.0, CLIENTS / count)) for count in rates})
        for name, of, rates in found
    ]


def _cost(curve: Curve) -> Callable[[float], float]:
    """Seconds an image by the size of its batch, as a curve over batches has it."""
    sizes = np.log(list(curve.rates))
    seconds = np.log([1 / statistics.median(rates) for rates in curve.rates.values()])
    return lambda size: math.exp(float(np.interp(math.log(size), sizes, seconds)))


def _grow(folder: Path, count: int, arguments: Sequence[str]) -> None:
    """Have one stream grow, and save as many with its state."""
    with launch(*arguments) as server, Client(server.url) as client:
        client.predict(pictures.bundled(GROWN), stream=SEED_STREAM)
    (saved,) = folder.glob(f"{SEED_STREAM}.*")
    for number in range(count):
        shutil.copy(saved, folder / f"{number}{saved.suffix}")


def _streams(
    counts: Sequence[int], rounds: int, arguments: Sequence[str], *, new: bool = False
) -> dict[int, list[float]]:
    """Images a second by the number of streams.

    Args:
        new: whether each round has streams that have sent nothing yet; else all have been asked
            about before anything is measured.
    """
    files = pictures.bundled(256)
    found: dict[int, list[float]] = defaultdict(list)
    with launch(*arguments) as server:
        for number in range(rounds):
            for count in counts:
                prefix = f"{number}-{count}-" if new else ""
                requests = [
                    Request(
                        f"/predict?stream={prefix}{each % count}",
                        "image/jpeg",
                        files[each % len(files)],
                    )
                    for each in range(max(count, len(files)))
                ]
                first = None if new or number else max(count, 2 * CLIENTS)
                measured = closed_loop(
                    server.url, requests, CLIENTS, SECONDS, warm=first, most=MOST_SECONDS
                )
                found[count].append(measured.rate)
    return found


def curve_table(head: str, curves: Sequence[Curve]) -> str:
    """Markdown: a line a curve, a column a place, and the step in which time outgrew its work."""
    places = list(dict.fromkeys(place for curve in curves for place in curve.rates))
    lines = [
        f"| {head} | {' | '.join(f'{each:,}' for each in places)} | time / work, largest step |",
        "|---" * (len(places) + 2) + "|",
    ]
    for curve in curves:
        cells = [spread(curve.rates.get(place, ())) for place in places]
        lines.append(f"| {' | '.join([curve.name, *cells, _largest(curve)])} |")
    return "\n".join(lines)


def _largest(curve: Curve) -> str:
    growth = curve.growth()
    if not growth:
        return ""
    place = max(growth, key=growth.__getitem__)
    return f"{growth[place]:.2f}, to {place:,}"
