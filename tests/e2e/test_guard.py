"""The guard over HTTP: who answered each image, what was done about harm, and going back."""

import asyncio
import re
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from service.cli import cli
from service.client import AsyncClient, Client
from service.replay import to_png
from tests.fixtures.requests import ask, problem
from ttc_core.datasets import Geometry, open_data
from ttc_core.guard import watched
from ttc_core.guard.wrapper import Wrapper
from ttc_core.methods import create
from ttc_core.methods.contract import Prediction

ONLY = 3
HEALTHY = 10  # images after which a stream collapses
TOKENS = {"token": "for-images", "admin_token": "for-resets"}


class Collapsing(Wrapper):
    """Answers one class, for sure, once its stream has had some images; a reset does not help."""

    images = 0

    def predict(self, images, *, learn=True, **asked):
        said = self.inner.predict(images, learn=learn, **asked)
        if self.images < HEALTHY:
            return said
        wrong = Prediction.of(20 * torch.eye(self.model.classes)[[ONLY] * len(images)])
        return replace(
            said, logits=wrong.logits, probabilities=wrong.probabilities, entropy=wrong.entropy
        )

    def adapt(self, prediction, *, learn=True):
        self.images += len(prediction)
        return self.inner.adapt(prediction, learn=learn)

    def state(self):
        return {**self.inner.state(), "collapse": {"images": self.images}}

    def restore(self, state):
        self.images = state["collapse"]["images"]
        self.inner.restore({name: state[name] for name in state if name != "collapse"})


@pytest.fixture(scope="module")
def clean():
    """120 clean images as PNG files."""
    stream = open_data("bundled", Geometry(32)).open("clean", 5, limit=120)
    return [to_png(pixels) for pixels in stream.read(stream.positions)]


@pytest.fixture
def collapsing(model):
    """Make a method that collapses, and what watches it."""
    return lambda mode="on": watched(Collapsing(create("ttc", model, statistics="moving")), mode)


def follow(running, images, stream="gate"):
    """Send images in tens; the answers to each."""
    said = []
    for at in range(0, len(images), 10):
        said += ask(running, images[at : at + 10], params={"stream": stream})["predictions"]
    return said


def modes(said):
    return [one["mode"] for one in said]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"method": "source"}, "source"),
        ({"method": "norm"}, "adapting"),
        ({"method": "ttc_stream"}, "adapting"),
        ({"method": "ttc_stream", "adapt": "never"}, "source"),
    ],
)
def test_each_answer_says_what_answered_it(serve, clean, settings, expected):
    """Also of an image that nothing is learned from, and to the Python client."""
    with serve(**settings) as running, Client(running.url) as client:
        assert modes(ask(running, clean[:3])["predictions"]) == [expected] * 3
        assert [each.mode for each in client.predict(clean[3:5], learn=False).predictions] == [
            expected
        ] * 2


