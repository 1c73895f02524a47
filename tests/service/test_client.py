"""Both clients send what the service reads, and say in a sentence what went wrong."""

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from service.client import AsyncClient, Client, ServiceError, feedback_call, predict_call
from tests.fixtures.scripted_service import PREDICTION, ScriptedService, scripted_service

RESET = {"streams": ["default"], "discarded": {"steps": 3, "pending_batches": 1}}
PROBLEM = {"title": "Queue full", "status": 429, "detail": "Too many.", "request_id": "r1"}


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with scripted_service() as running:
        yield running


def ask_sync(url, verb, *arguments, token=None, timeout=10.0, retry_budget=0, **options):
    with Client(url, token, timeout, retry_budget=retry_budget) as client:
        return getattr(client, verb)(*arguments, **options)


def ask_async(url, verb, *arguments, token=None, timeout=10.0, retry_budget=0, **options):
    async def ask():
        async with AsyncClient(url, token, timeout, retry_budget=retry_budget) as client:
            return await getattr(client, verb)(*arguments, **options)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


@both
def test_predict_sends_images_labels_and_ids_and_reads_the_answer(service, ask):
    """What goes out is the documented JSON, what comes back is typed."""
    service.will_answer(PREDICTION)
    answer = ask(
        service.url, "predict", [b"\x89PNG"], labels=[7], ids=["a"], stream="door", top_k=2
    )
    ((method, path, headers, body),) = service.asked
    assert (method, path) == ("POST", "/predict?top_k=2&stream=door")
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    b64 = base64.b64encode(b"\x89PNG").decode()
    assert json.loads(body) == {"images": [{"b64": b64, "label": 7, "id": "a"}]}
    assert answer.version == 3
    assert answer.predictions[0].class_ == 7
    assert answer.predictions[0].selected


@both
def test_labels_that_come_later_go_by_id(service, ask):
    """What goes out is the documented JSON; what did not count comes back by its reason."""
    none = {"count": 0, "images": []}
    unknown = {"count": 1, "images": [{"stream": "door", "id": "b"}]}
    service.will_answer({"taken": 1, "unknown": unknown, "repeated": none, "contradicting": none})
    answer = ask(service.url, "feedback", [("a", 7), ("b", 2)], stream="door", token="secret")
    ((method, path, headers, body),) = service.asked
    assert (method, path) == ("POST", "/feedback?stream=door")
    assert headers["Authorization"] == "Bearer secret"
    assert json.loads(body) == {"labels": [{"id": "a", "label": 7}, {"id": "b", "label": 2}]}
    (one,) = answer.unknown.images
    assert (answer.taken, one.stream, one.id) == (1, "door", "b")


@both
def test_reset_names_the_stream_and_sends_the_token(service, ask):
    """The routes that change something get the token as a bearer."""
    service.will_answer(RESET)
    answer = ask(service.url + "/", "reset", "*", token="secret-token")
    ((method, path, headers, _),) = service.asked
    assert (method, path) == ("POST", "/reset?stream=%2A")
    assert headers["Authorization"] == "Bearer secret-token"
    assert answer.discarded.steps == 3


@both
def test_images_can_be_asked_about_without_learning(service, ask):
    """The option goes along only where it is not the default."""
    for learn in (True, False):
        service.will_answer(PREDICTION)
        ask(service.url, "predict", [b"x"], learn=learn)
    assert [path for _, path, _, _ in service.asked] == ["/predict", "/predict?learn=false"]


@both
def test_images_can_be_asked_about_as_if_each_came_alone(service, ask):
    """The option goes along only where it is not the default."""
    for context in (True, False):
        service.will_answer(PREDICTION)
        ask(service.url, "predict", [b"x"], context=context)
    assert [path for _, path, _, _ in service.asked] == ["/predict", "/predict?context=false"]


@both
def test_a_refusal_carries_the_servers_sentence(service, ask):
    """Status, sentence, Retry-After and request id are all there for the caller."""
    service.will_answer(PROBLEM, 429, Retry_After="2.5")
    with pytest.raises(ServiceError, match=r"^Too many\.$") as caught:
        ask(service.url, "predict", [b"x"])
    error = caught.value
    assert (error.status, error.retry_after, error.request_id) == (429, 2.5, "r1")
    assert error.may_repeat
    assert len(service.asked) == 1, "without a budget nothing is sent again"


