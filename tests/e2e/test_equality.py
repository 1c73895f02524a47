"""A replay through HTTP and an offline evaluation of the same images agree to the last one."""

import json

import numpy as np
import pytest
from PIL import Image

from service.cli import cli
from service.client import Client
from tests.fixtures.forked import launch
from ttc_core.datasets import Geometry, open_data
from ttc_core.frames import KINDS
from ttc_core.methods import METHODS
from ttc_core.rows import Rows

IMAGES = "60"
BATCH = "16"  # so that the last batch is short
SAME_FIELDS = (
    *("method", "corruption", "severity", "order", "protocol", "batch_size", "limit", "seed"),
    *("settings", "images", "correct", "accuracy", "selection_rate", "steps"),
)


def ttc(*arguments):
    """Run the command line in this process."""
    cli.main([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def compare(serve, make_method, tmp_path):
    """Evaluate and replay the same stream with one method, and hold all that came of it equal."""

    def run(method, data, corruptions, *stream_options, served=True, adapt="always", **settings):
        pairs = [f"{method}.{key}={value}" for key, value in settings.items()]
        stream = ["--limit", IMAGES, "--batch-size", BATCH, *stream_options]
        source = make_method(method, paper=not served, on_shift=adapt == "on-shift", **settings)
        asked = {"adapt": adapt} if adapt != "always" else {}
        with serve(method=method, source=source, paper=not served, set=pairs, **asked) as running:
            return [
                compare_one(corruption, running.url, method, data, stream, served, pairs, adapt)
                for corruption in corruptions
            ]

    def compare_one(corruption, url, method, data, stream, served, pairs, adapt):
        offline, online = tmp_path / "offline.npz", tmp_path / "online.npz"
        rows = [tmp_path / f"{corruption}-{way}.jsonl" for way in ("offline", "online")]
        ttc(
            *("evaluate", data, "--methods", method, "--device", "cpu", "--threads", 1),
            *("--corruptions", corruption, *stream, *(["--served"] * served), "--adapt", adapt),
            *(word for pair in pairs for word in ("--set", pair)),
            *("--predictions", offline, "--json", rows[0]),
        )
        ttc(
            *("replay", data, "--url", url, "--reset-between"),
            *("--corruptions", corruption, *stream),
            *("--predictions", online, "--json", rows[1]),
        )
        with np.load(offline) as expected, np.load(online) as got:
            assert set(got.files) == {"predicted", "labels", "entropy", "selected", "version"}
            assert set(expected.files) == {*got.files, "logits"}
            for name in got.files:
                np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
            versions = set(got["version"].tolist())
        here, there = (json.loads(path.read_text()) for path in rows)
        for name in SAME_FIELDS:
            assert here[name] == there[name], name
        assert here["entropy"] == pytest.approx(there["entropy"])
        assert here["ece"] == pytest.approx(there["ece"])
        assert there["server_accuracy"] == there["accuracy"]
        return here, versions

    return run


@pytest.mark.parametrize("served", [True, False], ids=["as-served", "as-the-paper"])
@pytest.mark.parametrize("method", METHODS)
def test_replay_and_evaluation_agree(compare, method, served):
    """Predictions, entropies, selections, steps and accuracy, on two corruptions in a row."""
    settings = {
        "ttc": {"samples_per_step": 32},
        "eta": {"entropy_fraction": 1.0, "redundancy_margin": 1.01},
        "ttc_stream": {"learn": "always", "entropy_fraction": 1.1, "samples_per_step": 1},
    }.get(method, {})
    results = compare(method, "bundled", ["fog", "contrast"], served=served, **settings)
    every_batch = (4, {0, 1, 2, 3})
    steps, versions = {
        "ttc": (2, {0, 1}),
        **dict.fromkeys(("eta", "tipi", "tent", "ttc_stream"), every_batch),
    }.get(method, (0, {0}))
    for row, seen in results:
        assert row["images"] == int(IMAGES)
        # The methods that adapt did: the agreement is not that of two idle models.
        assert (row["steps"], seen) == (steps, versions)


@pytest.mark.parametrize("batch_size", [pytest.param("1", marks=pytest.mark.slow), "10"])
@pytest.mark.parametrize("order", ["iid", "runs:5"])
def test_the_default_agrees_at_every_batch_size(compare, batch_size, order):
    """Late layers open, scales and shifts move, the prior has its say: to the last image."""
    ((row, versions),) = compare(
        *("ttc_stream", "bundled", ["gaussian_noise"], "--batch-size", batch_size),
        *("--order", order, "--limit", "150"),
        samples_per_step=10,
    )
    assert (row["images"], row["batch_size"]) == (150, int(batch_size))
    assert versions != {0}


@pytest.mark.parametrize("method", ["ttc_stream", "tent"])
def test_they_agree_on_when_a_stream_has_changed(compare, monkeypatch, method):
    """`--adapt on-shift`: what each learns from, skips and takes up again, to the last image."""
    monkeypatch.setattr("ttc_core.guard.on_shift.WINDOW", 30)
    # So little that chance opens it again: else nothing would happen within so few images.
    monkeypatch.setattr("ttc_core.guard.on_shift.CHANGED", 0.06)
    settings = {"learn": "always", "samples_per_step": 10} if method == "ttc_stream" else {}
    ((row, _),) = compare(
        *(method, "bundled", ["mixed:fog+contrast"], "--batch-size", "10", "--limit", "200"),
        adapt="on-shift",
        **settings,
    )
    assert row["settings"]["on_shift"]
    # It was settled, and began anew.
    assert 30 < row["learned_images"] < 200
    assert 0 < row["selection_rate"] < 1


@pytest.mark.parametrize("order", ["iid", "sorted", "dirichlet:0.3"])
def test_they_agree_in_every_order(compare, order):
    """Order and seed give both the same stream."""
    ((row, _),) = compare("tent", "bundled", ["pixelate"], "--order", order, "--seed", "3")
    assert row["order"] == order


def test_they_agree_on_mixed_corruptions(compare):
    """Each image has the same corruption in both, drawn by the seed."""
    ((row, _),) = compare("norm", "bundled", ["mixed:fog+contrast"], "--seed", "2")
    assert (row["corruption"], row["severity"]) == ("mixed:fog+contrast", 5)


@pytest.fixture
def folder(tmp_path):
    """Photographs of several sizes and kinds, one folder a class."""
    random = np.random.default_rng(0)
    for label in range(10):
        directory = tmp_path / "photographs" / str(label)
        directory.mkdir(parents=True)
        for number in range(3):
            height, width = random.integers(20, 90, 2)
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
            if number == 0:
                image.save(directory / "a.jpg", quality=80)
            elif number == 1:
                image.convert("L").save(directory / "b.png")
            else:
                image.quantize(32).save(directory / "c.gif")
    return f"folder:{tmp_path / 'photographs'}"


def test_they_agree_on_a_folder_of_files(compare, folder):
    """The files are sent as they are; the service decodes and resizes as the evaluation does."""
    ((row, _),) = compare("tent", folder, ["clean"])
    assert row["images"] == 30


def test_they_agree_on_which_files_are_noise(serve, folder, tmp_path):
    """The model reads 32 pixels: nothing of what it is given tells noise from a grey wall."""
    path, options = tmp_path / "rows.jsonl", ("--order", "file", "--corruptions", "clean")
    ttc("evaluate", folder, *options, "--methods", "ttc_stream", "--served", "--json", path)
    row = json.loads(path.read_text())
    offline = [(None, *KINDS)[code] for code in Rows(path).arrays(row)["suspect"]]
    stream = open_data(folder, Geometry(32)).open("clean", 5)
    with serve(method="ttc_stream") as running, Client(running.url) as client:
        answers = [client.predict([stream.read_file(place)]) for place in stream.positions]
        served = [answer.predictions[0].suspect for answer in answers]
        ttc("replay", folder, *options, "--url", running.url, "--stream", "replayed")
        replayed = running.at_rest()["streams"]["replayed"]["suspects"]
    assert served == offline
    assert replayed == row["suspects"]
    assert 20 <= offline.count("noise") < len(offline)


def test_they_agree_on_a_folder_corrupted_as_it_is_read(compare, folder):
    """Then pixels are sent, corrupted at the model's size."""
    ((row, _),) = compare("tent", folder, ["gaussian_noise"], "--severity", "3")
    assert row["severity"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", [(), ("--precision", "bfloat16")], ids=["usual", "bfloat16"])
def test_a_server_as_it_starts_agrees_with_evaluate_served(precision, tmp_path):
    """Two processes, nothing but the command line's defaults, 300 images in batches of 100; and in
    the other precision, which the server tells."""
    offline, online = tmp_path / "offline.npz", tmp_path / "online.npz"
    stream = ["bundled", "--corruptions", "gaussian_noise", "--limit", 300]
    with launch("--device", "cpu", "--threads", "1", *precision) as server:
        with Client(server.url) as client:
            told = client.status().model.precision
        assert told == (precision[1] if precision else "float32")
        assert any(f"1 threads, in {told}:" in line for line in server.lines)
        ttc("replay", *stream, "--url", server.url, "--reset-between", "--predictions", online)
        assert server.stop() == 0
    ttc(
        *("evaluate", *stream, "--served", "--device", "cpu", "--threads", 1),
        *("--predictions", offline, *precision),
    )
    with np.load(offline) as expected, np.load(online) as got:
        for name in got.files:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
        assert len(set(got["version"].tolist())) > 1
