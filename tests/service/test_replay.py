"""The load test sends the right images in the right order, and measures what it says it does."""

import json
import os
import re
import signal
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from service.cli import cli
from service.client import ServiceError
from service.replay import ReplayPlan, load, outbox, to_png
from tests.fixtures.fake_service import CLASSES, pictures, pixels_of, plain_view, register, run
from ttc_core.datasets import DataError
from ttc_core.rows import Rows, setting


def test_lockstep_sends_every_image_once_in_order_and_in_whole_batches(fake, data):
    """The server sees the batches that an offline evaluation would make, the short one last."""
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10))
    assert [len(images) for images in fake.requests] == [10, 10, 5]
    assert fake.numbers == list(range(25))
    assert (row["images"], row["correct"], row["accuracy"]) == (25, 20, 0.8)
    assert row["server_accuracy"] == 0.8


def test_lockstep_never_has_two_requests_on_the_way(fake, data):
    """The next batch leaves after the last one's answer, even if the server is slow."""
    fake.seconds, most = 0.02, []
    fake.on_request = lambda number: most.append(fake.queued)
    run(ReplayPlan(data, fake.url, batch_size=5))
    assert most == [0] * 5


def test_the_pixels_arrive_as_they_left(fake, data):
    """PNG loses nothing: what is decoded there is what the data set holds."""
    run(ReplayPlan(data, fake.url, batch_size=10))
    received = np.stack([pixels_of(file) for file in fake.files])
    np.testing.assert_array_equal(received, pictures()[0])


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 3, 3), (32, 32, 3)])
def test_a_png_keeps_every_pixel(shape):
    """The encoding is lossless at any size."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(to_png(pixels)), pixels)


def test_images_are_sent_at_the_size_that_the_server_states(fake, data):
    """The client resizes as an offline evaluation would, so that both see the same pixels."""
    fake.size = 16
    run(ReplayPlan(data, fake.url, batch_size=10))
    assert {pixels_of(file).shape for file in fake.files} == {(16, 16, 3)}


def test_files_of_a_folder_are_sent_as_they_are(fake, tmp_path):
    """Clean files are not encoded anew: the server gets the camera's own bytes."""
    files = []
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.jpg"
        Image.fromarray(np.full((8, 8, 3), int(name), np.uint8)).save(path)
        files.append(path.read_bytes())
    run(ReplayPlan(f"folder:{tmp_path}", fake.url))
    assert fake.files == files


def test_a_row_tells_the_code_of_the_model(fake, data):
    """As the server has it: another code is another measurement."""
    fake.model_code = "abcd"
    (row,) = run(ReplayPlan(data, fake.url))
    assert setting(row)["model_code"] == "abcd"


def test_labels_are_sent_along(fake, data):
    """The server can count its accuracy; the labels are those of the data set."""
    run(ReplayPlan(data, fake.url, batch_size=10))
    sent = [image["label"] for images in fake.requests for image in images]
    assert sent == pictures()[1].tolist()


def test_labels_change_no_pixel_of_a_request(fake, data, monkeypatch):
    """Shuffled labels give the same images in the same order: nothing leaks into the pixels."""
    plan = ReplayPlan(data, fake.url, batch_size=10, corruptions=("gaussian_noise",))
    run(plan)
    images, labels = pictures()
    register(monkeypatch, "own_pictures", images, np.random.default_rng(2).permutation(labels))
    run(plan)
    half = len(fake.files) // 2
    assert fake.files[:half] == fake.files[half:]


def test_limit_comes_before_order(fake, data):
    """The first N in file order are sent, then shuffled by the seed."""
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10, limit=12, order="iid", seed=3))
    assert sorted(fake.numbers) == list(range(12))
    assert fake.numbers != list(range(12))
    assert (row["limit"], row["order"], row["seed"], row["images"]) == (12, "iid", 3, 12)


def test_an_order_that_deals_images_takes_the_limit_for_its_length(fake, data):
    """From all images, some of them again; a class may be named as the server names it."""
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10, limit=50, order="one:2"))
    assert (row["limit"], row["order"], row["images"]) == (50, "one:2", 50)
    _, labels = pictures()
    assert {labels[number] for number in fake.numbers} == {2}
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10, limit=12, order="runs:4"))
    assert len(row["window_accuracy"]) == 1


