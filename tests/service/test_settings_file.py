"""Settings in a TOML file: below flags and variables, refused with a sentence, written back."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_origin

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli import cli
from service.settings import SECRETS, SWITCHES, Settings
from service.settings_file import MOST_BYTES, toml
from service.settings_reading import read, read_settings
from service.settings_view import as_table, as_toml
from service.settings_words import default, flag, no_flag, sections

ROOT = Path(__file__).parents[2]
NAMES = [name for name in Settings.model_fields if name != "config"]
SECRET = "open sesame"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TTC_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    """Write a file of settings, and name it."""

    def write(text):
        path = tmp_path / "ttc.toml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return write


def ttc(*arguments, **environment):
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | environment,
    )


def another(name):
    """A value of a setting that is not its default, as a flag may say it."""
    special = {
        "set": ("ttc.lr=0.1", "ttc.ga=false"),
        "cors_origin": ("https://a.example", "http://b.example:81"),
        "mean": (0.1, 0.25, 1.0),
        "std": (0.5, 1e-05, 1.0),
        "interpolation": "bicubic",
        "root_path": "/cameras",
        "ray_replicas": "1:4",
    }
    if name in special:
        return special[name]
    kind = Settings.model_fields[name].annotation
    kinds = (kind, *get_args(kind))
    if get_origin(kind) is not None and isinstance(kinds[1], str):  # choices
        return next(each for each in kinds[1:] if each != default(name))
    if bool in kinds:
        return not default(name)
    if int in kinds or float in kinds:
        return (default(name) or 0) + 1
    return 'of"her\\ näme\t☃'


# What counts


def test_a_flag_goes_before_the_variable_that_before_the_file_that_before_the_default(
    monkeypatch, file
):
    """The four sources, each setting from the first that says anything; the others stay apart."""
    path = file("max_batch = 7\nmax_wait = 1\nport = 7000\n")
    monkeypatch.setenv("TTC_PORT", "8001")
    monkeypatch.setenv("TTC_MAX_BATCH", "8")
    reading = read({"config": str(path), "max_batch": "9"})
    got = reading.settings
    assert (got.max_batch, got.port, got.max_wait, got.threads) == (9, 8001, 1.0, 0)
    told = [str(reading.origins[name]) for name in ("max_batch", "port", "max_wait", "threads")]
    assert told == ["flag --max-batch", "variable TTC_PORT", f"file {path}", "default"]


def test_the_file_is_named_by_a_flag_or_by_a_variable(monkeypatch, file, tmp_path):
    """--config goes before TTC_CONFIG; --no-config reads none."""
    path = file("max_batch = 7")
    (tmp_path / "other.toml").write_text("max_batch = 6")
    monkeypatch.setenv("TTC_CONFIG", str(path))
    assert read_settings({}).max_batch == 7
    assert read_settings({}).config == path
    assert read_settings({"config": str(tmp_path / "other.toml")}).max_batch == 6
    assert read_settings({"config": None}).max_batch == 100
    assert not read({}).notices  # it is a variable that sets something
    monkeypatch.setenv("TTC_CONFIG", "")
    with pytest.raises(ValueError, match=r"--config \(or TTC_CONFIG\): a name is expected"):
        read({})


@pytest.mark.parametrize(
    "text",
    [
        'set = ["ttc_stream.lr=0.0005", "ttc.ga=False"]',
        '[set]\n"ttc_stream.lr" = 0.0005\n"ttc.ga" = false',
        "[set]\nttc_stream.lr = 0.0005\nttc.ga = false",
        "[set.ttc_stream]\nlr = 0.0005\n[set.ttc]\nga = false",
        "set.ttc_stream.lr = 0.0005\nset.ttc.ga = false",
        "set = {ttc_stream.lr = 0.0005, ttc.ga = false}",
    ],
)
def test_hyperparameters_are_a_list_or_a_table(file, text):
    """However TOML may write it, it is what --set says."""
    assert read_settings({"config": file(text)}).set == ("ttc_stream.lr=0.0005", "ttc.ga=False")


@pytest.mark.parametrize(
    "data", [b"\xef\xbb\xbfmax_batch = 7", b"max_batch = 7\r\nport = 0\r\n"], ids=["mark", "crlf"]
)
def test_files_of_other_systems_are_read(tmp_path, data):
    """A byte order mark, and their line ends."""
    (tmp_path / "ttc.toml").write_bytes(data)
    assert read_settings({"config": tmp_path / "ttc.toml"}).max_batch == 7


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max-batch = 8", ("no setting max-batch", "max_batch meant")),
        ("TTC_MAX_BATCH = 8", ("no setting TTC_MAX_BATCH", "max_batch meant")),
        ("colour = 8", ("no setting colour", "ttc config")),
        ("max-batch = 8\nmaxwait = 1", ("max_batch meant", "max_wait meant")),
        ("[server]\nport = 1", ("table [server]", "[set]")),
        ('config = "other.toml"', ("config", "another")),
        ('max_batch = "eight"', ("max_batch", "a whole number, 1 to 4096", "eight")),
        ('max_batch = "8"', ("max_batch", "whole number")),
        ("max_batch = true", ("max_batch", "whole number", "got true")),
        ("max_batch = 8.0", ("max_batch", "whole number")),
        ("max_batch = 0", ("max_batch", "a whole number, 1 to 4096; got 0")),
        ("max_batch = [1]", ("max_batch", "whole number")),
        ("max_wait = true", ("max_wait", "number", "0 to 60")),
        ("max_wait = nan", ("max_wait", "a number, 0 to 60; got nan")),
        ('paper = "yes"', ("paper", "true, false")),
        ("paper = 1", ("paper", "true, false")),
        ('guard = "maybe"', ("guard", "on, off, observe")),
        ("state_dir = 5", ("state_dir", "text in quotes", "a folder", "got 5")),
        ("state_dir = 2020-01-01", ("state_dir", "text", "got 2020-01-01")),
        ('state_dir = ""', ("state_dir", "a name is expected")),
        ('mean = "1,2,3"', ("mean", "a list", "three numbers")),
        ('mean = ["1", "2", "3"]', ("mean", "number")),
        ('cors_origin = "https://a.example"', ("cors_origin", "a list")),
        ('cors_origin = ["*"]', ("cors_origin", "an origin is like")),
        ("token_reads = true", ("token_reads", "--token")),
        ('set = "ttc.lr=1"', ("set", "a list", "METHOD.PARAM=VALUE")),
        ("[set]\nttc.lr = 1\nport = 2", ("[set]", "got port", "stand above [set]")),
        ("[set]\nttc.lr = [1]", ("ttc.lr of [set]", "a number")),
        ('[set]\nttc.lr = 1\n"ttc.lr" = 2', ("ttc.lr of [set]", "twice")),
        ("port = 1\n\nport = 2", ("line 3", "port is there twice")),
        ('mean = [1, 1, 1]\nmean = [\n1,\n1,\n1]\nport = "x"', ("line 5", "mean is there twice")),
        ('set = ["ttc.lr=1"]\n[set]\nttc.lr = 2', ("line 2", "[set] is there twice")),
        ("port = 1\nmodel = bundled", ("line 2", "no TOML", "text in quotes")),
        ("port = ", ("line 1", "no TOML")),
        ("port: 8000", ("line 1", "no TOML", "NAME = VALUE")),
        ('mean = ["', ("no TOML",)),
        ("mean = [1,", ("no TOML", "at its end")),
        ("port = " + "9" * 5000, ("no TOML", "digits")),
        ("mean = " + "[" * 100_000, ("nested too deeply",)),
        ("mean" + ".a" * 2_000 + " = 1", ("nested too deeply",)),
        ("set" + ".a" * 2_000 + " = 1", ("nested too deeply",)),
        (
            "\n".join(f"a{number} = 1" for number in range(50_000)),
            ("no setting a0", "no setting a1"),
        ),
        ("# " + "x" * MOST_BYTES, ("more than 1,048,576 bytes",)),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_wrong_in_a_file_is_a_sentence(file, text, said):
    """It names the file, the setting or the line, and what is accepted."""
    path = file(text)
    with pytest.raises(ValueError, match=r"\.toml") as refused:
        read({"config": path})
    sentence = str(refused.value)
    assert sentence.startswith(str(path))
    assert sentence[-1] in ".?"
    for words in said:
        assert words in sentence


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        (
            "max-batch = 1\nmax_queue = 0\nguard = 5",
            {"token": "short", "cors_origin": ("nope",), "root_path": "x y", "ray_replicas": "4:1"},
            [
                ": there is no setting max-batch",
                ": guard takes",
                "--root-path",
                "--token",
                "--cors-origin",
                ": max_queue takes",
                "--ray-replicas",
            ],
        ),
        ('token = "short"\nadmin_token = ["a"]', {}, [": admin_token takes", ": token: at least"]),
        ("token_reads = true\nport = 0.5", {}, [": port takes", ": token_reads: it needs"]),
        ("ray = true", {"size": 0, "token_reads": "on"}, ["--size", "--token-reads", ": ray: it"]),
        # What may be wrong only since another is.
        ("ray = true\nstate_dir = 3", {}, [": state_dir takes"]),
        ("ray = true", {"state_dir": ""}, ["--state-dir"]),
        ("token_reads = true\ntoken = 5", {}, [": token takes"]),
        ("token_reads = true", {"admin_token": "short"}, ["--admin-token"]),
        ('size = "a"\ncrop = 16\nmodel = "torchscript@a.pt"', {}, [": size takes"]),
        ('envelope = "a.toml"\npaper = 1', {}, [": paper takes"]),
        # It is not, since a flag goes before that one.
        ("ray = true\nstate_dir = 3", {"state_dir": None}, [": state_dir takes", ": ray: it"]),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_all_that_is_wrong_is_told_at_once(file, text, given, told):
    """A line each, in whatever order; not what only follows from another that is wrong."""
    path = file(text)
    with pytest.raises(ValueError, match=r"takes|expected") as refused:
        read({"config": path, **given})
    for line, each in zip(str(refused.value).splitlines(), told, strict=True):
        assert line.removeprefix(str(path)).startswith(each)


def test_what_goes_before_a_wrong_value_does_not_hide_an_unknown_name(file):
    """A name that nobody knows is a mistake whoever else says something."""
    path = file("max_batch = 0\n")
    assert read_settings({"config": path, "max_batch": 5}).max_batch == 5
    with pytest.raises(ValueError, match="max_batch meant"):
        read({"config": file("max-batch = 3"), "max_batch": 5})


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    """Missing, a folder, no UTF-8."""
    for path, said in ((tmp_path / "none.toml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(ValueError, match=f"{path} cannot be read: .*{said}"):
            read({"config": path})
    (tmp_path / "latin.toml").write_bytes("port = 1\n# über\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.toml, line 2: TOML is UTF-8"):
        read({"config": tmp_path / "latin.toml"})


@pytest.mark.parametrize("verb", ["serve", "config"])
def test_the_command_ends_with_2_and_the_sentence(file, verb):
    """On standard error, without a trace; by flag and by variable."""
    path = file("max-batch = 8\n")
    for done in (ttc(verb, "--config", path), ttc(verb, TTC_CONFIG=str(path))):
        assert (done.returncode, done.stdout) == (2, "")
        said = f"Error: {path}: there is no setting max-batch; is max_batch meant?\n"
        assert done.stderr == said  # neither a trace, nor how the command is used


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttc_stream.lr = 0\nttc_stream.window = 0.5", ("ttc_stream.lr=", "ttc_stream.window=")),
        ("tenth.lr = 1", ("no method 'tenth'",)),
        ("guard.hold = 9", ("guard.hold=",)),
        ("ttc_stream.lr = 0.001\nmoving.floor = 0.01\nguard.hold = false", ()),
    ],
)
def test_config_tells_what_is_wrong_with_hyperparameters(file, text, said):
    """As serve would, once it has loaded the model."""
    done = CliRunner().invoke(cli, ["config", "--config", str(file(f"[set]\n{text}"))])
    assert done.exit_code == (2 if said else 0), done.output
    assert all(f"{each}" in done.output for each in said)


@settings(max_examples=200, deadline=None)
@given(st.binary() | st.text(alphabet="abset[]{}=\"'\\.,1\n#- \x00é").map(str.encode))
def test_whatever_is_in_the_file_it_is_read_or_refused_with_a_sentence(tmp_path_factory, data):
    """Of any bytes."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    sentence = str(path)
    try:
        read({"config": path})
    except ValueError as error:
        sentence = str(error)
    assert sentence.startswith(str(path))
    assert all(line.isprintable() for line in sentence.splitlines())