@both
@pytest.mark.parametrize("status", [429, 503])
def test_what_was_refused_is_sent_again_once_the_server_wants_it(service, ask, status):
    """The same request, no sooner than Retry-After says, and not much later."""
    service.will_answer(PREDICTION)
    service.before = [(status, {"Retry-After": "0.4"}), (status, {"Retry-After": "0.2"})]
    assert ask(service.url, "predict", [b"x"], stream="door", retry_budget=10).version == 3
    assert len(service.asked) == 3
    assert len({(path, body) for _, path, _, body in service.asked}) == 1
    first, second, third = service.times
    assert 0.4 <= second - first < 2
    assert 0.2 <= third - second < 2


@both
def test_a_date_says_when_to_come_back_as_seconds_do(service, ask):
    """Proxies send one; it has whole seconds."""
    service.will_answer(PREDICTION)
    service.before = [(503, {"Retry-After": formatdate(time.time() + 2, usegmt=True)})]
    ask(service.url, "predict", [b"x"], retry_budget=10)
    assert 0.9 <= service.times[1] - service.times[0] < 4


@both
def test_no_try_begins_after_the_budget(service, ask):
    """A longer Retry-After is told at once, not waited for."""
    service.will_answer(PROBLEM, 429, Retry_After="5")
    began = time.monotonic()
    with pytest.raises(ServiceError, match=r"^Too many\.$") as caught:
        ask(service.url, "predict", [b"x"], retry_budget=4)
    assert time.monotonic() - began < 3
    assert caught.value.retry_after == 5
    assert len(service.asked) == 1


@both
def test_tries_without_a_retry_after_become_rarer_until_the_budget_ends(service, ask):
    """Each waits a random time of twice as many seconds as the one before it at most."""
    service.will_answer(PROBLEM, 503)
    with pytest.raises(ServiceError, match=r"^Too many\.$"):
        ask(service.url, "predict", [b"x"], retry_budget=1.5)
    waits = np.diff(service.times)
    assert len(waits) >= 1
    assert sum(waits) < 1.6
    assert all(wait < 0.25 * 2**number + 0.3 for number, wait in enumerate(waits))


@both
@pytest.mark.parametrize("status", [400, 401, 404, 408, 422, 500, 502, 504])
def test_what_may_have_been_accepted_is_not_sent_again(service, ask, status):
    """Also not where the answer of a proxy says when to come back."""
    service.will_answer(PROBLEM, status, Retry_After="0.1")
    with pytest.raises(ServiceError) as caught:
        ask(service.url, "predict", [b"x"], retry_budget=10)
    assert not caught.value.may_repeat
    assert len(service.asked) == 1


@both
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", ["text/plain", "text/html; charset=utf-8", "application/json"])
def test_what_a_proxy_refuses_may_have_been_accepted(service, ask, status, kind):
    """Envoy answers 503 when the service's connection ends after it has forwarded the request."""
    service.before = [(status, {"Content-Type": kind, "Retry-After": "0"})]
    with pytest.raises(ServiceError) as caught:
        ask(service.url, "predict", [b"x"], retry_budget=10)
    assert not caught.value.may_repeat
    assert len(service.asked) == 1


@both
def test_a_refusal_of_ours_is_known_however_its_form_is_written(service, ask):
    """A proxy on the way may add a charset, or write it in capitals."""
    service.before = [(503, {"Content-Type": "Application/Problem+JSON; charset=utf-8"})]
    assert ask(service.url, "predict", [b"x"], retry_budget=10).version == 3


@both
def test_what_only_reads_is_asked_again_whoever_refused(service, ask):
    """Nothing moves by it."""
    service.will_answer({"stream": "door", "method": "ttc", "version": 3, "snapshots": []})
    service.before = [(503, {"Content-Type": "text/plain"})]
    assert ask(service.url, "snapshots", "door", retry_budget=10).snapshots == []
    assert len(service.asked) == 2


