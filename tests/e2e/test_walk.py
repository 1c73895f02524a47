"""The walk of one image over real HTTP, with the bundled model: answer first, then adapt."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from service.replay import to_png
from service.routes import context
from service.schemas import PredictResponse, ResetResponse
from tests.fixtures.requests import PNG, ask, classes, encoded, form
from ttc_core.methods import METHODS
from ttc_core.methods.source import Source

# The forms of a request and of its answer


def test_one_image_is_answered_alike_in_every_form(source_server, pictures):
    """Raw body, form and JSON are three ways to say the same."""
    image = pictures[0]
    http = source_server.http
    answers = [
        http.post("/predict", content=image, headers=PNG),
        http.post("/predict", content=image),
        http.post("/predict", content=image, headers={"Content-Type": "application/octet-stream"}),
        http.post("/predict", **form([image])),
        http.post("/predict", **encoded([image])),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_the_answer_has_every_field(source_server, pictures):
    """The document is the one of the schema, and its numbers are what they are called."""
    answer = ask(source_server, pictures[:3], ids=["a", "b", "c"], params={"top_k": 10})
    read = PredictResponse.model_validate(answer)
    assert (read.stream, read.method, read.version, read.batch_size) == ("default", "source", 0, 3)
    assert [one.id for one in read.predictions] == ["a", "b", "c"]
    for one in read.predictions:
        confidences = [score.confidence for score in one.top_k]
        assert (one.class_, one.name, one.confidence) == (
            one.top_k[0].class_,
            one.top_k[0].name,
            one.top_k[0].confidence,
        )
        assert confidences == sorted(confidences, reverse=True)
        assert sum(confidences) == pytest.approx(1, abs=1e-4)
        assert sorted(score.class_ for score in one.top_k) == list(range(10))
        entropy = -sum(p * np.log(p) for p in confidences if p > 0)
        assert one.entropy == pytest.approx(entropy, abs=1e-3)
        assert one.selected is False


def test_answers_come_in_the_order_of_the_request(source_server, pictures):
    """Also when the request is longer than a decoding chunk and than a batch."""
    images = pictures[:30]
    together = ask(source_server, images)
    apart = [ask(source_server, [image])["predictions"][0] for image in images]
    assert classes(together) == [one["class"] for one in apart]
    assert [one["confidence"] for one in together["predictions"]] == pytest.approx(
        [one["confidence"] for one in apart], abs=1e-4
    )


def test_a_request_cut_over_batches_says_so_for_each_image(serve, pictures):
    """version and batch_size are lists then, also where all batches are of one size."""
    with serve(max_batch=8, method="tent") as running:
        uneven = ask(running, pictures[:20])
        assert uneven["batch_size"] == [8] * 16 + [4] * 4
        assert uneven["version"] == [0] * 8 + [1] * 8 + [2] * 4
        even = ask(running, pictures[:16])
        assert even["batch_size"] == [8] * 16
        assert even["version"] == [3] * 8 + [4] * 8
        whole = ask(running, pictures[:8])
        assert (whole["batch_size"], whole["version"]) == (8, 5)


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_names_so_many_classes(source_server, pictures, top_k):
    """Best first; the default is one."""
    (one,) = ask(source_server, pictures[:1], params={"top_k": top_k})["predictions"]
    assert len(one["top_k"]) == top_k


def test_ids_and_labels_may_stand_in_the_query_the_form_or_the_json(source_server, pictures):
    """Three ways to send them, one way to get them back and to have them counted."""
    http, images = source_server.http, pictures[:2]
    before = source_server.at_rest()["counters"]["labelled_images_total"]
    given = {"ids": ["x", "y"], "labels": [1, 2]}
    answers = [
        http.post("/predict", **form(images, **given)),
        http.post("/predict", **encoded(images, **given)),
        http.post("/predict", **form(images), params={"id": ["x", "y"], "label": [1, 2]}),
    ]
    for answer in answers:
        assert [one["id"] for one in answer.json()["predictions"]] == ["x", "y"]
    assert source_server.at_rest()["counters"]["labelled_images_total"] == before + 6


def test_the_header_and_the_query_name_the_stream(source_server, pictures):
    """X-Session-Id is what a camera behind a gateway sends; the query is for people."""
    http = source_server.http
    by_header = http.post("/predict", content=pictures[0], headers={"X-Session-Id": "gate-1"})
    by_query = http.post("/predict?stream=gate-2", content=pictures[0])
    neither = http.post("/predict", content=pictures[0])
    names = [answer.json()["stream"] for answer in (by_header, by_query, neither)]
    assert names == ["gate-1", "gate-2", "default"]
    assert {"gate-1", "gate-2", "default"} <= set(source_server.at_rest()["streams"])


def test_server_timing_accounts_for_every_stage(source_server, pictures):
    """Decode, queue, forward, encode, and the adaptation before: each a number of milliseconds."""
    response = source_server.http.post("/predict", content=pictures[0])
    stages = [part.strip() for part in response.headers["Server-Timing"].split(",")]
    assert [stage.split(";")[0] for stage in stages] == [
        "decode",
        "queue",
        "forward",
        "encode",
        "adapt",
    ]
    assert all(float(stage.rpartition("dur=")[2]) >= 0 for stage in stages)


def test_every_answer_carries_a_request_id(source_server):
    """A well-formed one is the client's own; any other is replaced."""
    http = source_server.http
    assert http.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == (
        "abc-1"
    )
    for bad in ("", "a b", "x" * 65, "<script>"):
        given = http.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert given
        assert given != bad


