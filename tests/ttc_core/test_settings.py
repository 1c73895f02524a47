"""Every hyperparameter of METHOD §4 under its name, with its default; nothing else is taken."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.fixtures.networks import MEAN, STD, make_model
from ttc_core.methods import METHODS, UnsuitableNetworkError, create, settings_for
from ttc_core.model import SourceModel

ADAM = {"optimizer": "adam", "lr": 1e-3}
SGD = {"optimizer": "sgd", "lr": 2.5e-4}
OPTIMIZER = {
    "momentum": 0.9,
    "nesterov": False,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
}
STATISTICS = {"statistics": "batch", "moving": {"warm_start": 16, "floor": 0.001}}
NORM = {**STATISTICS, "source_images": 0, "flip": False}
TENT = {**STATISTICS, **OPTIMIZER, "flip": False}
T3A = {**STATISTICS, "statistics": "source", "filter": 100}
ETA = {
    **STATISTICS,
    **OPTIMIZER,
    "entropy_fraction": 0.4,
    "momentum": 0.9,
    "sgd_momentum": 0.9,
}
TIPI = {
    **STATISTICS,
    **OPTIMIZER,
    "epsilon": 2 / 255,
    "start": "random",
    "answer": "before",
}
# By the number of classes: CIFAR-10, CIFAR-100, ImageNet.
BY_CLASSES = {
    "eta": {
        10: {"redundancy_margin": 0.4},
        100: {"redundancy_margin": 0.4},
        1000: {"redundancy_margin": 0.05},
    },
    "tipi": {
        10: {"entropy_weight": 0.0, "lr_images": 200},
        100: {"entropy_weight": 5.0, "lr_images": 200},
        1000: {"entropy_weight": 1.0, "lr_images": 64},
    },
    "ttc_stream": {
        10: {"prior": True, "lr": 2e-3},
        100: {"prior": False, "lr": 2e-3},
        1000: {"prior": False},
    },
}
TTC = {
    **STATISTICS,
    **OPTIMIZER,
    **dict.fromkeys(("rla", "spc", "ss", "ga"), True),
    "augmentation": "horizontal_flip",
    "sigma": 1.0,
    "samples_per_step": 200,
    "mean_over": "selected",
    "accumulate_mean": False,
    "counter_start": 1,
    "flush_at_end": False,
    "average": "logits",
    "spc_on": "logits",
    "kappa_detach": False,
    "views": "separate",
}
TTC_STREAM = {
    **OPTIMIZER,
    "blend": 0.7,
    "early_horizon": 50,
    "late_horizon": 400,
    "window": 64,
    "samples_per_step": 50,
    "entropy_fraction": 0.8,
    "learn": "diverse",
    "second_view": "auto",
}


@pytest.fixture(scope="module")
def model():
    return make_model()


def with_classes(classes: int) -> SourceModel:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return SourceModel(module.append(nn.Linear(4, classes)), mean=MEAN, std=STD, size=8)


@pytest.mark.parametrize(("classes", "optimizer"), [(10, ADAM), (100, ADAM), (1000, SGD)])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(name, settings, id=name)
        for name, settings in (
            ("source", {"flip": False}),
            ("norm", NORM),
            ("t3a", T3A),
            ("eta", ETA),
            ("tipi", TIPI),
            ("tent", TENT),
            ("ttc", TTC),
            ("ttc_stream", TTC_STREAM),
        )
    ],
)
def test_defaults_are_those_of_the_table(name, expected, classes, optimizer):
    """CIFAR: Adam 1e-3, ours 2e-3; ImageNet: SGD 2.5e-4, momentum 0.9 and no Nesterov."""
    settings = dict(create(name, with_classes(classes)).settings)
    settings.pop("seed", None)  # ours, of what is drawn at random
    if "betas" in expected:
        expected = {**expected, **optimizer, **BY_CLASSES.get(name, {}).get(classes, {})}
    assert settings == expected


def test_the_rate_of_tipi_is_for_so_many_images_unless_it_is_given(model):
    """(1e-3/200)·N with Adam, (2.5e-4/64)·N with SGD; a given rate is meant as it is."""
    assert create("tipi", model)._rate(100) == pytest.approx(5e-4)
    assert create("tipi", with_classes(1000))._rate(64) == pytest.approx(2.5e-4)
    assert create("tipi", model, lr=1e-3)._rate(100) == 1e-3
    assert create("tipi", model, lr=1e-3, lr_images=50)._rate(100) == 2e-3


def test_a_chosen_optimizer_brings_its_own_rate(model):
    """SGD on few classes gets SGD's rate, not Adam's; a given rate stays."""
    assert create("tent", model, optimizer="sgd").settings["lr"] == 2.5e-4
    assert create("tent", with_classes(1000), optimizer="adam").settings["lr"] == 1e-3
    assert create("tent", model, optimizer="sgd", lr=0.1).settings["lr"] == 0.1


OTHERS: dict[str, list[Any]] = {
    "statistics": ["moving", "source"],
    "optimizer": ["sgd"],
    "lr": [0.01],
    "momentum": [0.5],
    "nesterov": [True],
    "betas": [(0.8, 0.99)],
    "eps": [1e-6],
    "weight_decay": [0.1],
    "flip": [True],
    "source_images": [16],
    "filter": [1, -1],
    "entropy_fraction": [0.5],
    "redundancy_margin": [0.1],
    "sgd_momentum": [0.5],
    "epsilon": [0.01],
    "start": ["zero"],
    "entropy_weight": [2.0],
    "lr_images": [64],
    "answer": ["after"],
    "seed": [7],
    **{part: [False] for part in ("rla", "spc", "ss", "ga")},
    "augmentation": ["vertical_flip", "rotation", "resized_crop", "gaussian_noise"],
    "sigma": [2.0],
    "samples_per_step": [100],
    "mean_over": ["batch"],
    "accumulate_mean": [True],
    "counter_start": [0],
    "flush_at_end": [True],
    "average": ["probabilities"],
    "spc_on": ["probabilities"],
    "kappa_detach": [True],
    "views": ["concatenated"],
}
EVERY = [
    pytest.param(name, key, value, id=f"{name}.{key}={value}")
    for name in METHODS
    for key in create(name, with_classes(10)).settings
    for value in OTHERS.get(key, [])
]


@pytest.mark.parametrize(("name", "key", "value"), EVERY)
def test_every_setting_is_taken_under_its_name(name, key, value, model):
    """As a value, and as the text that stands behind METHOD.PARAM= on the command line."""
    assert create(name, model, **{key: value}).settings[key] == value
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
    given = settings_for(name, {f"{name}.{key}": text}, statistics=None)
    assert create(name, model, **given).settings[key] == value


@pytest.mark.parametrize("text", ["0.8,0.99", "[0.8, 0.99]", "(0.8, 0.99)", "0.8 0.99"])
def test_betas_are_two_numbers_in_any_usual_writing(model, text):
    """A shell's, JSON's and Python's way to write a pair."""
    assert create("ttc", model, betas=text).settings["betas"] == (0.8, 0.99)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("ttc", {"lrr": 1}, r"ttc\.lrr is not a setting of ttc; its settings are: .*\blr\b"),
        ("source", {"lr": 1}, r"source\.lr is not a setting of source; its settings are: flip"),
        ("norm", {"lr": 1}, r"norm\.lr is not a setting of norm"),
        ("tent", {"samples_per_step": 1}, r"tent\.samples_per_step is not a setting"),
        ("ttc", {"moving": {"speed": 1}}, r"ttc\.moving\.speed"),
        ("ttc", {"lr": 0}, r"ttc\.lr=0 is not accepted: accepted is a number above 0"),
        ("ttc", {"lr": "fast"}, r"ttc\.lr='fast' is not accepted: .*number"),
        ("ttc", {"lr": "inf"}, r"ttc\.lr='inf' is not accepted: .*finite"),
        ("ttc", {"lr": float("nan")}, r"ttc\.lr=nan is not accepted"),
        ("ttc", {"betas": (0.9, 1.0)}, r"ttc\.betas.*is not accepted"),
        ("ttc", {"betas": "0.9"}, r"ttc\.betas.*is not accepted"),
        ("ttc", {"betas": "a,b"}, r"ttc\.betas.*is not accepted"),
        ("ttc", {"momentum": 1}, r"ttc\.momentum=1 is not accepted"),
        ("ttc", {"optimizer": "sgd", "nesterov": True, "momentum": 0}, r"(?i)nesterov"),
        ("ttc", {"weight_decay": -1}, r"ttc\.weight_decay=-1 is not accepted"),
        ("ttc", {"optimizer": "lion"}, r"ttc\.optimizer='lion' is not accepted: .*'sgd'"),
        ("ttc", {"samples_per_step": 0}, r"ttc\.samples_per_step=0 is not accepted"),
        ("ttc", {"samples_per_step": 1.5}, r"ttc\.samples_per_step=1\.5 is not accepted"),
        ("ttc", {"sigma": 0}, r"ttc\.sigma=0 is not accepted"),
        ("ttc", {"counter_start": 2}, r"ttc\.counter_start=2 is not accepted"),
        ("ttc", {"statistics": "mine"}, r"ttc\.statistics='mine' is not accepted: .*'moving'"),
        ("ttc", {"moving": {"floor": 2}}, r"ttc\.moving\.floor=2 is not accepted"),
        ("ttc", {"moving": {"warm_start": 0}}, r"ttc\.moving\.warm_start=0 is not accepted"),
        ("ttc", {"rla": "perhaps"}, r"ttc\.rla='perhaps' is not accepted"),
        ("ttc", {"seed": 10**30}, r"ttc\.seed=1000.* is not accepted"),
        ("tipi", {"seed": 10**30}, r"tipi\.seed=1000.* is not accepted"),
        ("norm", {"source_images": -1}, r"norm\.source_images=-1 is not accepted"),
        (
            "ttc",
            {"weight_decay": 1e300},
            r"ttc\.weight_decay=1e\+300 .*: it should be at most 3e\+38",
        ),
        (
            "ttc",
            {"sigma": 1e300},
            r"ttc\.sigma=1e\+300 is not accepted: it should be at most 3e\+38",
        ),
        (
            "tipi",
            {"epsilon": 1e300},
            r"tipi\.epsilon=1e\+300 is not accepted: it should be at most",
        ),
    ],
    ids=str,
)
def test_what_is_unknown_or_out_of_range_gives_a_sentence(name, settings, sentence, model):
    """One line that names the setting, what came and what is accepted."""
    with pytest.raises(ValueError, match=sentence) as error:
        create(name, model, **settings)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "source"])
