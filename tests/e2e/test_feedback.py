"""Labels that come later: they count as those that came along, over restarts and kills."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.client import Client, ServiceError
from service.known_ids import FILE, RECORD
from tests.e2e.conftest import wait_for
from tests.fixtures.forked import launch
from tests.fixtures.requests import ask, classes, form, problem
from tests.fixtures.wire import connect, read, status_of

NONE = {"count": 0, "images": []}


def names(count, start=0):
    return [f"frame-{number}" for number in range(start, start + count)]


def named(ids, stream="default"):
    return [{"stream": stream, "id": id} for id in ids]


def entries(ids, labels, **more):
    return {
        "labels": [
            {"id": id, "label": label, **more} for id, label in zip(ids, labels, strict=True)
        ]
    }


def tell(running, ids, labels, expect=200, params=None, headers=None, **more):
    response = running.http.post(
        "/feedback", json=entries(ids, labels, **more), params=params, headers=headers
    )
    assert response.status_code == expect, response.text
    return response.json()


def accuracy(running):
    names = ("labelled_images_total", "correct_images_total", "window_accuracy_ratio")
    return [running.metric(f"ttc_{name}") for name in names]


@pytest.mark.parametrize("way", ["json", "form", "query"])
def test_labels_count_as_if_they_had_come_along(serve, pictures, labels, way):
    """The same images, half of them labelled at once and half later: one accuracy."""
    with serve(method="source", max_batch=16) as running:
        answer = ask(running, pictures[:16], labels=labels[:16], params={"stream": "early"})
        running.at_rest()
        early = accuracy(running)
        ids = names(16)
        if way == "json":
            ask(running, pictures[:16], ids=ids, params={"stream": "late"})
        elif way == "form":
            given = form(pictures[:16], ids=ids)
            assert running.http.post("/predict?stream=late", **given).status_code == 200
        else:
            for picture, name in zip(pictures[:16], ids, strict=True):
                params = {"stream": "late", "id": name, "learn": name == ids[0]}
                running.http.post("/predict", content=picture, params=params)
        told = tell(running, ids, labels[:16], stream="late")
        right = sum(a == b for a, b in zip(classes(answer), labels[:16], strict=True))
        assert told == {
            "taken": 16,
            "weighed": 0,
            "unknown": NONE,
            "repeated": NONE,
            "contradicting": NONE,
        }
        assert accuracy(running) == [32, 2 * right, early[2]]
        of_each = {"labelled": 16, "correct": right}
        assert running.at_rest()["truth"] == {"early": of_each, "late": of_each}


def test_what_does_not_count_is_named(serve, pictures):
    """By its reason, the first hundred; each is a metric."""
    with serve(method="source") as running:
        ask(running, pictures[:3], ids=names(3), labels=[4, None, None])
        tell(running, names(1, 1), [5])
        told = tell(running, [*names(3), *names(2), *names(150, 100)], [4, 5, 6, 5, 4] + [1] * 150)
        assert told == {
            "taken": 1,
            "weighed": 0,
            "unknown": {"count": 150, "images": named(names(100, 100))},
            "repeated": {"count": 2, "images": named(names(2))},
            "contradicting": {"count": 2, "images": named(names(2))},
        }
        counts = {"taken": 2, "unknown": 150, "repeated": 2, "contradicting": 2}
        for outcome, count in counts.items():
            name = f'ttc_feedback_labels_total{{outcome="{outcome}"}}'
            assert running.metric(name) == count
        assert running.metric("ttc_feedback_known_ids") == 3


def test_the_stream_is_the_labels_own_or_the_requests(serve, pictures):
    """In the entry, the query or the header, as everywhere; else the default one."""
    with serve(method="source") as running:
        for stream in ("default", "gate", "yard"):
            ask(running, pictures[:1], ids=["1"], params={"stream": stream})
        assert tell(running, ["1"], [0])["taken"] == 1
        assert tell(running, ["1"], [0], params={"stream": "gate"})["taken"] == 1
        assert tell(running, ["1"], [0], headers={"X-Session-Id": "gate"})["repeated"]["count"] == 1
        assert tell(running, ["1"], [0], headers={"X-Session-Id": "gate"}, stream="yard") == {
            **{"taken": 1, "weighed": 0},
            **{"unknown": NONE, "repeated": NONE, "contradicting": NONE},
        }
        of_many = [
            {"stream": name, "id": id, "label": 0} for name in ("gate", "yard") for id in "12"
        ]
        told = running.http.post("/feedback", json={"labels": of_many}).json()
        assert told["repeated"]["images"] == [*named("1", "gate"), *named("1", "yard")]
        assert told["unknown"]["images"] == [*named("2", "gate"), *named("2", "yard")]
        streams = running.at_rest()["truth"]
        assert {name: one["labelled"] for name, one in streams.items()} == {
            **{"default": 1, "gate": 1, "yard": 1}
        }
        two = {"params": {"stream": "gate"}, "headers": {"X-Session-Id": "yard"}}
        assert "names 2 streams" in tell(running, ["1"], [0], expect=422, **two)["detail"]


def test_ids_are_known_until_so_many_have_come_behind_them(serve, pictures):
    """An hour later is so many ids later: the last ten of both streams are known."""
    with serve(method="source", feedback_ids=10, max_batch=8) as running:
        for start in range(0, 24, 8):
            stream = {"stream": "ab"[start % 16 // 8]}
            ask(running, pictures[:8], ids=names(8, start), params=stream)
        assert tell(running, names(8, 16), [0] * 8, stream="a")["taken"] == 8
        late = tell(running, names(8, 8), [0] * 8, stream="b")
        assert (late["taken"], late["unknown"]["images"]) == (2, named(names(6, 8), "b"))
        assert running.metric("ttc_feedback_known_ids") == 10


def test_an_id_used_again_is_the_later_images(serve, pictures, labels):
    """Cameras that count from 0 each day: the label is of what was answered last."""
    with serve(method="source") as running:
        first, second = (
            classes(ask(running, [pictures[at]], ids=["0"]))[0]
            for at in (0, next(n for n in range(1, 99) if labels[n] != labels[0]))
        )
        assert tell(running, ["0"], [second])["taken"] == 1
        assert accuracy(running)[:2] == [1, 1], (first, second)


def test_a_reset_forgets_no_ids(serve, pictures):
    """The answers were given: labels are true of them. The stream's counts begin anew."""
    with serve(method="ttc") as running:
        ask(running, pictures[:4], ids=names(4), labels=[0, None, None, None])
        running.at_rest()
        forgotten = running.http.post("/reset?stream=default").json()["discarded"]
        assert forgotten["labelled"] == 1
        told = tell(running, names(4), [0] * 4)
        assert (told["taken"], told["repeated"]["count"]) == (3, 1)
        ask(running, pictures[:1])
        assert running.at_rest()["truth"]["default"]["labelled"] == 3
        assert running.metric("ttc_labelled_images_total") == 4
        ask(running, pictures[:1], labels=[1], params={"stream": "visitor", "learn": "false"})
        assert set(running.at_rest()["truth"]) == {"default", "visitor"}
        told = running.http.post("/reset?stream=*").json()
        assert sorted(told["streams"]) == ["default", "visitor"]
        assert told["discarded"]["labelled"] == 4
        status = running.status()
        assert status["truth"] == {}
        resets = [each for each in status["events"] if each["event"] == "reset"]
        assert [each["labelled"] for each in resets] in ([1, 3, 1], [1, 1, 3])