# Adaptation


@pytest.mark.parametrize("method", METHODS)
def test_labels_change_no_prediction(serve, pictures, labels, method):
    """The same stream with right, shuffled and no labels: the answers and states are equal."""
    shuffled = np.random.default_rng(0).permutation(labels).tolist()
    outcomes = []
    with serve(method=method, max_batch=25) as running:
        for name, given in (("right", labels), ("shuffled", shuffled), ("none", None)):
            answers = [
                ask(
                    running,
                    pictures[start : start + 25],
                    labels=given and given[start : start + 25],
                    params={"stream": name},
                )
                for start in range(0, 200, 25)
            ]
            status = running.at_rest()["streams"][name]
            outcomes.append(([answer["predictions"] for answer in answers], status))
        counted = running.status()["counters"]
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert counted["labelled_images_total"] == 400


def test_adaptation_changes_what_comes_after_not_what_it_learned_from(serve, pictures):
    """The first batch is the source's, bit for bit; later ones carry the steps taken."""
    with serve(method="tent", max_batch=64) as running:
        first = ask(running, pictures[:64], params={"stream": "a"})
        second = ask(running, pictures[:64], params={"stream": "a"})
        fresh = ask(running, pictures[:64], params={"stream": "b"})
    assert first["predictions"] == fresh["predictions"]
    assert (first["version"], second["version"]) == (0, 1)
    assert first["predictions"] != second["predictions"]


def test_a_response_arrives_while_its_adaptation_is_held_up(serve, held, pictures):
    """The client has its answer although adapt has not ended; the next batch waits for it."""
    source, gates = held("tent")
    with serve(source=source, method="tent") as running:
        gates.adapt.clear()
        try:
            answer = ask(running, pictures[:8])
            assert answer["version"] == 0
            assert gates.adapting.wait(30)
            assert running.status()["idle"] is False
            assert running.metric("ttc_optimizer_steps_total") == 0
            with ThreadPoolExecutor(1) as pool:
                following = pool.submit(ask, running, pictures[8:16])
                with pytest.raises(TimeoutError):
                    following.result(timeout=0.2)
                gates.open()
                assert following.result(timeout=60)["version"] == 1
        finally:
            gates.open()


def test_a_device_that_hangs_makes_the_service_not_ready(serve, held, pictures, monkeypatch):
    """Clients leave and the queue is empty: nothing else would tell."""
    source, gates = held("source")
    with serve(source=source, method="source") as running, ThreadPoolExecutor(1) as pool:
        assert running.metric("ttc_ready") == 1
        monkeypatch.setattr(context, "STUCK_SECONDS", 0.05)
        gates.predict.clear()
        try:
            waiting = pool.submit(ask, running, pictures[:1])
            running.wait_for(lambda: running.http.get("/readyz").status_code == 503)
            assert running.metric("ttc_ready") == 0
            assert running.metric("ttc_batch_age_seconds") > 0.05
        finally:
            gates.open()
        assert waiting.result(timeout=60)
        running.at_rest()
        assert running.http.get("/readyz").status_code == 200
        assert running.metric("ttc_batch_age_seconds") == 0


