"""How near the service is to its limit, and what it costs: `make bench`, under ten minutes.

    python -m benchmarks.bench [--rounds 5] [--size 32|224]... [--streams 1000] [--minutes 4]
        [--out docs]

The limit is a bare loop of the same arithmetic on the same arrays in plain PyTorch (`bare_loop`).
Beside it, on the same images: `ttc evaluate`, lockstep replay over HTTP, and single JPEG files from
64 connections in a closed loop (wrk). The four take turns, round after round, so that a ratio is of
one run on one machine. TENT and TTC are the paper's (`--paper`), the default is as it is served.
Then curves: the size of batches, the size of images, the number of streams; processor time and
memory of each method. On a GPU where torch sees one, else on the processor.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
import torch

from benchmarks import pictures
from benchmarks.bench import curves
from benchmarks.bench.costs import costs_table
from benchmarks.bench.curves import curve_table
from benchmarks.bench.drawing import draw
from benchmarks.bench.ratios import goals_table, jobs, ratios, ratios_table
from benchmarks.bench.work import Processes, Took
from benchmarks.processes import unwind_on_term
from benchmarks.telling import device_name

COST_IMAGES = 300
# A round of a ResNet-50 at 224 pixels takes a processor ten times as long as one of the bundled.
SHARES = {32: 0.3, 224: 0.7}


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="at most")
@click.option(
    *("--size", "sides"),
    type=click.Choice(["32", "224"]),
    multiple=True,
    help="of the images, in pixels [both]",
)
@click.option(
    *("--streams", "most_streams"),
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="the most of the curve, in powers of ten",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="of the ratios: rounds that do not fit are left out",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="docs")
def main(rounds: int, sides: tuple[str, ...], most_streams: int, minutes: float, out: Path) -> None:
    """Print ratios and curves as Markdown, and draw them."""
    unwind_on_term()
    began, fast = time.monotonic(), torch.cuda.is_available()

    def said(what: str) -> None:
        click.echo(f"{_minutes(began)}: {what}", err=True)

    by_side: dict[int, dict[str, dict[str, list[Took]]]] = {}
    asked = [int(side) for side in dict.fromkeys(sides or ("32", "224"))]
    with ExitStack() as stack:
        processes = Processes(stack)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for side in asked:
            by_side[side] = {}
            found = jobs(side, Path(folder), fast=fast)
            files = pictures.bundled(256) if side == 32 else pictures.photographs()
            share = SHARES[side] / sum(SHARES[each] for each in asked) / len(found)
            for job in found:
                by_side[side][job.method] = ratios(
                    job, files, rounds, processes, seconds=60 * minutes * share
                )
                said(f"{side} pixels, {job.method}")
            click.echo(f"\n{ratios_table(side, by_side[side])}")
        click.echo(f"\n{goals_table(by_side)}")
        by_batch = curves.batches(processes, min(rounds, 3))
        said("curve over batches")
        by_pixels = curves.sides(processes, 1)
        said("curve over image sizes")
    groups = {"images a batch": by_batch, "pixels a side": by_pixels}
    groups["streams, 64 clients"] = curves.streams(most_streams, min(rounds, 2), by_batch)
    said("curve over streams")
    for head, group in groups.items():
        click.echo(f"\n{curve_table(head, group)}")
    click.echo(f"\n{costs_table(COST_IMAGES)}")
    draw(out, by_side, groups)
    click.echo(
        f"\n{device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians "
        f"of interleaved rounds (least to most), {_minutes(began)} in all. Drawn: {out}/bench.svg."
    )


def _minutes(began: float) -> str:
    return f"{(time.monotonic() - began) / 60:.1f} minutes"


if __name__ == "__main__":
    main()
