"""The service keeps its streams inside an envelope, counts what that took, and tells of it."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from service.answering import Image
from service.cli import cli
from service.envelope_file import as_toml, read_envelope
from service.metrics import ENVELOPE_VERDICTS
from tests.fixtures.engine import value
from tests.fixtures.networks import make_model
from tests.fixtures.streams import PIXELS, events, request, reset, stop
from ttc_core.envelope.clauses import BUILT_IN, Envelope
from ttc_core.envelope.verdicts import CLAUSES
from ttc_core.methods import create
from ttc_core.state import save_state

NAME = "ttc_envelope_steps_total"
EXAMPLE = Path(__file__).parents[2] / "examples" / "envelope.toml"


def source_within(lr=0.1, **clauses):
    envelope = Envelope.of(clauses)
    return create("tent", make_model(), statistics="moving", lr=lr, envelope=envelope)


def test_each_stream_of_a_shared_batch_is_cut_and_counted_by_clause(engine):
    """The first of each stream is told of, then the metric counts."""
    table = engine(source=source_within(drift=0.01))
    images = [Image(each) for each in PIXELS]

    async def walk():
        for _ in range(3):
            answered = await table.predict([("a", images), ("b", images[:3])])
            await table.adapt(answered, learn=True)

    asyncio.run(walk())
    assert {name: each.verdicts.told for name, each in table.streams.items()} == {
        "a": {"cut": {"drift": 3}},
        "b": {"cut": {"drift": 3}},
    }
    assert all(0 < each.drift <= 0.01 for each in table.streams.values())
    assert value(table, NAME, clause="drift", verdict="cut") == 6
    told = [(each["stream"], each["clause"], each["verdict"]) for each in events(table, "envelope")]
    assert sorted(told) == [("a", "drift", "cut"), ("b", "drift", "cut")]


def test_after_a_reset_counts_begin_anew_and_the_metric_goes_on(engine):
    table = engine(source=source_within(drift=0.01))
    request(table, "gate")
    reset(table, "gate")
    request(table, "gate")
    assert table.streams["gate"].verdicts.told == {"cut": {"drift": 1}}
    assert value(table, NAME, clause="drift", verdict="cut") == 2


def test_what_parameters_may_move_is_counted_and_no_news(engine):
    """Each step is cut, as the envelope's file says it is to be."""
    table = engine(source=source_within(parameters=["norm1.*"]))
    request(table, "gate")
    assert table.streams["gate"].verdicts.cut == {"parameters": 1}
    assert not events(table, "envelope")


def test_all_verdicts_are_there_from_the_start(engine):
    table = engine()
    for verdict, clauses in ENVELOPE_VERDICTS.items():
        assert set(clauses) <= set(CLAUSES)
        for clause in clauses:
            assert value(table, NAME, clause=clause, verdict=verdict) == 0
    assert {each for clauses in ENVELOPE_VERDICTS.values() for each in clauses} == set(CLAUSES)


def test_a_saved_stream_inside_goes_on_with_its_counts(engine, tmp_path):
    source = source_within(drift=0.01)
    first = engine(tmp_path, source=source)
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path, source=source)
    request(second, "gate")
    assert second.streams["gate"].verdicts.told == {"cut": {"drift": 2}}
    assert not events(second, "envelope")


def test_a_saved_stream_outside_is_set_aside_and_starts_at_the_source(engine, tmp_path):
    """An envelope was narrowed: the event says by which clause the state is outside."""
    first = engine(tmp_path, source=source_within(drift=0.01))
    at_source = request(first, "gate")
    request(first, "gate")
    assert stop(first)
    second = engine(tmp_path, source=source_within(drift=0.001))
    assert np.array_equal(request(second, "gate"), at_source)
    (event,) = events(second, "rejected")
    assert (
        "outside of the envelope: its drift is 0.01, and the envelope allows 0.001"
        in (event["reason"])
    )
    assert (tmp_path / "gate.rejected").exists()
    assert second.streams["gate"].drift <= 0.001


def test_a_file_is_read_as_it_is_written(tmp_path):
    """Comments say what each clause does; what is as built in is commented out."""
    file = tmp_path / "envelope.toml"
    for envelope in (BUILT_IN, Envelope.of({"drift": 0.05, "parameters": ["layer3.*", "*.bias"]})):
        file.write_text(as_toml(envelope))
        assert read_envelope(file) == envelope
    assert "\n#largest_change = " in file.read_text()
    assert '\nparameters = ["*.bias", "layer3.*"]\n' in file.read_text()


