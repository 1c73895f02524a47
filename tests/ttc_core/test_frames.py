"""Faulty frames are told from ordinary ones, whatever the size, the light and the grouping."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tests.fixtures.contract import same
from ttc_core.corruptions import CORRUPTIONS, corrupt
from ttc_core.frames import DIGEST, KINDS, RECENT, SAMPLE, Frames, FrameSettings
from ttc_core.grain import Grain

SIZES = (32, 224)


def scenes(size: int, count: int = 6, seed: int = 0) -> np.ndarray:
    """(N, size, size, 3): smooth colours, edges and a little texture, as photographs have them."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(20, 236, (count, 7, 7, 3), np.uint8)
    box = (size, size), Image.Resampling.BICUBIC
    smooth = [np.asarray(Image.fromarray(image).resize(*box)) for image in coarse]
    return noisy(np.stack(smooth), 4, seed)


def noisy(images: np.ndarray, deviation: float, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, deviation, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    body = io.BytesIO()
    Image.fromarray(image).save(body, "JPEG", quality=quality)
    return np.asarray(Image.open(body))


def banded(images: np.ndarray, colour: object, *bands: slice) -> np.ndarray:
    """Rows of each filled with a colour; with None, with the row above."""
    images = images.copy()
    for band in bands:
        images[:, band] = images[:, band.start - 1, None] if colour is None else colour
    return images


def batch(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def kinds(images: np.ndarray) -> list[str | None]:
    return Frames().look(batch(images)).kinds


@pytest.mark.parametrize("size", [28, 32, 64, 224])
def test_ordinary_pictures_are_no_faults(size):
    """Nor are they in the dark, bright, behind bars, half white, or on white paper."""
    images, tenth, half = scenes(size), size // 10, size // 2
    paper = np.full_like(images, 255)
    paper[:, tenth:-tenth, half // 2 : -half // 2] = images[:, tenth:-tenth, half // 2 : -half // 2]
    for ordinary in (
        images,
        noisy(images * 0.05, 2),
        noisy(255 * (images / 255 * 0.05) ** (1 / 2.2), 2),
        np.clip(images * 2.0, 0, 255).astype(np.uint8),
        *(banded(images, each, slice(0, size // 6), slice(-(size // 6), None)) for each in (0, 99)),
        banded(images, 255, slice(0, half)),
        banded(images, 255, slice(half, None)),
        paper,
    ):
        assert kinds(ordinary) == [None] * len(images)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corruptions_are_no_faults(corruption):
    """Not at the highest severity either: these are what a stream is to learn from."""
    images = scenes(32, 40)
    assert kinds(corrupt(images, corruption, 5)) == [None] * 40


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", [0, 1, 2])
def test_black_and_white_are_seen_through_sensor_noise(size, noise):
    """The cap is on, or the light too much; another frame of it is no frozen one."""
    for kind, level in (("black", 0.0), ("white", 255.0)):
        frames = noisy(np.full((3, size, size, 3), level), noise)
        assert kinds(frames) == [kind] * 3
        if noise:
            assert kinds(np.stack([compressed(frame, 75) for frame in frames])) != [None] * 3


@pytest.mark.parametrize("size", [8, *SIZES])
@pytest.mark.parametrize(
    ("kind", "colour"),
    [
        ("black", (0, 0, 0)),
        ("white", (255, 255, 255)),
        ("blank", (128, 128, 128)),
        ("blank", (0, 135, 0)),
        ("blank", (255, 0, 0)),
        ("blank", (255, 255, 0)),
    ],
)
def test_a_frame_of_one_colour_is_called_what_it_is(size, kind, colour):
    """Pure red has no green and no blue, and is not black; of any size, and each time it comes."""
    frames = np.full((3, size, size, 3), colour, np.uint8)
    assert kinds(frames) == [kind] * 3
    if kind == "blank" and size >= 24:
        assert kinds(noisy(frames, 1)) == [kind] * 3


def test_a_very_large_frame_is_seen():
    """The square of the sum of its levels is beyond 64 bits."""
    assert kinds(np.full((1, 2100, 2100, 3), 255, np.uint8)) == ["white"]


@pytest.mark.parametrize("size", SIZES)
def test_a_gradient_is_not_one_colour(size):
    """An even sky becomes another colour from row to row: nothing of it is missing."""
    steps = np.arange(size)[:, None, None] * 32 // size
    sky = np.broadcast_to(steps + np.array([90, 120, 200]), (size, size, 3)).astype(np.uint8)
    isoluminant = np.broadcast_to(steps * (1, -1, 0) + 100, (size, size, 3)).astype(np.uint8)
    assert kinds(np.stack([sky, isoluminant])) == [None, None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [8, 4, 2])
def test_missing_and_repeated_rows_are_seen(size, share):
    """Wherever the band is, and whatever it is filled with."""
    images, rows, start = scenes(size), size // share, size // 3
    for colour in (0, 128, 255, (0, 135, 0), None):
        assert kinds(banded(images, colour, slice(start, start + rows))) == ["torn"] * 6
    for colour in (0, 128, None):  # white at a border is sky, snow or paper
        assert kinds(banded(images, colour, slice(size - rows, None))) == ["torn"] * 6


def test_a_torn_picture_is_seen_after_it_was_made_smaller():
    """The model's size is not the camera's."""
    large = banded(scenes(224), 128, slice(70, 130))
    small = [np.asarray(Image.fromarray(image).resize((32, 32))) for image in large]
    assert kinds(np.stack(small)) == ["torn"] * 6


@pytest.mark.parametrize("size", SIZES)
def test_noise_is_seen(size):
    """In colour and in grey, evenly distributed or not, and through JPEG."""
    draw = np.random.default_rng(0)
    even = draw.integers(0, 256, (4, size, size, 3), np.uint8)
    bell = noisy(np.full(even.shape, 128.0), 30)
    grey = np.repeat(even[..., :1], 3, axis=3)
    for frames in (even, bell, grey):
        assert kinds(frames) == ["noise"] * 4
        assert kinds(np.stack([compressed(frame, 75) for frame in frames])) == ["noise"] * 4


def test_what_was_seen_before_the_size_changed_counts():
    """The settings judge it as they judge pixels; it goes before what a grey mean looks like."""
    scene, levels = scenes(32, 1), np.array([128, 60, 200, 90])[:, None, None, None]
    flat = np.broadcast_to(levels, (4, *scene.shape[1:])).astype(np.uint8)
    images = batch(np.concatenate([scene, flat]))
    given = [
        Grain(structure=20, deviation=40, relation=0.1),
        Grain(structure=1, deviation=40, relation=0.1),
        Grain(structure=1, deviation=4, relation=0.1),
        Grain(structure=1, deviation=40, relation=0.6),
        None,
    ]
    assert Frames().look(images, given).kinds == [None, "noise", "blank", None, "blank"]
    lenient = Frames(FrameSettings(noise_deviation=3, noise_relation=0.7))
    assert lenient.look(images, given).kinds == [None, "noise", "noise", "noise", "blank"]
    with pytest.raises(ValueError, match="2 grains for 5 images"):
        Frames().look(images, given[:2])


@pytest.mark.parametrize("size", SIZES)
def test_the_same_picture_again_is_frozen_and_a_still_scene_is_not(size):
    """Not with one level of sensor noise, or where something small moves."""
    image, spot = scenes(size, 1)[0], slice(size // 2, size // 2 + size // 28 + 1)
    moved = image.copy()
    moved[spot, spot] = 255 - moved[spot, spot] // 2
    sensor = [noisy(image, 1, seed) for seed in range(3)]
    found = kinds(np.stack([image, image, moved, *sensor, sensor[-1]]))
    assert found == [None, "frozen", None, None, None, None, "frozen"]


def captioned(image: np.ndarray, second: int, place: str, size: int) -> np.ndarray:
    """A frame of 480 × 640 with the time burned in, sent as JPEG and made smaller."""
    picture = Image.fromarray(image)
    text = f"2026-11-29  10:58:{second:02}  CAM 3"
    font = ImageFont.load_default(30)
    ImageDraw.Draw(picture).text((12, 8 if place == "top" else 436), text, "white", font)
    sent = Image.fromarray(compressed(np.asarray(picture), 85))
    return np.asarray(sent.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", ["top", "bottom"])
def test_a_clock_that_is_burned_in_hides_no_fault(size, place):
    """Black is black without it, and who stands still but for it is frozen; who lives is not."""
    black, scene = np.zeros((480, 640, 3), np.uint8), scenes(640, 1)[0][:480]
    lamp = black.copy()
    lamp[240:280, :160] = 200

    def found(*images: np.ndarray) -> list[str | None]:
        sent = [captioned(image, 7 + n, place, size) for n, image in enumerate(images)]
        return kinds(np.stack(sent))

    assert found(black, noisy(black, 1), noisy(black, 2)) == ["black"] * 3
    assert found(scene, scene, scene) == [None, "frozen", "frozen"]
    assert found(*(noisy(scene, 2, seed) for seed in range(3))) == [None] * 3
    assert found(lamp) == [None]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("pole", [False, True])
def test_what_moves_below_an_even_sky_is_alive(size, level, pole):
    """Treetops below a bright sky, a thing on a belt, a lit street at night: none is a caption."""
    draw, low = np.random.default_rng(0), size - size // 8
    images = np.full((12, size, size, 3), level, np.uint8)
    if pole:
        images[:, size // 4 :, : size // 8] = 90
    images[:, low:] = draw.integers(40, 220, (12, size - low, size, 3))
    assert not {"frozen", "black"} & set(kinds(images))
    if level == 128:
        images[:, low:] = level
        for image, left in zip(images, draw.permutation(size - 4), strict=False):
            image[low:, left : left + size // 8] = draw.integers(0, 256, 3)
        assert "frozen" not in kinds(images)


@pytest.mark.parametrize("size", SIZES)
def test_a_dark_frame_with_lit_edges_is_not_black(size):
    """Sensor noise between them changes nothing."""
    draw, edge = np.random.default_rng(0), size // 8
    images = draw.integers(0, 4, (4, size, size, 1), np.uint8).repeat(3, axis=3)
    images[:, :edge] = draw.integers(20, 230, (4, edge, size, 3))
    images[:, -edge:] = draw.integers(20, 230, (4, edge, size, 3))
    assert kinds(images) == [None] * 4


def test_a_frame_compressed_again_is_frozen():
    """As a relay of the same quality does it: at the model's size hardly anything is left of it."""
    once = compressed(scenes(640, 1)[0], 75)
    pair = [Image.fromarray(each).resize((32, 32)) for each in (once, compressed(once, 75))]
    assert kinds(np.stack([np.asarray(image) for image in pair])) == [None, "frozen"]


def told(frames: Frames, images: np.ndarray, size: int) -> list[str | None]:
    """The kinds of a stream in batches of so many."""
    found = []
    for part in batch(images).split(size):
        look = frames.look(part)
        frames.commit(look)
        found += look.kinds
    return found


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("turns", [2, 4, RECENT])
def test_pictures_that_come_by_turns_are_frozen(turns, size):
    """A camera that replays a short clip: each but the first time, until the scene goes on."""
    clip, more = scenes(32, turns), scenes(32, 6, seed=1)
    found = told(Frames(), np.concatenate([more[:3], clip, clip, clip, more[3:]]), size)
    assert found == [None] * (3 + turns) + ["frozen"] * 2 * turns + [None] * 3


def test_without_a_share_that_may_differ_a_loop_is_none():
    """A load test sends the same few images; the one just before, to the last bit, is frozen."""
    strict = Frames(FrameSettings(frozen_share=0))
    a, b = scenes(32, 2)
    assert strict.look(batch(np.stack([a, b, a, b, b]))).kinds == [None] * 4 + ["frozen"]


def test_a_picture_that_comes_again_much_later_is_not_frozen():
    """A data set that is dealt anew, and a stream that is sent once more, are ordinary."""
    images = scenes(32, RECENT + 1)
    assert told(Frames(), np.concatenate([images, images]), 5) == [None] * 2 * len(images)


def stream() -> np.ndarray:
    """Ordinary and faulty frames, some of them at the cuts of every grouping."""
    images = scenes(32, 12)
    images[3] = 0
    images[4:6] = images[7]
    images[8] = np.random.default_rng(0).integers(0, 256, images[8].shape, np.uint8)
    images[10:] = banded(images[9:10], 128, slice(20, 32))
    return images


@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_it_does_not_matter_how_images_are_grouped(size):
    """The first of a batch is compared with the last ones before it."""
    expected = [*[None] * 3, "black", None, "frozen", None, "frozen", "noise", None, "torn"]
    assert told(Frames(), stream(), size) == [*expected, "frozen"]


def test_looking_moves_nothing_and_a_stream_goes_on_where_it_stood():
    """Only `commit` does; a state is small, and a copy."""
    frames, images = Frames(), batch(scenes(224, RECENT + 3))
    before = frames.state()
    look = frames.look(images)
    assert same(frames.state(), before)
    frames.commit(look)
    state, other = frames.state(), Frames()
    assert sum(each.nbytes for each in state["frames"].values()) <= 3 * SAMPLE**2 + RECENT * DIGEST
    other.restore(state)
    for each in state["frames"].values():
        each.zero_()
    for each in (other, frames):
        assert told(each, images[3:].permute(0, 2, 3, 1).numpy(), 4) == ["frozen"] * RECENT
    other.reset()
    assert other.look(images[-1:]).kinds == [None]
    assert same(other.state(), before)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("last", None),
        ("last", []),
        ("last", torch.zeros(3, 32, 32)),
        ("last", torch.zeros(4, 32, 32, dtype=torch.uint8)),
        ("last", torch.zeros(3072, dtype=torch.uint8)),
        ("last", torch.zeros(3, 4096, 4096, dtype=torch.uint8)),
        ("recent", None),
        ("recent", torch.zeros(RECENT, DIGEST)),
        ("recent", torch.zeros(RECENT * DIGEST, dtype=torch.uint8)),
        ("recent", torch.zeros(RECENT, DIGEST + 1, dtype=torch.uint8)),
        ("recent", torch.zeros(RECENT + 1, DIGEST, dtype=torch.uint8)),
    ],
    ids=lambda given: str(getattr(given, "shape", given)),
)
def test_a_state_that_is_none_is_refused(name, given):
    """And the stream stands where it stood."""
    frames = Frames()
    frames.commit(frames.look(batch(scenes(32))))
    before = frames.state()
    with pytest.raises(ValueError, match="last images"):
        frames.restore({"frames": {**before["frames"], name: given}})
    for lacking in ({}, {"frames": {}}):
        with pytest.raises(KeyError):
            frames.restore(lacking)
    with pytest.raises(ValueError, match="last images"):
        frames.restore({"frames": None})
    assert same(frames.state(), before)


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (4, 4), (23, 23), (33, 95)])
def test_any_shape_is_looked_at(shape):
    """Too small to tell much, it is ordinary, but that a single pixel is of one colour; another
    size than before is another picture."""
    frames = Frames()
    frames.commit(frames.look(batch(scenes(32))))
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=draw)
    assert frames.look(images).kinds[0] in (("blank",) if shape == (1, 1) else (None, "noise"))
    assert frames.look(images[:0]).kinds == []


def test_levels_between_0_and_1_are_the_same_images():
    """A method takes both."""
    images = batch(stream())
    assert Frames().look(images / 255).kinds == Frames().look(images).kinds


def test_settings_move_what_counts():
    """Each by its name; what is out of range is refused."""
    images = noisy(np.full((1, 32, 32, 3), 4.0), 0.8)
    assert kinds(images) == ["blank"]
    assert Frames(FrameSettings(black_level=8)).look(batch(images)).kinds == ["black"]
    with pytest.raises(ValueError, match="black_level"):
        FrameSettings(black_level=-1)
    assert set(KINDS) == {"black", "white", "blank", "frozen", "torn", "noise"}
    tinted = noisy(np.full((1, 32, 32, 3), (90.0, 60.0, 200.0)), 4)
    assert kinds(tinted) == [None]
    lenient = FrameSettings(blank_deviation=5, flat=1)
    assert Frames(lenient).look(batch(tinted)).kinds == ["blank"]
