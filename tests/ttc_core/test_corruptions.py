"""The fifteen corruptions agree with the benchmark, are reproducible, and work on any image."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ttc_core.corruptions import CORRUPTIONS, SMALL_SIDE, corrupt
from ttc_core.corruptions.blur import GLASS_BLUR, enlarge, shuffle, smear
from ttc_core.corruptions.digital import (
    ELASTIC_TRANSFORM,
    _inverse_affine,
    _mirror,
    _reflect,
    _smooth,
    elastic_transform,
    sample,
)
from ttc_core.corruptions.noise import IMPULSE_NOISE, SHOT_NOISE
from ttc_core.corruptions.weather import FROST, frost_picture, plasma

DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
RANDOM = tuple(name for name in CORRUPTIONS if name not in DETERMINISTIC)

Images = NDArray[np.uint8]


@cache
def small_clean(data: Path) -> Images:
    return np.load(data / "cifar10c" / "clean.npy")


@cache
def small_corrupted(data: Path, name: str, severity: int) -> Images:
    if severity == 5:
        return np.load(data / "cifar10c" / f"{name}.npy")
    with np.load(data / "cifar10c" / "severities.npz") as arrays:
        return arrays[name][severity - 1]


@cache
def large(data: Path) -> dict[str, Images]:
    with np.load(data / "imagenetc" / "examples.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def change(corrupted: Images, clean: Images) -> NDArray[np.float64]:
    return corrupted.astype(np.float64) - clean


def made_up(*shape: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


# Agreement with the benchmark


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_draws_nothing_equals_the_benchmark_at_32_pixels(name, severity, shared_data):
    """Without random draws, nearly every value is the benchmark's own."""
    expected = small_corrupted(shared_data, name, severity)
    got = corrupt(small_clean(shared_data)[: len(expected)], name, severity)
    difference = np.abs(change(got, expected))
    assert np.mean(difference <= 2) >= 0.99
    assert np.mean(difference == 0) >= 0.99


@pytest.mark.parametrize("severity", [3, 5])
@pytest.mark.parametrize("photo", ["astronaut", "chelsea"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_what_draws_nothing_equals_the_benchmark_at_224_pixels(name, photo, severity, shared_data):
    """The large constants give the benchmark's own large images."""
    expected = large(shared_data)[f"{photo}-{name}-{severity}"]
    got = corrupt(large(shared_data)[f"{photo}-clean"][None], name, severity)[0]
    difference = np.abs(change(got, expected))
    assert np.mean(difference <= 2) >= 0.99
    assert np.mean(difference == 0) >= 0.99


@pytest.mark.parametrize("name", RANDOM)
def test_random_changes_have_the_benchmarks_mean_and_spread(name, shared_data):
    """Over 800 images the change has the published mean and deviation."""
    clean = small_clean(shared_data)
    expected = change(small_corrupted(shared_data, name, 5), clean)
    got = change(corrupt(clean, name, 5), clean)
    assert abs(got.mean() - expected.mean()) <= max(1.0, 0.1 * abs(expected.mean()))
    assert got.std() == pytest.approx(expected.std(), rel=0.25 if name == "frost" else 0.1)


@pytest.mark.parametrize("severity", [1, 2, 3, 4])
@pytest.mark.parametrize("name", RANDOM)
def test_milder_random_changes_have_the_benchmarks_mean_and_spread(name, severity, shared_data):
    """The same on 40 images, as far as one draw for each of 40 images can tell."""
    clean = small_clean(shared_data)[:40]
    expected = change(small_corrupted(shared_data, name, severity), clean)
    got = change(
        np.stack([corrupt(clean, name, severity, seed=seed) for seed in range(5)]), clean[None]
    )
    # The benchmark's 40 draws miss their own mean: four standard errors of the image means,
    # which vary mainly where a whole image gets one cloud, one window or one tilt.
    error = 4 * expected.mean(axis=(1, 2, 3)).std() / np.sqrt(40)
    assert abs(got.mean() - expected.mean()) <= max(1.0, 0.1 * abs(expected.mean()), error)
    assert got.std() == pytest.approx(expected.std(), rel=0.25 if name == "frost" else 0.1)


# At 224 pixels there are two photographs, so a corruption with one draw an image (a cloud, an
# angle, a tilt) shows a wide spread: limits are what single draws were seen to differ by.
SPREAD_OF_ONE_DRAW = {
    "motion_blur": 0.15,
    "fog": 0.2,
    "elastic_transform": 0.3,
    "snow": 0.1,
    "frost": 0.6,
}


@pytest.mark.parametrize("severity", [3, 5])
@pytest.mark.parametrize("name", RANDOM)
def test_random_changes_are_as_strong_as_the_benchmarks_at_224_pixels(name, severity, shared_data):
    """The large constants change a photograph as much as the benchmark does."""
    for photo in ("astronaut", "chelsea"):
        clean = large(shared_data)[f"{photo}-clean"]
        expected = change(large(shared_data)[f"{photo}-{name}-{severity}"], clean)
        got = change(corrupt(np.stack([clean] * 4), name, severity), clean[None])
        limit = SPREAD_OF_ONE_DRAW.get(name, 0.03)
        assert got.std() == pytest.approx(expected.std(), rel=limit)
        if name not in SPREAD_OF_ONE_DRAW:
            assert abs(got.mean() - expected.mean()) <= 1.0


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "shot_noise"])
def test_noise_differs_between_pixels_and_channels(name):
    """Every channel value has its own draw, so neighbours do not go together."""
    noise = change(corrupt(np.full((20, 32, 32, 3), 128, np.uint8), name, 5), 128)
    neighbours = (noise[:, 1:], noise[:, :-1]), (noise[..., 0], noise[..., 1])
    for one, other in neighbours:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_shot_noise_counts_whole_photons():
    """Only the multiples of one photon's light occur."""
    (photons,) = SHOT_NOISE[32][4]
    levels = (np.arange(photons + 1) / photons * 255).astype(np.uint8)
    assert np.isin(corrupt(made_up(4, 32, 32, 3), "shot_noise", 5), levels).all()


