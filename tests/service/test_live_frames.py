"""Frames add up: ticks after a state are the next state; what is kept for them is bounded."""

import json
import math
import random
import re
import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from service.engine import Engine
from service.live import frames as module
from service.live import rows as rows_module
from service.live.assets import PAGE
from service.live.frames import EVENTS_TOLD, ROUTINE, Frames
from service.live.rows import FAILING_FRAMES, Seen, trouble_of
from service.live.schemas import LiveCounters, LiveState, LiveTick
from service.live.sight import ANSWERING, OwnSight
from service.metrics import Metrics
from service.schemas import StreamAct
from service.settings import Settings
from service.stream_record import StreamRecord
from tests.fixtures.clock import Clock
from ttc_core.guard.estimate import Estimate, Estimates
from ttc_core.methods import Adaptation, HostPrediction


class Served:
    """An engine with streams that a test moves, and the frames made of it."""

    def __init__(self, source):
        self.metrics = Metrics(CollectorRegistry(), classes=source.model.classes, model={})
        # What it knows of silence is of twice as many.
        self.engine = Engine(
            source, self.metrics, method_name="ttc", model_spec="small", max_streams=50
        )
        settings, queue = Settings(method="ttc"), SimpleNamespace(waiting_images=0)
        sight = OwnSight(settings, self.metrics, self.engine, queue, told=lambda mode: mode)
        self.frames = Frames(settings, sight, page="first")
        self.source = source

    def stream(self, name, images=1, **fields):
        """A stream as it is after so many more images."""
        record = self.engine.streams.get(name) or StreamRecord(self.source)
        record.images += images
        for field, value in fields.items():
            setattr(record, field, value)
        self.engine.table.keep(name, record)
        self.engine.silence.heard(name)
        return record

    def make(self, *, state=False):
        made = self.frames.make(is_due=True, watched=True, wants_state=state)
        return read(made.tick, "tick"), made.state and read(made.state, "state")

    def answer(self, count):
        """Count a batch of so many answers, as the device thread does."""
        classes = self.source.model.classes
        shares = np.full((count, classes), 1 / classes, np.float32)
        entropy = np.full(count, math.log(classes), np.float32)
        chosen = np.arange(count) % 2 == 0
        answers = HostPrediction(np.log(shares), shares, entropy, chosen, version=0)
        self.metrics.count_answers(answers, selects=True)
        self.metrics.request_seconds.labels("/predict").observe(0.01 * count)


def read(frame, event):
    """A frame's object, if it is one frame as the wire and the schema have it."""
    first, data, *rest = frame.decode().split("\n")
    assert (first, rest) == (f"event: {event}", ["", ""])
    kind = LiveState if event == "state" else LiveTick
    text = data.removeprefix("data: ")
    found = json.loads(text, parse_constant=pytest.fail)
    assert found.keys() == kind.model_fields.keys() - {"event"}
    kind.model_validate_json(text)
    for each in ("counters", "gauges"):
        assert found[each].keys() == kind.model_fields[each].annotation.model_fields.keys()
    return found


@pytest.fixture
def served(source):
    served = Served(source)
    yield served
    served.engine.close()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock, time=clock))
    return clock


@pytest.mark.parametrize(("seed", "most"), [(0, 1000), (1, 1000), (2, 8), (3, 8)])
def test_ticks_add_up_to_the_next_state(served, clock, monkeypatch, seed, most):
    """Rows that changed, rows that are gone, new events; also where not all are shown."""
    monkeypatch.setattr(rows_module, "MOST_ROWS", most)
    drawn = random.Random(seed)
    names = [f"camera-{number}" for number in range(20)]
    rows, events = {}, []
    for _ in range(40):
        clock.now += 1
        for name in drawn.sample(names, 3):
            match drawn.randrange(4):
                case 0:
                    served.engine.table.forget([name])
                case 1:
                    served.stream(name, mode="held", held_since=clock.now)
                case _:
                    served.stream(name, drift=drawn.random(), mode="adapting", held_since=None)
        if drawn.random() < 0.3:
            served.frames.new_events.append({"time": clock.now, "event": "reset"})
        tick, _ = served.make()
        assert not set(tick["gone"]) - rows.keys()
        for name in tick["gone"]:
            del rows[name]
        rows |= {row["name"]: row for row in tick["streams"]}
        events += tick["events"]
        assert len(rows) <= most
        assert len(rows) + tick["left_out"] == len(served.engine.streams)
    tick, state = served.make(state=True)
    assert not tick["streams"]
    assert {row["name"]: row for row in state["streams"]} == rows
    assert state["events"] == events
    assert [row["trouble"] for row in state["streams"]] == sorted(
        (row["trouble"] for row in rows.values()), reverse=True
    )