def test_the_answer_has_been_sent_before_adaptation_begins(serve, held, pictures):
    """Not only before it ends: the last byte is with the socket when adapt is called."""
    log = []
    source, gates = held("tent")

    class NotedGate(threading.Event):
        def wait(self, timeout=None):
            log.append("adapt")
            return super().wait(timeout)

    gates.adapt = NotedGate()
    gates.open()

    def note_sending(app):
        async def noting(scope, receive, send):
            async def noted(message):
                await send(message)
                if message["type"] == "http.response.body" and scope["path"] == "/predict":
                    log.append("sent")

            await app(scope, receive, noted)

        return noting

    with serve(source=source, method="tent", wrap=note_sending) as running:
        running.at_rest()
        log.clear()
        for start in range(10):
            ask(running, pictures[start : start + 2])
            running.at_rest()
    assert log == ["sent", "adapt"] * 10


def test_reset_in_mid_accumulation_repeats_the_first_run(serve, make_method, pictures):
    """Twice: weights, statistics, optimizer and gradients waiting for a step all go back."""
    with serve(source=make_method("ttc", samples_per_step=48), max_batch=16) as running:

        def run():
            answers = [ask(running, pictures[at : at + 16]) for at in range(0, 64, 16)]
            status = running.at_rest()["streams"]["default"]
            assert status["version"] == 1
            assert status["pending_batches"] == 1
            return answers, status | {"guard": None}  # which tells of the resets

        first = run()
        for _ in range(2):
            reset = ResetResponse.model_validate(running.http.post("/reset").json())
            assert reset.streams == ["default"]
            assert (reset.discarded.steps, reset.discarded.pending_batches) == (1, 1)
            assert run() == first


def test_a_reset_between_answer_and_adaptation_keeps_the_source(serve, held, pictures):
    """What was answered before the reset is not learned after it."""
    source, gates = held("tent")
    with serve(source=source, method="tent") as running:
        fresh = ask(running, pictures[:8], params={"stream": "other"})
        running.at_rest()
        gates.predict.clear()
        gates.predicting.clear()
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(ask, running, pictures[:8])
            try:
                assert gates.predicting.wait(30)
                reset = pool.submit(running.http.post, "/reset")  # behind the batch at hand
                running.wait_for(lambda: running.metric("ttc_http_requests_in_progress") == 2)
            finally:
                gates.open()
            assert reset.result(60).status_code == 200
            assert answer.result(60)["predictions"] == fresh["predictions"]
        status = running.at_rest()
        assert "default" not in status["streams"]
        assert status["counters"]["images_total"] == 16
        assert ask(running, pictures[:8])["predictions"] == fresh["predictions"]


def test_streams_adapt_apart(serve, make_method, pictures):
    """Whatever one camera sends, another's answers are those of a server of its own."""
    with serve(source=make_method("ttc", samples_per_step=48), max_batch=16) as running:
        alone = [
            ask(running, pictures[at : at + 16], params={"stream": "alone"})["predictions"]
            for at in range(0, 64, 16)
        ]
        mixed = []
        for at in range(0, 64, 16):
            ask(running, pictures[240 - at : 256 - at], params={"stream": "noise"})
            answer = ask(running, pictures[at : at + 16], params={"stream": "b"})
            mixed.append(answer["predictions"])
        assert mixed == alone
        reset = running.http.post("/reset", params={"stream": "noise"}).json()
        assert reset["streams"] == ["noise"]
        status = running.at_rest()["streams"]
        assert "noise" not in status  # at the source it is as good as none
        assert status["b"]["version"] == status["alone"]["version"] > 0
        everything = running.http.post("/reset", params={"stream": "*"}).json()
        assert sorted(everything["streams"]) == ["alone", "b"]


@pytest.mark.parametrize("policy", ["never", "idle"])
def test_adaptation_that_is_shed_is_counted(serve, held, pictures, policy):
    """With never each batch is shed; with idle those that others wait behind."""
    source, gates = held("tent")
    with serve(source=source, method="tent", adapt=policy, max_batch=1) as running:
        gates.predict.clear()
        gates.predicting.clear()
        with ThreadPoolExecutor(3) as pool:
            answers = [
                pool.submit(ask, running, [pictures[n]], params={"stream": "s"}) for n in range(3)
            ]
            try:
                assert gates.predicting.wait(30)
                running.wait_for(lambda: running.metric("ttc_queue_images") == 2)
            finally:
                gates.open()
            [answer.result(60) for answer in answers]
        running.at_rest()
        shed = running.metric('ttc_adaptation_skipped_total{reason="shed"}')
        steps = running.metric("ttc_optimizer_steps_total")
        assert (shed, steps) == ((3, 0) if policy == "never" else (2, 1))
        assert running.metric("ttc_images_total") == 3