def test_a_collapsed_stream_is_answered_by_the_source(serve, collapsing, clean):
    """To the last answer, and all that an operator asks is told: which, since when, what was done;
    the stream beside it goes on."""
    began = time.time()
    with serve(source=collapsing(), max_batch=10) as running:
        said = follow(running, clean)
        assert set(modes(follow(running, clean[:HEALTHY], "other"))) == {"adapting"}
        streams = running.at_rest()["streams"]
        text = running.http.get("/metrics").text
        events = [each for each in running.status()["events"] if each["event"] == "guard"]
    at = modes(said).index("held")
    assert modes(said) == ["adapting"] * at + ["held"] * (120 - at)
    assert at <= HEALTHY + 20
    with serve(method="source", max_batch=10) as running:
        plain = follow(running, clean)
    for one, other in zip(said[at:], plain[at:], strict=True):
        assert (one["class"], one["confidence"]) == (other["class"], other["confidence"])

    gate, other = streams["gate"], streams["other"]
    assert (gate["mode"], other["mode"], other["held_since"]) == ("held", "adapting", None)
    assert began < gate["held_since"] == gate["doubted_since"] < time.time()
    assert other["doubted_since"] is None
    assert [(act["action"], act["reason"]) for act in gate["guard"]] == [
        ("hold", "suspicion"),
        ("hold", "harm"),
        ("reset", "harm"),
    ]
    assert gate["guard"][1]["evidence"]["harm"] >= 200
    assert not gate["guard"][0]["observed"]
    assert other["guard"] == []
    assert [(each["stream"], each["action"]) for each in events] == [
        ("gate", "hold"),
        ("gate", "hold"),
        ("gate", "reset"),
    ]
    estimated = gate["estimated_accuracy"]
    assert estimated["images_compared"] > 90
    for each in ("adapted", "source", "difference"):
        assert estimated[each]["low"] <= estimated[each]["accuracy"] <= estimated[each]["high"]
    assert estimated["difference"]["high"] < 0
    assert estimated["adapted"]["accuracy"] < 0.5 < estimated["source"]["accuracy"]

    def metric(name):
        return float(text.split(f"\n{name} ")[1].split("\n")[0])

    assert metric('ttc_guard_actions_total{action="hold",observed="false",reason="harm"}') == 1
    assert metric('ttc_guard_actions_total{action="hold",observed="true",reason="harm"}') == 0
    assert metric("ttc_doubted_streams") == 1
    assert metric('ttc_resets_total{cause="guard"}') == 1
    assert metric("ttc_held_streams") == 1
    assert metric('ttc_held_stream_timestamp_seconds{stream="gate"}') == gate["held_since"]
    # In between: each stream counts as much as images of it were compared.
    both = [each["estimated_accuracy"] for each in (gate, other)]
    mean = sum(each["adapted"]["accuracy"] * each["images_compared"] for each in both)
    mean /= sum(each["images_compared"] for each in both)
    assert metric('ttc_estimated_accuracy_ratio{answers="adapted"}') == pytest.approx(
        mean, abs=1e-3
    )


def test_observing_tells_and_does_nothing(serve, collapsing, clean):
    """The collapsed method answers; events and counts say what would have been done."""
    with serve(source=collapsing("observe"), max_batch=10) as running:
        said = follow(running, clean)
        status = running.at_rest()
        for observed, count in (("true", 1), ("false", 0)):
            labels = f'action="hold",observed="{observed}",reason="harm"'
            assert running.metric(f"ttc_guard_actions_total{{{labels}}}") == count
        assert running.metric('ttc_resets_total{cause="guard"}') == 0
        assert running.metric("ttc_held_streams") == 0
        assert running.metric("ttc_doubted_streams") == 1
    assert set(modes(said)) == {"adapting"}
    assert {one["class"] for one in said[HEALTHY:]} == {ONLY}
    assert all(act["observed"] for act in status["streams"]["gate"]["guard"])
    assert {each["observed"] for each in status["events"] if each["event"] == "guard"} == {True}


def test_what_a_guard_observed_is_told_after_a_restart(serve, collapsing, clean, tmp_path):
    """Which stream is worse than frozen, since when, what would have been done: before its first
    image and after it; and from when on another guard holds it."""

    def running(mode="observe"):
        return serve(source=collapsing(mode), max_batch=10, state_dir=tmp_path)

    with running() as first:
        follow(first, clean[:60])
        before = first.at_rest()["streams"]["gate"]
    assert before["held_since"] is None
    assert before["mode"] == "adapting"
    with running() as second:
        (told,) = second.wait_for(
            lambda: (status := second.at_rest())["saved_doubted"] and [status]
        )
        assert told["saved_doubted"]["gate"] == {
            name: before[name]
            for name in ("mode", "images", "doubted_since", "held_since", "guard")
        }
        assert second.metric("ttc_doubted_streams") == 1
        follow(second, clean[60:70])
        after = second.at_rest()
        assert after["streams"]["gate"]["doubted_since"] == before["doubted_since"]
        assert after["streams"]["gate"]["guard"] == before["guard"]
        assert (after["saved_doubted"], second.metric("ttc_doubted_streams")) == ({}, 1)
    again = time.time()
    with running("on") as third:
        assert set(modes(follow(third, clean[70:80]))) == {"held"}
        gate = third.at_rest()["streams"]["gate"]
        assert gate["doubted_since"] == before["doubted_since"] < again < gate["held_since"]