# Tokens


def test_no_token_is_shown_whatever_is_wrong_with_it(file):
    """Too short, of another kind, without quotes, said twice."""
    for text in (
        'token = "sesame"',
        "token = 5354741",
        f"token = {SECRET}",
        f'token = "{SECRET}"\ntoken = "{SECRET}"',
        f'token = "{SECRET}',
        f'token-reads = "{SECRET}"',
    ):
        with pytest.raises(ValueError, match=r"token|TOML") as refused:
            read({"config": file(text)})
        assert "sesame" not in str(refused.value)
        assert "5354741" not in str(refused.value)


def test_a_file_with_a_token_that_everyone_may_read_is_told(file, monkeypatch):
    """By ttc config as by ttc serve; not of one without a token, nor where only the owner may."""
    path = file(f'token = "{SECRET}"')
    assert not read({"config": path}).notices
    path.chmod(0o640)
    assert not read({"config": path}).notices
    path.chmod(0o644)
    done = ttc("config", "--config", path, "--token", "another one")
    assert (done.returncode, f"chmod o-r {path}" in done.stderr) == (0, True)
    # It says so before it finds that this is not its address.
    done = ttc("serve", "--config", path, "--host", "192.0.2.1")
    assert (done.returncode, f"chmod o-r {path}" in done.stdout) == (1, True)
    path.write_text("max_batch = 7")
    assert not read({"config": path}).notices


