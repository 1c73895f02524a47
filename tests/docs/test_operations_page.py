"""docs/operations.md, objections.md, when-not.md and faq.md say what code and files say."""

import csv
import re
from pathlib import Path
from statistics import fmean

import pytest

from monitoring import alerts
from service.settings_words import default
from service.state_folder import APART, LEASE, OWNER, SUFFIX
from ttc_core.corruptions import CORRUPTIONS
from ttc_core.methods.contract import MODES

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (100 * alerts.ERROR_SHARE, "more than {:g} % are 500 or above"),
        (100 * alerts.REFUSED_SHARE, "more than {:g} % are `429`"),
        (alerts.QUEUE_AGE_SECONDS, "the oldest waits for more than {:g} seconds"),
        (100 * alerts.ESTIMATED_HARM, "estimated {:g} points above what is adapted"),
        (alerts.DRIFT, "above {:g}. "),
    ],
)
def test_what_to_worry_about_is_what_rings(limit, said):
    """In words where a number is one: a second, an image in a hundred, ten minutes, ten points."""
    assert said.format(limit) in OPERATIONS
    in_words = (alerts.LATENCY_SECONDS, alerts.SUSPECT_SHARE, alerts.HELD_SECONDS)
    assert (*in_words, alerts.ACCURACY_DROP) == (1.0, 0.01, 600, 0.10)


def test_batch_size_and_wait_are_the_servers():
    assert f"`--max-batch` ({default('max_batch')}) and `--max-wait` ({default('max_wait'):g})" in (
        OPERATIONS
    )
    assert default("save_interval") == 60  # "a minute unless it is set"


def test_the_files_of_the_state_folder_are_named():
    for name in (f"NAME{SUFFIX}", LEASE, OWNER, f"{APART}DIGEST/", "NAME.rejected", "feedback.ids"):
        assert f"| `{name}` |" in OPERATIONS


def test_there_are_fourteen_objections_and_each_is_answered():
    """By a measurement, or by "not for you"."""
    text = (DOCS / "objections.md").read_text()
    parts = re.split(r"^## (\d+)\. .+$", text, flags=re.MULTILINE)
    assert [int(number) for number in parts[1::2]] == list(range(1, 15))
    assert all("Source: " in body or "not for you" in body or "](" in body for body in parts[2::2])


def test_the_questions_are_answered_with_the_settings_of_the_code():
    """How large an image may be, and how long it is told that a stream was rolled back."""
    text = (DOCS / "faq.md").read_text()
    assert (default("max_pixels"), default("max_image_bytes")) == (16_000_000, 10 << 20)
    assert "16 million pixels and 10 MiB" in text
    for mode in (*MODES, "source"):
        assert f"`{mode}`:" in text


def test_the_table_of_frozen_networks_is_of_the_file():
    """Its lines, and the mean of the fifteen."""
    with (DOCS / "figures" / "stronger.csv").open() as file:
        rows = {row.pop("corruption"): row for row in csv.DictReader(file)}
    networks = ("resnet20", "resnet26_gn")
    assert set(rows) == {"clean", *CORRUPTIONS}
    asked = ("clean", "gaussian_noise", "fog", "contrast", "pixelate", "jpeg_compression")
    lines = [(name, [float(rows[name][each]) for each in networks]) for name in asked]
    means = [fmean(float(rows[name][each]) for name in CORRUPTIONS) for each in networks]
    lines.append(("mean of the fifteen", means))
    made = ["| frozen | ResNet-20, BatchNorm | ResNet-26, GroupNorm |", "|---|---|---|"]
    for name, found in lines:
        cells = (f"{one + 1e-9:.1f}" for one in found)  # halves up
        made.append(f"| {name} | {' | '.join(cells)} |")
    text = (DOCS / "when-not.md").read_text()
    written = text.partition("<!-- stronger -->")[2].partition("<!-- /stronger -->")[0]
    assert written.strip() == "\n".join(made)