def test_what_the_guard_knows_of_a_stream_outlives_a_restart(serve, collapsing, clean, tmp_path):
    """Since when it is held, on what evidence, the estimate, the acts; also past one without."""

    def running(mode="on"):
        return serve(source=collapsing(mode), max_batch=10, state_dir=tmp_path)

    with running() as first:
        follow(first, clean[:60])
        before = first.at_rest()["streams"]["gate"]
    shown = CliRunner().invoke(cli, ["state", str(tmp_path)]).output
    assert f"held since {time.strftime('%FT%TZ', time.gmtime(before['held_since']))} " in shown
    act = before["guard"][-1]
    assert (
        f"{act['action']}, {act['reason']}, {time.strftime('%FT', time.gmtime(act['time']))}"
        in shown
    )
    for mode in ("off", "observe"):
        with running(mode) as unwatched:
            assert modes(follow(unwatched, clean[60:65])) == ["adapting"] * 5
            told = unwatched.at_rest()
            assert (told["streams"]["gate"]["held_since"], told["saved_doubted"]) == (None, {})
            doubted = before["doubted_since"] if mode == "observe" else None
            assert told["streams"]["gate"]["doubted_since"] == doubted
            assert unwatched.metric("ttc_held_streams") == 0
        shown = CliRunner().invoke(cli, ["state", str(tmp_path)]).output
        assert "not held, but doubted since" in shown
    again = time.time()
    with running() as second:
        said = follow(second, clean[60:70])
        after = second.at_rest()["streams"]["gate"]
    assert set(modes(said)) == {"held"}
    assert (before["mode"], after["mode"]) == ("held", "held")
    assert after["held_since"] > again  # meanwhile the source did not answer
    assert after["doubted_since"] == before["doubted_since"]
    assert (
        after["estimated_accuracy"]["images_compared"]
        == before["estimated_accuracy"]["images_compared"] + 10
    )
    assert after["details"]["alarms"] == before["details"]["alarms"] == 1
    assert after["guard"] == before["guard"]


def test_a_held_stream_is_seen_while_it_is_on_disk_only(serve, collapsing, clean, tmp_path):
    """Since when and what was done, in the status and the metrics: after it made room for another,
    and after a restart before its first image; a reset ends it."""

    def running():
        return serve(source=collapsing(), max_batch=10, max_streams=1, state_dir=tmp_path)

    def seen(one):
        (told,) = one.wait_for(lambda: (status := one.at_rest())["saved_doubted"] and [status])
        sample = 'ttc_held_stream_timestamp_seconds{stream="gate"}'
        assert one.metric(sample) == told["saved_doubted"]["gate"]["held_since"]
        assert one.metric("ttc_held_streams") == 1
        return told["saved_doubted"]

    with running() as first:
        follow(first, clean[:60])
        before = first.at_rest()["streams"]["gate"]
        follow(first, clean[:HEALTHY], "other")
        expected = {"mode": "held", "images": 60}
        expected |= {name: before[name] for name in ("doubted_since", "held_since", "guard")}
        assert seen(first) == {"gate": expected}
    with running() as second:
        assert seen(second) == {"gate": expected}
        assert second.status()["streams"] == {}
        follow(second, clean[60:70])
        assert second.at_rest()["saved_doubted"] == {}
        assert second.metric("ttc_held_streams") == 1
        follow(second, clean[:HEALTHY], "other")
        assert seen(second)["gate"]["images"] == 70
        second.http.post("/reset?stream=gate")
        assert second.at_rest()["saved_doubted"] == {}
        assert second.metric("ttc_held_streams") == 0
    with running() as third:
        follow(third, clean[:1], "other")
        assert third.at_rest()["saved_doubted"] == {}


def test_what_was_done_by_hand_is_told_of_the_stream(serve, make_method, clean, often_kept):
    """Beside what the guard did, with its moment; a reset once the stream goes on."""
    began = time.time()
    method = make_method("ttc", guard="on", samples_per_step=10)
    with serve(source=method, max_batch=10) as running:
        follow(running, clean[:20])
        version = running.http.post("/rollback?stream=gate").json()["version"]
        (act,) = running.at_rest()["streams"]["gate"]["guard"]
        assert began < act.pop("time") < time.time()
        assert act == {
            **{"action": "roll_back", "reason": "by_hand", "observed": False},
            "evidence": {"version": version},
        }
        running.http.post("/reset?stream=gate")
        assert "gate" not in running.status()["streams"]
        follow(running, clean[:20])
        streams = running.at_rest()["streams"]
        assert [(each["action"], each["reason"]) for each in streams["gate"]["guard"]] == [
            ("reset", "by_hand")
        ]


