"""Starting, stopping, and what follows the answers."""

import asyncio

import pytest

from service.batcher import Batcher
from service.errors import NotReady, PredictionFailed
from tests.fixtures.queue import FakeObserver, FakeWorker, Queue, in_loop, settle

# Starting and stopping


def test_before_the_loop_runs_nothing_is_taken():
    """Readiness is the loop's own: without it a request would wait for ever."""

    async def walk():
        batcher = Batcher(FakeWorker(), FakeObserver(), max_batch=1, max_wait=0.0, max_images=1)
        assert not batcher.is_running
        with pytest.raises(NotReady):
            batcher.enter("s")

    in_loop(walk())


def test_draining_answers_all_and_ends():
    """What was accepted is answered without waiting for company; what comes after is refused."""

    async def walk():
        async with Queue(max_wait=20.0) as queue:
            decoding = queue.enter("a", "x")
            tasks = [queue.ask("b", "x"), queue.ask("cd", "y"), queue.wait(decoding)]
            await settle()
            queue.batcher.drain()
            assert not queue.batcher.is_running
            with pytest.raises(NotReady):
                queue.ask("e")
            decoding.fill(["a"])
            assert await asyncio.gather(*tasks) == [["b!"], ["c!", "d!"], ["a!"]]
            await asyncio.wait_for(queue.loop, 10)
            assert {reason for reason, _ in queue.observer.closed} == {"drain"}

    in_loop(walk())


def test_draining_waits_for_the_adaptation_in_hand():
    """The loop ends after the last batch was learned from, not before."""

    async def walk():
        async with Queue() as queue:
            task = queue.ask("a")
            queue.batcher.drain()
            await queue.loop
            assert await task == ["a!"]
            assert queue.worker.log == [("predict", "a"), ("adapt", "a")]

    in_loop(walk())


@pytest.mark.parametrize("policy", ["always", "idle", "never"])
def test_what_follows_a_batch_comes_before_the_next(policy):
    """Also where nothing is learned: statistics and what is watched may follow all the same."""

    async def walk():
        async with Queue(max_batch=1, adapt=policy) as queue:
            queue.worker.gate.clear()
            tasks = [queue.ask(image) for image in "abc"]
            await settle()
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
        assert queue.worker.log == [(do, i) for i in "abc" for do in ("predict", "adapt")]

    in_loop(walk())


@pytest.mark.parametrize("learn", [True, False])
def test_where_nothing_is_learned_answers_wait_for_nothing(learn):
    """The device has the next batch meanwhile, and no more than one is still to be noted."""

    async def walk():
        async with Queue(max_batch=1, adapt="never") as queue:
            queue.worker.noting.clear()
            assert await queue.ask("a", learn=learn) == ["a!"]
            assert not queue.batcher.is_idle
            second = queue.ask("b", learn=learn)
            await settle()
            assert queue.worker.batches[-1] == ("s", ["b"])
            assert len(queue.worker.learned) + queue.worker.counted == 1
            queue.worker.noting.set()
            assert await second == ["b!"]
            await settle()
            assert queue.batcher.is_idle

    in_loop(walk())


def test_draining_waits_for_what_is_still_to_be_noted():
    """What was answered is counted before the streams are saved."""

    async def walk():
        async with Queue(adapt="never") as queue:
            queue.worker.noting.clear()
            await queue.ask("a")
            queue.batcher.drain()
            await settle()
            assert not queue.loop.done()
            queue.worker.noting.set()
            await asyncio.wait_for(queue.loop, 10)

    in_loop(walk())


def test_a_cancelled_loop_refuses_those_who_wait():
    """An application torn down in the middle leaves nobody hanging."""

    async def walk():
        queue = Queue(max_wait=20.0)
        await queue.__aenter__()
        task = queue.ask("a")
        await settle()
        queue.loop.cancel()
        with pytest.raises(NotReady):
            await task
        assert not queue.batcher.is_running

    in_loop(walk())


# Adaptation


def test_answers_are_delivered_before_adaptation_begins():
    """Every client of the batch has its answer, and has said so, before adapt is called."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            places = [queue.enter(letter) for letter in "abc"]
            for place, letter in zip(places, "abc", strict=True):
                place.fill([letter])
            tasks = [
                queue.wait(place, lambda letter=letter: queue.worker.log.append(("out", letter)))
                for place, letter in zip(places, "abc", strict=True)
            ]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            await settle()
            log = queue.worker.log[queue.worker.log.index(("predict", "a", "b", "c")) :]
            assert log[1:4] == [("out", "a"), ("out", "b"), ("out", "c")]
            assert log[4] == ("adapt", "a", "b", "c")

    in_loop(walk())


def test_a_client_slow_to_take_its_answer_does_not_stop_adaptation():
    """The wait for delivery is bounded: the place is never left here, yet adapt comes."""

    async def walk():
        async with Queue() as queue:
            place = queue.enter("a")
            place.fill(["a"])
            assert await place.answers() == ["a!"]
            assert await asyncio.wait_for(queue.ask("b"), 10) == ["b!"]
            await settle()
            assert queue.worker.log == [
                ("predict", "a"),
                ("adapt", "a"),
                ("predict", "b"),
                ("adapt", "b"),
            ]

    in_loop(walk())


@pytest.mark.parametrize(
    ("policy", "learned", "graphs"),
    [
        ("always", [True, True, True], [True, True, True]),
        ("idle", [False, False, True], [True, False, True]),  # the others came after the first
        ("never", [False, False, False], [False, False, False]),
    ],
)
def test_which_batches_are_learned_from(policy, learned, graphs):
    """`idle` learns only when nothing waits behind the batch; the worker hears of every batch.

    What is known not to be learned from is predicted so: nothing is kept for a gradient.
    """

    async def walk():
        async with Queue(max_batch=1, adapt=policy) as queue:
            await queue.make_busy()
            tasks = [queue.ask("a"), queue.ask("b")]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            await settle()
            assert queue.worker.learned == learned
            assert queue.worker.graphs == graphs

    in_loop(walk())


def test_a_batch_that_failed_is_not_adapted_to():
    """What was not answered teaches nothing."""

    async def walk():
        async with Queue() as queue:
            with pytest.raises(PredictionFailed):
                await queue.ask(["poison"])
            await settle()
            assert queue.worker.learned == []

    in_loop(walk())


def test_what_is_not_to_be_learned_from_shares_no_batch_with_what_is():
    """In order of arrival; such a batch is counted, and `adapt` never hears of it."""

    async def walk():
        async with Queue(max_batch=8) as queue:
            await queue.make_busy()
            tasks = [
                queue.ask(letter, learn=learn)
                for letter, learn in zip("abcde", [True, False, False, True, True], strict=True)
            ]
            queue.worker.gate.set()
            assert await asyncio.gather(*tasks) == [[f"{letter}!"] for letter in "abcde"]
            await settle()
            assert [images for _, images in queue.batches] == [["a"], ["b", "c"], ["d", "e"]]
            assert queue.worker.graphs == [True, True, False, True]
            assert [entry[1:] for entry in queue.worker.log if entry[0] == "adapt"] == [
                ("first",),
                ("a",),
                ("d", "e"),
            ]
            assert queue.worker.counted == 1

    in_loop(walk())