def test_reset_comes_before_every_corruption_the_first_included(fake, data):
    """Episodic over HTTP: each corruption meets the source model, in its own stream."""
    corruptions = ("clean", "fog")
    plan = ReplayPlan(data, fake.url, corruptions, stream="door", reset_between=True)
    rows = run(plan)
    assert fake.log == ["reset door", "predict", "reset door", "predict"]
    assert set(fake.streams) == {"door"}
    assert {row["protocol"] for row in rows} == {"episodic"}


def test_without_reset_the_protocol_is_continual(fake, data):
    """Nothing is reset, and the row says so."""
    (row,) = run(ReplayPlan(data, fake.url))
    assert fake.log == ["predict"]
    assert row["protocol"] == "continual"


def test_a_row_says_how_well_the_answers_are_calibrated(fake, data):
    """As far as they say it: the best class alone is named, and it need not be the true one."""
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10))
    assert row["ece"] == pytest.approx(abs(0.9 - row["accuracy"]), abs=1e-6)
    assert row["nll"] is None


def test_a_row_says_what_was_asked_and_what_came_of_it(fake, data):
    """Every field of the contract is there; the last adaptation's step is counted too."""
    fake.busy_polls = 3
    plan = ReplayPlan(data, fake.url, ("gaussian_noise",), severity=3, batch_size=10)
    (row,) = run(plan)
    assert (row["corruption"], row["severity"]) == ("gaussian_noise", 3)
    assert row["steps"] == 4
    assert (row["method"], row["model"], row["data"]) == ("ttc", "fake", data)
    assert row["settings"] == {"learning_rate": 0.001}
    assert row["server"] == {"max_batch": 100}
    assert {"service", "torch", "client", "client_numpy"} <= set(row["versions"])
    classes = np.array(fake.numbers) % CLASSES
    assert row["entropy"] == pytest.approx(0.1 * classes.mean())
    assert row["selection_rate"] == pytest.approx((classes < 5).mean())
    assert 0 < row["latency_p50"] <= row["latency_p99"] <= row["latency_max"] <= row["seconds"]
    assert row["images_per_second"] == pytest.approx(25 / row["seconds"])
    assert (row["refused"], row["errors"], row["retries"]) == ({}, {}, 0)
    assert row["rate"] is row["concurrency"] is row["late"] is None
    json.dumps(row, allow_nan=False)


def test_a_method_that_selects_nothing_has_no_selection_rate(fake, data):
    """For SOURCE the rate is unknown, not 0."""
    fake.selects = False
    (row,) = run(ReplayPlan(data, fake.url))
    assert row["selection_rate"] is None


def test_clean_images_have_no_severity(fake, data):
    """The severity asked for says nothing about clean images."""
    (row,) = run(ReplayPlan(data, fake.url, severity=4))
    assert row["severity"] is None


def test_another_client_is_noticed(fake, data):
    """Labels that were counted but are not ours are mentioned in a sentence."""
    view, screen = plain_view()

    def somebody_else(number):
        fake.counters["labelled_images_total"] += 7

    fake.on_request = somebody_else
    (row,) = run(ReplayPlan(data, fake.url), view=view)
    assert "another client was there" in screen.getvalue()
    assert row["accuracy"] == 0.8
    assert row["server_accuracy"] == pytest.approx(20 / 32)


def test_a_server_that_counts_otherwise_is_noticed(fake, data):
    """Client and server count the same answers; a difference is both shown and kept."""
    view, screen = plain_view()

    def count_one_more(number):
        fake.counters["correct_images_total"] += 1

    fake.on_request = count_one_more
    (row,) = run(ReplayPlan(data, fake.url), view=view)
    assert "The server counted 21 images as right, this client 20." in screen.getvalue()
    assert (row["accuracy"], row["server_accuracy"]) == (0.8, 0.84)


def test_lockstep_waits_as_long_as_retry_after_says_and_loses_no_image(fake, data):
    """429 and 503 are honoured and tried again: every image is answered once, in order."""
    fake.refusals.extend([(429, 0.3), (503, 0.1)])
    (row,) = run(ReplayPlan(data, fake.url, batch_size=10))
    assert fake.numbers == list(range(25))
    assert row["retries"] == 2
    assert row["refused"] == {}
    assert row["latency_max"] >= 0.4, "the wait is part of the latency"