def test_the_example_file_holds():
    """It is stricter than what is built in, in every clause that it names."""
    example = read_envelope(EXAMPLE)
    for name in ("drift", "largest_change", "image_in_statistics", "steps_per_1000_images"):
        assert getattr(example, name) < getattr(BUILT_IN, name), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("drift = ", "line 1"),
        ("drft = 1", "'drft' is no clause"),
        ("[drift]\nmost = 1", "drift = "),
        ("drift = nan", "drift = nan is not accepted"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, text, said):
    file = tmp_path / "envelope.toml"
    file.write_text(text)
    for asked in (["envelope", "check", str(file)], ["envelope", "show", "--envelope", str(file)]):
        found = CliRunner().invoke(cli, asked)
        assert found.exit_code == 2  # 1 is of a stream that is outside
        assert found.output.startswith(f"Error: {file}"), found.output
        assert said in found.output


def test_show_prints_what_holds(tmp_path, monkeypatch):
    """By flag, by variable, built in; and with --paper that nothing does."""
    file = tmp_path / "envelope.toml"
    file.write_text("drift = 0.125")
    run_ = CliRunner().invoke
    assert "\ndrift = 0.125\n" in run_(cli, ["envelope", "show", "--envelope", str(file)]).output
    shown = run_(cli, ["envelope", "show"]).output
    file.write_text(shown)
    assert read_envelope(file) == BUILT_IN
    file.write_text("drift = 0.25")
    monkeypatch.setenv("TTC_ENVELOPE", str(file))
    assert "\ndrift = 0.25\n" in run_(cli, ["envelope", "show"]).output
    refused = run_(cli, ["envelope", "show", "--paper"])
    assert refused.exit_code == 2
    assert "with --paper no envelope holds" in refused.output
    monkeypatch.delenv("TTC_ENVELOPE")
    assert (
        run_(cli, ["envelope", "show", "--paper"]).output == "# With --paper no envelope holds.\n"
    )


def test_check_holds_patterns_against_a_network(tmp_path):
    file = tmp_path / "envelope.toml"
    file.write_text('parameters = ["layer9.*"]')
    asked = ["envelope", "check", str(file)]
    assert CliRunner().invoke(cli, asked).exit_code == 0
    found = CliRunner().invoke(cli, [*asked, "--model", "bundled"])
    assert found.exit_code == 2
    assert "'layer9.*' fits none of the network's scales and shifts" in found.output


def test_check_imports_nothing_that_a_state_file_names(tmp_path, monkeypatch):
    """Whoever may write to the folder would choose the code that an operator runs. Streams of other
    weights are looked at as well, and files that are no stream's are not."""
    monkeypatch.syspath_prepend(tmp_path)  # as `ttc` does where it is run
    monkeypatch.chdir(tmp_path)
    module = "import pathlib\npathlib.Path('ran').touch()\n"
    (tmp_path / "planted.py").write_text(f"{module}def make(*given, **more): raise SystemExit\n")
    folder = tmp_path / "states"
    (folder / "weights-0").mkdir(parents=True)
    method = create("tent", make_model())
    save_state(folder / "gate.safetensors", method, name="tent", model="planted:make")
    save_state(folder / "weights-0" / "yard.safetensors", method, name="planted:make", model="m")
    (folder / "weights of mine.safetensors").write_bytes(b"none of a stream's")
    file = tmp_path / "envelope.toml"
    file.write_text("steps_per_1000_images = 700")
    found = CliRunner().invoke(cli, ["envelope", "check", str(file), "--state-dir", str(folder)])
    assert found.exit_code == 1
    assert "gate: it is of the model planted:make: name it with --model." in found.output
    assert "yard: it is of the model m: name it with --model." in found.output
    assert "0 of 2 saved streams are inside." in found.output
    assert "steps_per_1000_images = 700 allows 500." in found.output
    monkeypatch.setenv("TTC_STATE_DIR", str(folder))
    asked = ["envelope", "check", str(file), "--model", "bundled"]
    found = CliRunner().invoke(cli, asked)
    assert "yard: it is of the method planted:make: name it with --method." in found.output
    assert not (tmp_path / "ran").exists()
    found = CliRunner().invoke(cli, [*asked, "--method", "planted:make"])
    assert (tmp_path / "ran").exists()
