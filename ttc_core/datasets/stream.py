"""One corruption of a data set as a stream: its order, its batches, the images read ahead."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.errors import UserError
from ttc_core.grain import Grain
from ttc_core.order import order_indices

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Places = NDArray[np.int64]

MIXED = "mixed"
# While the model runs, the files of so many batches (and at least so many a thread) are decoded.
BATCHES_AHEAD = 2
IMAGES_A_TASK = 8
DECODING_THREADS = min(8, os.cpu_count() or 1)


class DataError(UserError):
    """A data set cannot be read; the text names the file and what was expected."""


@dataclass(frozen=True)
class Shift:
    """One corruption of a data set, in file order.

    Attributes:
        severity: 1 to 5; None where the data set has but one, or for "clean".
        labels: (N,) class indices.
        read: gives the images (n, H, W, 3) at an array of places.
        original: gives the bytes that the image at a place is made of, as they are stored.
        read_file: gives the bytes of the image file at a place; None where there are none, or
            where the images were changed after they were read.
        decodes: whether reading means decoding files, which threads can do side by side.
        grain: gives what was seen of the image at a place before it was brought to the model's
            size, once it was read; None where `read_file` is.
    """

    severity: int | None
    labels: Labels
    read: Callable[[Places], Images]
    original: Callable[[int], bytes]
    read_file: Callable[[int], bytes] | None = None
    decodes: bool = False
    grain: Callable[[int], Grain | None] | None = None


@dataclass(frozen=True)
class Stream:
    """One corruption of a data set, in the order asked for.

    Attributes:
        corruption: its name, "clean", "mixed", or "mixed:A+B"; others where it was altered.
        labels: (N,) class indices in stream order; -1 for an image that is not judged.
        positions: (N,) each image's place in the file order; one may come again.
        severity, read, original, read_file, decodes, grain: as in `Shift`.
        columns: (N,) each, in stream order: what else is known of the images.
    """

    corruption: str
    severity: int | None
    labels: Labels
    positions: Places
    read: Callable[[Places], Images]
    original: Callable[[int], bytes]
    read_file: Callable[[int], bytes] | None = None
    decodes: bool = False
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    grain: Callable[[int], Grain | None] | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of the stored images and their labels, in file order, each once.

        Data of one name may hold other images tomorrow. Our own corruptions and the order follow
        from the seed, and are not in it.
        """
        digest = hashlib.sha256()
        for index in np.unique(self.positions, return_index=True)[1]:
            data = self.original(int(self.positions[index]))
            digest.update(b"%d %d " % (self.labels[index], len(data)))
            digest.update(data)
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.labels)

    def altered(self, change: Callable[[Images, Places], Images], **fields: Any) -> Self:
        """Another stream of as many images, the same ones after a change.

        Args:
            change: of images (n, H, W, 3), given their numbers (n,) in the stream too.
            fields: the stream's that are others, too. Positions are numbers in the stream.
        """
        usual: dict[str, Any] = {
            "positions": np.arange(len(self)),
            "read": lambda numbers: change(self.read(self.positions[numbers]), numbers),
            "original": lambda number: self.original(int(self.positions[number])),
            "read_file": None,
            "grain": None,
        }
        return replace(self, **(usual | fields))

    def batches(self, size: int) -> Iterator[tuple[Images, Labels]]:
        """Yield the images (n, H, W, 3) and labels (n,) of each batch; the last may be short."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        places = (self.positions[part] for part in parts)
        images = self._decoded_ahead(places, size) if self.decodes else map(self.read, places)
        yield from zip(images, (self.labels[part] for part in parts), strict=True)

    def grains(self, part: slice) -> list[Grain | None]:
        """What was seen of images that were read, before they were brought to the model's size.

        Of those alone that a server would be sent as they are: it sees the same of them.
        """
        if self.grain is None:
            return [None] * len(self.positions[part])
        return [self.grain(int(position)) for position in self.positions[part]]

    def _decoded_ahead(self, batches: Iterator[Places], size: int) -> Iterator[Images]:
        """Decode in threads while the caller is busy; memory is bounded by what is ahead."""
        ahead = max(BATCHES_AHEAD, -(-DECODING_THREADS // size))
        waiting: deque[list[Future[Images]]] = deque()
        pool = ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode")
        try:
            for places in batches:
                tasks = np.split(places, range(IMAGES_A_TASK, len(places), IMAGES_A_TASK))
                waiting.append([pool.submit(self.read, task) for task in tasks])
                if len(waiting) > ahead:
                    yield _joined(waiting.popleft())
            while waiting:
                yield _joined(waiting.popleft())
        finally:
            # Also when the caller has had enough: no thread outlives the stream.
            pool.shutdown(cancel_futures=True)


def _joined(tasks: Sequence[Future[Images]]) -> Images:
    images = [task.result() for task in tasks]
    check_sizes({part.shape[1:] for part in images})
    return np.concatenate(images)


def check_sizes(shapes: set[tuple[int, ...]]) -> None:
    """Raise DataError if images of several sizes should become one batch."""
    if len(shapes) > 1:
        raise DataError(
            f"The images differ in size ({len(shapes)} sizes) and the model resizes none; "
            "give the model a size."
        )


class DataSet(ABC):
    """Images with labels, under one or more corruptions."""

    @abstractmethod
    def shift(self, corruption: str, severity: int, seed: int) -> Shift:
        """Find one corruption, "clean" among them.

        Raises:
            DataError: it is not there, or a file does not fit.
            ValueError: the severity is unknown.
        """

    def open(
        self,
        corruption: str,
        severity: int,
        *,
        limit: int | None = None,
        order: str = "file",
        seed: int = 0,
    ) -> Stream:
        """Open the first `limit` images of a corruption, then put them in `order`.

        Of an order that deals images (`ttc_core.order`) the limit is the stream's length.

        Args:
            corruption: one of the fifteen, "clean", or a mixture (see `mixed_corruptions`).

        Raises:
            DataError: it is not there, or a file does not fit.
            OrderError: the classes do not allow this order.
            ValueError: the name, severity or order is unknown.
        """
        check_corruption(corruption)
        shift = self.find(corruption, severity, seed)
        positions = order_indices(shift.labels, order, limit=limit, seed=seed)
        if names := mixed_corruptions(corruption):
            corruption = MIXED if names == CORRUPTIONS else f"{MIXED}:{'+'.join(names)}"
        return Stream(
            corruption,
            shift.severity,
            shift.labels[positions],
            positions,
            shift.read,
            shift.original,
            shift.read_file,
            shift.decodes,
            grain=shift.grain,
        )

    def find(self, corruption: str, severity: int, seed: int) -> Shift:
        """Find a corruption as `shift` does, or a mixture of several."""
        names = mixed_corruptions(corruption)
        if not names:
            return self.shift(corruption, severity, seed)
        parts = [self.shift(name, severity, seed) for name in names]
        check_alike(names, parts)
        # Floats, one an image: the first N draws are the same however many follow.
        draws = np.random.default_rng(seed).random(len(parts[0].labels))
        return joined(parts, (draws * len(parts)).astype(np.int64))


def check_corruption(name: str) -> None:
    """Raise ValueError unless `name` is one of the fifteen, "clean" or a mixture."""
    if not mixed_corruptions(name) and name not in ("clean", *CORRUPTIONS):
        raise ValueError(
            f"There is no corruption {name!r}; there are clean, {', '.join(CORRUPTIONS)}, and "
            "mixed."
        )


def mixed_corruptions(name: str) -> tuple[str, ...]:
    """Return what a mixture consists of, in the order of CORRUPTIONS; nothing for other names.

    Args:
        name: "mixed" for all fifteen, or "mixed:A+B" for two or more names, "clean" among them.

    Raises:
        ValueError: a mixture of fewer than two, or of names that there are not.
    """
    kind, colon, rest = name.partition(":")
    if kind != MIXED:
        return ()
    if not colon:
        return CORRUPTIONS
    given = rest.split("+")
    known = ("clean", *CORRUPTIONS)
    for part in given:
        if part not in known:
            raise ValueError(
                f"There is no corruption {part!r} to mix; there are {', '.join(known)}."
            )
    if len(given) < 2 or len(set(given)) < len(given):
        raise ValueError(f"A mixture is of two or more different corruptions; got {name!r}.")
    return tuple(part for part in known if part in given)


def check_alike(names: Sequence[str], parts: Sequence[Shift]) -> None:
    """Raise DataError unless all corruptions are of the same images, as far as labels tell."""
    for name, part in zip(names, parts, strict=True):
        if not np.array_equal(part.labels, parts[0].labels):
            raise DataError(
                f"A mixture needs the same images under each corruption; {name} has "
                f"{len(part.labels):,} and {names[0]} {len(parts[0].labels):,}, or of other "
                "classes."
            )


def joined(parts: Sequence[Shift], chosen: Places, places: Places | None = None) -> Shift:
    """One shift of several of the same images.

    Args:
        chosen: (N,) of which part each image is.
        places: (N,) its place there; None: all of them, in file order.
    """
    at = np.arange(len(chosen)) if places is None else places

    def read(numbers: Places) -> Images:
        images: list[Images | None] = [None] * len(numbers)
        for number, part in enumerate(parts):
            mine = np.flatnonzero(chosen[numbers] == number)
            if len(mine):
                for index, image in zip(mine, part.read(at[numbers[mine]]), strict=True):
                    images[index] = image
        found = [image for image in images if image is not None]
        check_sizes({image.shape for image in found})
        return np.stack(found)

    def read_file(number: int) -> bytes:
        give = parts[int(chosen[number])].read_file
        assert give is not None
        return give(int(at[number]))

    def grain(number: int) -> Grain | None:
        give = parts[int(chosen[number])].grain
        assert give is not None
        return give(int(at[number]))

    as_sent = all(part.read_file is not None for part in parts)
    return Shift(
        next((part.severity for part in parts if part.severity is not None), None),
        parts[0].labels[at],
        read,
        lambda number: parts[int(chosen[number])].original(int(at[number])),
        read_file if as_sent else None,
        decodes=any(part.decodes for part in parts),
        grain=grain if as_sent else None,
    )
