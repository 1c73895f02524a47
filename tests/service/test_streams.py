"""The table of streams: bounds, pins, and who makes room."""

import asyncio

import numpy as np
import pytest
import torch

from service import streams as streams_module
from service.answering import Image
from service.errors import TooManyStreams
from tests.fixtures.engine import own
from tests.fixtures.methods import Plain
from tests.fixtures.streams import PIXELS, events, request

# The bound


def test_the_bound_holds_for_all_that_arrive_at_once(engine):
    """Of forty cameras that start at the same moment three have a place, before any is answered."""
    table = engine(max_streams=3)
    admitted = 0
    for number in range(40):
        try:
            table.table.admit(f"camera-{number}")
            admitted += 1
        except TooManyStreams:
            pass
    assert admitted == 3
    table.table.admit("camera-0")  # a second request of one that is there


def test_a_stream_that_never_answered_holds_no_place(engine):
    """Neither one whose first pass failed nor one whose request was refused after admission."""
    table = engine(max_streams=1)
    with pytest.raises(ValueError, match="shape"):
        request(table, "broken", [PIXELS[0], PIXELS[0][:4]])
    table.table.admit("left")
    table.table.release("left")
    request(table, "good")
    assert list(table.streams) == ["good"]


class Overflowing(Plain):
    """Its answers are no numbers."""

    def predict(self, images):
        prediction = super().predict(images)
        prediction.logits.fill_(np.nan)
        return prediction


def test_a_stream_whose_answers_were_all_refused_holds_no_place(engine, source):
    """Scores that are no numbers are no answers."""
    table = engine(source=own(Overflowing(source.model)), max_streams=1)

    async def run():
        answered = await table.predict([("a", [Image(PIXELS[0])])])
        await table.adapt(answered, learn=True)

    asyncio.run(run())
    assert table.streams == {}


def test_without_a_folder_only_an_expired_stream_makes_room(engine, clock):
    """The refusal says when that is to the second, and then it is true; the place is another's."""
    table = engine(max_streams=2, stream_expiry=100.0)
    request(table, "a")
    clock.now += 30
    request(table, "b")
    with pytest.raises(TooManyStreams, match="2 streams already") as refused:
        table.table.admit("c")
    assert refused.value.retry_after == 70
    clock.now += 69
    with pytest.raises(TooManyStreams):
        table.table.admit("c")
    clock.now += 1
    request(table, "c")
    assert list(table.streams) == ["b", "c"]
    assert [(e["stream"], e["reason"]) for e in events(table, "evicted")] == [("a", "expired")]


def test_a_stream_in_use_does_not_expire(engine, clock):
    """Each answer begins its hour anew, and one with a request in flight is pinned."""
    table = engine(max_streams=1, stream_expiry=100.0)
    request(table, "a")
    clock.now += 90
    request(table, "a")
    clock.now += 90
    with pytest.raises(TooManyStreams) as refused:
        table.table.admit("b")
    assert refused.value.retry_after == 10
    table.table.admit("a")
    clock.now += 1000
    with pytest.raises(TooManyStreams) as refused:
        table.table.admit("b", lambda: 7.0)
    assert refused.value.retry_after == 107


def test_with_a_folder_the_least_recently_used_is_saved_and_makes_room(engine, tmp_path):
    """It comes back as it was, whoever went for it meanwhile."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b", "a", "c"):  # b is the least recently used
        request(table, name)
    assert list(table.streams) == ["a", "c"]
    assert [(e["stream"], e["reason"]) for e in events(table, "evicted")] == [("b", "saved")]
    request(table, "b")
    assert list(table.streams) == ["c", "b"]
    free = engine()
    for name in ("b", "b"):
        request(free, name)
    assert np.array_equal(request(table, "b"), request(free, "b"))


def test_who_shares_a_batch_does_not_make_room_for_another_of_it(engine, tmp_path):
    """Though nobody used it longer ago: it has not learned yet from what it was asked."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b"):
        request(table, name)
    images = [Image(one) for one in PIXELS]

    async def run():
        answered = await table.predict([("c", images), ("a", images)])
        await table.adapt(answered, learn=True)

    asyncio.run(run())
    assert {name: record.images for name, record in table.streams.items()} == {"c": 4, "a": 8}


def test_whose_client_left_makes_no_room_for_another_of_its_batch(engine, tmp_path):
    """It answers and learns with what it has; the other waits until that is done."""
    table = engine(tmp_path, max_streams=1)
    request(table, "a")
    images = [Image(one, label=1) for one in PIXELS]

    async def run():
        table.table.admit("b")  # nobody has pinned a, so b may come in its place
        answered = await table.predict([("a", images), ("b", images)])
        assert answered.failed == {"b"}
        with pytest.raises(TooManyStreams):
            table.table.get("b")
        await table.adapt(answered, learn=True)
        assert table.streams["a"].images == 8
        answered = await table.predict([("b", images)])  # as the queue goes on
        await table.adapt(answered, learn=True)
        assert table.streams["b"].images == 4
        table.table.release("b")

    asyncio.run(run())
    assert {name: said.labelled for name, said in table.truth.streams.items()} == {"a": 4, "b": 4}


