"""`--guard on|off|observe`, its default and its thresholds, served and offline."""

import json
import logging

import pytest
from click.testing import CliRunner

from service.cli import cli
from service.cli.options import sets_nothing
from service.cli.serve import _introduce
from service.settings_reading import read_settings
from tests.fixtures.networks import make_model
from ttc_core.guard import default_mode
from ttc_core.methods import create
from ttc_core.report.groups import groups
from ttc_core.report.results import Result


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "on"),
        ({"paper": True}, "off"),
        ({"method": "ttc_stream", "paper": True}, "off"),
        ({"method": "ttc"}, "off"),
        ({"method": "mine:Own"}, "off"),
        ({"method": "ttc", "guard": "observe"}, "observe"),
        ({"guard": "off"}, "off"),
    ],
)
def test_it_is_on_with_the_default_unless_something_else_is_asked_for(given, expected):
    """As offline: the two defaults are one."""
    settings = read_settings(given)
    assert settings.guard == expected
    if "guard" not in given:
        assert default_mode(settings.method, paper=settings.paper) == expected


def test_the_variable_counts_and_a_word_that_is_none_is_refused(monkeypatch):
    """With a sentence."""
    monkeypatch.setenv("TTC_GUARD", "observe")
    assert read_settings({}).guard == "observe"
    with pytest.raises(ValueError, match=r"--guard \(or TTC_GUARD\)"):
        read_settings({"guard": "maybe"})


def test_a_threshold_sets_something_only_where_frames_are_watched(caplog):
    """Else it is said, as of any setting that has no use."""
    pairs = {"frames.black_level": "9"}
    watched, plain = (create("source", make_model(), guard=mode) for mode in ("observe", "off"))
    assert list(sets_nothing(pairs, {"source": watched})) == []
    assert len(list(sets_nothing({"guard.hold": "false"}, {"source": watched}))) == 1
    (sentence,) = sets_nothing(pairs, {"source": plain})
    assert sentence.startswith("--set frames.black_level sets nothing here")
    with caplog.at_level(logging.WARNING):
        _introduce(read_settings({"set": ("frames.black_level=9",)}), plain)
    assert "frames.black_level sets nothing" in caplog.text


@pytest.mark.parametrize("pair", ["guard.hold=false", "frames.black_level=9"])
@pytest.mark.parametrize(
    "verb",
    [
        ("serve", "--guard", "off", "--port", "0"),
        ("serve", "--method", "norm", "--port", "0"),
        ("evaluate", "bundled", "--methods", "norm,tent"),
        ("evaluate", "bundled", "--methods", "ttc_stream", "--guard", "off"),
    ],
    ids=" ".join,
)
def test_what_sets_the_guard_is_refused_where_it_is_off(verb, pair):
    """Whoever says both is mistaken in one of them."""
    done = CliRunner().invoke(cli, [*verb, "--device", "cpu", "--set", pair])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert f"--set {pair.partition('=')[0]} sets what watches over adaptation" in said
    assert "leave it out, or say --guard on" in said


def evaluated(rows, *more):
    """The row of a short stream with frozen frames and noise in it, or what went wrong."""
    done = CliRunner().invoke(
        cli,
        [
            *("evaluate", "bundled", "--methods", "norm", "--served", "--corruptions", "fog"),
            *("--limit", "40", "--batch-size", "20", "--mix", "noise:0.3", "--device", "cpu"),
            *("--json", str(rows), *more),
        ],
    )
    if done.exit_code:
        return done.output
    return json.loads(rows.read_text().splitlines()[-1])


def test_rows_say_how_frames_were_watched_and_what_was_seen(tmp_path):
    """Rows that differ in it are not the same; one that was off is as those from before."""
    rows = tmp_path / "rows.jsonl"
    plain = evaluated(rows)
    assert (plain["guard"], plain.get("suspects")) == ("off", None)
    watched = evaluated(rows, "--guard", "on", "--set", "frames.black_level=2")
    assert (watched["guard"], watched["suspects"]) == ("on", {"noise": 12})
    assert watched["settings"]["frames"] == {"black_level": 2}
    observed = evaluated(rows, "--guard", "observe")
    assert (observed["guard"], observed["suspects"]) == ("observe", {"noise": 12})
    by = [row["calibrated"] for row in (plain, watched, observed)]
    assert by == ["none", "guard", "guard"]
    temperatures = [row["record_temperature"] for row in (plain, watched, observed)]
    assert temperatures == [None, temperatures[1], temperatures[1]]
    assert 0.6 < temperatures[1] < 0.75
    assert {key: observed[key] for key in ("correct", "entropy")} == {
        key: plain[key] for key in ("correct", "entropy")
    }
    assert len(rows.read_text().splitlines()) == 3
    evaluated(rows, "--guard", "observe")
    assert len(rows.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("frames.nope=1", "frames.nope is not a setting of frames; its settings are: black_level"),
        ("frames.flat=much", "frames.flat='much' is not accepted"),
        ("frames.frozen_share=2", "frames.frozen_share='2' is not accepted"),
        ("frame.flat=1", "there is no method 'frame'"),
    ],
)
def test_a_threshold_that_is_none_is_refused_with_a_sentence(pair, said, tmp_path):
    """Also where the guard is off."""
    output = " ".join(str(evaluated(tmp_path / "rows.jsonl", "--set", pair)).split())
    assert said in output


def test_a_table_holds_methods_side_by_side_however_they_are_watched(tmp_path):
    """The default is watched, SOURCE is not: that is the same experiment."""
    rows = tmp_path / "rows.jsonl"
    asked = ["evaluate", "bundled", "--corruptions", "clean", "--limit", "12", "--json", str(rows)]
    for more in (["source,ttc_stream"], ["source", "--guard", "on"]):
        done = CliRunner().invoke(cli, [*asked, "--methods", *more])
        assert done.exit_code == 0, done.output
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["guard"] for row in written] == ["off", "on", "on"]
    (group,) = groups([Result(row) for row in written])
    titles = sorted(line.configuration.title for line in group.lines)
    assert titles == ["SOURCE", "SOURCE (guard=on)", "TTC_STREAM"]
