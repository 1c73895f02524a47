"""Frames of a camera that fails: black, white, blank, frozen, torn, noise; seen without a network.

What is asked of each is so little that an ordinary picture does not meet it, under any corruption:
`benchmarks/camera_faults.py` tells the false alarms and what is missed. Each image is judged by
itself, in sums of whole numbers, so that grouping changes nothing.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ttc_core.grain import (
    BLOCK,
    BLOCKS,
    CHANNELS,
    LEAST_BLOCKS,
    TILE,
    Grain,
    Numbers,
    greys_of,
    relation,
    structure_of,
    sums,
    variance,
)

KINDS = ("black", "white", "blank", "frozen", "torn", "noise")
"""In the order in which they are tried: the first that fits is told."""
# Rows and columns of the sample that is kept of the last image, 3 KiB. Of 224 pixels it takes each
# seventh: what moves and is smaller may fall between.
SAMPLE = 32
# What a camera burns in, the time or its name, stands in the first or the last of so many parts of
# the rows, and lights up so much of that part, at most.
CAPTION, LIT = 8, 0.5
# The mean level of a black frame with sensor noise, at most.
DIM = 16
# A loop of so many images is frozen, seen by digests of so many bytes. With more of them, one class
# of 200 images that is dealt anew would be called so at its seams.
RECENT, DIGEST = 8, 8
# Levels by which the channels of a black or white frame differ, at most: else it is of a colour.
COLOUR = 8
# Rows of a band, at least. Of the columns, where an edge is seen, and where a row has texture.
LEAST_ROWS, EDGE, TEXTURE = 4, 0.8, 0.3
# The level of sky, snow or paper, at least; strong compression makes one colour of it.
BRIGHT = 200

Bytes = NDArray[np.uint8]
Greys = NDArray[np.int16]  # (…, H, W), sums of the three channels
Flags = NDArray[np.bool_]


class FrameSettings(BaseModel):
    """From where on a frame is faulty. Levels are of 255."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    black_level: int = Field(
        3, ge=0, le=255, description="all of a black frame is this dark, or most of it is 0"
    )
    white_level: int = Field(
        250, ge=0, le=255, description="all of a white frame is this bright, or most of it is 255"
    )
    flat: float = Field(
        0.2,
        ge=0,
        le=255,
        description="levels by which parts of a black, white or blank frame differ, at most",
    )
    blank_deviation: float = Field(
        2,
        ge=0,
        le=255,
        description="standard deviation of a blank frame's pixels, at most",
    )
    noise_structure: float = Field(
        1.5,
        ge=0,
        le=1e6,
        description="variance between parts, over what unrelated pixels would have",
    )
    noise_deviation: float = Field(
        10, ge=0, le=255, description="least standard deviation of noise"
    )
    noise_relation: float = Field(
        0.4,
        ge=0,
        le=1,
        description="correlation of pixels near each other in noise, at most; textures have more",
    )
    frozen_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="of the sampled values, those that differ in the same picture; 0: none, and "
        "no loop is looked for",
    )
    frozen_level: int = Field(2, ge=0, le=255, description="and by how many levels, at most")
    torn_share: float = Field(
        0.1, gt=0, le=1, description="of the rows, those missing or repeated, at least"
    )
    torn_level: int = Field(1, ge=0, le=255, description="levels by which such rows differ")
    torn_edge: int = Field(8, ge=1, le=255, description="levels by which the picture beyond does")


@dataclass(frozen=True)
class Look:
    """What was seen of a batch of N images.

    Attributes:
        kinds: N, one of KINDS or None for an ordinary image.
        last: (3, h, w), a sample of the last image; empty: there was none.
        digests: of the last RECENT images of the batch, of their samples, between captions where
            there is a picture.
    """

    kinds: list[str | None]
    last: Bytes
    digests: Sequence[bytes] = ()