class Nan(Source):
    """Answers an all-black picture with numbers that are none, and learns from nothing."""

    def predict(self, images, *, learn=True):
        prediction = super().predict(images, learn=learn)
        black = images.flatten(1).sum(dim=1) == 0
        prediction.logits[black] = torch.nan
        return prediction


def black_png():
    return to_png(np.zeros((32, 32, 3), np.uint8))


def test_scores_that_are_no_numbers_fail_their_own_request(serve, model, held, pictures):
    """500 names the image; batch mates are answered; it counts as no answer and no truth."""
    with serve(source=Nan(model), method="source") as running:
        problem = ask(running, [pictures[0], black_png()], expect=500, labels=[0, 0])
        assert problem["index"] == 1
        assert "Image 2 of 2" in problem["detail"]
        assert len(ask(running, pictures[:4], labels=[0, 1, 2, 3])["predictions"]) == 4
        counters = running.at_rest()["counters"]
        assert counters["labelled_images_total"] == 4
        assert counters["images_total"] == 4


def test_a_batch_with_scores_that_are_no_numbers_teaches_nothing(serve, make_method, pictures):
    """The stream stands where it stood: same answers afterwards, and the skip is counted."""
    source = make_method("tent")

    class Broken:
        """TENT whose network gives nan for a black picture."""

        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def predict(self, images, *, learn=True):
            prediction = self._inner.predict(images, learn=learn)
            prediction.logits[images.flatten(1).sum(dim=1) == 0] = torch.nan
            return prediction

        def fork(self):
            return Broken(self._inner.fork())

    with serve(source=Broken(source), method="tent", max_batch=8) as running:
        warm = running.metric('ttc_adaptation_skipped_total{reason="non_finite"}')
        fresh = ask(running, pictures[:8], params={"stream": "fresh"})
        ask(running, [*pictures[:7], black_png()], expect=500)
        status = running.at_rest()
        assert "default" not in status["streams"]
        assert running.metric('ttc_adaptation_skipped_total{reason="non_finite"}') == warm + 1
        assert ask(running, pictures[:8])["predictions"] == fresh["predictions"]


def test_a_method_that_breaks_while_learning_goes_on_from_before(serve, make_method, pictures):
    """The answers were out; the stream is as it was, the event is shown, the service goes on."""
    source, broken = make_method("tent"), threading.Event()

    class Breaks:
        def __init__(self, inner):
            self._inner = inner

        def __getattr__(self, name):
            return getattr(self._inner, name)

        def adapt(self, prediction, *, learn=True):
            outcome = self._inner.adapt(prediction, learn=learn)
            if broken.is_set():
                raise RuntimeError("in the middle")
            return outcome

        def fork(self):
            return Breaks(self._inner.fork())

    with serve(source=Breaks(source), method="tent") as running:
        ask(running, pictures[:8])
        running.at_rest()
        broken.set()
        second = ask(running, pictures[:8])
        status = running.at_rest()
        broken.clear()
        (failed,) = status["events"][1:]
        assert failed["event"] == "adaptation_failed"
        assert failed["reason"] == "RuntimeError: in the middle"
        again = ask(running, pictures[:8])
        assert (again["version"], again["predictions"]) == (1, second["predictions"])


def test_what_is_asked_without_learning_moves_nothing(serve, pictures, labels):
    """Answers and labels are counted; the stream is where it was, and a new one takes no place."""
    with serve(method="tent", max_batch=8) as running:
        ask(running, pictures[:8])
        before = running.at_rest()
        once = ask(running, pictures[8:12], params={"learn": "false", "label": labels[8:12]})
        again = ask(running, pictures[8:12], params={"learn": "false"})
        ask(running, pictures[:2], params={"learn": "false", "stream": "new"})
        after = running.at_rest()
        assert once["predictions"] == again["predictions"]
        assert not any(answer["selected"] for answer in once["predictions"])
        assert after["streams"] == before["streams"]
        assert after["counters"]["images_total"] == 18
        assert after["counters"]["labelled_images_total"] == 4
        assert after["counters"]["considered_images_total"] == 8