@both
def test_a_predict_whose_answer_was_lost_is_not_sent_again(service, ask):
    """The service may have learned from it: a second time would be once too often."""
    service.will_answer(PREDICTION)
    service.before = [None]
    with pytest.raises(ServiceError, match="broke before the answer") as caught:
        ask(service.url, "predict", [b"x"], retry_budget=10)
    assert not caught.value.may_repeat
    assert len(service.asked) == 1


@both
def test_who_listens_soon_is_found(ask):
    """A connection that is refused has sent nothing."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(ServiceError, match="Nothing answers") as caught:
        ask(url, "predict", [b"x"], retry_budget=0.8)
    assert caught.value.may_repeat
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("budget", [-1, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(budget):
    """It is a number of seconds."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="retry_budget is in seconds, 0 or more"):
            kind(retry_budget=budget)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"timeout": 0}, "timeout is in seconds, above 0; got 0"),
        ({"timeout": float("nan")}, "timeout is in seconds"),
        ({"connections": 0}, "connections must be 1 or more; got 0"),
    ],
)
def test_a_client_that_could_never_be_answered_is_refused(kind, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(**options)


@both
def test_a_name_of_a_request_that_is_none_is_left_out(service, ask):
    service.will_answer(PROBLEM | {"request_id": ["r1"]}, 429)
    with pytest.raises(ServiceError) as caught:
        ask(service.url, "predict", [b"x"])
    assert caught.value.request_id is None


@both
@pytest.mark.parametrize("body", [b"<html>no</html>", b"[1]", b'{"detail": [1]}', b"\xff"])
def test_a_refusal_in_another_form_still_makes_a_sentence(service, ask, body):
    """A proxy's error page names the address and the status instead of the detail."""
    service.will_answer(body, 502, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
    with pytest.raises(ServiceError, match=r"/status answered 502 Bad Gateway") as caught:
        ask(service.url, "status")
    assert caught.value.retry_after is None


@both
def test_an_answer_of_another_service_is_told_apart(service, ask):
    """Something else on the port gives a sentence, not a validation report."""
    service.will_answer({"hello": "world"})
    with pytest.raises(ServiceError, match="answered something else than expected"):
        ask(service.url, "status")


@both
def test_a_refused_connection_names_the_url(ask):
    """The commonest mistake, no server there, says where it looked and what to start."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ServiceError, match=rf"Nothing answers at {url} .*ttc serve") as caught:
        ask(url, "status")
    assert caught.value.status is None
    assert ask(url, "ready") is False


@both
def test_no_answer_in_time_says_how_long_it_waited(ask):
    """A server that accepts and is silent ends in a sentence with the limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"did not answer within 0\.2 seconds"):
            ask(url, "status", timeout=0.2)


@pytest.mark.parametrize(("calls", "connections"), [(1, 1), (3, 3), (20, 3)])
def test_calls_at_once_share_the_connections_that_are_allowed(service, calls, connections):
    """And a connection that is free is used again before there is another."""
    service.will_answer(RESET)

    async def ask_twice():
        async with AsyncClient(service.url, connections=3) as client:
            for _ in range(2):
                await asyncio.gather(*(client.reset() for _ in range(calls)))

    asyncio.run(ask_twice())
    assert len(service.asked) == 2 * calls
    assert service.connections == connections


def test_a_client_goes_on_in_another_loop(service):
    """Also where calls had to wait for a connection in the first."""
    service.will_answer(RESET)
    client = AsyncClient(service.url, connections=2)

    async def ask_together():
        async with client:
            await asyncio.gather(*(client.reset() for _ in range(6)))

    for _ in range(3):
        asyncio.run(ask_together())
    assert len(service.asked) == 18


def test_a_connection_that_does_not_close_holds_up_no_other(service, monkeypatch):
    """It is told, once; the client is closed, and may be closed again."""
    service.will_answer(RESET)
    tried = []

    async def break_off(connection):
        tried.append(connection)
        raise OSError("broken")

    async def ask_and_close():
        client = AsyncClient(service.url)
        await asyncio.gather(*(client.reset() for _ in range(3)))
        with monkeypatch.context() as patch:
            patch.setattr("httpx.AsyncClient.aclose", break_off)
            with pytest.raises(OSError, match="broken"):
                await client.close()
        await client.close()
        for connection in tried:
            await connection.aclose()

    asyncio.run(ask_and_close())
    assert len(tried) == 3


def test_who_waits_too_long_for_a_connection_is_told(service):
    """And who is called off leaves its connection to others."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        async def ask_twice():
            async with AsyncClient(url, connections=1, timeout=0.2) as client:
                first, second = (asyncio.create_task(client.status()) for _ in range(2))
                await asyncio.sleep(0.05)
                first.cancel()
                with pytest.raises(ServiceError, match=r"did not answer within 0\.2 seconds"):
                    await second
                held = asyncio.create_task(client.status())
                await asyncio.sleep(0.1)
                client.timeout = 0.01
                with pytest.raises(ServiceError, match=r"did not answer within 0\.01 seconds"):
                    await client.status()
                held.cancel()

        asyncio.run(ask_twice())


@both
@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_ready_is_a_yes_or_a_no(service, ask, status, ready):
    """Loading and draining are a no, not an error."""
    service.will_answer({"status": "x"}, status)
    assert ask(service.url, "ready") is ready


@both
def test_ready_raises_what_is_neither_yes_nor_no(service, ask):
    """A wrong address is not mistaken for a server that is still loading."""
    service.will_answer({}, 404)
    with pytest.raises(ServiceError, match="404"):
        ask(service.url, "ready")


@both
def test_no_proxy_stands_before_this_computer(service, ask, monkeypatch):
    """A proxy in the environment, as offices have one, does not break a local replay."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    service.will_answer(RESET)
    assert ask(service.url, "reset").streams == ["default"]


@both
@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "", "http://host:door"])
def test_a_url_that_is_none_is_refused_at_once(ask, url):
    """The sentence shows what a URL looks like."""
    with pytest.raises(ValueError, match="URL"):
        ask(url, "status")


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((4, 4, 3)), r"float64.*accepted is uint8.*\(255 \* array\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), bool), "array of bool"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((3, 8, 8), np.uint8), "Channels come last"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"list\(array\)"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\)"),
        (Image.new("CMYK", (4, 4)), r"mode CMYK.*convert\('RGB'\)"),
        (Image.new("F", (4, 4)), "mode F"),
        ("no-such-file.png", "no-such-file.png, cannot be read: No such file"),
        (Path(__file__).parent, "cannot be read: Is a directory"),
        ("a\0b", "cannot be read"),
        (7, "type int; an image is a path"),
        (None, "type NoneType; an image is a path"),
    ],
)
def test_an_image_that_is_none_is_refused_by_what_it_should_be(image, sentence):
    """Alone, and among others, where its place is named; nothing is scaled or cut by a guess."""
    with pytest.raises(ValueError, match=sentence):
        predict_call(image)
    with pytest.raises(ValueError, match=rf"images\[1\].*{sentence}"):
        predict_call([b"x", image])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_picture_is_sent_with_the_very_pixels_that_it_has(mode):
    """PNG holds each of these modes as it is."""
    picture = Image.effect_noise((9, 5), 80).convert("RGB")
    picture = Image.new("I;16", (9, 5), 40_000) if mode == "I;16" else picture.convert(mode)
    entry = json.loads(predict_call(picture).body or b"")["images"][0]
    sent = Image.open(io.BytesIO(base64.b64decode(entry["b64"])))
    assert (sent.mode, sent.tobytes()) == (mode, picture.tobytes())


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 12)] * 2).map(lambda sides: (*sides, 3))))
def test_an_array_is_sent_with_the_very_pixels_that_it_has(pixels):
    """Whichever way it lies in memory."""
    for array in (pixels, pixels[::-1, ::-1], pixels[:, :, ::-1], pixels[:, :, 1]):
        entry = json.loads(predict_call([array]).body or b"")["images"][0]
        sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["b64"]))))
        np.testing.assert_array_equal(sent, array)


