"""What a fleet of 1 to 100,000 cameras takes, and what its failures cost.

    python -m benchmarks.fleet [bench.txt] [--rate 1] [--machine-price 40] [--images-per-second X]

Machines are sized by what `make bench` printed (`benchmarks.sizing`; without a file the machine of
LOG.md), all else by the figures of benchmarks/fleet.toml, each with where it is from, of which
another file may be given. Failures are simulated (`benchmarks.failures`) with the recovery times
there. Prices are examples, to be replaced. Knows neither torch nor the service.
"""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks.failures import Outcome, Recovery, Ring, drawn, simulate
from benchmarks.sizing import COSTS, LOAD_OPTION, LOG, carried, measured, number, table, tables

FIGURES = Path(__file__).with_suffix(".toml")
METHOD = "the default, grown streams"
CAMERAS = (1, 10, 100, 1000, 10_000, 100_000)
MOST = 1000
"""Cameras of a machine: with more nobody has measured it."""
MONTH_HOURS = 730
PRICE, PRICED_ON = 40.0, "2026-11-29"
DAYS, SEED = 7.0, 0
REPLICAS_AN_HOUR, MACHINES_A_DAY = 1.0, 1.0
PART = 100
"""Machines that have as many failures, in the second table of them."""
WITHIN, RINGS = 0.999, 3
"""Of the images, those that have to fall on replicas with no more cameras than they carry; and over
how many rings that is looked at."""
MOST_FAILURES = 400
"""Fewer days are simulated in which there would be more."""


class Figure(NamedTuple):
    """One of the file."""

    value: float
    unit: str
    what: str
    source: str
    measured: bool


def figures(path: Path) -> dict[str, Figure]:
    """The figures of a file, by name.

    Raises:
        click.UsageError: one lacks something, or is no number.
    """
    try:
        return {
            name: Figure(*(one[key] for key in ("value", "unit", "what", "from", "measured")))
            for name, one in tomllib.loads(path.read_text()).items()
        }
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise click.UsageError(
            f"{path} has to have a table a figure, each with value, unit, what, from and "
            f"measured, as benchmarks/fleet.toml: {error}."
        ) from error


@dataclass(frozen=True)
class Machine:
    """What a machine does and costs.

    Attributes:
        rates: images a second by the number of cameras, as measured of one process.
        share: of that, what a replica and its door do where there are several.
        door: images a second that go through its door.
        gpus: in it.
        mib: memory of the process without streams, where it is alone.
        shared_bytes: memory of all processes that it takes where there are several.
        price: a month.
    """

    rates: Mapping[int, float]
    share: float
    door: float
    gpus: int
    mib: float
    shared_bytes: float
    price: float

    def carries(self, rate: float, load: float, *, alone: bool) -> int:
        """How many cameras of so many images a second, at a part of what was measured."""
        return carried(self.rates, rate, load * (1 if alone else self.share), MOST)


class Size(NamedTuple):
    """A fleet without failures; seconds, bytes, and money of a month.

    `clusters` are as large as one another, and know nothing of each other; the rest is of all.
    """

    cameras: int
    images: float
    clusters: int
    machines: int
    fullest: int
    gpus: int
    memory_bytes: float
    received_bytes: float
    between_bytes: float
    written_bytes: float
    kept_bytes: float
    price: float


