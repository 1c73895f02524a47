"""How many cameras a machine carries, from what `make bench` printed."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.sizing import carried, main, measured, reached

PRINTED = """\
| batches of 100 | processor s / 1,000 | peak MiB |
|---|---|---|
| SOURCE | 0.70 | 600 |
| the default | 8.16 | 1000 |

| streams, 64 clients | 1 | 10 | 100 | 1,000 | time / work, largest step |
|---|---|---|---|---|---|
| SOURCE | 1.6e+03 (711 to 1.8e+03) | 800 | 400 | 400 | 1.12, to 1,000 |
| the default, grown streams | 200 | 100 (95 to 110) | 50 | 140 | 0.86, to 10 |
| the default, new streams |  |  | 65.2 | 66.7 | 0.98, to 1,000 |
"""


def sized(tmp_path: Path, text: str, *arguments: str) -> list[list[str]]:
    """The lines of the tables, cell by cell."""
    (tmp_path / "bench.txt").write_text(text)
    done = CliRunner().invoke(main, [str(tmp_path / "bench.txt"), *arguments])
    assert done.exit_code == 0, done.output
    rows = [line.strip("|").split("|") for line in done.output.splitlines() if line]
    return [[cell.strip() for cell in row] for row in rows if "---" not in row[0]]


def test_rates_are_read_as_bench_prints_them() -> None:
    """Lines that have not all places are left out."""
    assert measured(PRINTED) == {
        "SOURCE": {1: 1600, 10: 800, 100: 400, 1000: 400},
        "the default, grown streams": {1: 200, 10: 100, 100: 50, 1000: 140},
    }


def test_more_cameras_are_never_faster() -> None:
    """Between the places the logarithm is interpolated; what rises again is level."""
    rates = measured(PRINTED)["the default, grown streams"]
    found = [round(reached(rates, cameras), 9) for cameras in range(1, 1001)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[9], found[99], found[999]) == (200, 100, 50, 50)
    assert reached({1: 100, 100: 25}, 10) == pytest.approx(50)


@pytest.mark.parametrize("each", [0.01, 0.05, 0.3, 1, 7, 100, 1000])
def test_one_camera_more_would_not_find_place(each: float) -> None:
    """And all that are told do."""
    rates = measured(PRINTED)["the default, grown streams"]
    count = carried(rates, each, 0.7, 1000)
    assert count == 0 or count * each <= 0.7 * reached(rates, count)
    assert count == 1000 or (count + 1) * each > 0.7 * reached(rates, count + 1)


def test_the_tables_are_of_the_load_and_rates_that_were_asked_for(tmp_path) -> None:
    """Half of 50 images a second among a hundred; memory grows with the streams that adapt."""
    asked = ("--load", "0.5", "--rate", "1", "--rate", "0.01", "--stream-kib", "1024")
    rows = sized(tmp_path, PRINTED, *asked)
    assert rows[2] == ["the default, grown streams", "100", "5", "0.25", "0.025"]
    assert rows[3] == ["cameras, by the images/s of each", "1", "0.01"]
    assert rows[5][2] == "1,000 or more"
    assert rows[-2:] == [
        ["SOURCE", "600", "600", "600", "600"],
        ["the default, grown streams", "1,001", "1,010", "1,100", "2,000"],
    ]


def test_another_file_is_refused_with_a_sentence(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("| a | b |\n")
    done = CliRunner().invoke(main, [str(tmp_path / "notes.txt")])
    assert done.exit_code == 2
    assert "there is no table of 'streams, 64 clients' in it" in done.output


def test_the_page_has_what_the_log_leads_to() -> None:
    """docs/operations.md has the output of the command without a file."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    written = page.partition("<!-- sizing -->")[2].partition("<!-- /sizing -->")[0]
    assert written.strip() == CliRunner().invoke(main, []).output.strip()