class Frames:
    """Follows the images of one stream. `commit` is handed what `look` found of a batch."""

    def __init__(self, settings: FrameSettings | None = None) -> None:
        self._settings = settings or FrameSettings()
        self.reset()

    def reset(self) -> None:
        self._last: Bytes = np.empty((CHANNELS, 0, 0), np.uint8)
        self._recent: deque[bytes] = deque(maxlen=RECENT)

    def look(self, images: Tensor, grains: Sequence[Grain | None] = ()) -> Look:
        """Find the faulty among images (N, 3, H, W), uint8 or float in [0, 1]. Changes nothing.

        Each is compared with those before it, the first with the last ones committed.

        Args:
            grains: N, what was seen of each before it was brought to this size, else None; empty:
                of none.

        Raises:
            ValueError: there are others than N.
        """
        if len(grains) not in (0, len(images)):
            raise ValueError(f"{len(grains)} grains for {len(images)} images; it takes one each")
        if not len(images):
            return Look([], self._last)
        if images.is_floating_point():
            images = (images * 255).round().to(torch.uint8)
        pixels: Bytes = images.cpu().numpy()
        greys: Greys = greys_of(pixels.swapaxes(0, 1))
        samples = _sampled(pixels)
        digests = [
            blake2b(each.tobytes(), digest_size=DIGEST).digest() for each in self._pictures(samples)
        ]
        found = {
            **self._unstructured(pixels, greys, grains),
            "frozen": self._same(samples) | self._again(digests),
            "torn": self._torn(pixels, greys),
        }
        return Look(
            [next((kind for kind in KINDS if found[kind][i]), None) for i in range(len(pixels))],
            samples[-1].copy(),
            digests[-RECENT:],
        )

    def _unstructured(
        self, pixels: Bytes, greys: Greys, grains: Sequence[Grain | None]
    ) -> dict[str, Flags]:
        """(N,) by kind: the black, white, blank and noise-only, pictures without parts."""
        count, height, width = greys.shape
        found = {kind: np.zeros(count, np.bool_) for kind in ("black", "white", "blank", "noise")}
        s, of_pixels = self._settings, variance(greys)
        side = max(BLOCK, min(height, width) // BLOCKS)
        if (height // side) * (width // side) >= LEAST_BLOCKS:
            between = variance(sums(greys, side)) / side**4
            flat = self._are_flat(between, of_pixels, side)
            even = structure_of(between, of_pixels, side) <= s.noise_structure
            even &= of_pixels >= (CHANNELS * s.noise_deviation) ** 2
            for number in np.flatnonzero(even).tolist():
                related = relation(greys[number], TILE)
                found["noise"][number] = related <= s.noise_relation
            found["black"] |= self._captioned(pixels, greys, side)
        else:  # too small to tell a part from a pixel
            flat = of_pixels <= (CHANNELS * s.flat) ** 2
        # Once it is made smaller, noise is nearly of one colour, and so is a fine texture: what was
        # seen before tells more.
        fine = np.zeros(count, np.bool_)
        for number, grain in enumerate(grains):
            if grain is not None:
                fine[number] = grain.deviation >= s.noise_deviation
                found["noise"][number] = (
                    fine[number]
                    and grain.structure <= s.noise_structure
                    and grain.relation <= s.noise_relation
                )
        for number in np.flatnonzero(flat).tolist():
            values = pixels[number]
            bright = bool(values.min() >= s.white_level) or _is_mostly(values, 255)
            found["black"][number] |= self._is_dark(values)
            found["white"][number] = bright
            found["blank"][number] = values.std(axis=(1, 2)).max() <= s.blank_deviation
        found["blank"] &= ~(found["noise"] | fine)
        return found

    def _captioned(self, pixels: Bytes, greys: Greys, side: int) -> Flags:
        """(N,) which are black but for what is burned in at their upper or lower edge."""
        rows = _between_captions(greys.shape[1])
        black: Flags = greys[:, rows].mean(axis=(1, 2)) <= CHANNELS * DIM
        for edge in (greys[:, : rows.start], greys[:, rows.stop :]):
            black &= (edge > CHANNELS * DIM).sum(axis=(1, 2)) <= LIT * edge[0].size
        for number in np.flatnonzero(black).tolist():
            part = greys[number, None, rows]
            between = variance(sums(part, side)) / side**4
            flat = self._are_flat(between, variance(part), side)
            black[number] = flat[0] and self._is_dark(pixels[number][:, rows])
        return black

    def _are_flat(self, between: Numbers, of_pixels: Numbers, side: int) -> Flags:
        """(N,) whether parts of a picture, `side` a side, differ as those of noise would."""
        flat: Flags = between - of_pixels / side**2 <= (CHANNELS * self._settings.flat) ** 2
        return flat

    def _is_dark(self, values: Bytes) -> bool:
        """Whether a flat picture (3, H, W) is black."""
        return bool(values.max() <= self._settings.black_level) or _is_mostly(values, 0)

    def _same(self, samples: Bytes) -> Flags:
        """(N,) which samples (N, 3, h, w) show what the one before shows."""
        before = self._last if self._last.shape == samples.shape[1:] else samples[0] ^ 128
        # A row in the middle tells most of them apart.
        middle = samples[:, :, samples.shape[2] // 2]
        earlier = np.concatenate([before[None, :, before.shape[1] // 2], middle[:-1]])
        level, share = self._settings.frozen_level, self._settings.frozen_share
        same: Flags = _apart(middle, earlier).max(axis=(1, 2)) <= level
        for number in np.flatnonzero(same):
            apart = _apart(samples[number], samples[number - 1] if number else before)
            same[number] = apart.max() <= level and (apart > 0).mean() <= share
        return same

    def _pictures(self, samples: Bytes) -> list[Bytes]:
        """N samples (3, h, w) without captions, where that leaves a picture.

        Most of an even sky above moving trees is always the same: all of such a sample counts.
        """
        between = samples[:, :, _between_captions(samples.shape[2])]
        greys = greys_of(between.swapaxes(0, 1)).reshape(len(samples), -1)
        apart = np.abs(greys - np.median(greys, axis=1, keepdims=True))
        even = (apart <= CHANNELS * self._settings.blank_deviation).mean(axis=1) > 0.5
        return [
            samples[number] if is_even else between[number] for number, is_even in enumerate(even)
        ]

    def _again(self, digests: Sequence[bytes]) -> Flags:
        """(N,) which are, to the last bit, those of one of the RECENT images before, if asked.

        A clock that ticks in a picture which stands still is in none of them.
        """
        recent, again = self._recent.copy(), np.zeros(len(digests), np.bool_)
        for number, digest in enumerate(digests if self._settings.frozen_share else ()):
            again[number] = digest in recent
            recent.append(digest)
        return again

    def _torn(self, pixels: Bytes, greys: Greys) -> Flags:
        """(N,) in which a band of rows is missing, or one row is repeated."""
        height = greys.shape[1]
        least = max(LEAST_ROWS, math.ceil(self._settings.torn_share * height))
        torn = np.zeros(len(greys), np.bool_)
        if height < least:
            return torn
        level = CHANNELS * self._settings.torn_level
        alike = (np.abs(greys[:, 1:] - greys[:, :-1]) <= level).all(axis=2)
        # Of `least` rows in a run, all but the last are like the next.
        counts, first = np.cumsum(alike, axis=1), alike.shape[1] + 2 - least
        runs = counts[:, least - 2 :] - counts[:, :first] + alike[:, :first]
        long = (runs == least - 1).any(axis=1)
        for number in np.flatnonzero(long):
            flat = np.ptp(greys[number], axis=1) <= level
            ends = np.flatnonzero(~(alike[number] & (flat[1:] == flat[:-1]))) + 1
            starts, ends = np.append(0, ends), np.append(ends, height)
            rows = pixels[number].transpose(1, 2, 0)
            torn[number] = any(
                self._is_torn(rows, start, end, bool(flat[start]), least)
                for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
                if end - start >= least
            )
        return torn

    def _is_torn(self, rows: Bytes, start: int, end: int, flat: bool, least: int) -> bool:
        """Whether a band of like rows of a picture (H, W, 3), `flat` or not, is a fault."""
        level, edge = self._settings.torn_level, self._settings.torn_edge
        if not flat:
            return _textured(rows[start : start + 1], level) and _repeats(rows, start, end, least)
        if end - start == len(rows):
            return False  # one colour, or one that becomes another: nothing is missing of it
        colour = rows[start, 0].astype(np.int16)
        # Bars above and below, sky, snow and paper are ordinary: the other border is the same, or
        # the band is bright. Dark or grey at one border alone is more often a fault.
        if start == 0 or end == len(rows):
            opposite = (np.abs(rows[-1 if start == 0 else 0] - colour) <= edge).all(axis=1)
            if colour.max() >= BRIGHT or opposite.mean() >= 0.5:
                return False
        # Made smaller after it was torn, or compressed, a picture blends into the band.
        reach = max(3, len(rows) // 14)
        beyond = [rows[max(0, start - reach) : start], rows[end : end + reach]]
        return all(
            (np.abs(each - colour) > edge).any(axis=(0, 2)).mean() >= EDGE
            and _textured(each, level)
            for each in beyond
            if len(each)
        )

    def commit(self, look: Look) -> None:
        """Take note of a batch that was answered."""
        self._last = look.last
        self._recent = deque((*self._recent, *look.digests), maxlen=RECENT)

    def state(self) -> Mapping[str, Mapping[str, Any]]:
        recent = torch.tensor([list(each) for each in self._recent], dtype=torch.uint8)
        last = torch.from_numpy(self._last.copy())
        return {"frames": {"last": last, "recent": recent.view(-1, DIGEST)}}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on where a stream stood.

        Raises:
            KeyError, ValueError: the state has none of its images.
        """
        given = state["frames"]
        if not isinstance(given, Mapping):
            raise ValueError("its last images are none")
        last, recent = given["last"], given["recent"]
        sound = (
            all(isinstance(each, Tensor) and each.dtype == torch.uint8 for each in (last, recent))
            and last.ndim == 3
            and last.shape[0] == CHANNELS
            and max(last.shape[1:]) <= SAMPLE
            and recent.ndim == 2
            and recent.shape[0] <= RECENT
            and recent.shape[1] == DIGEST
        )
        if not sound:
            raise ValueError("its last images are none")
        self._last = last.cpu().numpy().copy()
        self._recent = deque(map(bytes, recent.tolist()), maxlen=RECENT)


def _sampled(pixels: Bytes) -> Bytes:
    """(N, 3, h, w) of images (N, 3, H, W): on an even grid, a view of at most SAMPLE × SAMPLE."""
    down, across = (-(-side // SAMPLE) for side in pixels.shape[2:])
    return pixels[:, :, down // 2 :: down, across // 2 :: across]


def _between_captions(height: int) -> slice:
    return slice(height // CAPTION, height - height // CAPTION)


def _is_mostly(values: Bytes, level: int) -> bool:
    """Whether more than half of a picture (3, H, W) is of a level, and it is of no colour."""
    grey = np.ptp(values.mean(axis=(1, 2))) <= COLOUR
    return bool(grey and (values == level).mean() > 0.5)


def _apart(one: Bytes, other: Bytes) -> Bytes:
    return np.maximum(one, other) - np.minimum(one, other)


def _textured(rows: Bytes, level: int) -> bool:
    """Whether in one of rows (h, W, 3) a good part of the pixels are unlike their neighbours."""
    changes = (_apart(rows[:, 1:], rows[:, :-1]) > level).any(axis=2)
    return bool((changes.mean(axis=1) >= TEXTURE).any())


def _repeats(rows: Bytes, start: int, end: int, least: int) -> bool:
    """Whether in a band of rows (H, W, 3) so many, one after another, are the same row."""
    same = (rows[start + 1 : end] == rows[start : end - 1]).all(axis=(1, 2))
    ends = np.flatnonzero(~same) + 1 + start
    starts, ends = np.append(start, ends), np.append(ends, end)
    # Strong JPEG compression makes the rows of a block the same.
    blocks = (starts % 8 == 0) & (ends % 8 == 0)
    return bool(((ends - starts >= least) & ~blocks).any())