def sized(
    cameras: int, rate: float, machine: Machine, load: float, found: Mapping[str, Figure]
) -> Size | None:
    """Size a fleet; None where a machine does not carry a single camera, or hardly one.

    It is of so few clusters that none has more machines than one may; cameras are dealt to them by
    hand, evenly.
    """
    value = {name: figure.value for name, figure in found.items()}
    clusters, of_one, machines, fullest = 1, cameras, 1, cameras
    if cameras > machine.carries(rate, load, alone=True):
        usual, most = (machine.carries(rate, each, alone=False) for each in (load, 1.0))
        usual = min(usual, int(load * machine.door / rate))
        if usual == 0:
            return None
        largest = int(value["cluster_machines"])
        clusters = math.ceil(cameras / (usual * largest))
        while True:
            of_one = math.ceil(cameras / clusters)
            machines = max(2, math.ceil(of_one / usual))
            dealt = _dealt(of_one, machines, largest, most, int(value["virtual_nodes"]))
            if dealt is not None:
                break
            if clusters * largest > 10 * cameras:
                return None  # each would have to have a camera of its own, and no ring deals so
            clusters = max(clusters + 1, clusters * 21 // 20)
        machines, fullest = dealt
    memory = machine.mib * 2**20 if machines == 1 else machines * machine.shared_bytes
    received = cameras * rate * value["image_bytes"]
    passed_on = (1 - 1 / machines) * cameras * rate
    return Size(
        cameras=cameras,
        images=cameras * rate,
        clusters=clusters,
        machines=clusters * machines,
        fullest=fullest,
        gpus=clusters * machines * machine.gpus,
        memory_bytes=clusters * memory + cameras * value["stream_bytes"],
        received_bytes=received,
        between_bytes=passed_on * (value["image_bytes"] + value["answer_bytes"]),
        written_bytes=cameras
        * value["state_bytes"]
        * min(rate, 1 / value["save_interval_seconds"]),
        kept_bytes=cameras * value["state_bytes"],
        price=clusters * machines * machine.price,
    )


def _dealt(
    cameras: int, machines: int, largest: int, most: int, places: int
) -> tuple[int, int] | None:
    """How many machines a cluster has, and how many cameras its fullest; None: it would be too
    large.

    So many that of all cameras, as the ring deals them, at least WITHIN are on one that has no more
    than it carries at all.

    Args:
        machines: that it has at least; most: cameras that one carries at all.
    """
    while machines <= largest:
        dealt = [Ring(cameras, machines, places, seed).counts() for seed in range(RINGS)]
        beyond = sum(int(counts[counts > most].sum()) for counts in dealt)
        if beyond <= (1 - WITHIN) * cameras * RINGS:
            return machines, max(int(counts.max()) for counts in dealt)
        machines = max(machines + 1, machines * 21 // 20)
    return None


class Failing(NamedTuple):
    """A fleet that fails for some days: how many spare machines it needs, what comes of it then."""

    days: float
    spare: int
    outcome: Outcome


def failing(
    size: Size,
    rate: float,
    most: int,
    recovery: Recovery,
    *,
    replicas_an_hour: float,
    machines_a_day: float,
    places: int,
    days: float = DAYS,
    seed: int = SEED,
) -> Failing:
    """Add spare machines until of the images at least WITHIN fall on replicas that carry them.

    Clusters fail apart: one is simulated for all their days.
    """
    days = min(days, MOST_FAILURES / max(24 * replicas_an_hour + machines_a_day, 1e-9))
    clusters, machines, of_one = size.clusters, size.machines // size.clusters, days * size.clusters
    failures = drawn(replicas_an_hour / clusters, machines_a_day / clusters, of_one, seed)
    spare, outcome = 0, None
    while outcome is None or outcome.overloaded > (1 - WITHIN) * outcome.images:
        spare += 0 if outcome is None else max(1, machines // 50)
        outcome = simulate(
            math.ceil(size.cameras / clusters),
            rate,
            machines + spare,
            failures,
            recovery,
            days=of_one,
            most=most,
            places=places,
            seed=seed,
        )
    return Failing(days, clusters * spare, outcome)


def in_units(value: float, units: Sequence[str], step: float = 1000.0) -> str:
    """Three digits, in the largest unit of which there is one: 1.5 GB."""
    place = 0
    while value >= step and place < len(units) - 1:
        value, place = value / step, place + 1
    return f"{value:.3g} {units[place]}"


BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
BITS = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s")


def sizes_table(sizes: Sequence[Size]) -> str:
    heads = (
        *("cameras", "images/s", "clusters", "machines", "cameras of the fullest", "GPUs"),
        "memory",
        *("images come in", "passed on between machines", "state written", "state kept"),
        *("cost a month", "cost a camera and month"),
    )
    lines = [
        [
            f"{each.cameras:,}",
            f"{each.images:,.6g}",
            f"{each.clusters:,}",
            f"{each.machines:,}",
            f"{each.fullest:,}",
            f"{each.gpus:,}",
            in_units(each.memory_bytes, BYTES),
            in_units(8 * each.received_bytes, BITS),
            in_units(8 * each.between_bytes, BITS),
            f"{in_units(each.written_bytes, BYTES)}/s",
            in_units(each.kept_bytes, BYTES),
            f"{each.price:,.0f}",
            f"{each.price / each.cameras:,.2f}",
        ]
        for each in sizes
    ]
    return table(heads, lines)


def failures_table(sizes: Sequence[Size], fail: Callable[[Size], Failing]) -> str:
    heads = (
        *("cameras", "machines", "spare", "failures a day", "most down at a time", "delayed"),
        *("given up", "beyond what was measured", "learned and lost a day", "worst outage, s"),
    )
    lines = []
    for size in sizes:
        days, spare, what = fail(size)
        shares = (what.delayed, what.given_up, what.overloaded)
        lines.append(
            [
                f"{size.cameras:,}",
                f"{size.machines:,}",
                f"{spare:,}",
                f"{what.failures / days:,.3g}",
                f"{what.most_down:,}",
                *(_percent(each / what.images) for each in shares),
                f"{what.forgotten / days:,.0f}",
                f"{what.worst_seconds:,.0f}",
            ]
        )
    return table(heads, lines)


def _percent(share: float) -> str:
    """Two digits; what is one image in a hundred thousand or less is told as that."""
    return "< 0.001 %" if 0 < share < 1e-5 else f"{100 * share:.2g} %"


@click.command()
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=str(LOG)
)
@click.option(
    "--figures",
    "figures_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=str(FIGURES),
    help="all else that was measured [benchmarks/fleet.toml]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="images a second of a camera",
)
@LOAD_OPTION
@click.option(
    "--images-per-second",
    type=click.FloatRange(0, min_open=True),
    help="of another machine, as measured with as many cameras as it is to carry",
)
@click.option(
    "--gpus", type=click.IntRange(0), default=0, show_default=True, help="in such a machine"
)
@click.option(
    "--machine-price",
    type=click.FloatRange(0),
    default=PRICE,
    show_default=True,
    help="a month; an example, to be replaced",
)
@click.option("--replicas-an-hour", type=click.FloatRange(0), default=REPLICAS_AN_HOUR)
@click.option("--machines-a-day", type=click.FloatRange(0), default=MACHINES_A_DAY)
@click.option(
    "--part",
    type=click.IntRange(1),
    default=PART,
    show_default=True,
    help="machines with as many failures, in the second table of them",
)
@click.option("--days", type=click.FloatRange(0, min_open=True), default=DAYS, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=SEED, show_default=True)
def main(
    file: Path,
    figures_path: Path,
    rate: float,
    load: float,
    images_per_second: float | None,
    gpus: int,
    machine_price: float,
    replicas_an_hour: float,
    machines_a_day: float,
    part: int,
    days: float,
    seed: int,
) -> None:
    """Size fleets of the machine of which `make bench` printed FILE, and let them fail."""
    found, text = figures(figures_path), file.read_text()
    peak = number(tables(text, COSTS)[METHOD.split(", ")[0]][1])
    rates = measured(text)[METHOD]
    if images_per_second is not None:
        rates = dict.fromkeys(rates, images_per_second)
    value = {name: figure.value for name, figure in found.items()}
    machine = Machine(
        rates,
        value["replica_share"],
        value["door_images_per_second"],
        gpus,
        peak,
        value["machine_bytes"],
        machine_price,
    )
    asked = [(cameras, sized(cameras, rate, machine, load, found)) for cameras in CAMERAS]
    sizes = [size for _, size in asked if size is not None]
    if not sizes:
        raise click.ClickException("a machine does not carry a single camera of so many images")
    click.echo(table(("figure", "value", "what", "from"), _told(found)) + "\n")
    click.echo(sizes_table(sizes) + "\n")
    recovery = _recovery(found)

    def fail(size: Size, *, scale: float) -> Failing:
        return failing(
            size,
            rate,
            machine.carries(rate, 1.0, alone=size.machines == 1),
            recovery,
            replicas_an_hour=scale * replicas_an_hour,
            machines_a_day=scale * machines_a_day,
            places=int(found["virtual_nodes"].value),
            days=days,
            seed=seed,
        )

    click.echo(failures_table(sizes, lambda size: fail(size, scale=1.0)) + "\n")
    click.echo(failures_table(sizes, lambda size: fail(size, scale=size.machines / part)))


def _told(found: Mapping[str, Figure]) -> list[list[str]]:
    return [
        [
            f"`{name}`",
            f"{figure.value:,g} {figure.unit}".strip(),
            figure.what,
            figure.source if figure.measured else f"**not measured**: {figure.source}",
        ]
        for name, figure in found.items()
    ]


def _recovery(found: Mapping[str, Figure]) -> Recovery:
    value = {name: figure.value for name, figure in found.items()}
    return Recovery(
        takeover=value["takeover_seconds"],
        machine_takeover=value["machine_takeover_seconds"],
        start=value["start_seconds"],
        machine=value["machine_seconds"],
        move=value["move_seconds"],
        load=value["load_seconds"],
        save_interval=value["save_interval_seconds"],
        retry=value["retry_seconds"],
    )


if __name__ == "__main__":
    main()
