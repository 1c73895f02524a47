"""What a server says of itself at its start."""

import logging

import pytest

from service.cli.options import pairs_of
from service.cli.serve import _introduce
from service.settings import read_settings
from tests.fixtures.networks import make_model
from ttc_core.methods import create, settings_for


@pytest.mark.parametrize(
    ("method", "network", "given", "warns"),
    [
        ("ttc", "batch-norm", {"paper": True}, True),
        ("norm", "batch-norm", {"paper": True}, True),
        ("tent", "batch-norm", {"set": ("tent.statistics=batch",)}, True),
        ("ttc", "batch-norm", {"paper": True, "max_wait": 0.1}, False),
        ("source", "batch-norm", {"paper": True}, False),
        ("t3a", "batch-norm", {"paper": True}, False),
        ("tent", "layer-norm", {"paper": True}, False),
        ("ttc", "batch-norm", {}, False),
    ],
)
def test_who_answers_lone_images_by_guessing_is_warned(method, network, given, warns, caplog):
    """Where the statistics are the batch's, and nobody else."""
    settings = read_settings({"method": method, **given})
    chosen = settings_for(method, pairs_of(settings.set), statistics=settings.statistics)
    with caplog.at_level(logging.WARNING):
        _introduce(settings, create(method, make_model(network), **chosen))
    assert ("answered near chance" in caplog.text) == warns


@pytest.mark.parametrize(
    ("given", "warns"),
    [
        ({"set": ("ttc.lr=0.1",)}, True),
        ({"set": ("moving.floor=0.1",)}, True),
        ({"set": ("ttc_stream.lr=0.1",)}, False),
        ({"method": "ttc", "set": ("ttc.lr=0.1",)}, False),
        ({"method": "ttc", "set": ("moving.floor=0.1",)}, False),
    ],
)
def test_a_setting_of_another_method_is_told_to_set_nothing(given, warns, caplog):
    """`--set ttc.lr=…` beside the default is a mistake that nobody would notice."""
    settings = read_settings(given)
    chosen = settings_for(settings.method, pairs_of(settings.set), statistics=settings.statistics)
    with caplog.at_level(logging.WARNING):
        _introduce(settings, create(settings.method, make_model(), **chosen))
    assert ("sets nothing here" in caplog.text) == warns