def test_lockstep_gives_up_after_some_tries_with_the_servers_sentence(fake, data):
    """A server that stays full ends the replay instead of hanging it."""
    fake.refusals.extend([(429, 0.01)] * 50)
    with pytest.raises(ServiceError, match=r"^Refused with 429\.$"):
        run(ReplayPlan(data, fake.url))
    assert fake.log.count("predict") == load.TRIES


def test_lockstep_sends_nothing_again_that_a_proxy_may_have_forwarded(fake, data, monkeypatch):
    """Its 503 is no problem document."""
    monkeypatch.setattr("tests.fixtures.fake_service.PROBLEM", "text/plain")
    fake.refusals.append((503, 0.01))
    with pytest.raises(ServiceError, match="503"):
        run(ReplayPlan(data, fake.url))
    assert fake.log.count("predict") == 1


def test_lockstep_stops_at_another_error_and_keeps_the_finished_rows(fake, data):
    """A 500 cannot be made good: the sentence is the server's, the rows before it stay."""
    rows, (view, screen) = Rows(None), plain_view()

    def fail_later(number):
        if number == 4:
            fake.refusals.append((500, None))

    fake.on_request = fail_later
    with pytest.raises(ServiceError, match="Refused with 500"):
        run(ReplayPlan(data, fake.url, ("clean", "fog"), batch_size=10), rows, view)
    assert [row["corruption"] for row in rows] == ["clean"]
    assert "fog 5: stopped after 0 of 25 images" in screen.getvalue()


def test_closed_loop_keeps_as_many_requests_on_the_way_as_workers(fake, data):
    """Concurrency is reached and never exceeded, and every image is sent once."""
    fake.seconds, waiting = 0.02, []
    fake.on_request = lambda number: waiting.append(fake.queued)
    (row,) = run(ReplayPlan(data, fake.url, batch_size=1, mode="closed", concurrency=4))
    assert sorted(fake.numbers) == list(range(25))
    assert max(waiting) == 3
    assert (row["images"], row["concurrency"]) == (25, 4)
    assert row["late"] is None


@pytest.mark.parametrize("options", [{"mode": "closed"}, {"mode": "open", "rate": 500.0}])
def test_refused_images_are_counted_by_status_and_not_sent_again(fake, data, options):
    """Under load a refusal is a result; answered, refused and failed make up the stream."""
    fake.refusals.extend([(429, 9.0), (503, None), (500, None)])
    (row,) = run(ReplayPlan(data, fake.url, batch_size=5, **options))
    assert row["refused"] == {"429": 5, "503": 5}
    assert row["errors"] == {"500": 5}
    assert row["images"] == 10
    assert row["retries"] == 0


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ("", [25]),
        ("--mode closed", [25]),
        ("--mode open --rate 1000", [1] * 25),
        ("--mode open --rate 1000 --batch-size 10", [10, 10, 5]),
    ],
)
def test_a_request_of_a_camera_has_one_image_unless_asked_otherwise(fake, data, options, sizes):
    """`--rate 30` is thirty requests a second; lockstep has the batches of `ttc evaluate`."""
    words = ["replay", data, "--url", fake.url, "--corruptions", "clean", *options.split()]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert [len(images) for images in fake.requests] == sizes