def test_impulse_noise_hits_channel_values_at_the_stated_rate():
    """The stated share of values turns white or black, half of it each."""
    (amount,) = IMPULSE_NOISE[32][4]
    got = corrupt(np.full((100, 32, 32, 3), 128, np.uint8), "impulse_noise", 5)
    assert np.mean(got == 255) == pytest.approx(amount / 2, rel=0.05)
    assert np.mean(got == 0) == pytest.approx(amount / 2, rel=0.05)
    assert np.mean(got == 128) == pytest.approx(1 - amount, rel=0.05)


# Single algorithms against the plain form


def test_motion_blur_equals_a_computation_by_hand():
    """At 0 degrees a pixel takes most from itself and the rest from its right."""
    row = np.array([0, 100, 200, 50], dtype=np.uint8)
    weights = np.exp(-(np.arange(3.0) ** 2) / 2)
    weights /= weights.sum()  # 0.5740, 0.3482, 0.0777
    expected = [
        0.3482 * 100 + 0.0777 * 200,  # 50.37
        0.5740 * 100 + 0.3482 * 200 + 0.0777 * 50,  # 130.93
        0.5740 * 200 + 0.3482 * 50 + 0.0777 * 50,  # 136.11
        50,
    ]
    got = smear(row[None, None, :, None], 1, 1, np.array([0.0]))
    assert got.ravel().tolist() == [int(value) for value in expected]


def test_motion_blur_turns_downwards():
    """At 90 degrees the streak comes from below, at -90 from above."""
    column = np.array([0, 0, 255, 0, 0], dtype=np.uint8)[None, :, None, None]
    got = smear(np.repeat(column, 2, axis=0), 1, 1, np.array([90.0, -90.0]))[..., 0, 0]
    assert got.tolist() == [[19, 88, 146, 0, 0], [0, 0, 146, 88, 19]]


def literal_glass(image: Images, reach: int, pairs: NDArray[np.int64]) -> Images:
    """One pass as the benchmark states it: a loop over pixels that copies in place."""
    image = image.copy()
    draws = iter(pairs)
    for h in range(image.shape[0] - reach, reach, -1):
        for w in range(image.shape[1] - reach, reach, -1):
            dx, dy = next(draws)
            image[h, w] = image[h + dy, w + dx]
    return image


