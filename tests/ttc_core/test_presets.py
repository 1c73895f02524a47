"""What the tables and figures of the paper are made of."""

import pytest

from tests.fixtures.networks import make_model
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.methods import PAPER_METHODS
from ttc_core.presets import PRESETS, TTC_SWITCHES, plain


def lines(name):
    return [(v.method, dict(v.settings), v.batch_size) for v in PRESETS[name].variants]


def test_there_is_one_for_every_table_and_every_figure_with_data():
    """Seven tables, two figures; the third needs no data."""
    assert set(PRESETS) == {*(f"table{n}" for n in range(1, 8)), "figure2", "figure3"}


@pytest.mark.parametrize("table", ["table2", "table3", "table4", "table6"])
def test_the_comparisons_have_every_method_at_its_defaults(table):
    """On all fifteen corruptions."""
    assert lines(table) == [(name, {}, None) for name in PAPER_METHODS]
    assert PRESETS[table].corruptions == CORRUPTIONS


def test_table_1_shows_what_small_batches_do_to_tent():
    """Beside SOURCE, which no batch size touches."""
    assert lines("table1") == [("source", {}, None), ("tent", {}, 1), ("tent", {}, 20)]


def test_table_5_has_the_five_augmentations():
    """Each is one that TTC accepts."""
    settings = [settings for _, settings, _ in lines("table5")]
    assert len({str(each) for each in settings}) == 5
    assert {"augmentation": "horizontal_flip"} in settings


def test_table_7_switches_on_one_part_at_a_time():
    """TENT, each part alone, and all of them (METHOD §2.19)."""
    (tent, *parts, whole) = lines("table7")
    assert (tent, whole) == (("tent", {}, None), ("ttc", {}, None))
    on = [[name for name in TTC_SWITCHES if settings[name]] for _, settings, _ in parts]
    assert on == [[name] for name in TTC_SWITCHES]


def test_figure_2_has_tent_with_and_without_accumulation_at_every_size():
    """And all other methods."""
    sizes = {}
    for method, settings, batch_size in lines("figure2"):
        line = f"{method}+ga" if settings else method
        sizes.setdefault(line, []).append(batch_size)
    assert set(sizes) == {*PAPER_METHODS, "ttc+ga"}
    assert len({tuple(line) for line in sizes.values()}) == 1
    assert {1, 2, 20, 100} <= set(sizes["tent"])


def test_figure_3_compares_with_a_supervised_reference():
    """On impulse noise, as the paper does, with several channels."""
    assert [method for method, _, _ in lines("figure3")] == ["supervised", "tent", "ttc"]
    assert PRESETS["figure3"].corruptions == ("impulse_noise",)
    assert PRESETS["figure3"].channels > 1


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_line_can_be_made(preset):
    """The settings exist and are in range."""
    model = make_model()
    for variant in preset.variants:
        method = variant.create(model, {})
        assert dict(variant.settings).items() <= method.settings.items()


def test_a_preset_can_be_restricted_and_added_to():
    """--methods picks lines of a preset; a method of one's own is run beside them."""
    restricted = PRESETS["table7"].restricted(["tent", "own.module:Method"])
    assert [variant.method for variant in restricted.variants] == ["tent", "own.module:Method"]
    assert plain(["norm"]).restricted(["norm"]) == plain(["norm"])