def test_the_command_hides_no_module(fake, data, monkeypatch):
    """Some releases of httpx and anyio need sniffio, in the command and after it."""
    monkeypatch.delitem(sys.modules, "sniffio", raising=False)
    words = ["replay", data, "--url", fake.url, "--corruptions", "clean"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert sys.modules.get("sniffio", sys) is not None


def test_open_loop_latency_counts_from_the_schedule(fake, data):
    """A server at a quarter of the load makes latency grow: waiting is not left out.

    A closed loop on the same server shows the service time alone: coordinated omission.
    """
    fake.seconds = 0.04
    paced = {"mode": "open", "rate": 100.0, "arrivals": "even"}
    (opened,) = run(ReplayPlan(data, fake.url, batch_size=1, **paced))
    (closed,) = run(ReplayPlan(data, fake.url, batch_size=1, mode="closed"))
    assert opened["images"] == 25
    # 25 requests take 25 service times; the last is due after 6 of them.
    assert opened["latency_max"] > 10 * closed["latency_p50"]
    assert opened["latency_p50"] > 2 * closed["latency_p50"]
    assert opened["lateness_p99"] < opened["latency_p50"], "the client does not wait itself"
    assert opened["late"] <= 25


def test_open_loop_latencies_grow_along_the_stream(fake, data, tmp_path):
    """The details show for each image how far the server had fallen behind."""
    fake.seconds = 0.04
    rows = Rows(tmp_path / "rows.jsonl")
    plan = ReplayPlan(data, fake.url, batch_size=1, mode="open", rate=100.0, arrivals="even")
    (row,) = run(plan, rows)
    with np.load(tmp_path / row["details"]) as details:
        latency = details["latency"]
    assert latency[-5:].mean() > latency[:5].mean() + 0.3


def test_open_loop_drops_what_exceeds_the_limit_in_flight(fake, data):
    """A hanging server does not fill the client's memory; what was dropped is said."""
    fake.seconds = 0.3
    plan = ReplayPlan(
        data, fake.url, batch_size=1, mode="open", rate=500.0, arrivals="even", most_in_flight=3
    )
    (row,) = run(plan)
    assert row["dropped"] >= 15
    assert row["images"] + row["dropped"] == 25


def test_open_loop_counts_full_queues(fake, data):
    """A bounded queue refuses most of an overload, at once."""
    fake.seconds, fake.max_queue = 0.1, 2
    plan = ReplayPlan(data, fake.url, batch_size=1, mode="open", rate=1000.0)
    (row,) = run(plan)
    assert row["refused"]["429"] >= 10
    assert row["refused"]["429"] + row["images"] == 25


def test_a_server_that_goes_away_under_load_is_an_error_not_a_hang(fake, data):
    """Requests without an answer are counted as such."""
    fake.seconds = 5
    plan = ReplayPlan(data, fake.url, batch_size=25, mode="open", rate=1000.0, timeout=1.5)
    (row,) = run(plan)
    assert row["errors"] == {"no answer": 25}
    assert (row["images"], row["accuracy"], row["entropy"]) == (0, None, None)
    assert row["latency_p50"] is None


def test_poisson_arrivals_are_the_seeds_and_have_the_right_mean():
    """The same seed gives the same load; gaps average 1/rate and vary as much."""
    times = load.schedule(20_001, 50.0, "poisson", seed=4)
    np.testing.assert_array_equal(times, load.schedule(20_001, 50.0, "poisson", seed=4))
    assert not np.array_equal(times, load.schedule(20_001, 50.0, "poisson", seed=5))
    gaps = np.diff(times)
    assert times[0] == 0
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05)


def test_even_arrivals_are_even():
    """One every 1/rate seconds, from 0."""
    np.testing.assert_allclose(load.schedule(4, 20.0, "even", seed=0), [0, 0.05, 0.1, 0.15])
    assert len(load.schedule(0, 20.0, "poisson", seed=0)) == 0


def test_a_rate_counts_images_whatever_the_size_of_a_request(fake, data):
    """Five images a request leave five times as seldom."""
    plan = ReplayPlan(data, fake.url, batch_size=5, mode="open", rate=50.0, arrivals="even")
    (row,) = run(plan)
    assert 0.4 <= row["seconds"] < 2.0


def test_ctrl_c_keeps_the_finished_rows_and_shows_the_rest_as_partial(fake, data, tmp_path):
    """The signal ends the replay; what was finished is in the file, what was not is no row."""
    path, (view, screen) = tmp_path / "rows.jsonl", plain_view()

    def interrupt(number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)

    fake.on_request = interrupt
    fake.seconds = 0.1
    plan = ReplayPlan(data, fake.url, ("clean", "fog"), batch_size=10)
    with pytest.raises(KeyboardInterrupt):
        run(plan, Rows(path), view)
    assert [row["corruption"] for row in Rows(path)] == ["clean"]
    assert re.search(r"fog 5: stopped after 10 of 25 images, .*not among the", screen.getvalue())


def test_replays_of_the_same_are_all_kept(fake, data, tmp_path):
    """A load test is repeated to see its spread: nothing is skipped or overwritten."""
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        run(ReplayPlan(data, fake.url), Rows(path))
    first, second = Rows(path)
    assert first["details"] != second["details"]


