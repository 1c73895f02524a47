"""Faulty frames: how often an ordinary one is called so, and how many are seen.

    python -m benchmarks.camera_faults [--images 2000]

At 32 and 224 pixels; of 224 a tenth of the images. Ordinary are films, still scenes with sensor
noise, nights, the bundled images and photographs under every corruption, images dealt anew once all
have come, pictures with white or black in them, drawings. Then pictures and static of a size of
their own, brought to the model's as the service does it. Needs the data beside the checkout and,
for films, benchmarks/requirements.txt; what is not there is left out and said. The last lines have
the time it takes.
"""

import contextlib
import io
import time
import timeit
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from benchmarks import cifar10_stream, clips
from ttc_core.corruptions import CORRUPTIONS, corrupt
from ttc_core.datasets import Geometry, open_data
from ttc_core.datasets.conditions import Shapes
from ttc_core.evaluate import as_batch
from ttc_core.frames import Frames
from ttc_core.grain import fitted, grain_of
from ttc_core.load import load

Images = NDArray[np.uint8]
Pictures = Iterable[Image.Image]
Random = np.random.Generator
SIZES = (32, 224)
MOST_PIXELS = 10_000_000
SENT = ((48, 48), (64, 64), (224, 224), (640, 480), (1920, 1080))
FILMS = ("bikes", "carphone_pristine", "bigbuckbunny")
PHOTOGRAPHS = cifar10_stream.FOLDER.parent / "imagenetc" / "images.zip"
GREEN = (0, 135, 0)  # what a decoder makes of zeros for YUV
SCENES = 10
DEALT = ("one:6", "limited:2", "runs:50", "camera-trap")
# Between 0 and 1, of places across and down in periods.
Places = NDArray[np.floating]
TEXTURES: dict[str, Callable[[Places, Places], Places]] = {
    "waves": lambda across, down: (1 + np.sin(2 * np.pi * across)) / 2,
    "stripes": lambda across, down: np.floor(2 * across) % 2,
    "weaves": lambda across, down: np.floor(2 * across + np.floor(2 * down)) % 2,
    "meshes": lambda across, down: np.maximum(across % 1 < 0.33, down % 1 < 0.33) * 1.0,
    "halftones": lambda across, down: (np.hypot(across % 1 - 0.5, down % 1 - 0.5) < 0.33) * 1.0,
}
# Of pictures that come again so many later, after the others have.
TURNS = {f"{turns} by turns": turns for turns in (2, 4, 8, 16)}


def photographs(size: int, count: int) -> Images:
    """(N, size, size, 3): CIFAR-10's, else ImageNet's."""
    if size == 32:
        return cifar10_stream.read("test")[0][:count]
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:count]
        images = [Image.open(archive.open(name)).convert("RGB") for name in names]
    return np.stack([np.asarray(image.resize((size, size))) for image in images])


def compressed(images: Images, quality: int) -> Images:
    """Each through JPEG."""

    def one(image: Images) -> Images:
        body = io.BytesIO()
        Image.fromarray(image).save(body, "JPEG", quality=quality)
        return np.asarray(Image.open(body))

    return np.stack([one(image) for image in images])


def resized(images: Images, width: int, height: int) -> Images:
    box = (width, height), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize(*box)) for image in images])


def levels(values: NDArray[np.floating]) -> Images:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noisy(images: NDArray[np.generic], deviation: object, draw: Random) -> Images:
    return levels(images + draw.standard_normal(images.shape, np.float32) * np.float32(deviation))