def test_a_pinned_stream_does_not_make_room(engine, tmp_path):
    """With all places pinned a new one is told when the requests in flight will have ended."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b"):
        request(table, name)
        table.table.admit(name)
    with pytest.raises(TooManyStreams, match="all are in use") as refused:
        table.table.admit("c", lambda: 4.2)
    assert refused.value.retry_after == 5
    table.table.release("a")
    request(table, "c")
    assert list(table.streams) == ["b", "c"]


def test_a_stream_asked_for_while_it_goes_is_kept_or_comes_back(engine, tmp_path):
    """Sixteen streams in two places, all at once: each learns as it would have alone."""
    table, free = engine(tmp_path, max_streams=2), engine()
    names = [f"s{n % 8}" for n in range(32)]
    got = [request(table, name) for name in names]
    expected = [request(free, name) for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(table.streams) == 2


def test_who_is_refused_late_is_not_among_those_that_are_there(engine):
    """Admitted while another stream's first batch was not yet adapted to, it finds no place."""
    table = engine(max_streams=1)

    async def walk():
        answered = await table.predict([("a", [Image(PIXELS[0])])])
        table.table.admit("b")
        await table.adapt(answered, learn=True)
        with pytest.raises(TooManyStreams, match="There are 1 streams already"):
            await table.predict([("b", [Image(PIXELS[0])])])
        return answered

    asyncio.run(walk())


def test_those_that_will_make_room_are_not_counted_beside_those_they_make_it_for(engine, tmp_path):
    """A refusal tells the places there are, also while newcomers are on their way to them."""
    table = engine(tmp_path, max_streams=2)
    for name in ("a", "b"):
        request(table, name)
    for name in ("c", "d"):
        table.table.admit(name)
    with pytest.raises(TooManyStreams, match="There are 2 streams already"):
        table.table.admit("e")


def test_bytes_are_bounded_beside_the_count(engine, tmp_path, source):
    """Room is made as for the count; a lone stream may be as large as it is."""
    one = streams_module.state_bytes(source)
    table = engine(max_stream_bytes=5 * one // 2)
    for name in ("a", "b"):
        request(table, name)
    with pytest.raises(TooManyStreams, match="bytes"):
        table.table.admit("c")
    saving = engine(tmp_path, max_stream_bytes=1)
    for name in ("a", "b", "c"):
        request(saving, name)
    assert list(saving.streams) == ["c"]
    assert asyncio.run(saving.saved_streams()) == 2


def test_the_time_of_a_refusal_is_when_enough_bytes_are_free(engine, clock, source):
    """Not when the first stream goes, if it is too small for another to have room."""
    table = engine(source=own(Growing(source.model)), max_stream_bytes=20_000, stream_expiry=100.0)
    for name, size in (("small", 4_000), ("large", 30_000)):
        request(table, name)
        table.streams[name].bytes = size
        clock.now += 30
    with pytest.raises(TooManyStreams, match="bytes") as refused:
        table.table.admit("c")
    assert refused.value.retry_after == 70
    clock.now += 69
    with pytest.raises(TooManyStreams):
        table.table.admit("c")
    clock.now += 1
    table.table.admit("c")


def test_streams_that_take_turns_in_one_place_are_not_told_one_by_one(engine, tmp_path):
    """With every request a state is saved and another restored."""
    table = engine(tmp_path, max_streams=1)
    for _ in range(5):
        for name in ("a", "b"):
            request(table, name)
    for kind, counts in (("evicted", [5, 4]), ("restored", [4, 4])):
        assert [each["count"] for each in events(table, kind)] == counts


class Growing(Plain):
    """Keeps a thousand numbers of every batch."""

    def __init__(self, model):
        super().__init__(model)
        self.kept = []

    def adapt(self, prediction):
        self.kept.append(np.zeros(1000, np.float32))
        return super().adapt(prediction)

    def state(self):
        return {"mine": {"kept": torch.tensor(np.array(self.kept))}}

    def restore(self, state):
        self.kept = list(state["mine"]["kept"].numpy())


def test_a_stream_that_grows_takes_the_room_of_others(engine, tmp_path, source):
    """What grows with its images is measured again as it grows."""
    table = engine(tmp_path, source=own(Growing(source.model)), max_stream_bytes=20_000)
    request(table, "small")
    for _ in range(8):
        request(table, "large")
    assert list(table.streams) == ["large"]
    assert table.streams["large"].bytes > 20_000


def test_streams_that_fill_the_bytes_are_answered_and_learn_no_more(engine, clock, source):
    """None has to go without answers for an hour because all have grown; a new one has."""
    table = engine(source=own(Growing(source.model)), max_stream_bytes=20_000)
    for _ in range(6):
        for name in ("a", "b"):
            request(table, name)
    sizes = [record.bytes for record in table.streams.values()]
    assert 20_000 < sum(sizes) < 30_000
    assert [record.images for record in table.streams.values()] == [24, 24]
    assert table._metrics.skipped.labels("shed")._value.get() > 2
    with pytest.raises(TooManyStreams, match="bytes"):
        table.table.admit("c")
    clock.now += 3601
    request(table, "a")
    assert table.streams["a"].bytes > sizes[0]
    assert list(table.streams) == ["a"]
