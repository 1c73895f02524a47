"""What befalls a stream: conditions that change, day and night, images of other kinds mixed in."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ttc_core.datasets.files import corrupt_at
from ttc_core.datasets.stream import (
    DataError,
    DataSet,
    Images,
    Places,
    Shift,
    Stream,
    check_alike,
    joined,
)
from ttc_core.order import order_indices

# Of the swing from noon to noon: images, what is left of the light at midnight, and the deviation
# of the noise that a camera's gain adds then, in grey levels.
PERIOD = 500
MIDNIGHT_LIGHT = 0.25
MIDNIGHT_NOISE = 30.0
# No stream of shapes repeats itself earlier.
SHAPES = 100_000
MIXES = ("noise", "unknown", "frozen", "poison")
MIX = f"KIND:SHARE,… with KIND of {', '.join(MIXES)} and shares above 0, below 1 together"


def changing(
    data: DataSet,
    names: Sequence[str],
    severity: int,
    length: int,
    *,
    limit: int | None = None,
    order: str = "file",
    seed: int = 0,
) -> Stream:
    """One pass over the order, under another corruption every `length` images, the last clean.

    The names go round. Columns: `condition`, each image's corruption, and `since_change`, how many
    images of it came before.

    Raises:
        DataError: the stream is no longer than a stretch; else as `DataSet.open`.
    """
    everything = (*names, "clean")
    parts = [data.find(name, severity, seed) for name in everything]
    check_alike(everything, parts)
    places = order_indices(parts[0].labels, order, limit=limit, seed=seed)
    numbers = np.arange(len(places))
    stretch = numbers // length
    if len(places) <= length:
        raise DataError(
            f"changing:{length} needs more than {length:,} images; the stream has {len(places):,}."
        )
    chosen = np.where(stretch == stretch[-1], len(names), stretch % len(names))
    shift = joined(parts, chosen, places)
    condition = np.array(everything)[chosen]
    return Stream(
        f"changing:{'+'.join(names)}",
        shift.severity,
        shift.labels,
        numbers,
        shift.read,
        shift.original,
        shift.read_file,
        shift.decodes,
        {"condition": condition, "since_change": since_change(condition)},
        shift.grain,
    )


def since_change(condition: NDArray[np.str_]) -> NDArray[np.int64]:
    """How many images of the same condition came before each, without another between them."""
    numbers = np.arange(len(condition))
    starts = np.append(True, condition[1:] != condition[:-1])[: len(condition)]
    return numbers - np.maximum.accumulate(np.where(starts, numbers, 0))


def day_night(stream: Stream, seed: int) -> Stream:
    """A stream from noon to noon: images darken and grow noisy towards midnight, and back.

    Columns: `light`, in [MIDNIGHT_LIGHT, 1], what is left of each pixel; `condition`, day or night,
    and `since_change`.
    """
    hour = np.arange(len(stream)) % PERIOD
    phase = (1 - np.cos(2 * np.pi * hour / PERIOD)) / 2
    light = 1 - (1 - MIDNIGHT_LIGHT) * phase

    def swing(images: Images, numbers: Places) -> Images:
        changed = np.empty(images.shape, np.uint8)
        for index, number in enumerate(numbers):
            noise = _random(seed, "day-night", number).standard_normal(images.shape[1:])
            level = light[number] * images[index] + MIDNIGHT_NOISE * phase[number] * noise
            changed[index] = np.clip(np.rint(level), 0, 255)
        return changed

    condition = np.where(abs(2 * hour - PERIOD) > PERIOD // 2, "day", "night")
    name = "day-night" if stream.corruption == "clean" else f"day-night:{stream.corruption}"
    more = {"light": light, "condition": condition, "since_change": since_change(condition)}
    return stream.altered(swing, corruption=name, columns={**stream.columns, **more})


def parse_mix(text: str) -> dict[str, float]:
    """`KIND:SHARE,…` as shares by kind, in the order of MIXES.

    Raises:
        ValueError: it is not MIX.
    """
    pairs = [part.strip().partition(":") for part in text.split(",")]
    try:
        shares = {kind: float(share) for kind, _, share in pairs}
    except ValueError:
        shares = {}
    sound = len(shares) == len(pairs) and all(share > 0 for share in shares.values())
    if not sound or not shares.keys() <= {*MIXES} or not sum(shares.values()) < 1:
        raise ValueError(f"A mix is {MIX}; got {text!r}.")
    return {kind: shares[kind] for kind in MIXES if kind in shares}


def mixed_in(
    stream: Stream,
    shares: Mapping[str, float],
    *,
    severity: int,
    seed: int,
    unknown: DataSet | None = None,
    poison: Callable[[Images], Images] | None = None,
) -> Stream:
    """Replace a share of a stream's images, at places drawn by the seed.

    By `noise`, evenly distributed pixels; `unknown` images, under the corruption of those they
    replace; one of the stream's own images again and again, `frozen`; or what `poison` makes of
    them. None of these is judged: their labels are -1. Column: `mixed`, 0 or which of MIXES, from
    1 on.

    Args:
        unknown: None: drawn shapes.
        poison: needed for that kind only.

    Raises:
        DataError: the unknown images are of another size, or are not there under a corruption.
    """
    mixed, kinds = np.zeros(len(stream), np.uint8), {kind: n for n, kind in enumerate(MIXES, 1)}
    places = np.random.default_rng([seed, zlib.crc32(b"mix")]).permutation(len(stream))
    for kind, share in shares.items():
        # Rounded, so that 0.29 of 100 images are 29, but never all.
        count = min(round(share * len(stream)), max(0, len(places) - 1))
        mixed[places[:count]], places = kinds[kind], places[count:]
    strange, frozen = (np.flatnonzero(mixed == kinds[kind]) for kind in ("unknown", "frozen"))
    frame = stream.positions[frozen[:1]]
    things = _things(stream, strange, unknown, severity, seed) if len(strange) else None
    replacements: dict[str, Callable[[Images, Places], Images]] = {
        "noise": _noise(seed),
        "frozen": lambda images, _: np.repeat(stream.read(frame), len(images), axis=0),
    }
    if things is not None:
        replacements["unknown"] = lambda _, at: things.read(np.searchsorted(strange, at))
    if poison is not None:
        replacements["poison"] = lambda images, _: poison(images)

    def change(images: Images, numbers: Places) -> Images:
        changed = images.copy()
        for kind in shares:
            mine = np.flatnonzero(mixed[numbers] == kinds[kind])
            if len(mine):
                others = replacements[kind](images[mine], numbers[mine])
                if others.shape[1:] != images.shape[1:]:
                    raise DataError(
                        f"The unknown images are of {others.shape[2]} × {others.shape[1]} pixels "
                        f"and the others of {images.shape[2]} × {images.shape[1]}; expected are "
                        "images of one size, or a model that resizes."
                    )
                changed[mine] = others
        return changed

    def original(number: int) -> bytes:
        if things is not None and mixed[number] == kinds["unknown"]:
            return things.original(int(np.searchsorted(strange, number)))
        return stream.original(int(stream.positions[number]))

    return stream.altered(
        change,
        labels=np.where(mixed > 0, -1, stream.labels),
        original=original,
        columns={**stream.columns, "mixed": mixed},
    )


def _things(
    stream: Stream, numbers: Places, unknown: DataSet | None, severity: int, seed: int
) -> Shift:
    """Unknown images for these places in a stream, each under the corruption that reigns there."""
    if unknown is None:
        height, width = stream.read(stream.positions[:1]).shape[1:3]
        unknown = Shapes(height, width, seed)
    reigning = stream.columns.get("condition", np.full(len(stream), stream.corruption))[numbers]
    names, chosen = np.unique(reigning, return_inverse=True)
    parts = [unknown.find(str(name), severity, seed) for name in names]
    check_alike(names.tolist(), parts)
    random = np.random.default_rng([seed, zlib.crc32(b"unknown")])
    places = np.resize(random.permutation(len(parts[0].labels)), len(numbers))
    return joined(parts, chosen, places)


class Shapes(DataSet):
    """Images of no class: a few ellipses, rectangles and triangles in random colours."""

    def __init__(self, height: int, width: int, seed: int) -> None:
        self._height, self._width, self._seed = height, width, seed

    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        def read(places: Places) -> Images:
            images = np.stack([self._drawn(int(place)) for place in places])
            return corrupt_at(images, places, corruption, severity, seed)

        return Shift(
            None if corruption == "clean" else severity,
            np.zeros(SHAPES, np.int64),
            read,
            lambda place: self._drawn(place).tobytes(),
        )

    def _drawn(self, place: int) -> Images:
        random = _random(self._seed, "shapes", place)
        image = Image.new("RGB", (self._width, self._height), _colour(random))
        draw = ImageDraw.Draw(image)
        for _ in range(random.integers(2, 6)):
            points = random.random((3, 2)) * (self._width, self._height)
            box = [*points[:2].min(axis=0), *points[:2].max(axis=0)]
            kind = random.integers(3)
            if kind == 2:
                draw.polygon([tuple(point) for point in points], fill=_colour(random))
            else:
                (draw.ellipse, draw.rectangle)[kind](box, fill=_colour(random))
        return np.asarray(image)


def _colour(random: np.random.Generator) -> tuple[int, ...]:
    return tuple(random.integers(0, 256, 3).tolist())


def _noise(seed: int) -> Callable[[Images, Places], Images]:
    def draw(images: Images, numbers: Places) -> Images:
        shape = images.shape[1:]
        drawn = [_random(seed, "noise", n).integers(0, 256, shape, np.uint8) for n in numbers]
        return np.stack(drawn)

    return draw


def _random(seed: int, name: str, number: int) -> np.random.Generator:
    """Draws of one image's own: the same however a stream is cut into batches."""
    # crc32 is the same in every process, unlike hash().
    return np.random.default_rng([seed, zlib.crc32(name.encode()), int(number)])