def test_settings_make_the_method_again(name, model):
    """What a row says was used can be given back, also after a turn through JSON."""
    settings = create(name, model).settings
    assert create(name, model, **settings).settings == settings
    again = create(name, model, **json.loads(json.dumps(settings))).settings
    assert again == settings


@pytest.mark.parametrize(
    ("name", "given", "statistics", "expected"),
    [
        pytest.param("ttc", {}, None, {}, id="nothing"),
        pytest.param("ttc", {"ttc.lr": "0.1"}, None, {"lr": "0.1"}, id="own"),
        pytest.param("ttc", {"tent.lr": "0.1", "ttc.ga": "false"}, None, {"ga": "false"}, id="not"),
        pytest.param(
            "tent", {"moving.floor": "0.01"}, None, {"moving": {"floor": "0.01"}}, id="moving"
        ),
        pytest.param("source", {"moving.floor": "0.01"}, "moving", {}, id="source-has-no-choice"),
        pytest.param("norm", {}, "moving", {"statistics": "moving"}, id="default-statistics"),
        pytest.param(
            "norm",
            {"norm.statistics": "batch"},
            "moving",
            {"statistics": "batch"},
            id="given-statistics-win",
        ),
        pytest.param(
            "my.own:Class",
            {"my.own:Class.rate": "0.5", "my.own:Class.name": "x", "other.pkg:C.rate": "1"},
            "moving",
            {"rate": 0.5, "name": "x"},
            id="a-class-of-ones-own",
        ),
        pytest.param(
            "my.own:Class",
            {"my.own:Class.on": "False", "my.own:Class.off": "true", "my.own:Class.none": "None"},
            None,
            {"on": False, "off": True, "none": None},
            id="as-python-or-json-write-it",
        ),
        pytest.param(
            "norm", {"norm.moving.floor": "0.3"}, None, {"moving": {"floor": "0.3"}}, id="dotted"
        ),
        pytest.param("norm", {"ttc.moving.floor": "0.3"}, None, {}, id="anothers"),
    ],
)
def test_the_settings_of_one_method_are_picked_out(name, given, statistics, expected):
    """Those of other methods are left alone, so that one command line serves several."""
    assert settings_for(name, given, statistics=statistics) == expected


