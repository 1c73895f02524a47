"""The numbers of the estimate: what is collected is kept, and the fit is of what the judge sees."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import answers, estimate
from benchmarks.estimate import Seen, fitted
from benchmarks.places import Place
from ttc_core.guard.estimate import CALIBRATED, UNCALIBRATED, Judge, Table
from ttc_core.rows import Rows

NAMES = ("one", "two", "three")
IMAGES = 12


@pytest.fixture
def path(monkeypatch, tmp_path: Path) -> Path:
    """Where to collect; three networks are one, and there is a place that is not there."""
    places = {name: [Place(name, "bundled", "bundled", ("fog",))] for name in NAMES}
    places["lost"] = [Place("lost", "missing.module:network", "bundled")]
    monkeypatch.setattr(
        answers, "networks", lambda only: {k: v for k, v in places.items() if k in (only or places)}
    )
    monkeypatch.setattr(estimate, "LIFE", 60)
    return tmp_path / "rows.jsonl"


def run(*arguments: object):
    """What the command makes of these arguments."""
    return CliRunner().invoke(estimate.main, [str(each) for each in arguments])


def test_collecting_goes_on_where_it_was_and_the_fit_is_of_what_is_there(path: Path):
    """Two methods on each stream, once; then the tables: code beside fitted, errors, alarms."""
    collect = ("collect", "--rows", path, "--images", IMAGES, "--streams")
    assert run(*collect, 1, "--minutes", 0).exit_code == 0
    assert len(Rows(path)) == 0
    assert "three networks" in run("fit", "--rows", path).output
    first = run(*collect, 1)
    assert first.exit_code == 0, first.output
    assert "lost is left out: missing.module:network cannot be imported" in first.output
    rows = Rows(path)
    assert [row["network"] for row in rows] == [name for name in NAMES for _ in range(2)]
    beside = rows.arrays(next(iter(rows)))
    assert beside is not None
    for name in ("served", "source", "restyled"):
        assert np.exp(beside[name]).sum(axis=1) == pytest.approx(np.ones(IMAGES), abs=1e-4)
    assert run(*collect, 1).output.count("%") == 0
    assert len(Rows(path)) == len(rows)

    out = path.with_name("tables.md")
    made = run("fit", "--rows", path, "--out", out)
    assert made.exit_code == 0, made.output
    text = out.read_text()
    assert text.strip() == made.stdout.strip()
    assert f"| usual | {CALIBRATED.weights[2]:.3f} |" in text
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()}
    assert lines["all but collapses made up"][1] == "6"
    assert lines["collapses made up"][1] == "6"
    assert lines["one"][1] == "2"
    assert "0.25" in lines


def test_rows_of_former_code_are_others(path: Path, monkeypatch):
    """What another second opinion answered is collected anew, and not fitted to."""
    collect = ("collect", "--rows", path, "--images", IMAGES, "--streams", 1, "--only", "one")
    run(*collect)
    rows = Rows(path)
    assert len(rows) == 2
    assert len(estimate.streams_in(rows, known=True)) == 2 + 2
    for module in (answers, estimate):
        monkeypatch.setattr(module, "codes", lambda: {"restyled_code": "another"})
    assert estimate.streams_in(rows, known=True) == []
    run(*collect)
    assert len(Rows(path)) == 4


def given(images: int, seed: int) -> dict[str, np.ndarray]:
    """Log probabilities of three, and labels that they are not independent of; one has none."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, images)
    scores = [generator.normal(0, 1, (images, 10)) + 2 * np.eye(10)[labels] for _ in range(3)]
    logs = [each - np.log(np.exp(each).sum(1, keepdims=True)) for each in scores]
    labels[0] = -1
    return dict(zip(("served", "source", "restyled"), logs, strict=True)) | {"labels": labels}


def row(network: str) -> dict[str, str]:
    """As much of a row as is asked for."""
    return {"network": network, "variant": "TTC", "order": "iid", "protocol": "episodic"}


@pytest.mark.parametrize(("temperature", "table"), [(None, UNCALIBRATED), (1.5, CALIBRATED)])
def test_the_fit_is_of_the_judges_own_features(temperature: float | None, table: Table):
    """By the numbers in the code they give the judge's own chances, estimates and intervals."""
    beside = given(80, 0)
    served, source, restyled = (np.exp(beside[n]) for n in ("served", "source", "restyled"))
    seen = Seen.of(row("one"), beside, temperature)
    judge = Judge(10, temperature=temperature)
    judge.judged, chances = judge.after(source, restyled, served)
    assert seen.chances(table) == pytest.approx(chances[1:], abs=1e-12)
    assert len(seen.right) == 79
    assert seen.truth[0] == (served.argmax(1) == beside["labels"])[1:].mean()


def test_a_network_that_is_left_out_has_no_say():
    """Numbers are fitted to the others; all count alike, however many streams they have."""
    seen = [
        Seen.of(row(name), given(120, number), None)
        for number, name in enumerate(("one", "two", "three", "three", "digits-resnet8"))
    ]
    without = fitted(seen, {"three"})
    assert without.weights == pytest.approx(fitted([seen[0], seen[1], seen[4]], set()).weights)
    assert fitted(seen, set()).weights != pytest.approx(without.weights)
    twice = fitted([*seen, seen[0]], set())
    assert twice.weights == pytest.approx(fitted(seen, set()).weights, rel=1e-3)