@pytest.mark.parametrize(
    ("height", "width", "reach"),
    [(32, 32, 1), (32, 32, 2), (24, 40, 3), (40, 24, 4), (9, 9, 4), (8, 8, 4), (1, 5, 1)],
)
def test_glass_equals_the_literal_loop(height, width, reach):
    """Following pointers gives what copying pixel after pixel gives, also where copies chain."""
    images = made_up(3, height, width, 3)
    inner = max(0, height - 2 * reach) * max(0, width - 2 * reach)
    pairs = np.random.default_rng(1).integers(-reach, reach, size=(3, inner, 2))
    expected = [literal_glass(*each) for each in zip(images, [reach] * 3, pairs, strict=True)]
    np.testing.assert_array_equal(shuffle(images, reach, pairs), expected)


def test_glass_with_reach_one_is_a_plain_gather():
    """At 32 pixels no pixel reads one that was already written."""
    images = made_up(1, 32, 32, 3)
    pairs = np.random.default_rng(2).integers(-1, 1, size=(1, 900, 2))
    rows, columns = np.meshgrid(np.arange(31, 1, -1), np.arange(31, 1, -1), indexing="ij")
    expected = images[0].copy()
    dx, dy = pairs[0].reshape(30, 30, 2).transpose(2, 0, 1)
    expected[rows, columns] = images[0][rows + dy, columns + dx]
    np.testing.assert_array_equal(shuffle(images, 1, pairs)[0], expected)
    assert all(constants[1] == 1 for constants in GLASS_BLUR[32])


@pytest.mark.parametrize("decay", [1.4, 3.0])
@pytest.mark.parametrize(("size", "side"), [(1, 2), (3, 4), (32, 32), (33, 64), (224, 256)])
def test_a_cloud_goes_from_zero_to_one(size, side, decay):
    """Every plasma map is a power of two wide and spans exactly [0, 1]."""
    clouds = plasma(size, decay, [np.random.default_rng(seed) for seed in range(3)])
    assert clouds.shape == (3, side, side)
    assert clouds.min(axis=(1, 2)).tolist() == [0, 0, 0]
    assert clouds.max(axis=(1, 2)).tolist() == [1, 1, 1]


def test_a_larger_decay_makes_smoother_clouds():
    """Neighbours differ less where the fine scales get less noise."""
    steps = []
    for decay in (1.5, 2, 3):
        clouds = plasma(32, decay, [np.random.default_rng(seed) for seed in range(20)])
        steps.append(np.abs(np.diff(clouds, axis=1)).mean())
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.06, 1.25, 1.75, 4.5])
@pytest.mark.parametrize("size", [1, 2, 31, 32])
def test_enlarging_equals_scipys_zoom(size, factor):
    """The centre is cropped, enlarged and cropped as scipy's spline zoom does it."""
    x = np.random.default_rng(0).random((size, size))
    crop = int(np.ceil(size / factor))
    start = (size - crop) // 2
    centre = x[start : start + crop, start : start + crop]
    zoomed = ndimage.zoom(centre, factor, order=1)
    trim = (len(zoomed) - size) // 2
    expected = zoomed[trim : trim + size, trim : trim + size]
    np.testing.assert_allclose(enlarge(x[..., None], factor)[..., 0], expected, atol=1e-12)


def test_the_affine_map_puts_each_moved_point_back():
    """What the tilt reads at a moved point is the original point, x before y."""
    moves = np.random.default_rng(0).uniform(-2, 2, size=(5, 3, 2))
    affine = _inverse_affine(moves, 32, 32)[..., 0, 0]
    points = np.array([[26, 26], [26, 6], [6, 6]])
    for image in range(5):
        moved = np.column_stack([points + moves[image], np.ones(3)])
        np.testing.assert_allclose(moved @ affine[:, :, image].T, points, atol=1e-9)


@pytest.mark.parametrize("mode", ["mirror", "reflect"])
def test_sampling_equals_scipys_map_coordinates(mode):
    """Bilinear reading, far outside the image too, is scipy's with the same border."""
    images = np.random.default_rng(0).random((2, 7, 9, 3)).astype(np.float32)
    places = np.random.default_rng(1).uniform(-30, 30, size=(2, 2, 7, 9))
    got = sample(images, *places, _mirror if mode == "mirror" else _reflect)
    for image, channel in itertools.product(range(2), range(3)):
        expected = ndimage.map_coordinates(
            images[image, ..., channel], places[:, image], order=1, mode=mode
        )
        np.testing.assert_allclose(got[image, ..., channel], expected, atol=1e-5)