def test_moving_settings_reach_the_statistics(model):
    """`moving.floor` and `moving.warm_start` as text, for each method that has the choice."""
    given = {"moving.floor": "0.25", "moving.warm_start": "3"}
    for name in ("norm", "eta", "tipi", "tent", "ttc"):
        method = create(name, model, **settings_for(name, given, statistics="moving"))
        assert method.settings["moving"] == {"warm_start": 3, "floor": 0.25}
        assert method.settings["statistics"] == "moving"


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("lr", r"METHOD\.PARAM=VALUE; got 'lr'"),
        ("tant.lr", r"no method 'tant'; there are source, norm"),
        ("", r"METHOD\.PARAM=VALUE"),
        ("moving.foo", r"moving statistics have no such setting; theirs are: warm_start, floor"),
    ],
)
def test_a_key_that_names_no_setting_is_refused(key, sentence):
    """A typing error in the method's name must not be ignored as another method's."""
    with pytest.raises(ValueError, match=sentence):
        settings_for("ttc", {key: "1"}, statistics=None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tant", r"no method 'tant'; there are source, norm, .*package\.module:Class"),
        ("no.such.module:Class", r"no\.such\.module:Class cannot be imported"),
        ("tests.fixtures.methods:Missing", r"methods:Missing cannot be imported"),
    ],
)
def test_a_method_that_does_not_exist_is_named(name, sentence, model):
    """With what there is instead."""
    with pytest.raises(ValueError, match=sentence):
        create(name, model)


def test_none_can_be_said_in_text(model):
    """Where it is a value of its own."""
    assert create("tipi", model, lr_images="none").settings["lr_images"] is None


def test_norm_needs_batch_norm():
    """What needs batch statistics says so where there is no BatchNorm."""
    with pytest.raises(UnsuitableNetworkError, match="norm needs BatchNorm layers"):
        create("norm", make_model("layer-norm"))


def test_a_class_of_ones_own_gets_its_settings(model):
    """As keyword arguments, typed as JSON reads them."""
    name = "tests.fixtures.methods:ClassBalance"
    given = settings_for(name, {f"{name}.strength": "0.25"}, statistics="moving")
    method = create(name, model, **given)
    assert method.settings == {"strength": 0.25}
    assert isinstance(method.predict(torch.zeros(1, 3, 8, 8)).logits, torch.Tensor)