def ordinary(size: int, count: int) -> Iterator[tuple[str, Callable[[], Images]]]:
    """Streams of pictures none of which is faulty."""
    draw = np.random.default_rng(size)
    some = min(count, 400)
    for film in FILMS:
        yield f"film {film}", lambda film=film: clips.read_frames(film, Geometry(size))
    bundled = bundled_images(count) if size == 32 else None
    kinds = {"bundled": bundled} if bundled is not None else {}
    try:
        photos = kinds["photographs"] = photographs(size, count)
    except OSError as missing:
        Console().print(f"left out: photographs of {size} pixels ({missing})")
        photos = bundled if bundled is not None else drawings(size, count)
    for name, images in kinds.items():
        for corruption in ("clean", *CORRUPTIONS):
            yield f"{name}, {corruption}", lambda i=images, c=corruption: corrupt(i, c, 5)
    for order in DEALT if size == 32 else ():
        yield f"bundled, {order}", lambda order=order: bundled_images(count, order)
    # Not CIFAR's: they are JPEG files, and what is compressed anew loses its noise.
    larger = photographs(224, SCENES) if PHOTOGRAPHS.exists() else photos
    scenes = resized(larger, size, size)[np.arange(some) * SCENES // some]
    for deviation in (1, 2, 4):
        yield (
            f"still, noise {deviation}",
            lambda deviation=deviation: noisy(scenes, deviation, draw),
        )
    for quality in (75, 95):
        yield (
            f"still, noise 1, then JPEG {quality}",
            lambda quality=quality: compressed(noisy(scenes, 1, draw), quality),
        )
    large = resized(scenes[: some // 2], 640, 480)
    yield "still, noise 1 at 640 × 480", lambda: resized(noisy(large, 1, draw), size, size)
    yield (
        "still, the same, JPEG 75",
        lambda: resized(compressed(noisy(large, 1, draw), 75), size, size),
    )
    yield (
        "still, noise 1 at 640 × 480, with a clock",
        lambda: resized(clocked(noisy(large, 1, draw)), size, size),
    )
    yield "a small thing moves, all else is the same", lambda: spotted(photos[: some // 2])
    yield (
        "night at 640 × 480, with a clock",
        lambda: resized(clocked(nights(large, 1.0, draw)), size, size),
    )
    for name, images in kinds.items():
        for gamma in (1.0, 2.2):
            yield f"night, {name}, gamma {gamma:g}", lambda i=images, g=gamma: nights(i, g, draw)
    yield "overexposed twofold", lambda: levels(photos * 2.0)
    yield "upper half white", lambda: banded(photos, 255, (slice(size // 2),))
    yield "lower half white", lambda: banded(photos, 255, (slice(size // 2, None),))
    for colour in (0, 114, 255):
        yield f"bars of level {colour}", lambda colour=colour: bars(photos, colour)
    yield "black bars, then JPEG 75", lambda: compressed(bars(photos, 0), 75)
    yield "on white paper", lambda: cut_out(photos)
    yield "drawn shapes", lambda: drawings(size, count)


def bundled_images(count: int, order: str = "file") -> Images:
    stream = open_data("bundled", Geometry(32)).open("clean", 5, order=order, limit=count)
    return np.concatenate([images for images, _ in stream.batches(500)])


def nights(images: Images, gamma: float, draw: Random) -> Images:
    """2 to 10 % of the light, noise of 1 to 4 levels."""
    shape = len(images), 1, 1, 1
    light, deviation = draw.uniform(0.02, 0.1, shape), draw.uniform(1, 4, shape)
    return noisy(255 * (images / 255 * light) ** (1 / gamma), deviation, draw)


def banded(images: Images, colour: object, bands: tuple[slice, ...]) -> Images:
    images = images.copy()
    for band in bands:
        images[:, band] = colour
    return images


def bars(images: Images, colour: int) -> Images:
    """Bars above and below, a sixth each, and the picture between them."""
    size = images.shape[1]
    height = size // 6
    between = resized(images, size, size - 2 * height)
    framed = np.full_like(images, colour)
    framed[:, height : size - height] = between
    return framed


def cut_out(images: Images) -> Images:
    """An ellipse of each on white."""
    y, x = np.mgrid[-1 : 1 : images.shape[1] * 1j, -1 : 1 : images.shape[2] * 1j]
    inside = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1)[..., None]
    return np.where(inside, images, np.uint8(255))


def clocked(images: Images, quality: int = 75) -> Images:
    """Each with the time burned in at the upper edge, a second on, and sent as JPEG."""
    images, font = images.copy(), ImageFont.load_default(images.shape[1] // 16)
    for second, image in enumerate(images):
        picture = Image.fromarray(image)
        text = f"2026-11-29  10:{second // 60 % 60:02}:{second % 60:02}  CAM 3"
        ImageDraw.Draw(picture).text((12, 8), text, "white", font)
        image[:] = np.asarray(picture)
    return compressed(images, quality)


def spotted(images: Images) -> Images:
    """Ten of each, to the last bit, across the middle of which a spot moves."""
    size, images = images.shape[1], np.repeat(images, 10, axis=0)
    middle, side = size // 2, size // 28 + 1
    for number, image in enumerate(images):
        left = number % 10 * size // 10
        image[middle : middle + side, left : left + side] ^= 128
    return images


def drawings(size: int, count: int) -> Images:
    return Shapes(size, size, 0).shift("clean", 5, 0).read(np.arange(count))


def faulty(size: int, count: int) -> Iterator[tuple[str, str, Callable[[], Images]]]:
    """Kind, what it is, and a stream of such frames; of frozen ones each second, or by TURNS."""
    draw = np.random.default_rng(size)
    try:
        photos = photographs(size, count)
    except OSError:
        photos = drawings(size, count)
    shape = photos.shape
    for colour in ((128, 128, 128), GREEN, (255, 0, 0), (255, 255, 0)):
        for noise in (0, 1, 2):
            yield (
                "blank",
                f"{colour}, noise {noise}",
                lambda noise=noise, colour=colour: noisy(
                    np.full(shape, colour, np.float64), noise, draw
                ),
            )
    for kind, level in (("black", 0.0), ("white", 255.0)):
        for noise in (0, 1, 2, 4, 8):
            yield (
                kind,
                f"noise {noise}",
                lambda noise=noise, level=level: noisy(np.full(shape, level), noise, draw),
            )
        for noise in (1, 2, 4):
            yield (
                kind,
                f"noise {noise}, then JPEG 75",
                lambda noise=noise, level=level: compressed(
                    noisy(np.full(shape, level), noise, draw), 75
                ),
            )
    for name, colour in {"grey": 128, "black": 0, "white": 255, "green": GREEN}.items():
        for part in (8, 4, 2):
            yield (
                "torn",
                f"1/{part} of the rows {name}",
                lambda part=part, colour=colour: torn(photos, 1 / part, colour, draw),
            )
    yield "torn", "the lower half black", lambda: banded(photos, 0, (slice(size // 2, None),))
    for part in (8, 4, 2):
        yield (
            "torn",
            f"1/{part} of the rows repeated",
            lambda part=part: torn(photos, 1 / part, None, draw),
        )
    yield "torn", "1/4 grey, then JPEG 75", lambda: compressed(torn(photos, 0.25, 128, draw), 75)
    yield (
        "torn",
        "1/4 repeated, then JPEG 75",
        lambda: compressed(torn(photos, 0.25, None, draw), 75),
    )
    large = resized(photos[:200], 640, 480)
    for noise in (0, 1, 2):
        yield (
            "black",
            f"noise {noise} at 640 × 480, with a clock, JPEG 75",
            lambda noise=noise: resized(
                clocked(noisy(np.zeros_like(large[:50]), noise, draw)), size, size
            ),
        )
    for name, fill in {"grey": 128, "repeated": None}.items():
        yield (
            "torn",
            f"1/4 {name}, then made smaller",
            lambda fill=fill: resized(torn(large, 0.25, fill, draw), size, size),
        )
    noises: dict[str, Callable[[], Images]] = {
        "uniform": lambda: draw.integers(0, 256, shape, np.uint8),
        "uniform, grey": lambda: in_grey(draw.integers(0, 256, shape, np.uint8)),
        **{
            f"Gaussian {deviation}": lambda deviation=deviation: noisy(
                np.full(shape, 128.0), deviation, draw
            )
            for deviation in (20, 40, 80)
        },
        "Gaussian 40, grey": lambda: in_grey(noisy(np.full(shape, 128.0), 40, draw)),
    }
    for name, make in noises.items():
        yield "noise", name, make
        yield "noise", f"{name}, then JPEG 75", lambda make=make: compressed(make(), 75)
    yield (
        "noise",
        "uniform at 640 × 480, made smaller",
        lambda: resized(draw.integers(0, 256, (50, 480, 640, 3), np.uint8), size, size),
    )
    yield "frozen", "to the last bit", lambda: by_turns(photos, 1)
    for name, turns in TURNS.items():
        yield "frozen", name, lambda turns=turns: by_turns(photos, turns)
    for quality in (75, 85, 95):
        yield "frozen", f"JPEG {quality} twice", lambda q=quality: again(photos, q)
    for quality in (75, 95):
        yield (
            "frozen",
            f"JPEG {quality} twice at 640 × 480",
            lambda q=quality: resized(again(large, q), size, size),
        )
    yield (
        "frozen",
        "but for its clock, at 640 × 480, JPEG 75",
        lambda: resized(clocked(paired(large, large)), size, size),
    )
    yield (
        "frozen",
        "JPEG 95, then 90",
        lambda: paired(once := compressed(photos, 95), compressed(once, 90)),
    )


def in_grey(images: Images) -> Images:
    return np.repeat(images[..., :1], 3, axis=3)


def torn(images: Images, share: float, colour: object, draw: Random) -> Images:
    """Rows filled with a colour, or with the row above (None), at a place of each image's own."""
    images, height = images.copy(), images.shape[1]
    rows = round(share * height)
    for image in images:
        start = int(draw.integers(1, height - rows + 1))
        image[start : start + rows] = image[start - 1] if colour is None else colour
    return images


def paired(first: Images, second: Images) -> Images:
    """First, second, first, second, …"""
    return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def by_turns(images: Images, turns: int) -> Images:
    """So many, and they again; then the next so many."""
    parts = np.split(images[: len(images) // turns * turns], len(images) // turns)
    return np.concatenate([each for part in parts for each in (part, part)])


def again(images: Images, quality: int) -> Images:
    """Each as JPEG, and that as JPEG of the same quality."""
    return paired(once := compressed(images, quality), compressed(once, quality))


def ordinary_as_sent(count: int) -> Iterator[tuple[str, Callable[[], Pictures]]]:
    """Streams of pictures of the size at which they come, none of which is faulty."""
    some = max(20, count // 10)
    for film in FILMS:
        yield f"film {film}", lambda film=film: clips.read_pictures(film)
    for name in TEXTURES:
        for quality in (None, 75):
            yield (
                f"480 × 480, {name}" + (f", JPEG {quality}" if quality else ""),
                lambda name=name, quality=quality: textures(name, some, quality),
            )
    kinds = {"bundled, 32": bundled_images(count)}
    with contextlib.suppress(OSError):
        kinds["CIFAR-10, 32"] = photographs(32, count)
    for name, images in kinds.items():
        for corruption in ("clean", *CORRUPTIONS):
            yield f"{name}, {corruption}", lambda i=images, c=corruption: pictures(corrupt(i, c, 5))
    try:
        photos = photographs(224, count)
    except OSError:
        return
    yield "photographs, 224", lambda: pictures(photos)
    for corruption in CORRUPTIONS:
        yield (
            f"photographs, 224, {corruption}",
            lambda c=corruption: pictures(corrupt(photos[:some], c, 5)),
        )
    draw = np.random.default_rng(0)
    scenes = resized(photos[np.arange(some) * SCENES // some], 640, 480)
    for deviation in (1, 4, 10):
        yield (
            f"still, 640 × 480, noise {deviation}",
            lambda deviation=deviation: pictures(noisy(scenes, deviation, draw)),
        )
    for gamma in (1.0, 2.2):
        for name, images in {"224": photos, "640 × 480": scenes}.items():
            yield (
                f"night, {name}, gamma {gamma:g}",
                lambda i=images, g=gamma: pictures(nights(i, g, draw)),
            )


def textures(name: str, count: int, quality: int | None, side: int = 480) -> Pictures:
    """Textiles and prints that fill a picture, each of two colours, a period and a turn."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for _ in range(count):
        period, angle = draw.uniform(3, 12), draw.uniform(0, np.pi)
        across = (x * np.cos(angle) + y * np.sin(angle)) / period + draw.uniform()
        down = (y * np.cos(angle) - x * np.sin(angle)) / period + draw.uniform()
        pattern = TEXTURES[name](across, down)[..., None]
        first, second = draw.uniform(20, 110, 3), draw.uniform(145, 235, 3)
        image = noisy(first + pattern * (second - first), 4, draw)[None]
        yield Image.fromarray((compressed(image, quality) if quality else image)[0])


def static_as_sent(count: int) -> Iterator[tuple[str, Callable[[], Pictures]]]:
    """Noise and nothing else, of several sizes; each as PNG and through JPEG; fewer large ones."""
    draw = np.random.default_rng(0)
    for width, height in SENT:
        number = min(count, MOST_PIXELS // (width * height))
        shape = 1, height, width, 3
        made: dict[str, Callable[[], Images]] = {
            "uniform": lambda shape=shape: draw.integers(0, 256, shape, np.uint8),
            **{
                f"Gaussian {deviation}": lambda shape=shape, deviation=deviation: noisy(
                    np.full(shape, 128, np.float32), deviation, draw
                )
                for deviation in (20, 40)
            },
        }
        made |= {f"{name}, grey": lambda make=make: in_grey(make()) for name, make in made.items()}
        made["uniform, each pixel twice a side"] = lambda w=width, h=height: resized(
            draw.integers(0, 256, (1, h // 2, w // 2, 3), np.uint8), w, h
        )
        for name, make in made.items():
            for quality in (None, 75, 90):
                yield (
                    f"{width} × {height}, {name}" + (f", JPEG {quality}" if quality else ""),
                    lambda make=make, quality=quality, number=number: (
                        Image.fromarray((compressed(make(), quality) if quality else make())[0])
                        for _ in range(number)
                    ),
                )


def pictures(images: Images) -> Pictures:
    return map(Image.fromarray, images)


def seen(images: Images) -> list[str | None]:
    """What is said of a stream, in batches of 50."""
    frames, kinds = Frames(), []
    for part in np.array_split(images, -(-len(images) // 50)):
        look = frames.look(as_batch(part))
        frames.commit(look)
        kinds += look.kinds
    return kinds


def seen_as_sent(images: Pictures, size: int) -> list[str | None]:
    """What is said of a stream of pictures that the service brings to the model's size."""
    frames, kinds = Frames(), []
    for image in images:
        pixels, grain = fitted(image, size, None)
        look = frames.look(as_batch([pixels]), [grain])
        frames.commit(look)
        kinds += look.kinds
    return kinds


def false_alarms(counts: dict[int, int]) -> Table:
    """What is called a fault, per 1,000 ordinary images."""
    table = Table("ordinary", *(part for size in SIZES for part in (f"{size} px", "per 1,000")))
    table.title = "False alarms"
    rows: dict[str, dict[int, tuple[str, str]]] = {}
    for size in SIZES:
        for name, make in ordinary(size, counts[size]):
            try:
                kinds = seen(make())
            except ModuleNotFoundError as missing:
                Console().print(f"left out: {name} ({missing})")
                continue
            found = Counter(kind for kind in kinds if kind)
            told = ", ".join(f"{kind} {number}" for kind, number in found.items())
            rate = f"{1000 * found.total() / len(kinds):.1f}" + (f" ({told})" if told else "")
            rows.setdefault(name, {})[size] = f"{len(kinds):,}", rate
    for name, cells in rows.items():
        table.add_row(name, *(part for size in SIZES for part in cells.get(size, ("", ""))))
    return table


def missed(counts: dict[int, int]) -> Table:
    """Which share of simulated faults is seen."""
    table = Table("fault", "made by", *(f"seen at {size} px, %" for size in SIZES))
    table.title = "Faults seen; in brackets: as another kind"
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for size in SIZES:
        for kind, name, make in faulty(size, counts[size]):
            kinds = seen(make())
            if kind == "frozen":
                turns = TURNS.get(name, 1)
                kinds = [each for place, each in enumerate(kinds) if place // turns % 2]
            share = 100 * np.mean([each is not None for each in kinds])
            other = 100 * np.mean([each not in (None, kind) for each in kinds])
            cell = f"{share:.1f}" + (f" ({other:.1f})" if other else "")
            rows.setdefault((kind, name), {})[size] = cell
    for (kind, name), cells in rows.items():
        table.add_row(kind, name, *(cells.get(size, "") for size in SIZES))
    return table


def at_other_sizes(count: int) -> Iterator[Table]:
    """What is said of pictures that come in a size of their own."""
    streams = {
        "As sent: called faulty, per 1,000": (ordinary_as_sent(count), 1000),
        "Static as sent: seen, % (in brackets: as another kind)": (static_as_sent(20), 100),
    }
    for title, (each, scale) in streams.items():
        table = Table("pictures", "number", *(f"model of {size} px" for size in SIZES))
        table.title = title
        for name, make in each:
            cells, number = [], 0
            for size in SIZES:
                kinds = seen_as_sent(make(), size)
                found = Counter(kind for kind in kinds if kind)
                usual = {"noise"} if scale == 100 else set()
                told = ", ".join(f"{kind} {n}" for kind, n in found.items() if kind not in usual)
                rate = f"{scale * found.total() / len(kinds):.1f}"
                cells.append(rate + (f" ({told})" if told else ""))
                number = len(kinds)
            table.add_row(name, f"{number:,}", *cells)
        yield table


def cost_as_sent() -> Iterator[str]:
    """Of looking at a picture before its size changes, beside decoding and resizing it."""
    for width, height in ((32, 32), *SENT):
        image = Image.fromarray(resized(bundled_images(1), width, height)[0])
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        times = {
            "looked at": lambda image=image: grain_of(image),
            "decoded": lambda file=file: Image.open(file).load(),
            "resized to 32": lambda image=image: image.resize((32, 32), Image.Resampling.BILINEAR),
        }
        told = (
            f"{name} {1e6 * min(timeit.repeat(do, number=20, repeat=9)) / 20:.0f}"
            for name, do in times.items()
        )
        yield f"{width} × {height}, µs an image: {', '.join(told)}"


def cost(size: int, count: int, batch: int) -> str:
    """Of a look at the bundled images, beside a forward pass of the bundled network."""
    images = resized(bundled_images(count), size, size)
    batches = as_batch(images).split(batch)
    model, frames = load("bundled"), Frames()

    def look(images: torch.Tensor) -> None:
        frames.commit(frames.look(images))

    def forward(images: torch.Tensor) -> None:
        with torch.no_grad():
            model.run(model.normalize(model.to_unit(images)))

    took = []
    for task in (look, forward):
        # The least of five: others use the same machine.
        times = []
        for _ in range(5):
            started = time.perf_counter()
            for images in batches:
                task(images)
            times.append(time.perf_counter() - started)
        took.append(1000 * min(times) / count)
    return f"{size} px, batches of {batch}: {took[0]:.3f} s beside {took[1]:.1f} s for 1,000 images"


@click.command()
@click.option("--images", type=click.IntRange(20), default=2000, show_default=True)
def main(images: int) -> None:
    """Print the tables, and the time."""
    torch.set_num_threads(1)
    counts = {32: images, 224: max(20, images // 10)}
    console = Console(width=120)
    console.print(false_alarms(counts))
    console.print(missed(counts))
    for table in at_other_sizes(images):
        console.print(table)
    for size, count in ((32, 200), (224, 10)):
        for batch in (1, 10):
            console.print(cost(size, count, batch), highlight=False)
    for line in cost_as_sent():
        console.print(line, highlight=False)


if __name__ == "__main__":
    main()
