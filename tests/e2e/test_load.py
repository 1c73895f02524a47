"""Load, deadlines, and clients that go away, over real HTTP."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fixtures.requests import ask, classes


@pytest.fixture
def busy(serve, held, pictures):
    """A server whose device is held in the forward pass of one image: (running, gates)."""
    source, gates = held("source")
    with serve(source=source, method="source", max_batch=4, max_queue=4) as running:
        gates.predict.clear()
        gates.predicting.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, running, [pictures[0]])
            try:
                assert gates.predicting.wait(30)
                yield running, gates
            finally:
                gates.open()
            assert len(first.result(60)["predictions"]) == 1


def test_a_full_queue_answers_429_at_once(busy, pictures):
    """While others wait, one more is refused before it is decoded, and told when to come back."""
    running, gates = busy
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, running, pictures[:4])
        running.wait_for(lambda: running.metric("ttc_queue_images") == 4)
        refused = running.http.post("/predict", content=b"not even an image")
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["title"] == "Queue full"
        assert running.metric('ttc_rejected_images_total{reason="full"}') == 1
        assert not waiting.done()
        gates.open()
        assert len(waiting.result(60)["predictions"]) == 4
    assert len(ask(running, pictures[:4])["predictions"]) == 4


def test_more_images_than_the_queue_ever_holds_are_too_large(busy, pictures):
    """413, not 429: coming back would not help."""
    running, _ = busy
    problem = ask(running, pictures[:5], expect=413)
    assert "at most 4" in problem["detail"]


def test_a_deadline_that_passes_is_answered_504_and_not_run(busy, pictures):
    """The image is never predicted; it is counted by its reason."""
    running, gates = busy
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(ask, running, [pictures[1]], expect=504, params={"timeout": 0.05})
        assert late.result(60)["title"] == "Deadline expired"
        gates.open()
    assert running.at_rest()["counters"]["images_total"] == 1
    assert running.metric('ttc_rejected_images_total{reason="deadline"}') == 1


@pytest.mark.parametrize("timeout", ["nan", "inf", "-inf", "0", "-1", "1e999", "1e300", "soon"])
def test_a_timeout_that_is_no_time_is_refused(serve, pictures, timeout):
    """With a sentence, before anything is run."""
    with serve(method="source") as running:
        ask(running, pictures[:1], expect=422, params={"timeout": timeout})
        ask(running, pictures[:1], params={"timeout": "86400"})


def test_a_client_that_goes_away_takes_no_place(busy, pictures):
    """Its image leaves the queue at once, is counted, and is never predicted."""
    running, gates = busy
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(pictures[1])}\r\n\r\n"
        connection.sendall(head.encode() + pictures[1])
        running.wait_for(lambda: running.metric("ttc_queue_images") == 1)
    running.wait_for(lambda: running.metric("ttc_queue_images") == 0)
    assert running.metric("ttc_cancelled_images_total") == 1
    gates.open()
    assert running.at_rest()["counters"]["images_total"] == 1
    assert running.metric('ttc_http_requests_total{code="499",method="POST",route="/predict"}') == 1


def test_many_clients_at_once_each_get_their_own_answer(source_server, pictures):
    """Sixty-four requests in flight are batched together and taken apart again without mixing."""
    alone = [classes(ask(source_server, [image])) for image in pictures[:64]]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda image: ask(source_server, [image]), pictures[:64]))
    assert [classes(answer) for answer in together] == alone
    assert max(answer["batch_size"] for answer in together) > 1
