"""What is done between two batches: no request is answered in part then, and none is lost."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import NotReady
from tests.fixtures.queue import FakeWorker, Queue, in_loop, settle


class Labelled(FakeWorker):
    """Answers an image with which weights it ran on."""

    weights = "old"

    async def answer(self, items):
        return [(item, self.weights) for item in items]

    async def exchange(self):
        before, running = self.weights, len(self.passes)
        await asyncio.sleep(0)
        assert (self.weights, len(self.passes)) == (before, running)  # nothing runs meanwhile
        self.weights = "new"
        return before


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 11)), max_size=12),
    at=st.integers(0, 40),
    max_batch=st.integers(1, 5),
    shares=st.booleans(),
)
def test_each_request_is_answered_whole_by_the_one_or_the_other(requests, at, max_batch, shares):
    """However long they are and whenever it comes; who waits behind a long one is answered, too."""

    async def walk():
        async with Queue(Labelled(), max_batch=max_batch, shares=shares, max_images=200) as queue:
            tasks = [queue.ask(range(count), stream) for stream, count in requests]
            for _ in range(at):
                await asyncio.sleep(0)
            between = queue.batcher.between_batches(queue.worker.exchange)
            assert await asyncio.wait_for(between, 10) == "old"
            tasks.append(queue.ask("z"))
            found = await asyncio.wait_for(asyncio.gather(*tasks), 10)
            assert found.pop() == [("z", "new")]
            for answers, (_, count) in zip(found, requests, strict=True):
                assert [item for item, _ in answers] == list(range(count))
                assert len({weights for _, weights in answers}) == 1
            ran = Counter(len(items) for _, items in queue.worker.batches)
            assert sum(size * times for size, times in ran.items()) == 1 + sum(
                count for _, count in requests
            )  # none was run twice
            assert queue.batcher.waiting_images == 0

    in_loop(walk())


def test_a_request_that_has_begun_ends_first_and_others_wait():
    """Nine images in batches of four: it takes its three batches; who came before it is next."""

    async def walk():
        async with Queue(Labelled()) as queue:
            queue.worker.gate.clear()
            long, other = queue.ask("abcdefghi", "long"), queue.ask("o", "other")
            await queue.worker.started.wait()
            exchange = asyncio.create_task(queue.batcher.between_batches(queue.worker.exchange))
            await settle()
            assert not exchange.done()
            queue.worker.gate.set()
            await exchange
            assert {weights for _, weights in await long} == {"old"}
            assert await other == [("o", "new")]
            assert [len(items) for _, items in queue.worker.batches] == [4, 4, 1, 1]

    in_loop(walk())


def test_what_fails_between_batches_is_told_and_the_queue_goes_on():
    """Whoever asked for it has the error; nobody else notices."""

    async def fail():
        raise RuntimeError("no")

    async def walk():
        async with Queue() as queue:
            with pytest.raises(RuntimeError, match="no"):
                await queue.batcher.between_batches(fail)
            assert await queue.ask("ab") == ["a!", "b!"]

    in_loop(walk())


def test_whoever_gave_up_waiting_has_nothing_done():
    """Cancelled while a batch runs: it never happens, and the queue goes on."""

    async def walk():
        async with Queue(Labelled()) as queue:
            busy = await queue.make_busy()
            exchange = asyncio.create_task(queue.batcher.between_batches(queue.worker.exchange))
            await settle()
            exchange.cancel()
            await settle()
            queue.worker.gate.set()
            await busy
            assert await queue.ask("a") == [("a", "old")]

    in_loop(walk())


def test_while_draining_it_is_done_and_afterwards_refused():
    """What was asked for before the end is not forgotten; there is no loop for what comes later."""

    async def walk():
        async with Queue(Labelled()) as queue:
            busy = await queue.make_busy()
            exchange = asyncio.create_task(queue.batcher.between_batches(queue.worker.exchange))
            await settle()
            queue.batcher.drain()
            queue.worker.gate.set()
            await busy
            assert await asyncio.wait_for(exchange, 10) == "old"
            await asyncio.wait_for(queue.loop, 10)
            with pytest.raises(NotReady):
                await queue.batcher.between_batches(queue.worker.exchange)

    in_loop(walk())
