"""How many cameras a machine carries, from what `make bench` printed of it.

    make bench > bench.txt                  # under ten minutes, on the machine in question
    python -m benchmarks.sizing bench.txt   # without a file: the machine of LOG.md

Read are the images a second of 1 to 1,000 streams that learn from every image, and the memory of
each method. Between them is interpolated, in logarithms of both. A curve that rises again with
more streams is noise, and taken as level. Knows neither torch nor the service.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

LOG = Path(__file__).parents[1] / "LOG.md"
STREAMS, COSTS = "streams, 64 clients", "batches of 100"
CAMERAS = (1, 10, 100, 1000)
"""Those that the first table has."""
RATES = (0.03, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Images a second of a camera that the second has: one in half a minute to ten a second."""
LOAD = 0.7
"""Of what was reached: at all of it the queue stands."""
STREAM_KIB = 28.0
"""Memory of a stream of the default on the bundled network, with its guard (LOG.md)."""


def tables(text: str, head: str) -> dict[str, list[str]]:
    """The cells of the first Markdown table whose first head is `head`: line → cells, heads first.

    Raises:
        click.UsageError: there is none.
    """
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == head or (found and line.startswith("|")):
            found[cells[0]] = cells[1:]
        elif found:
            return found
    if not found:
        raise click.UsageError(f"there is no table of {head!r} in it; make bench prints one")
    return found


def number(cell: str) -> float:
    """The median of a cell, as `make bench` writes it: 1.91e+03 (1.78e+03 to 1.96e+03)."""
    return float(cell.split(" ")[0].replace(",", ""))


def measured(text: str) -> dict[str, dict[int, float]]:
    """Images a second by the number of streams, of each method that has all of them."""
    heads, *lines = tables(text, STREAMS).items()
    places = [int(head.replace(",", "")) for head in heads[1] if head[0].isdigit()]
    return {
        name: {place: number(cell) for place, cell in zip(places, cells, strict=False)}
        for name, cells in lines
        if all(cells[: len(places)]) and not name.startswith("-")
    }


def reached(rates: Mapping[int, float], cameras: int) -> float:
    """Images a second of so many cameras together, none more than fewer cameras reach."""
    places = sorted(rates)
    level = [min(rates[each] for each in places[: number + 1]) for number in range(len(places))]
    after = bisect_right(places, cameras)
    if after in (0, len(places)):
        return level[max(after - 1, 0)]
    low, high = places[after - 1 : after + 1]
    way = math.log(cameras / low) / math.log(high / low)
    return level[after - 1] ** (1 - way) * level[after] ** way


def carried(rates: Mapping[int, float], each: float, load: float, most: int) -> int:
    """How many cameras that send `each` images a second find place, up to `most`."""
    fits = (n for n in range(most, 0, -1) if n * each <= load * reached(rates, n))
    return next(fits, 0)


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    first, *rest = (f"| {' | '.join(row)} |" for row in (heads, *lines))
    return "\n".join([first, "|---" * len(heads) + "|", *rest])


LOAD_OPTION = click.option(
    "--load",
    type=click.FloatRange(0, 1, min_open=True),
    default=LOAD,
    show_default=True,
    help="the part of what was reached that cameras may ask for",
)


@click.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=str(LOG)
)
@LOAD_OPTION
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(0, min_open=True),
    multiple=True,
    default=RATES,
    help="images a second of a camera; may be repeated",
)
@click.option(
    "--stream-kib",
    type=click.FloatRange(0),
    default=STREAM_KIB,
    show_default=True,
    help="memory of a stream; ttc doctor tells it of other networks (T207)",
)
def main(file: Path, load: float, rates: Sequence[float], stream_kib: float) -> None:
    """Say how many cameras the machine carries, of which `make bench` printed FILE."""
    text = file.read_text()
    found, costs = measured(text), tables(text, COSTS)
    peaks = {name: number(cells[1]) for name, cells in costs.items() if cells[1][0].isdigit()}
    lines, memory = [], []
    for name, by_streams in found.items():
        each = [load * reached(by_streams, n) / n for n in CAMERAS]
        lines.append([name, *(f"{rate:.3g}" for rate in each)])
        peak = peaks[name.split(", grown")[0]]
        kib = 0.0 if name == "SOURCE" else stream_kib
        memory.append([name, *(f"{peak + n * kib / 1024:,.0f}" for n in CAMERAS)])
    places = [f"{n:,}" for n in CAMERAS]
    click.echo(table(["images/s of each of so many cameras", *places], lines) + "\n")
    most = CAMERAS[-1]
    lines = []
    for name, by_streams in found.items():
        counts = [carried(by_streams, rate, load, most) for rate in rates]
        lines.append([name, *(f"{n:,}" + " or more" * (n == most) for n in counts)])
    heads = [f"{rate:g}" for rate in rates]
    click.echo(table(["cameras, by the images/s of each", *heads], lines) + "\n")
    click.echo(table(["memory, MiB, with so many streams", *places], memory))


if __name__ == "__main__":
    main()