@pytest.mark.usefixtures("often_kept")
def test_a_stream_goes_back_to_a_good_state(serve, make_method, clean, tmp_path):
    """To the last or to the one that is named, also after a restart; its answers say so, and it is
    an event and counted."""

    def running():
        method = make_method("ttc", guard="on", samples_per_step=10)
        return serve(source=method, max_batch=10, state_dir=tmp_path)

    with running() as first:
        follow(first, clean)
        first.at_rest()
        listed = first.http.get("/snapshots?stream=gate").json()
        version = first.status()["streams"]["gate"]["version"]
    assert listed["stream"] == "gate"
    kept = listed["snapshots"]
    assert [each["images"] for each in kept] == [110, 120]
    assert kept[0]["version"] < kept[1]["version"] <= version
    shown = CliRunner().invoke(cli, ["state", str(tmp_path)]).output
    assert re.search(rf" not held .* {kept[0]['version']} at 110, ", shown)
    assert "harm" not in shown

    with running() as second, Client(second.url) as client:
        assert client.snapshots("gate").model_dump() == listed
        assert client.rollback("gate", to=kept[0]["version"]).version == kept[0]["version"]
        said = ask(second, clean[:3], params={"stream": "gate"})
        assert (said["version"], modes(said["predictions"])) == (
            kept[0]["version"],
            ["rolled_back"] * 3,
        )
        assert client.rollback("gate").version == kept[1]["version"]
        status = second.at_rest()
        told = [each for each in status["events"] if each["event"] == "rollback"]
        assert [(each["stream"], each["version"]) for each in told] == [
            ("gate", each["version"]) for each in kept
        ]
        assert status["streams"]["gate"]["mode"] == "rolled_back"
        assert second.metric('ttc_rollbacks_total{cause="request"}') == 2

        async def go_back():
            async with AsyncClient(second.url) as other:
                return await other.rollback("gate"), await other.snapshots("gate")

        assert asyncio.run(go_back())[1].model_dump() == listed


def test_what_cannot_be_gone_back_to_is_refused_with_a_sentence(serve, clean):
    """A stream without images, one without snapshots, a version that none has, one that is none."""
    with serve(method="ttc_stream", max_batch=10) as running:
        post, get = running.http.post, running.http.get
        for answer in (post("/rollback?stream=nobody"), get("/snapshots?stream=nobody")):
            assert "nobody has had no images" in problem(answer, 404)["detail"]
        assert running.status()["streams"] == {}
        ask(running, clean[:5])
        running.at_rest()
        nothing = {"stream": "default", "snapshots": [], "unavailable": None}
        assert get("/snapshots").json() == nothing
        for query in ("", "?to=7"):
            refused = problem(post(f"/rollback{query}"), 404)
            assert "its versions are: none" in refused["detail"]
            assert refused["title"] == "No such snapshot"
        for query in ("?to=-1", "?to=1.0", "?to=last", "?version=1", "?stream=*"):
            problem(post(f"/rollback{query}"), 422)
        problem(post("/rollback", json={"stream": "default"}), 422)
        assert running.metric('ttc_rollbacks_total{cause="request"}') == 0
    with serve(method="ttc") as running:  # which nobody watches
        ask(running, clean[:2])
        running.at_rest()
        detail = problem(running.http.post("/rollback"), 404)["detail"]
        reason = running.http.get("/snapshots").json()["unavailable"]
        assert reason.startswith("No guard is on")
        assert reason in detail


@pytest.mark.parametrize(
    ("token_reads", "token", "expected"),
    [
        (False, None, (401, 404)),
        (False, "for-images", (401, 404)),
        (False, "for-resets", (404, 404)),
        (True, None, (401, 401)),
        (True, "for-images", (401, 404)),
        (True, "for-resets", (404, 404)),
    ],
)
def test_going_back_is_the_administrators_and_listing_is_reading(
    serve, token_reads, token, expected
):
    """Of a stream that is not there: 404 is what whoever is let in gets."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with serve(method="source", token_reads=token_reads, **TOKENS) as running:
        rolled = running.http.post("/rollback", headers=headers)
        listed = running.http.get("/snapshots", headers=headers)
    assert (rolled.status_code, listed.status_code) == expected