def test_a_reset_says_how_many_labels_it_forgets_wherever_they_are(serve, pictures, tmp_path):
    """Those in a file that nobody has loaded, those that came for it since, both together."""
    with serve(method="ttc", state_dir=tmp_path) as running:
        for stream in ("kept", "late", "gone"):
            ids = names(4)
            ask(
                running, pictures[:4], ids=ids, labels=[1, 2, None, None], params={"stream": stream}
            )
        running.at_rest()
    with serve(method="ttc", state_dir=tmp_path) as running:
        tell(running, names(4), [0] * 4, stream="late")
        ask(running, pictures[:1], labels=[1], params={"stream": "kept"})
        running.at_rest()
        expected = {"kept": 3, "late": 4, "gone": 2, "typo": 0}
        for stream, labelled in expected.items():
            told = running.http.post("/reset", params={"stream": stream}).json()
            assert (told["known"], told["discarded"]["labelled"]) == (stream != "typo", labelled)
            assert told["discarded"]["correct"] <= labelled
        assert not running.http.post("/reset?stream=kept").json()["known"]
        assert running.status()["truth"] == {}


def test_a_label_may_follow_its_answer_at_once(serve, pictures, labels):
    """Many clients label what they have just been answered, while others predict: all count."""
    with serve(method="ttc", max_batch=4) as running, ThreadPoolExecutor(4) as pool:

        def walk(camera):
            told = []
            with Client(running.url) as client:
                for at in range(0, 40, 2):
                    ids = names(2, at)
                    client.predict(pictures[at : at + 2], ids=ids, stream=camera)
                    pairs = zip(ids, labels[at : at + 2], strict=True)
                    told.append(client.feedback(pairs, stream=camera).taken)
            return told

        for told in pool.map(walk, ["a", "b", "c", "d"]):
            assert told == [2] * 20
        running.at_rest()
        assert running.metric("ttc_labelled_images_total") == 160
        streams = running.status()["truth"].values()
        assert sum(one["correct"] for one in streams) == accuracy(running)[1]


def test_one_image_that_fails_leaves_no_truth(serve, pictures):
    """A request without an answer: its ids are unknown, its labels in no count."""
    with serve(method="source") as running:
        ask(running, [pictures[0], b"broken"], ids=["a", "b"], labels=[1, 1], expect=400)
        assert tell(running, ["a", "b"], [1, 1])["unknown"]["count"] == 2
        assert accuracy(running)[:2] == [0, 0]


