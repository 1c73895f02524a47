"""Too many clients for a slow device: all are answered, with less; who is alone loses nothing."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.test_walk import ask

SHED_AFTER = 0.1
CLIENTS, EACH = 16, 12
SHED = ("learning", "second_view")
GAUGES = [f'ttc_shedding{{what="{what}"}}' for what in SHED]


class Slow:
    """The default on a device that takes its time: for each view, and for learning."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def predict(self, images, *, second_view=True, **options):
        time.sleep(0.02 * len(images) * (1 + second_view))
        return self._inner.predict(images, second_view=second_view, **options)

    def adapt(self, prediction, *, learn=True):
        time.sleep(0.04 * len(prediction) * learn)
        return self._inner.adapt(prediction, learn=learn)

    def fork(self):
        return Slow(self._inner.fork())


@pytest.fixture
def slow(serve, make_method, monkeypatch):
    """A server of it that is calm again soon, as the default has it but for that."""
    monkeypatch.setattr("service.shedding.CALM_SECONDS", 0.3)
    source = Slow(make_method("ttc_stream"))
    with serve("ttc_stream", source=source, max_batch=1, shed_after=SHED_AFTER) as running:
        yield running


def shed_of(answer):
    return answer["predictions"][0]["shed"]


@pytest.mark.slow
def test_under_load_learning_goes_then_the_second_view_and_both_come_back(slow, pictures):
    """Each answer says what it went without, and so do status, metrics and events."""

    def alone(count):
        return [shed_of(ask(slow, [picture])) for picture in pictures[:count]]

    assert alone(5) == [None] * 5
    began, meanwhile = time.time(), []

    def client(number):
        found = []
        for at in range(EACH):
            answer = ask(slow, [pictures[number + CLIENTS * at]], params={"stream": f"s{number}"})
            found.append((time.monotonic(), shed_of(answer)))
            if shed_of(answer) == "second_view" and number == 0:
                told = slow.status()["shedding"]
                meanwhile.append((told, [slow.metric(gauge) for gauge in GAUGES]))
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        answered = sorted(each for found in pool.map(client, range(CLIENTS)) for each in found)
    assert len(answered) == CLIENTS * EACH
    order = list(dict.fromkeys(shed for _, shed in answered))
    assert order == [None, "learning", "second_view"]
    during, gauges = next(each for each in meanwhile if each[0])
    assert during["what"] in SHED
    assert began < during["since"] < time.time()
    assert during["evidence"]["waited_seconds_allowed"] == SHED_AFTER
    assert during["now"].keys() == during["evidence"].keys()
    assert 1 in gauges
    told = [event["evidence"]["load"] for event in slow.status()["events"] if "evidence" in event]
    assert (told[0] >= 1, told[1] >= 2) == (True, True)
    slow.wait_for(lambda: slow.status()["shedding"] is None)
    assert alone(5) == [None] * 5

    status = slow.at_rest()
    told = [(event["event"], event.get("what")) for event in status["events"]]
    told = [each for each in told if each[0].startswith("shedding")]
    assert told == [
        *(("shedding", "learning"), ("shedding", "second_view")),
        *(("shedding_less", "learning"), ("shedding_over", None)),
    ]
    assert [slow.metric(gauge) for gauge in GAUGES] == [0, 0]
    counts = {each: sum(shed == each for _, shed in answered) for each in order}
    for what in SHED:
        assert slow.metric(f'ttc_shed_images_total{{what="{what}"}}') == counts[what]
    skipped = slow.metric('ttc_adaptation_skipped_total{reason="shed"}')
    assert skipped == counts["learning"] + counts["second_view"]


@pytest.mark.slow
def test_statistics_and_prior_follow_all_the_same(slow, pictures):
    """Of images that nothing is learned from the stream has its statistics; no step is taken."""
    before = slow.status()["streams"]
    assert before == {}
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda picture: ask(slow, [picture]), pictures[:120]))
    stream = slow.at_rest()["streams"]["default"]
    assert stream["images"] == 120
    assert slow.metric('ttc_shed_images_total{what="second_view"}') > 0
    # Late layers open as images are followed, whether or not they are learned from.
    assert stream["details"]["late_layers"] > 0


def test_what_is_measured_against_the_paper_is_exact(serve, make_method):
    """With --paper nothing is shed, unless it is asked for."""
    with serve(source=make_method("ttc", paper=True), paper=True) as running:
        assert running.status()["settings"]["server"]["adapt"] == "always"
        assert running.status()["shedding"] is None