def test_counters_only_grow_and_agree_with_the_metrics(served, clock):
    """Rates are the page's: a frame that is lost costs no count."""
    before = served.make()[0]["counters"]
    assert before.keys() == LiveCounters.model_fields.keys()
    for count in (3, 1, 8):
        clock.now += 1
        served.answer(count)
        served.metrics.count_adaptation(Adaptation(stepped=True))
        served.metrics.rejected.labels("full").inc()
        served.metrics.count_reset("guard")
        served.metrics.guard_actions.labels("hold", "harm", "false").inc()
        served.metrics.guard_actions.labels("hold", "harm", "true").inc()
        now = served.make()[0]["counters"]
        for name, value in now.items():
            former = before[name]
            if isinstance(value, list):
                assert all(a <= b for a, b in zip(former, value, strict=True)), name
            else:
                assert former <= value, name
        before = now
    assert (before["images"], before["entropy_count"], before["selected"]) == (12, 12, 7)
    assert before["entropy_sum"] == pytest.approx(12 * math.log(served.source.model.classes), 1e-3)
    assert (before["steps"], before["rejected"], before["resets"]) == (3, 3, 3)
    assert before["guard_actions"] == 3
    assert before["request_seconds_buckets"][-1] == 3


def test_latency_is_of_every_route_that_answers(served, clock):
    """The Open Inference Protocol's clients, too."""
    for number, route in enumerate(ANSWERING, 1):
        served.metrics.request_seconds.labels(route).observe(0.01)
        served.metrics.request_seconds.labels("/status").observe(0.01)
        assert served.make()[0]["counters"]["request_seconds_buckets"][-1] == number


def test_the_estimate_is_of_what_is_served(served, clock):
    """A held camera's adapted answers go to nobody: they neither raise nor lower it."""
    good, bad = Estimate(0.9, 0.8, 1.0), Estimate(0.1, 0.0, 0.2)
    served.stream("free", images=10, estimates=Estimates(9, good, bad, good))
    served.stream("held", images=1000, estimates=Estimates(9, bad, good, bad), mode="held")
    gauges = served.make()[0]["gauges"]
    assert (gauges["estimated_adapted"], gauges["estimated_source"]) == (0.9, 0.1)
    served.stream("free", mode="held")
    assert served.make()[0]["gauges"]["estimated_adapted"] is None


def test_cameras_that_come_and_go_push_out_nothing_else(served, clock):
    """What the guard did is told whoever comes, in its place among the latest."""
    note = served.frames.new_events.append
    note({"time": clock.now, "event": "guard"})
    for number in range(3 * EVENTS_TOLD):
        note({"time": clock.now, "event": "evicted", "stream": f"camera-{number}"})
        served.make()
    note({"time": clock.now, "event": "reset"})
    events = served.make(state=True)[1]["events"]
    assert [events[0]["event"], events[-1]["event"]] == ["guard", "reset"]
    assert len(events) == EVENTS_TOLD + 2
    numbers = [int(each["stream"].split("-")[1]) for each in events[1:-1]]
    assert numbers == list(range(2 * EVENTS_TOLD, 3 * EVENTS_TOLD))
    kinds = re.search(r"const ROUTINE = \[(.*)\]", (PAGE / "kinds.js").read_text())
    assert set(re.findall(r'"(\w+)"', kinds[1])) == ROUTINE  # the page has the same


def test_what_has_not_changed_is_not_sent_again(served, clock):
    """A thousand quiet cameras beside a busy one are one row a second."""
    for number in range(40):
        served.stream(f"quiet-{number}")
    assert len(served.make()[0]["streams"]) == 40
    served.stream("busy")
    assert [row["name"] for row in served.make()[0]["streams"]] == ["busy"]
    assert served.make()[0]["streams"] == []


def test_of_too_many_streams_those_in_trouble_are_shown(served, clock, monkeypatch):
    """Then those of late; a stream that gets into trouble has its place within five seconds."""
    monkeypatch.setattr(rows_module, "MOST_ROWS", 10)
    for number in range(30):
        served.engine.silence._wall = lambda number=number: 100.0 + number
        served.stream(f"camera-{number}")
    _, state = served.make(state=True)
    assert {row["name"] for row in state["streams"]} == {f"camera-{n}" for n in range(20, 30)}
    assert state["left_out"] == 20
    served.engine.streams["camera-3"].mode = "held"
    clock.now += module.INTERVAL_SECONDS
    tick, _ = served.make()
    assert [row["name"] for row in tick["streams"]] == ["camera-3"]
    assert tick["gone"] == ["camera-20"]


