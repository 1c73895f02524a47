"""What `make streams` runs: every order, protocol and mix, as the command line knows them."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import streams
from benchmarks.streams import DEFAULT, DEFAULT_BATCH_SIZE, SCENES, Scene, runs
from tests.fixtures.networks import make_model
from ttc_core.datasets import parse_mix
from ttc_core.datasets.conditions import MIXES
from ttc_core.evaluation import parse_protocol
from ttc_core.order import check_order
from ttc_core.report.streams import slug
from ttc_core.rows import Rows

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.title)
def test_a_scene_can_be_asked_for(scene: Scene) -> None:
    """Of `ttc evaluate`, in the words of the page."""
    check_order(scene.order)
    assert scene.mix == "" or parse_mix(scene.mix)
    if parse_protocol(scene.protocol)[0] == "changing":
        assert parse_protocol(scene.protocol)[1] < scene.images
    assert f"--order {scene.order} --limit {scene.images}" in scene.asked


def test_no_order_protocol_or_mix_is_left_out() -> None:
    """Each has a scene of its own, told apart by its title."""
    orders = {scene.order.partition(":")[0] for scene in SCENES}
    assert orders == {
        *("file", "iid", "sorted", "dirichlet", "runs", "one", "camera-trap", "limited"),
    }
    protocols = {parse_protocol(scene.protocol)[0] for scene in SCENES}
    assert protocols == {"episodic", "changing", "recurring", "day-night"}
    assert {scene.mix.partition(":")[0] for scene in SCENES} == {"", *MIXES}
    assert len({scene.title for scene in SCENES}) == len(SCENES)


def test_the_page_shows_every_scene() -> None:
    """With the command that asks for it, and a picture; the matrix comes first."""
    page = (ROOT / "docs" / "what-happens-when.md").read_text()
    for scene in SCENES:
        assert f"## … {scene.happens}?" in page
        assert scene.asked in page
        assert f"(what-happens-when/{slug(scene.title)}.png)" in page
        assert f"| {scene.title} |" in page.partition("## ")[0]


def test_the_served_default_is_compared_with_the_papers_methods() -> None:
    """In batches of 10, the others of 100, each also with the flip average where it has none."""
    found = list(runs(make_model()))
    names = [run.name for run in found]
    assert names == ["source", "source", "norm", "norm", "tent", "tent", "ttc", "ttc", DEFAULT]
    assert [run.batch_size for run in found] == [100] * 7 + [DEFAULT_BATCH_SIZE] * 2
    assert [run.method.settings.get("flip") for run in found[:6]] == [False, True] * 3


@pytest.mark.slow
def test_the_command_fills_in_rows_and_writes_the_page(monkeypatch, tmp_path: Path) -> None:
    """Over networks and seeds; what is there is not run again."""
    scenes = (Scene("one", "Said.", images=40), Scene("two", "Said.", "runs:5", images=40))
    monkeypatch.setattr(streams, "SCENES", scenes)
    monkeypatch.setattr(streams, "PAPER", streams.PAPER[:3])
    page, rows = tmp_path / "page.md", tmp_path / "rows.jsonl"
    arguments = ["--network", "bundled", "bundled", "--seeds", "0,1", "--corruptions", "fog"]
    arguments += ["--rows", str(rows), "--out", str(tmp_path / "out"), "--page", str(page)]
    first = CliRunner().invoke(streams.main, arguments)
    assert first.exit_code == 0, first.output
    assert len(Rows(rows)) == 2 * 2 * 5
    text = page.read_text()
    assert text.index("| Method | iid | runs:5 |") < text.index("## … one?")
    assert "--order runs:5 --limit 40" in text
    assert (tmp_path / "page" / "runs-5.png").exists()
    again = CliRunner().invoke(streams.main, arguments)
    assert "40 images in" in first.output
    assert "40 images in" not in again.output
    assert len(Rows(rows)) == 2 * 2 * 5
