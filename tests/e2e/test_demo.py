"""The demo: each method on the same images in two orders, and a reset, over HTTP."""

import io
import re

import pytest
from rich.console import Console

from service.demo import ORDERS, SERVERS, accuracy_table, run_demo
from service.view import View


def test_the_table_has_a_line_a_server_and_a_column_an_order():
    """In percent."""
    found = {
        name: {order: (line + column / 10) / 10 for column, order in enumerate(ORDERS)}
        for line, name in enumerate(SERVERS)
    }
    console = Console(file=io.StringIO(), width=100)
    View(console).table(accuracy_table(found, "Compared"))
    lines = console.file.getvalue().splitlines()
    for line, name in enumerate(SERVERS):
        (shown,) = [each for each in lines if f" {name} " in each]
        assert re.findall(r"\d+\.\d", shown) == [f"{10 * line:.1f}", f"{10 * line + 1:.1f}"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts of a server
def test_the_demo_compares_resets_and_ends():
    """Three servers, whose last is the default; each ends with status 0."""
    console = Console(file=io.StringIO(), width=200)
    run_demo(View(console), limit=60)
    text = console.file.getvalue()
    assert text.count("exited with 0") == len(SERVERS) == 3
    assert "60 images, 10 a batch" in text
    source, adapted, after = re.findall(r"mean entropy ([\d.]+)", text)
    assert source == after != adapted
    assert "threw away" in text