def test_elastic_transform_equals_its_plain_form():
    """All images at once give what scipy gives for one image after the other."""
    images = made_up(2, 32, 32, 3)
    alpha, sigma, jitter = ELASTIC_TRANSFORM[32][3]
    got = elastic_transform(
        images, (alpha, sigma, jitter), [np.random.default_rng(seed) for seed in range(2)]
    )
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    for seed in range(2):
        generator = np.random.default_rng(seed)
        points = np.array([[26, 26], [26, 6], [6, 6]])
        moved = points + generator.uniform(-jitter, jitter, size=(3, 2))
        back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
        from_x, from_y = (x * back[0, k] + y * back[1, k] + back[2, k] for k in (0, 1))
        dx, dy = (
            alpha
            * ndimage.gaussian_filter(
                generator.uniform(-1, 1, size=(32, 32)), sigma, mode="reflect", truncate=3
            )
            for _ in range(2)
        )
        for channel in range(3):
            tilted = ndimage.map_coordinates(
                images[seed, ..., channel] / 255, [from_y, from_x], order=1, mode="mirror"
            )
            expected = ndimage.map_coordinates(tilted, [y + dy, x + dx], order=1, mode="reflect")
            np.testing.assert_allclose(got[seed, ..., channel], expected * 255, atol=1.01)


@pytest.mark.parametrize("shape", [(20, 30), (8, 520)])
def test_smoothing_equals_scipys_filter(shape):
    """As matrices or directly, the random field is filtered the same."""
    field = np.random.default_rng(0).random((2, 2, *shape))
    expected = ndimage.gaussian_filter(field, (0, 0, 6.4, 6.4), mode="reflect", truncate=3)
    np.testing.assert_allclose(_smooth(field, 6.4), expected, atol=1e-12)


def test_contrast_keeps_the_mean_of_each_channel():
    """Only the distance to the channel's mean shrinks; truncation costs half a level."""
    images = made_up(3, 32, 32, 3)
    got = corrupt(images, "contrast", 5)
    np.testing.assert_allclose(got.mean(axis=(1, 2)), images.mean(axis=(1, 2)) - 0.5, atol=0.1)


def test_brightness_is_not_an_addition():
    """A pure red gets brighter in red alone; black becomes grey."""
    image = np.array([[[[100, 0, 0], [0, 0, 0]]]], dtype=np.uint8)
    assert corrupt(image, "brightness", 5).tolist() == [[[[176, 0, 0], [76, 76, 76]]]]


def test_fog_keeps_black_black():
    """An image without light has none to scatter; nothing divides by zero."""
    assert not corrupt(np.zeros((1, 32, 32, 3), np.uint8), "fog", 5).any()


def test_frost_is_always_the_same_window():
    """The pictures come from fixed seeds, not from what was drawn before."""
    first = frost_picture(2, 1).copy()
    frost_picture.cache_clear()
    np.testing.assert_array_equal(frost_picture(2, 1), first)
    assert first.shape == (120, 180, 3)


# Seeds, streams and shapes


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stream_may_be_cut_anywhere(name):
    """Parts that know their first index are the whole, and a part alone is another stream."""
    images = made_up(23, 32, 32, 3)
    whole = corrupt(images, name, 3, seed=7)
    parts = [
        corrupt(images[start:stop], name, 3, seed=7, first_index=start)
        for start, stop in [(0, 1), (1, 10), (10, 10), (10, 23)]
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    if name in RANDOM:
        assert (corrupt(images[1:10], name, 3, seed=7) != parts[1]).any()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_inner_chunks_do_not_show(name, monkeypatch):
    """However many images are treated at once, the result is the same."""
    images = made_up(5, 32, 32, 3)
    whole = corrupt(images, name, 4)
    monkeypatch.setattr("ttc_core.corruptions._PIXELS_AT_ONCE", 2 * 32 * 32)
    np.testing.assert_array_equal(corrupt(images, name, 4), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_decides(name):
    """The same seed repeats, another one differs where anything is drawn; the input stays."""
    images = made_up(3, 32, 32, 3)
    before = images.copy()
    first = corrupt(images, name, 2, seed=1)
    np.testing.assert_array_equal(corrupt(images, name, 2, seed=1), first)
    assert (corrupt(images, name, 2, seed=2) != first).any() == (name in RANDOM)
    np.testing.assert_array_equal(images, before)


def test_equal_images_get_different_draws():
    """Nothing random is shared between the images of a batch."""
    images = np.repeat(made_up(1, 32, 32, 3), 3, axis=0)
    for name in RANDOM:
        got = corrupt(images, name, 5)
        assert (got[0] != got[1]).any(), name
        assert (got[1] != got[2]).any(), name


def test_draws_are_the_same_on_every_machine():
    """The draws of an image rest on nothing that changes between processes or releases."""
    got = corrupt(np.full((1, 2, 2, 3), 128, np.uint8), "gaussian_noise", 5, seed=3, first_index=9)
    assert got.ravel().tolist() == [113, 140, 124, 150, 123, 134, 146, 145, 132, 160, 127, 167]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4), (33, 47), (90, 130)])
