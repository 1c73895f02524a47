"""What befalls a stream: changing conditions, day and night, images of other kinds mixed in."""

import numpy as np
import pytest

from tests.fixtures.datasets import pictures, read_all
from ttc_core.datasets import (
    CleanData,
    DataError,
    Geometry,
    changing,
    day_night,
    mixed_in,
    parse_mix,
)
from ttc_core.datasets.conditions import MIDNIGHT_LIGHT, MIXES

N = 60
LABELS = np.arange(N) % 5
IMAGES = pictures(N, side=16)


@pytest.fixture
def data():
    return CleanData(IMAGES, LABELS, Geometry())


def mixed(data, text: str, **options):
    return mixed_in(data.open("fog", 3, order="iid"), parse_mix(text), severity=3, **options)


def test_conditions_change_every_so_many_images_and_end_clean(data):
    """In turn, round and round; each image is as under its corruption alone, at its place."""
    stream = changing(data, ("fog", "contrast"), 3, 16, limit=55, order="iid", seed=2)
    told = [*["fog"] * 16, *["contrast"] * 16, *["fog"] * 16, *["clean"] * 7]
    assert stream.columns["condition"].tolist() == told
    since = [*range(16), *range(16), *range(16), *range(7)]
    assert stream.columns["since_change"].tolist() == since
    assert (stream.corruption, stream.severity) == ("changing:fog+contrast", 3)
    images, labels = read_all(stream, 7)
    alone = {name: data.open(name, 3, limit=55, order="iid", seed=2) for name in set(told)}
    for number, name in enumerate(told):
        np.testing.assert_array_equal(
            images[number], alone[name].read(alone[name].positions[[number]])[0]
        )
    np.testing.assert_array_equal(labels, alone["fog"].labels)


def test_changes_go_with_orders_whose_images_come_again(data):
    """The digest is of what is stored, whatever corrupts it."""
    stream = changing(data, ("fog",), 3, 50, limit=130, order="one:2", seed=1)
    assert read_all(stream, 50)[1].tolist() == [2] * 130
    other = changing(data, ("snow",), 3, 50, limit=130, order="one:2", seed=1)
    assert stream.digest == other.digest


def test_a_stream_of_one_stretch_is_refused(data):
    """It would be clean throughout."""
    with pytest.raises(DataError, match="changing:60 needs more than 60 images"):
        changing(data, ("fog", "contrast"), 3, N)


def test_a_night_falls_and_ends(data):
    """As bright as ever at noon, darkest at midnight, and the same however it is cut."""
    long = CleanData(np.full((501, 8, 8, 3), 128, np.uint8), np.zeros(501, int), Geometry())
    stream = day_night(long.open("clean", 5), 3)
    images, _ = read_all(stream, 7)
    np.testing.assert_array_equal(images, read_all(stream, 100)[0])
    assert (images[0] == 128).all()
    assert (images[500] == 128).all()
    levels = images.mean(axis=(1, 2, 3))
    assert levels[250] == pytest.approx(128 * MIDNIGHT_LIGHT, abs=6)
    assert images[250].std() > 15
    assert levels[100] > levels[150] > levels[200]
    conditions, starts = stream.columns["condition"], stream.columns["since_change"]
    assert conditions[[0, 124, 126, 374, 376]].tolist() == ["day", "day", "night", "night", "day"]
    assert starts[[0, 124, 300, 400]].tolist() == [0, 124, 300 - 125, 400 - 376]
    assert day_night(data.open("fog", 3), 0).corruption == "day-night:fog"
    assert stream.corruption == "day-night"


