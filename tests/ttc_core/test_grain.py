"""Noise is seen in a picture as it came, whatever size the model reads."""

import io

import numpy as np
import pytest
from PIL import Image

from ttc_core.corruptions import corrupt
from ttc_core.datasets import Geometry, open_data
from ttc_core.evaluate import as_batch
from ttc_core.frames import Frames
from ttc_core.geometry import fit
from ttc_core.grain import fitted, grain_of

CAME_AS = [(48, 48), (64, 64), (224, 224), (640, 480), (480, 1280)]


def static(width: int, height: int, kind: str = "even", seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    channels = 1 if "grey" in kind else 3
    if "bell" in kind:
        levels = draw.normal(128, 40, (height, width, channels))
    else:
        levels = draw.uniform(-0.5, 255.5, (height, width, channels))
    pixels = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(pixels, 3 // channels, axis=2))


def through(image: Image.Image, file_format: str) -> Image.Image:
    body = io.BytesIO()
    image.save(body, file_format, quality=75)
    return Image.open(body)


def kind_of(image: Image.Image, size: int, crop: int | None = None) -> str | None:
    pixels, grain = fitted(image, Geometry(size, crop))
    return Frames().look(as_batch([pixels]), [grain]).kinds[0]


@pytest.mark.parametrize("size", [(32, None), (224, None), (40, 32)])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("kind", ["even", "even, grey", "bell", "bell, grey"])
def test_static_is_noise_at_whatever_size_it_comes(kind, file_format, size):
    """Made smaller it is a grey mean, made larger a picture of blobs."""
    for seed, came_as in enumerate([*CAME_AS, (32, 32)]):
        assert kind_of(through(static(*came_as, kind, seed), file_format), *size) == "noise"


@pytest.fixture(scope="module")
def textures() -> dict[str, Image.Image]:
    """Textiles and prints that fill a picture of 480 pixels, with some sensor noise."""
    y, x = np.mgrid[:480, :480]
    levels = {
        "mesh": ((x % 6 < 2) | (y % 6 < 2)) * 180,
        "weave of 4": np.where((x // 4 + y // 4) % 2, 150, 90),
        "weave of 5": np.where((x // 5 + y // 5) % 2, 150, 90),
        "chequers of 1": (x + y) % 2 * 180,
        "halftone": ((x % 4 < 2) & (y % 4 < 2)) * 200,
        "dots": ((x % 6 < 2) & (y % 6 < 2)) * 200,
    }
    for period in (3, 4, 5, 7, 12):
        for degrees in (0, 17, 45):
            angle = np.deg2rad(degrees)
            along = x * np.cos(angle) + y * np.sin(angle)
            wave = np.sin(2 * np.pi * along / period + 0.3)
            levels[f"wave of {period} at {degrees}°"] = 127 + 50 * wave
            levels[f"stripes of {period} at {degrees}°"] = 127 + 50 * np.sign(wave)
    noise = np.random.default_rng(0).normal(0, 4, (480, 480, 3))
    return {
        name: Image.fromarray(np.clip(np.rint(each[..., None] + noise), 0, 255).astype(np.uint8))
        for name, each in levels.items()
    }


@pytest.mark.parametrize("size", [32, 224, 480])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_fine_textures_are_ordinary(textures, file_format, size):
    """No part of them differs from another, but they repeat; nor are they of one colour.

    For a model that makes a grey of them, one that shows them, and one of their size.
    """
    for name, image in textures.items():
        sent = through(image, "JPEG") if file_format == "JPEG" else image
        assert kind_of(sent, size) is None, name


@pytest.mark.parametrize(("light", "deviation"), [(1, 1), (1, 4), (1, 25), (0.05, 1), (0.05, 4)])
@pytest.mark.parametrize("size", [32, 224])
def test_pictures_in_noise_are_no_noise(size, light, deviation):
    """At the size at which they come, in light and at night."""
    draw = np.random.default_rng(0)
    for coarse in draw.integers(20, 236, (8, 7, 7, 3), np.uint8):
        for side in (32, 64, 224, 640):
            scene = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            levels = draw.normal(light * np.asarray(scene), deviation)
            picture = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
            assert kind_of(Image.fromarray(picture), size) is None


@pytest.mark.parametrize("corruption", ["gaussian_noise", "shot_noise", "impulse_noise"])
def test_a_real_picture_is_none_for_a_larger_model_either(corruption):
    """Of 200 images under noise of the highest severity, sent to a model that makes them larger."""
    ((clean, _),) = open_data("bundled", Geometry(32)).open("clean", 5, limit=200).batches(200)
    images = map(Image.fromarray, corrupt(clean, corruption, 5))
    assert [kind_of(image, 224) for image in images] == [None] * 200


def test_what_keeps_its_pixels_is_judged_by_them():
    """Nothing is measured twice; the pixels are those of `fit`, whatever is seen."""
    image = static(32, 32)
    for size, crop in ((32, None), (None, None), (64, 32)):
        pixels, grain = fitted(image, Geometry(size, crop))
        assert grain is None
        np.testing.assert_array_equal(pixels, np.asarray(image))
    large = static(640, 480)
    np.testing.assert_array_equal(fitted(large, Geometry(32))[0], np.asarray(fit(large, 32, None)))


@pytest.mark.parametrize("came_as", [(1, 1), (23, 23), (24, 24), (25, 7), (8192, 24), (24, 3000)])
def test_any_shape_is_looked_at(came_as):
    """Too few pixels tell nothing; of one colour they have no noise."""
    grain = grain_of(static(*came_as))
    if min(came_as) < 24:
        assert grain is None
    else:
        assert grain is not None
        assert grain.structure < 1.5
        assert grain.deviation > 35
        assert grain.relation < 0.25
        assert grain_of(Image.new("RGB", came_as, (9, 200, 30))) == (0, 0, 0)


def test_a_folder_tells_of_the_files_that_a_server_would_be_sent(tmp_path):
    """Not of images that were corrupted after they were read: their pixels are sent."""
    for number, image in enumerate([static(64, 64), static(32, 32), Image.new("RGB", (90, 60))]):
        (tmp_path / str(number)).mkdir()
        image.save(tmp_path / str(number) / "a.png")
    data = open_data(f"folder:{tmp_path}", Geometry(32))
    clean, fog = data.open("clean", 5, order="sorted"), data.open("fog", 5)
    for stream in (clean, fog):
        assert sum(len(labels) for _, labels in stream.batches(2)) == 3
    assert [grain and round(grain.deviation) for grain in clean.grains(slice(0, 3))] == [
        42,
        None,
        0,
    ]
    assert clean.grains(slice(2, 9)) == [(0, 0, 0)]
    assert fog.grains(slice(0, 3)) == [None] * 3
    both = data.open("mixed:clean+fog", 5)
    assert both.grains(slice(1, 3)) == [None] * 2