# What holds, shown


def test_every_setting_is_shown_with_its_value_and_where_it_comes_from(file):
    """A line each, as `ttc serve` would have it by the same flags; tokens as set or unset."""
    path = file(f'token = "{SECRET}"\n[set]\nttc.lr = 0.5\n')
    done = ttc(
        *("config", "--config", path, "--paper", "--no-state-dir", "--no-token-reads"),
        TTC_MAX_BATCH="7",
        TTC_STATE_DIR="states",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert SECRET not in done.stdout
    shown = {line.split()[0]: line.split(None, 2)[1:] for line in done.stdout.splitlines() if line}
    assert shown.keys() >= Settings.model_fields.keys()
    assert {
        "max_batch": ["7", "variable TTC_MAX_BATCH"],
        "paper": ["on", "flag --paper"],
        "method": ["ttc", "default, by paper"],
        "guard": ["off", "default, by paper, method"],
        "adapt": ["always", "default, by paper"],
        "set": ["ttc.lr=0.5", f"file {path}"],
        "token": ["set", f"file {path}"],
        "admin_token": ["unset", "default"],
        "state_dir": ["none", "flag --no-state-dir"],
        "token_reads": ["off", "flag --no-token-reads"],
        "host": ["127.0.0.1", "default"],
        "config": [str(path), "flag --config"],
    }.items() <= shown.items()


@pytest.mark.parametrize(
    ("given", "method", "guard"),
    [
        ({}, None, None),
        ({"model": "torchvision/resnet18"}, None, None),
        ({"model": "torchscript@x"}, "model", "method"),
        ({"model": "export@x"}, "model", "method"),
        ({"paper": True}, "paper", "paper, method"),
        ({"model": "torchscript@x", "paper": True}, "paper", "paper, method"),
        ({"model": "torchvision/resnet18", "paper": True}, "paper", "paper, method"),
        ({"method": "ttc_stream", "paper": True}, "--method", "paper"),
        ({"method": "tent", "model": "torchscript@x"}, "--method", "method"),
    ],
)
def test_what_a_default_follows_from_is_told(given, method, guard):
    """Of what is said, what has the default differ, and no more."""
    origins = read(given).origins
    assert (origins["method"].name, origins["guard"].name) == (method, guard)


def test_the_same_as_json(file):
    """Values as JSON has them; the kind of the source, and its name."""
    path = file("max_wait = 1\nmean = [0, 0.5, 1]")
    done = ttc("config", "--json", "--config", path, "--port", "0", TTC_TOKEN=SECRET)
    assert SECRET not in done.stdout
    found = json.loads(done.stdout)
    assert found.keys() == Settings.model_fields.keys()
    assert found["max_wait"] == {"value": 1.0, "source": "file", "name": str(path)}
    assert found["mean"]["value"] == [0.0, 0.5, 1.0]
    assert found["port"] == {"value": 0, "source": "flag", "name": "--port"}
    assert found["token"] == {"value": "set", "source": "variable", "name": "TTC_TOKEN"}
    assert found["admin_token"] == {"value": "unset", "source": "default", "name": None}
    assert found["state_dir"] == {"value": None, "source": "default", "name": None}


def test_a_variable_that_sets_nothing_is_told():
    """On standard error; the table is whole."""
    done = ttc("config", TTC_MAXBATCH="8")
    assert (done.returncode, "TTC_MAX_BATCH meant?" in done.stderr) == (0, True)
    assert "max_batch" in done.stdout


def test_whatever_holds_is_shown_so_that_nothing_moves_the_cursor():
    """A name with control characters."""
    for show in (as_table, as_toml):
        assert "\x1b" not in show(read({"model": "a\x1b[2Jb", "state_dir": "\x1b]0;x\x07"}))


# What holds, as a file


def round_trip(file, given):
    """Settings, and what the file that is written of them says."""
    reading = read(given)
    path = file(as_toml(reading))
    return reading.settings, read({"config": path})


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SECRETS])
def test_a_file_that_is_written_says_the_same(monkeypatch, file, name):
    """Each setting is in it where it is not by default, whatever its value; all others are not."""
    monkeypatch.setenv("TTC_TOKEN", SECRET)
    if name == "ray":
        monkeypatch.setenv("TTC_STATE_DIR", "streams")  # which it needs
    value = another(name)
    before, after = round_trip(file, {name: value})
    assert getattr(before, name) != default(name)
    assert after.settings.model_copy(update={"config": None}) == before
    from_file = {each for each, origin in after.origins.items() if origin.kind == "file"}
    assert from_file == {name}


