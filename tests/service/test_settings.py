"""A flag goes before its TTC_ variable, that before the default; what is refused names the flag."""

import os
import re
from contextlib import nullcontext

import pytest
from click import UsageError
from click.testing import CliRunner
from pydantic import SecretStr, ValidationError

from service.cli import cli
from service.cli.options import chosen_settings
from service.settings import LISTS, METHODS, MOST_TOKEN_BYTES, OPTIONAL, SECRETS, SWITCHES, Settings
from service.settings_reading import read_settings, unknown_variables
from service.settings_words import accepted, flag, sections
from ttc_core import methods
from ttc_core.methods import DEFAULT_METHOD


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TTC_")]:
        monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_design():
    """Local, bundled model, TTC for streams, batches of 100 without waiting, adapting at ease."""
    settings = read_settings({})
    assert (settings.model, settings.method, settings.adapt) == ("bundled", "ttc_stream", "auto")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.max_batch, settings.max_wait) == (100, 0.0)
    assert settings.token is None
    assert settings.cors_origin == ()


@pytest.mark.parametrize(
    ("said", "method"),
    [
        ({}, DEFAULT_METHOD),
        ({"paper": True}, "ttc"),
        ({"paper": False}, DEFAULT_METHOD),
        ({"paper": True, "method": "tent"}, "tent"),
        ({"method": "ttc"}, "ttc"),
    ],
)
def test_the_paper_means_ttc_where_no_method_is_named(monkeypatch, said, method):
    """By flag and by variable; nothing is shed then."""
    assert read_settings(said).method == method
    assert read_settings(said).adapt == ("always" if said.get("paper") else "auto")
    for name, value in said.items():
        monkeypatch.setenv(f"TTC_{name.upper()}", str(value).lower())
    assert read_settings({}).method == method


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_a_program_of_a_file_is_served_by_source(kind):
    """As nothing else works with it; a method that is named is, and the paper's is named."""
    program = {"model": f"{kind}@model.pt"}
    assert (read_settings(program).method, read_settings(program).guard) == ("source", "off")
    assert read_settings(program | {"method": "tent"}).method == "tent"
    assert read_settings(program | {"paper": True}).method == "ttc"


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
        ("ROOT_PATH", "/north/cameras/", "/north/cameras"),
    ],
)
def test_a_variable_is_read_as_its_flag_is(monkeypatch, name, text, value):
    """Lists are words, numbers are numbers, truth values are words too."""
    monkeypatch.setenv(f"TTC_{name}", text)
    got = getattr(read_settings({}), name.lower())
    if isinstance(got, SecretStr):
        got = got.get_secret_value()
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
        ("token", "x" * (MOST_TOKEN_BYTES + 1)),
        ("admin_token", "é" * (MOST_TOKEN_BYTES // 2 + 1)),
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
        ("feedback_ids", 0),
        ("feedback_ids", 10_000_001),
        ("drain_delay", -1),
        ("drain_timeout", 0),
        ("mean", "grey"),
        ("mean", "nan,0,0"),
        ("receive_timeout", "inf"),
        ("receive_timeout", "1e400"),
        ("receive_timeout", "1e-300"),
        ("drain_timeout", "1e308"),
        ("drain_delay", "inf"),
        ("max_queue", 10**30),
        ("max_connections", 0),
        ("max_body", 10**30),
        ("threads", 100_000),
        ("port", "tcp://10.0.0.1:8000"),
        ("max_batch", "\uff11\uff12"),
        ("max_batch", ""),
        ("host", ""),
        ("model", ""),
        ("state_dir", ""),
        ("calibration", ""),
        ("paper", ""),
        ("token", ""),
        ("token", "two\nlines of it"),
        ("admin_token", "space behind "),
        ("crop", 8193),
        ("cors_origin", "*"),
        ("cors_origin", "cameras.example"),
        ("cors_origin", "https://cameras.example/page"),
        ("cors_origin", "http://[1.2]"),
        ("token_reads", "true"),
        ("root_path", "cameras"),
        ("root_path", "/north wing"),
        ("root_path", "/a/../b"),
        ("root_path", "https://cameras.example/north"),
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
        if name in SECRETS:
            assert not value or value.strip() not in sentence
        elif name not in SWITCHES or not value:  # of one that is on, it is what its name says
            assert str(value).split(",")[0].lower() in sentence.lower()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"size": 64, "crop": 65}, r"at most --size, .*: 64; got 65\.$"),
        ({"model": "package.module:network", "crop": 65}, r"it needs --size, .*; got 65\.$"),
        ({"model": "torchscript@network.pt", "crop": 65}, r"it needs --size, .*; got 65\.$"),
    ],
)
def test_a_crop_that_no_model_has_a_size_for_is_refused(said, sentence):
    """Before a model is loaded; where it states a size, that counts once it is."""
    with pytest.raises(ValueError, match=rf"^--crop \(or TTC_CROP\): {sentence}"):
        read_settings(said)
    assert read_settings(said | {"size": 65}).crop == 65
    for model in ("bundled", "torchvision/resnet18", "timm/hf-hub:some/network"):
        assert read_settings({"model": model, "crop": 16}).crop == 16


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"ray": True}, r"--ray \(or TTC_RAY\): it needs --state-dir, through [a-z ]+\.$"),
        ({"ray_replicas": "many"}, r"a number of replicas is expected, or MIN:MAX, like 1:4; got"),
        ({"ray_replicas": "4:1"}, r"1 to 1000 are expected, the lower number first; got '4:1'\.$"),
        ({"ray_replicas": "0"}, r"1 to 1000 are expected, the lower number first; got '0'\.$"),
    ],
)
def test_replicas_that_cannot_be_are_refused(said, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_settings(said)
    assert read_settings({"ray_replicas": " 1:4 "}).replicas == (1, 4)
    assert read_settings({"ray_replicas": "3"}).replicas == (3, 3)


def test_a_wrong_size_is_told_before_the_crop():
    with pytest.raises(ValueError, match=r"^--size \(or TTC_SIZE\)"):
        read_settings({"size": 0, "crop": 16})


@pytest.mark.parametrize("value", ["0.1,0.2,0.3", "[0.1,0.2,0.3]", " [0.1, 0.2, 0.3] "])
def test_three_numbers_may_be_a_json_list(monkeypatch, value):
    """As other programs write a list into a variable."""
    for name in ("MEAN", "STD"):
        monkeypatch.setenv(f"TTC_{name}", value)
    settings = read_settings({})
    assert settings.mean == settings.std == (0.1, 0.2, 0.3)


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
    assert set(options) == set(Settings.model_fields) | {f"no_{name}" for name in OPTIONAL}
    for name, field in Settings.model_fields.items():
        assert field.description
        assert options[name].opts == [flag(name)]
        assert f"TTC_{name.upper()}" in options[name].help
        # A switch has two values, and a choice stands beside its flag.
        stands_beside = name in SWITCHES or options[name].metavar.startswith("[")
        assert stands_beside or accepted(name) in options[name].help


def test_the_help_has_the_settings_by_subject():
    """Each below its title, in the order in which they are declared."""
    assert [name for names in sections().values() for name in names] == list(Settings.model_fields)
    shown = CliRunner().invoke(cli, ["serve", "--help"]).output
    blocks = {block.split(":\n")[0].strip(): block for block in shown.split("\n\n")}
    assert len(sections()) > 5
    for title, names in sections().items():
        assert all(re.search(rf"^  {flag(name)}\b", blocks[title], re.M) for name in names), title


def test_the_methods_that_are_told_are_those_that_there_are():
    """Without importing them; the default first."""
    assert sorted(METHODS) == sorted(methods.METHODS)
    assert METHODS[0] == DEFAULT_METHOD


def test_the_bounds_that_are_told_are_those_that_are_kept():
    """Of the token, which is no number."""
    fewest, most = (int(number) for number in re.findall(r"\d+", accepted("token")))
    for length, is_taken in ((fewest - 1, False), (fewest, True), (most, True), (most + 1, False)):
        with nullcontext() if is_taken else pytest.raises(ValueError, match="are expected"):
            read_settings({"token": "x" * length})


def test_the_help_tells_what_follows_the_images_without_learning():
    """`--adapt never` keeps parameters as they are, and not the moments of moving statistics."""
    shown = " ".join(CliRunner().invoke(cli, ["serve", "--help"]).output.split())
    assert "or from none; moving statistics follow the images with each" in shown


def test_the_papers_statistics_or_those_of_the_stream():
    """--paper leaves the choice to the method; otherwise statistics follow the stream."""
    assert read_settings({"paper": True}).statistics is None
    assert read_settings({}).statistics == "moving"


def given(*arguments):
    """What `ttc serve ARGUMENTS` reads."""
    context = cli.commands["serve"].make_context("serve", list(arguments))
    return read_settings(chosen_settings(context.params))


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_a_switch_that_a_variable_sets_is_turned_off_by_its_flag(monkeypatch, name):
    """And on again, where the variable says off."""
    monkeypatch.setenv("TTC_TOKEN", "long enough")  # which one of them needs
    monkeypatch.setenv("TTC_STATE_DIR", "streams")  # and another
    monkeypatch.setenv(f"TTC_{name.upper()}", "true")
    assert getattr(given(), name) is True
    assert getattr(given(f"--no-{flag(name)[2:]}"), name) is False
    monkeypatch.setenv(f"TTC_{name.upper()}", "false")
    assert getattr(given(flag(name)), name) is True


OPTIONAL_VALUES = {
    "set": "ttc.lr=1",
    "cors_origin": "https://a.example",
    "mean": "0,0,0",
    "std": "1,1,1",
    "state_dir": "states",
    "calibration": "record.json",
    "config": os.devnull,
    "class_names": "names.txt",
    "size": "256",
    "crop": "224",
    "interpolation": "bicubic",
    "root_path": "/cameras",
}


@pytest.mark.parametrize("name", sorted(OPTIONAL))
def test_what_a_variable_sets_is_unset_by_its_flag(monkeypatch, name):
    """A list becomes empty, a value none; saying both is refused."""
    value = OPTIONAL_VALUES.get(name, "long enough")
    monkeypatch.setenv(f"TTC_{name.upper()}", value)
    assert getattr(given(), name)
    no = f"--no-{flag(name)[2:]}"
    assert getattr(given(no), name) == (() if name in LISTS else None)
    with pytest.raises(UsageError, match="contradict"):
        given(no, flag(name), value)


def test_a_list_of_flags_replaces_that_of_the_variable(monkeypatch):
    """They are not added up."""
    monkeypatch.setenv("TTC_SET", "ttc.lr=1 ttc.ga=false")
    assert given("--set", "ttc.lr=2").set == ("ttc.lr=2",)


def test_a_variable_that_sets_nothing_is_found(monkeypatch):
    """With the one that was meant, if there is one; what Kubernetes sets by itself is left out."""
    monkeypatch.setenv("TTC_MAXBATCH", "8")
    monkeypatch.setenv("TTC_COLOUR", "red")
    monkeypatch.setenv("TTC_MAX_BATCH", "8")
    monkeypatch.setenv("TTC_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("TTC_PORT_8000_TCP_ADDR", "10.0.0.1")
    assert unknown_variables() == {"TTC_COLOUR": None, "TTC_MAXBATCH": "TTC_MAX_BATCH"}


def test_secrets_are_in_no_text_of_the_settings():
    """Neither in their representation nor in what is shown as JSON."""
    settings = read_settings({"token": "open sesame", "admin_token": "sesame, close"})
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert "sesame" not in text