@pytest.mark.parametrize("size", [1, 7, N])
def test_each_kind_replaces_its_share(data, size):
    """At places that the seed draws, the same in batches of any size; the others are untouched."""
    stream = mixed(data, "noise:0.2,unknown:0.1,frozen:0.1", seed=4)
    kinds = stream.columns["mixed"]
    assert [int((kinds == MIXES.index(kind) + 1).sum()) for kind in MIXES] == [12, 6, 6, 0]
    np.testing.assert_array_equal(stream.labels == -1, kinds > 0)
    plain = data.open("fog", 3, order="iid")
    images, whole = read_all(stream, size)[0], read_all(plain, size)[0]
    same = (images == whole).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same[kinds == 0], True)
    np.testing.assert_array_equal(stream.labels[kinds == 0], plain.labels[kinds == 0])
    frozen = np.flatnonzero(kinds == MIXES.index("frozen") + 1)
    np.testing.assert_array_equal(images[frozen], whole[frozen[:1]].repeat(6, axis=0))
    assert not same[(kinds > 0) & (kinds != MIXES.index("frozen") + 1)].any()
    np.testing.assert_array_equal(images, read_all(stream, 13)[0])
    other = mixed(data, "noise:0.2,unknown:0.1,frozen:0.1", seed=5)
    assert (other.columns["mixed"] != kinds).any()


def test_noise_and_shapes_are_an_image_each(data):
    """No two are the same."""
    for kind in ("noise", "unknown"):
        stream = mixed(data, f"{kind}:0.5", seed=0)
        found = read_all(stream)[0][stream.columns["mixed"] > 0]
        assert len({image.tobytes() for image in found}) == len(found) == 30


def test_unknown_images_are_of_other_data_under_the_same_corruption(data):
    """Each once while they last, and part of what was asked about."""
    strange = CleanData(pictures(20, side=16, seed=9), np.zeros(20, int), Geometry())
    stream = mixed(data, "unknown:0.5", seed=0, unknown=strange)
    found = read_all(stream)[0][stream.columns["mixed"] > 0]
    known = read_all(strange.open("fog", 3))[0]
    assert {image.tobytes() for image in found} == {image.tobytes() for image in known}
    assert stream.digest != mixed(data, "unknown:0.5", seed=0).digest
    small = CleanData(pictures(20, side=8), np.zeros(20, int), Geometry())
    with pytest.raises(DataError, match="8 × 8 pixels and the others of 16 × 16"):
        read_all(mixed(data, "unknown:0.5", seed=0, unknown=small))


def test_unknown_images_change_with_the_conditions():
    """Contrast takes all colour from them where it takes it from the others."""
    data = CleanData(IMAGES, LABELS, Geometry())
    stream = mixed_in(
        changing(data, ("contrast",), 5, 30), parse_mix("unknown:0.9"), severity=5, seed=0
    )
    spread = read_all(stream)[0].std(axis=(1, 2, 3))[stream.columns["mixed"] > 0]
    assert spread[:20].mean() < 0.7 * spread[-20:].mean()
    assert stream.columns["condition"][-1] == "clean"


def test_poison_is_what_somebody_makes_of_the_images(data):
    """It is handed the images that it takes the place of."""
    stream = mixed(data, "poison:0.1", seed=0, poison=lambda images: 255 - images)
    images, whole = read_all(stream)[0], read_all(data.open("fog", 3, order="iid"))[0]
    mine = stream.columns["mixed"] > 0
    assert mine.sum() == 6
    np.testing.assert_array_equal(images[mine], 255 - whole[mine])


def test_a_few_images_are_never_all_replaced(data):
    """One at least is left to judge by."""
    stream = mixed_in(
        data.open("fog", 3, limit=1), {"noise": 0.9}, severity=3, seed=0, unknown=None
    )
    assert (stream.labels >= 0).all()


@pytest.mark.parametrize(
    "text",
    [
        *("", "noise", "noise:0", "noise:-0.1", "noise:1", "smoke:0.1", "noise:0.6,frozen:0.5"),
        *("noise:0.1,noise:0.1", "noise:x", "noise:nan", "noise:0.1,"),
    ],
)
def test_other_mixes_are_refused(text):
    """With what there is."""
    with pytest.raises(ValueError, match=r"A mix is KIND:SHARE.* noise, unknown, frozen, poison"):
        parse_mix(text)
    assert parse_mix("poison:0.05, noise:.2") == {"noise": 0.2, "poison": 0.05}
