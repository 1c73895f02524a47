"""A flag goes before its TTC_ variable, that before the default; what is refused names the flag."""

import os

import pytest
from pydantic import ValidationError

from service.cli import cli
from service.settings import Settings, flag, read_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TTC_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_design():
    """Local, bundled model, TTC, batches of 100 without waiting, adapting always."""
    settings = read_settings({})
    assert (settings.model, settings.method, settings.adapt) == ("bundled", "ttc", "always")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.max_batch, settings.max_wait) == (100, 0.0)
    assert settings.token is None
    assert settings.cors_origin == ()


def test_a_flag_goes_before_its_variable_and_that_before_the_default(monkeypatch):
    """The three sources, from the weakest to the strongest."""
    assert read_settings({}).max_batch == 100
    monkeypatch.setenv("TTC_MAX_BATCH", "7")
    assert read_settings({}).max_batch == 7
    assert read_settings({"max_batch": "5"}).max_batch == 5


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SET", "ttc.lr=0.1 ttc.ga=false", ("ttc.lr=0.1", "ttc.ga=false")),
        (
            "CORS_ORIGIN",
            "https://a.example https://b.example",
            ("https://a.example", "https://b.example"),
        ),
        ("MEAN", "0.1,0.2,0.3", (0.1, 0.2, 0.3)),
        ("PAPER", "true", True),
        ("STATE_DIR", "/var/lib/ttc", None),
        ("MAX_WAIT", "0.25", 0.25),
        ("TOKEN", "long enough", "long enough"),
    ],
)
def test_a_variable_is_read_as_its_flag_is(monkeypatch, name, text, value):
    """Lists are words, numbers are numbers, truth values are words too."""
    monkeypatch.setenv(f"TTC_{name}", text)
    got = getattr(read_settings({}), name.lower())
    assert (str(got) if name == "STATE_DIR" else got) == (text if value is None else value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch", 0),
        ("max_batch", 4097),
        ("max_batch", "ten"),
        ("max_wait", -1),
        ("max_wait", "nan"),
        ("max_wait", 61),
        ("port", 65536),
        ("port", -1),
        ("threads", -1),
        ("token", "short"),
        ("adapt", "sometimes"),
        ("log_format", "xml"),
        ("max_streams", 0),
        ("max_queue", 0),
        ("max_queue_bytes", 0),
        ("max_body", 0),
        ("max_image_bytes", 0),
        ("max_images", 0),
        ("max_pixels", 178_956_971),
        ("max_side", 0),
        ("decode_threads", 0),
        ("receive_timeout", 0),
        ("drain_delay", -1),
        ("drain_timeout", 0),
        ("mean", "grey"),
    ],
)
def test_a_value_out_of_bounds_is_a_sentence_with_the_flag(monkeypatch, name, value):
    """Given as a flag or as a variable, the sentence has both names and what came."""
    for source in ("flag", "variable"):
        if source == "variable":
            monkeypatch.setenv(f"TTC_{name.upper()}", str(value))
        with pytest.raises(ValueError, match="TTC_") as refused:
            read_settings({name: value} if source == "flag" else {})
        sentence = str(refused.value)
        assert f"{flag(name)} (or TTC_{name.upper()})" in sentence
        assert sentence.endswith(".")
        if name != "token":
            assert repr(value) in sentence or repr(str(value)) in sentence or "grey" in sentence


def test_a_token_is_never_shown():
    """Not in the refusal of one that is too short: it may be the real one with a slip."""
    with pytest.raises(ValueError, match="at least 8") as refused:
        read_settings({"token": "sesame"})
    assert "sesame" not in str(refused.value)


def test_settings_cannot_be_changed_once_read():
    """They are read once and passed down."""
    with pytest.raises(ValidationError):
        read_settings({}).max_batch = 3


def test_every_setting_is_a_flag_with_its_variable_and_default_in_the_help():
    """`ttc serve --help` is the documentation, and it is complete."""
    options = {option.name: option for option in cli.commands["serve"].params}
    assert set(options) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert field.description
        assert options[name].opts == [flag(name)]
        assert f"TTC_{name.upper()}" in options[name].help


def test_the_papers_statistics_or_those_of_the_stream():
    """--paper leaves the choice to the method; otherwise statistics follow the stream."""
    assert read_settings({"paper": True}).statistics is None
    assert read_settings({}).statistics == "moving"