def test_numbers_that_json_lacks_are_null(served, clock):
    """Drift of a method of one's own may be anything, and so may what events hold."""
    served.stream("odd", drift=math.nan)
    served.frames.new_events.append({"time": 1.0, "event": "own", "x": math.inf, "y": object()})
    tick, _ = served.make()
    assert tick["streams"][0]["drift"] is None
    assert tick["events"][0]["x"] is None
    assert tick["gauges"]["window_accuracy"] is None


def test_the_history_is_of_the_last_hour(served, clock):
    """A point every five seconds, whether anybody looks or not; each curve as long as the time."""
    for _ in range(4000):
        clock.now += 1
        served.frames.make(is_due=True, watched=False, wants_state=False)
    state = read(served.frames.make(is_due=False, watched=True, wants_state=True).state, "state")
    history = state["history"]
    assert {len(values) for values in history.values()} == {720}
    assert history.keys() == {"time", *state["counters"], *state["gauges"]}
    times = history["time"]
    assert {b - a for a, b in pairwise(times)} == {state["interval"]}
    assert clock.now - times[-1] < 5


def test_memory_stays_level(served, clock, monkeypatch):
    """However long it runs, whoever comes and goes."""
    monkeypatch.setattr(module, "HISTORY_SECONDS", 500.0)
    number = 0

    def a_while():
        nonlocal number
        for _ in range(250):
            number += 1
            clock.now += module.INTERVAL_SECONDS
            served.stream(f"camera-{number}")
            served.engine.table.forget([f"camera-{number - 5}"])
            served.frames.new_events.append({"time": clock.now, "event": "reset", "n": number})
            served.make()

    a_while()
    tracemalloc.start()
    try:
        a_while()
        first, _ = tracemalloc.get_traced_memory()
        a_while()
        second, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert second < 1.1 * first + 50_000


def estimates(high):
    each = Estimate(0.5, 0.4, 0.6)
    return Estimates(50, each, each, Estimate(high - 0.1, high - 0.2, high))


SUSPICION = StreamAct(time=1.0, action="hold", reason="suspicion")


@pytest.mark.parametrize(
    ("seen", "trouble", "why"),
    [
        ({"mode": "adapting"}, 0, None),
        ({"mode": "source"}, 0, None),
        ({"mode": "rolled_back"}, 1, "brought back"),
        ({"estimates": estimates(-0.01)}, 1, "below the source"),
        ({"estimates": estimates(0.01)}, 0, None),
        ({"suspect": "torn"}, 2, "torn"),
        ({"suspect": "torn", "suspect_in_a_row": FAILING_FRAMES - 1}, 2, "torn"),
        ({"suspect": "black", "suspect_in_a_row": FAILING_FRAMES}, 3, "5 frames are faulty"),
        ({"silent_since": 1.0}, 2, "sent nothing"),
        ({"doubted_since": 1.0, "mode": "adapting"}, 2, "only observes"),
        ({"doubted_since": 1.0, "mode": "held"}, 3, "seen to do harm"),
        ({"mode": "held", "acts": (SUSPICION,)}, 3, "suspected to do harm"),
        ({"mode": "held", "silent_since": 1.0}, 3, "source answers"),
        ({"silent_since": 1.0, "mode": "rolled_back"}, 2, "sent nothing"),
    ],
)
def test_trouble_is_one_number_with_its_reason(seen, trouble, why):
    """Of several the worst."""
    found, sentence = trouble_of(Seen(in_memory=True, **seen))
    assert found == trouble
    if trouble:
        assert why in sentence
        assert sentence.endswith(".")
    else:
        assert sentence is None


def test_whoever_is_silent_or_held_is_shown_without_being_in_memory(served, clock):
    """A camera that went away is what one looks for, though its stream made room."""
    silence = served.engine.silence
    silence._clock = clock
    for _ in range(30):
        clock.now += 1
        served.stream("gone")
    served.engine.table.forget(["gone"])
    clock.now += 1000
    silence.look()
    (row,) = served.make()[0]["streams"]
    assert (row["name"], row["in_memory"], row["images"], row["trouble"]) == (
        "gone",
        False,
        None,
        2,
    )
    assert row["silent_since"] == row["last_image"]