def test_images_without_ids_leave_no_file(serve, pictures, tmp_path):
    """They cost nothing; those that nobody answered by id are not kept."""
    with serve(method="source", state_dir=tmp_path) as running:
        ask(running, pictures[:4])
        running.at_rest()
        assert running.metric("ttc_feedback_known_ids") == 0
    assert not (tmp_path / FILE).exists()


def test_a_restart_between_answer_and_label_changes_nothing(serve, pictures, tmp_path):
    """With a state folder ids last, and which of them have a label already."""
    with serve(method="source", state_dir=tmp_path) as running:
        ask(running, pictures[:8], ids=names(8), params={"stream": "gate"})
        assert tell(running, names(2), [0, 0], stream="gate")["taken"] == 2
    with serve(method="source", state_dir=tmp_path) as running:
        told = tell(running, names(9), [0] * 9, stream="gate")
        assert (told["taken"], told["repeated"]["images"]) == (6, named(names(2), "gate"))
        assert told["unknown"]["images"] == named(names(1, 8), "gate")
        assert running.metric("ttc_labelled_images_total") == 6
    with serve(method="source", state_dir=tmp_path, feedback_ids=2) as running:
        told = tell(running, names(8), [1] * 8, stream="gate")
        assert told["contradicting"]["images"] == named(names(2, 6), "gate")


def test_a_strangers_file_is_set_aside_and_the_service_starts(serve, pictures, tmp_path):
    """An event says so; ids are kept from now on."""
    (tmp_path / FILE).write_bytes(b"not ours" * 100)
    with serve(method="source", state_dir=tmp_path) as running:
        kinds = [event["event"] for event in running.status()["events"]]
        assert kinds == ["rejected", "started"]
        ask(running, pictures[:1], ids=["a"])
        assert tell(running, ["a"], [0])["taken"] == 1
    assert (tmp_path / "feedback.rejected").read_bytes() == b"not ours" * 100


@pytest.mark.slow
def test_a_kill_between_answer_and_label_changes_nothing(pictures, tmp_path):
    """What was answered is known to the process that comes after, at once and with its labels."""
    options = ("--method", "source", "--device", "cpu", "--state-dir", str(tmp_path))
    with launch(*options) as server, Client(server.url) as client:
        client.predict(pictures[:20], ids=names(20), stream="gate")
        client.feedback([("frame-0", 3)], stream="gate")
        # Behind the header and the place of number 0. The label was given after the answers.
        wait_for(lambda: labelled_in(tmp_path / FILE) == 1)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
    with launch(*options) as server, Client(server.url) as client:
        told = client.feedback([(name, 3) for name in names(20)], stream="gate")
        assert (told.taken, [each.id for each in told.repeated.images]) == (19, ["frame-0"])


def labelled_in(path):
    """How many records of a file of ids have a label."""
    data = path.read_bytes() if path.exists() else b""
    records = [data[at : at + RECORD.itemsize] for at in range(80, len(data), RECORD.itemsize)]
    return sum(int.from_bytes(one[28:32], "little", signed=True) >= 0 for one in records)


def test_a_request_is_refused_whole_and_with_a_sentence(serve, pictures):
    """One label that is no class, and none counts; type, size and JSON as for images."""
    with serve(method="source", max_body=2000) as running:
        ask(running, pictures[:1], ids=["a"])
        refused = tell(running, ["a", "b"], [0, 10], expect=422)
        assert refused["index"] == 1
        assert refused["detail"].startswith("Label 2 of 2: the label 10 is not a class")
        assert accuracy(running)[:2] == [0, 0]
        post = running.http.post
        json_type = {"Content-Type": "application/json"}
        problem(post("/feedback", json=entries(names(300), [0] * 300)), 413)
        problem(post("/feedback", content=b"{", headers=json_type), 400)
        problem(post("/feedback", content=b"{}", headers={"Content-Type": "text/csv"}), 415)
        problem(post("/feedback", json={"label": 1}), 422)
        problem(post("/feedback?top_k=3", json=entries(["a"], [0])), 422)
        assert tell(running, ["a"], [0])["taken"] == 1
        assert running.service.intake.memory.held == 0


def test_a_request_that_does_not_arrive_is_let_go(serve):
    """As with images, after --receive-timeout."""
    with serve(method="source", receive_timeout=0.2) as running:
        with connect(running.url, timeout=60) as connection:
            connection.sendall(
                b"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert status_of(read(connection, until=b"\r\n\r\n")) == 408
        assert running.service.intake.memory.held == 0


def test_labels_ask_for_the_images_token(serve, pictures):
    """--token, as /predict does; the one for resets does not do."""
    tokens = {"token": "for-images", "admin_token": "for-resets"}
    with serve(method="source", **tokens) as running:
        with Client(running.url, **tokens) as client:
            client.predict(pictures[:1], ids=["a"])
            assert client.feedback([("a", 1)]).taken == 1
        refused = pytest.raises(ServiceError, match="asks for a token, and the one sent is another")
        with Client(running.url, admin_token="for-resets") as client, refused:
            client.feedback([("a", 1)])
