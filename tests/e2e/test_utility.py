"""`ttc replay` measures utility under time of a real server on a real port."""

import json

import numpy as np
import pytest

ASKED = ("replay", "bundled", "--corruptions", "fog", "--reset-between")


@pytest.fixture(scope="module")
def ttc_server(serve):
    """TTC without a guard, so that each image that is selected moves something."""
    with serve(method="ttc", max_batch=8) as running:
        yield running


@pytest.fixture
def measured(ttc, tmp_path):
    """Replay and return the row, the times of its images, and what was shown."""

    def run(url, limit, *options):
        rows = tmp_path / "rows.jsonl"
        status, out, err = ttc(*ASKED, "--url", url, "--limit", limit, *options, "--json", rows)
        assert (status, err) == (0, "")
        row = json.loads(rows.read_text().splitlines()[-1])
        with np.load(tmp_path / row["details"]) as details:
            return row, dict(details), out

    return run


def test_a_period_that_is_too_short_skips_images(ttc_server, measured):
    """Which ones follows from the times that the server told of those before."""
    row, kept, out = measured(ttc_server.url, 40, "--mode", "discrete", "--period", 0.002)
    served = kept["predicted"] >= 0
    assert 0 < served.sum() == row["images"] < 40
    assert row["images"] + row["skipped"] == 40
    assert row["utility"] == pytest.approx(row["availability"] * row["accuracy"])
    busy = kept["prediction_seconds"] + kept["adaptation_seconds"]
    free = 0.0
    for place in range(40):
        assert served[place] == (0.002 * place >= free)
        if served[place]:
            free = 0.002 * place + busy[place]
    assert (kept["adaptation_seconds"][served] > 0).all(), "TTC learns behind each answer"
    assert ttc_server.at_rest()["streams"]["default"]["images"] == row["images"]
    assert "availability %" in out
    assert "server counted" not in out


def test_a_long_period_serves_all_and_loses_nothing(ttc_server, measured):
    """Utility is accuracy then, in both ways."""
    for mode in ("discrete", "continuous"):
        row, _, _ = measured(ttc_server.url, 16, "--mode", mode, "--period", 30)
        assert row["images"] == 16
        assert row["utility"] == pytest.approx(row["accuracy"])


def test_a_short_period_costs_worth(ttc_server, measured):
    """Each image waits for the adaptation before it, as the server told it."""
    row, kept, _ = measured(ttc_server.url, 16, "--mode", "continuous", "--period", 1e-6)
    before = np.concatenate([[0.0], kept["adaptation_seconds"][:-1]])
    late = before + kept["prediction_seconds"] - 1e-6
    discount = 1 / (1 + late / (0.1 - 1e-6))
    right = kept["predicted"] == kept["labels"]
    assert row["timeliness"] == pytest.approx(discount.mean())
    assert row["utility"] == pytest.approx((right * discount).mean())
    assert row["timeliness"] < 1


def test_nothing_moves_once_the_budget_is_spent(ttc_server, measured):
    """Neither weights nor statistics nor what is counted: the stream has seen what was learned."""
    row, kept, _ = measured(ttc_server.url, 24, "--mode", "amortised", "--budget", 0.01)
    learned = row["learned_images"]
    assert 0 < learned < 24
    assert row["spent_seconds"] >= 0.01
    assert row["spent_seconds"] == pytest.approx(kept["adaptation_seconds"].sum())
    assert (kept["adaptation_seconds"][:learned] > 0).all()
    assert (kept["adaptation_seconds"][learned:] == 0).all()
    assert len(set(kept["version"][learned:])) == 1
    assert ttc_server.at_rest()["streams"]["default"]["images"] == learned
    assert row["images"] == 24


def test_source_measures_the_period(source_server, measured, ttc, tmp_path):
    """It keeps up with itself, and the report has a table of it."""
    row, kept, out = measured(source_server.url, 100, "--mode", "discrete")
    busy = kept["prediction_seconds"] + kept["adaptation_seconds"]
    assert np.nanmin(busy) < row["period_seconds"]
    assert row["period"] is None
    assert row["availability"] > 0.2
    assert "requests to SOURCE are done within" in out
    status, _, err = ttc("report", tmp_path / "rows.jsonl", "--out", tmp_path / "report")
    assert (status, err) == (0, "")
    assert "Utility, discrete" in (tmp_path / "report" / "index.html").read_text()
    table = (tmp_path / "report" / "utility.md").read_text()
    assert f"| {100 * row['utility']:.1f} | {100 * row['availability']:.1f} |" in table


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--mode discrete", "--period is needed"),
        ("--mode amortised", "budget"),
        ("--period 1", "period"),
        ("--mode open --rate 1 --budget 1", "budget"),
        ("--mode continuous --period 0", "period"),
        ("--mode utility", "'discrete'"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_a_sentence(ttc_server, ttc, options, word):
    """Before anything is sent."""
    before = ttc_server.at_rest()["counters"]["images_total"]
    status, out, err = ttc(*ASKED, "--url", ttc_server.url, *options.split())
    assert status != 0
    assert word in err
    assert "Traceback" not in err
    assert out == ""
    assert ttc_server.at_rest()["counters"]["images_total"] == before