@pytest.mark.parametrize(
    ("images", "options", "sentence"),
    [
        ([], {}, "at least one"),
        ([b"a", b"b"], {"labels": [1]}, "labels must be as many as images, 2; got 1"),
        ([b"a"], {"ids": ["a", "b"]}, "ids must be as many as images, 1; got 2"),
        ([b"a"], {"ids": "a"}, "ids must be a list, one for each image; got 'a'"),
        ([b"a"], {"labels": 1}, "labels must be a list, one for each image; got 1"),
        ([b"a"], {"ids": [7]}, "ids must be texts, or None; got 7"),
        ([b"a"], {"ids": [np.int64(7)]}, "ids must be texts"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_sending(images, options, sentence):
    """Lists that do not fit together never reach the server."""
    with pytest.raises(ValueError, match=sentence):
        predict_call(images, **options)


@pytest.mark.parametrize("labels", [["ab"], [("a",)], [("a", 1, 2)], [7], {"a": 1}])
def test_late_labels_that_are_no_pairs_are_refused(labels):
    with pytest.raises(ValueError, match="labels must be pairs of an id and a class"):
        feedback_call(labels)
    with pytest.raises(ValueError, match="ids must be texts"):
        feedback_call([(7, 1)])


def test_a_picture_whose_file_is_damaged_is_refused_before_sending():
    """Pillow opens it, and reads its pixels only when they are sent."""
    file = io.BytesIO()
    Image.effect_noise((40, 40), 80).save(file, "PNG")
    for picture in (Image.open(io.BytesIO(file.getvalue()[:-300])), Image.new("RGB", (0, 0))):
        with pytest.raises(ValueError, match=r"images\[0\], of Pillow's, cannot be read: .+\.$"):
            predict_call([picture])


def test_unknown_labels_and_ids_are_left_out():
    """None says that this one image has none; the others keep theirs."""
    call = predict_call([b"a", b"b"], labels=[None, 4], ids=["x", None])
    first, second = json.loads(call.body or b"")["images"]
    assert (first["id"], second["label"]) == ("x", 4)
    assert "label" not in first
    assert "id" not in second


@pytest.mark.parametrize("label", [1.7, "3", True, b"1", np.float32(1)])
def test_a_label_that_is_no_whole_number_is_refused(label):
    """It would count for another class; NumPy's whole numbers are whole numbers."""
    with pytest.raises(ValueError, match="whole numbers"):
        predict_call([b"x"], labels=[label])
    body = predict_call([b"x"], labels=[np.int64(3)]).body
    assert json.loads(body)["images"][0]["label"] == 3


@both
@pytest.mark.parametrize(
    ("content", "status", "headers"),
    [
        pytest.param(b"abc", 200, {"Content-Encoding": "gzip"}, id="no gzip"),
        pytest.param(b"", 302, {"Location": "http://[::"}, id="sent nowhere"),
        pytest.param(b"[" * 200_000, 500, {}, id="deep problem"),
        pytest.param(b"[" * 200_000, 200, {}, id="deep answer"),
        pytest.param(b"\xff\xfe", 500, {"Content-Type": "text/x; charset=no"}, id="no text"),
        pytest.param(PROBLEM, 429, {"Retry-After": "nan"}, id="no time"),
        pytest.param(PROBLEM, 429, {"Retry-After": "-1"}, id="a time that was"),
        pytest.param(PROBLEM, 429, {"Retry-After": "inf"}, id="never"),
    ],
)
def test_any_answer_that_is_no_result_is_a_service_error(service, ask, content, status, headers):
    """Whatever it is: no exception of a library's comes through."""
    service.will_answer(content, status, **headers)
    with pytest.raises(ServiceError) as refused:
        ask(service.url, "status")
    assert refused.value.retry_after is None


@both
@pytest.mark.parametrize("stream", ["\ud800", "x" * 70_000])
def test_a_stream_that_cannot_be_sent_is_a_service_error(service, ask, stream):
    """It is in the URL."""
    with pytest.raises(ServiceError, match="cannot be sent"):
        ask(service.url, "reset", stream)


@pytest.mark.parametrize("name", ["token", "admin_token"])
def test_a_token_that_fits_no_header_is_not_shown(name):
    """It may be a secret with a line end behind it."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="control characters") as refused:
            kind(**{name: "secret\n"})
        assert "secret" not in str(refused.value)