def test_a_file_of_all_settings_says_the_same(monkeypatch, file):
    """All of them at once, and it is read by the command that wrote it."""
    monkeypatch.setenv("TTC_TOKEN", SECRET)
    # Of two that exclude one another, one.
    given = {name: another(name) for name in NAMES if name not in {*SECRETS, "envelope"}}
    before, after = round_trip(file, given)
    assert after.settings.model_copy(update={"config": None}) == before
    flags = [
        word
        for name, value in given.items()
        for each in (value if name in ("set", "cors_origin") else [value])
        for word in (
            [flag(name) if value else no_flag(name)]
            if name in SWITCHES
            else [flag(name), ",".join(map(str, each)) if name in ("mean", "std") else str(each)]
        )
    ]
    written = ttc("config", "--toml", *flags)
    assert written.returncode == 0, written.stderr
    again = ttc("config", "--toml", "--config", file(written.stdout))
    assert again.stdout == written.stdout


def test_a_file_to_start_from_has_every_setting_commented_out(file):
    """As it is it sets nothing; without the # before a name it sets what the default is."""
    text = ttc("config", "--toml").stdout
    assert tomllib.loads(text) == {}
    for title in list(sections())[1:]:
        assert f"\n## {title}\n" in text
    open_text = re.sub(r"^#(?=\w+ = )", "", text, flags=re.MULTILINE)
    reading = read({"config": file(open_text)})
    assert {name for name, each in reading.origins.items() if each.kind == "file"} == set(NAMES)
    for name in NAMES:
        assert Settings.model_fields[name].description.split()[0] in text
        if default(name) not in (None, ()):
            assert getattr(reading.settings, name) == default(name)


def test_tokens_are_not_written(file):
    """The file says where they come from, and that they are not in it."""
    text = as_toml(read({"token": SECRET, "token_reads": True}))
    assert SECRET not in text
    assert "It is set by flag --token, and not written here." in text
    assert tomllib.loads(text) == {"token_reads": True}


def test_bytes_that_are_no_characters_are_refused_with_a_sentence():
    """TOML has no way to write them."""
    done = ttc("config", "--toml", "--state-dir", os.fsdecode(b"\xff"))
    assert (done.returncode, "state_dir cannot be written" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


@settings(deadline=None)
@given(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])))
)
def test_a_value_is_read_as_it_was_written(value):
    """Of every kind that a setting has."""
    assert tomllib.loads(f"name = {toml(value)}") == {"name": value}