@pytest.mark.parametrize("options", [{}, {"mode": "closed", "concurrency": 5}])
def test_predictions_are_kept_in_stream_order(fake, data, tmp_path, options):
    """Whichever answer came first, the arrays follow the images."""
    path = tmp_path / "made" / "predictions.npz"
    plan = ReplayPlan(data, fake.url, batch_size=3, order="iid", **options)
    run(plan, predictions=path)
    with np.load(path) as file:
        arrays = dict(file)
    assert set(arrays) == {"predicted", "labels", "entropy", "selected", "version"}
    images, labels = pictures()
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(arrays["predicted"], order % CLASSES)
    np.testing.assert_array_equal(arrays["labels"], labels[order])
    np.testing.assert_allclose(arrays["entropy"], 0.1 * (order % CLASSES))
    np.testing.assert_array_equal(arrays["selected"], order % CLASSES < 5)
    assert sorted(set(arrays["version"])) == list(range(9))


def test_predictions_of_images_without_an_answer_say_so(fake, data, tmp_path):
    """Refused images keep their places, with -1 and nan."""
    fake.refusals.append((429, None))
    path = tmp_path / "predictions.npz"
    run(ReplayPlan(data, fake.url, batch_size=5, mode="closed"), predictions=path)
    with np.load(path) as file:
        assert file["predicted"][:5].tolist() == [-1] * 5
        assert np.isnan(file["entropy"][:5]).all()
        assert file["version"].tolist() == [-1] * 5 + [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_versions_of_a_request_cut_over_batches_are_kept_apart(fake, data, tmp_path):
    """A list of versions goes to its images."""
    fake.split = True
    path = tmp_path / "predictions.npz"
    run(ReplayPlan(data, fake.url, limit=4), predictions=path)
    with np.load(path) as file:
        assert file["version"].tolist() == [0, 0, 0, 1]


def test_predictions_of_several_corruptions_are_refused(fake, data, tmp_path):
    """One file holds one stream."""
    plan = ReplayPlan(data, fake.url, ("clean", "fog"))
    with pytest.raises(ValueError, match=r"of one corruption; got 2: clean, fog"):
        run(plan, predictions=tmp_path / "predictions.npz")
    assert fake.log == []


@pytest.mark.parametrize("options", [{}, {"mode": "closed"}, {"mode": "open", "rate": 1000.0}])
def test_an_image_that_cannot_be_read_ends_the_replay_with_its_name(fake, tmp_path, options):
    """A damaged file of a corrupted folder is a data error, in every mode."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        run(ReplayPlan(f"folder:{tmp_path}", fake.url, ("fog",), **options))


def test_requests_beyond_the_limit_of_memory_are_made_as_others_leave(fake, data, monkeypatch):
    """However little may lie ahead, every image is sent once and in order."""
    monkeypatch.setattr(outbox, "MOST_BYTES_AHEAD", 1)
    run(ReplayPlan(data, fake.url, batch_size=2))
    assert fake.numbers == list(range(25))


def test_the_token_goes_along(fake, data):
    """Predictions are asked for with the server's token."""
    run(ReplayPlan(data, fake.url, token="secret-token"))
    assert fake.tokens == {"Bearer secret-token"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "open"}, "rate .* is needed in open mode"),
        ({"rate": 5.0}, "used in no other"),
        ({"mode": "open", "rate": 0.0}, "above 0"),
        ({"mode": "open", "rate": float("nan")}, "above 0"),
        ({"mode": "burst"}, "lockstep, closed, open, discrete, continuous or amortised"),
        ({"arrivals": "odd"}, "poisson or even"),
        ({"concurrency": 2}, "closed mode only"),
        ({"mode": "closed", "concurrency": 0}, "at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"corruptions": ()}, "at least one"),
        ({"corruptions": ("fogg",)}, "no corruption 'fogg'"),
        ({"severity": 6, "corruptions": ("fog",)}, "severity must be"),
        ({"seed": -1}, "seed"),
        ({"order": "mixed"}, "order must be"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_at_once(options, sentence):
    """Before anything is sent, a sentence names the value."""
    with pytest.raises(ValueError, match=sentence):
        ReplayPlan("bundled", **options)
