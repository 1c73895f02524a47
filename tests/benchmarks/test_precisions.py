"""What is to be run first on a GPU runs, and counts."""

import pytest
from click.testing import CliRunner

from benchmarks.precisions import main


@pytest.mark.slow
def test_each_method_has_a_line_for_both_precisions():
    """With the accuracy of both, which bfloat16 hardly changes."""
    asked = ("--network", "bundled", "--images", "192", "--rounds", "1", "--device", "cpu")
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    lines = [line.split("│")[1:-1] for line in done.output.splitlines() if "bundled" in line]
    assert len(lines) == 6
    for _, _, _, rate, reduced, _, right, reduced_right, _, _ in lines:
        assert float(rate) > 0
        assert float(reduced) > 0
        assert 20 < float(right) < 100
        assert float(reduced_right) == pytest.approx(float(right), abs=3)
