"""What a server says of itself at its start."""

import logging

import pytest

from service.cli.options import pairs_of
from service.cli.serve import _introduce
from service.settings_reading import read_settings
from tests.fixtures.networks import make_model
from ttc_core.methods import METHODS, create, settings_for


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
    ("given", "said"),
    [
        ({"set": ("ttc.lr=1",)}, "lr=1 makes steps 1,000 times"),
        ({"set": ("ttc.lr=0.01",)}, "usual is lr=0.0001 to 0.003"),
        ({"set": ("ttc.lr=0.005", "ttc.optimizer=adam")}, None),
        ({"set": ("ttc.optimizer=sgd", "ttc.lr=0.001")}, None),
        ({"set": ("ttc.optimizer=sgd", "ttc.momentum=0.995")}, "with a momentum of 0.995 makes"),
        ({"set": ("ttc.weight_decay=1",)}, "weight_decay=1 draws scales towards 0"),
        ({"set": ("moving.floor=1",)}, "moving.floor=1 has single images outweigh"),
        ({"set": ("moving.floor=1",), "paper": True}, None),
        ({"set": ("eta.momentum=0.999",), "method": "eta"}, None),
        ({"set": ("eta.sgd_momentum=0.999", "eta.optimizer=sgd"), "method": "eta"}, "0.999"),
        ({"set": ("ttc_stream.lr=0.05",), "method": "ttc_stream"}, "lr=0.0002 to 0.006"),
        *[({"method": method}, None) for method in METHODS],
    ],
    ids=str,
)
def test_a_value_that_does_harm_is_told_beside_what_is_usual(given, said, caplog):
    """It is accepted: whoever studies what breaks a method may. What is usual goes unremarked."""
    settings = read_settings({"method": "ttc", **given})
    chosen = settings_for(settings.method, pairs_of(settings.set), statistics=settings.statistics)
    with caplog.at_level(logging.WARNING):
        _introduce(settings, create(settings.method, make_model(), guard="on", **chosen))
    told = [line for line in caplog.messages if line.startswith(f"{settings.method}: ")]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


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