def test_images_of_any_size_keep_their_shape(size, severity):
    """Down to a single pixel, and not square: the same shape comes back."""
    images = made_up(2, *size, 3)
    for name in CORRUPTIONS:
        got = corrupt(images, name, severity)
        assert (got.shape, got.dtype) == (images.shape, np.uint8), name


@pytest.mark.parametrize("name", [*CORRUPTIONS, "clean"])
def test_an_empty_batch_stays_empty(name):
    """No image in, no image out."""
    assert corrupt(np.zeros((0, 32, 32, 3), np.uint8), name, 1).shape == (0, 32, 32, 3)


def test_any_memory_layout_will_do():
    """Views and reversed channels give what their copies give."""
    images = made_up(4, 40, 40, 3)[::2, 4:36, 4:36, ::-1]
    for name in CORRUPTIONS:
        np.testing.assert_array_equal(
            corrupt(images, name, 5), corrupt(np.ascontiguousarray(images), name, 5), name
        )


def test_clean_is_a_copy():
    """Clean changes nothing and shares no memory, at any severity."""
    images = made_up(2, 4, 4, 3)
    got = corrupt(images, "clean", 99)
    np.testing.assert_array_equal(got, images)
    assert not np.shares_memory(got, images)


@pytest.mark.parametrize(("side", "kept"), [(SMALL_SIDE, 0.15), (SMALL_SIDE + 1, 0.05)])
def test_the_short_side_chooses_the_constants(side, kept):
    """Contrast, being linear, tells which table was used."""
    images = made_up(1, side, 200, 3)
    assert corrupt(images, "contrast", 5).std() == pytest.approx(images.std() * kept, rel=0.05)


def test_frost_weights_differ_by_size():
    """Small images get the fine frost, large ones the coarse."""
    assert {constants[2] for constants in FROST[32]} == {1}
    assert {constants[2] for constants in FROST[224]} == {5}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param({"name": "rain"}, "no corruption 'rain'; accepted are clean, gaus", id="name"),
        pytest.param({"severity": 0}, "from 1 to 5; got 0", id="severity-low"),
        pytest.param({"severity": 6}, "from 1 to 5; got 6", id="severity-high"),
        pytest.param({"severity": 2.5}, "whole number from 1 to 5; got 2.5", id="severity-part"),
        pytest.param({"seed": -1}, "must be 0 or more; got -1", id="seed"),
        pytest.param({"first_index": -1}, "must be 0 or more; got 0 and -1", id="index"),
        pytest.param({"images": np.zeros((1, 8, 8, 3))}, "uint8.*got float64", id="dtype"),
        pytest.param({"images": [[1]]}, "uint8.*got list", id="list"),
        pytest.param({"images": made_up(8, 8, 3)}, r"\(N, H, W, 3\); got \(8, 8, 3\)", id="one"),
        pytest.param({"images": made_up(1, 3, 8, 8)}, r"got \(1, 3, 8, 8\)", id="planes"),
        pytest.param({"images": made_up(1, 0, 8, 3)}, r"got \(1, 0, 8, 3\)", id="no-rows"),
    ],
)
def test_a_wrong_argument_is_named(arguments, sentence):
    """The error says what came and what is accepted."""
    arguments = {"images": made_up(1, 8, 8, 3), "name": "fog", "severity": 1} | arguments
    with pytest.raises(ValueError, match=sentence):
        corrupt(**arguments)
