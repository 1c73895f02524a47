"""What goes wrong with a batch costs nobody else an answer."""

import asyncio

import pytest

from service.batcher import Batcher
from service.errors import NotReady, OutOfRange, PredictionFailed
from tests.fixtures.queue import FakeWorker, Queue, in_loop, settle


# What goes wrong


def test_one_failing_request_fails_alone():
    """When the forward pass fails, its requests are run apart and only the culprit fails."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask(["a"]), queue.ask(["poison"]), queue.ask(["b", "c"])]
            queue.worker.gate.set()
            good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
            assert (good, fine) == (["a!"], ["b!", "c!"])
            assert isinstance(bad, PredictionFailed)
            assert await queue.ask("d") == ["d!"]

    in_loop(walk())


def test_a_refusal_of_the_worker_reaches_the_client_as_it_is():
    """A worker that knows better than "failed" says so in its own sentence."""

    class Picky(FakeWorker):
        async def predict(self, stream, items):
            raise OutOfRange("The stream is closed.")

    async def walk():
        async with Queue() as queue:
            queue.batcher._worker = Picky()
            with pytest.raises(OutOfRange, match=r"The stream is closed\."):
                await queue.ask("a")

    in_loop(walk())


def test_a_failed_row_fails_its_own_request_only():
    """A row that is not a number names itself; the others of the batch have their answers."""

    async def walk():
        async with Queue(max_batch=8) as queue:
            await queue.make_busy()
            tasks = [queue.ask(["a"]), queue.ask(["b", "nan"]), queue.ask(["c"])]
            queue.worker.gate.set()
            good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
            assert (good, fine) == (["a!"], ["c!"])
            assert isinstance(bad, PredictionFailed)
            assert bad.index == 1
            assert str(bad) == "Image 2 of 2: not a number."
            assert len(queue.batches) == 1

    in_loop(walk())


def test_a_long_request_with_a_failed_row_is_not_run_to_its_end():
    """The rest of a request that has failed takes no batch, and the index counts from its start."""

    async def walk():
        async with Queue(max_batch=2) as queue:
            with pytest.raises(PredictionFailed) as failed:
                await queue.ask(["a", "b", "nan", "c", "d", "e"])
            assert failed.value.index == 2
            await settle()
            assert queue.batches == [("s", ["a", "b"]), ("s", ["nan", "c"])]

    in_loop(walk())


def test_too_few_answers_are_an_error_not_a_hang():
    """A worker that forgets a row fails the batch; nobody waits for ever."""

    class Forgetful(FakeWorker):
        async def predict(self, stream, items):
            await super().predict(stream, items)
            return ["only one"]

    async def walk():
        async with Queue() as queue:
            queue.batcher._worker = Forgetful()
            with pytest.raises(PredictionFailed):
                await queue.ask("ab")

    in_loop(walk())


def test_a_failing_adaptation_costs_no_answer():
    """The answers are out by then; the next request is served."""

    async def walk():
        async with Queue() as queue:
            queue.worker.crash_in_adapt = True
            assert await queue.ask("a") == ["a!"]
            assert await queue.ask("b") == ["b!"]

    in_loop(walk())


def test_a_failing_loop_starts_again():
    """Who waited gets a refusal to act upon; who comes next is served; readiness comes back."""

    class Fragile(Batcher):
        breaks = False

        def _compose(self, queue):
            if self.breaks:
                self.breaks = False
                raise RuntimeError("the loop broke")
            return super()._compose(queue)

    async def walk():
        async with Queue(Fragile) as queue:
            queue.batcher.breaks = True
            with pytest.raises(NotReady):
                await queue.ask("a")
            await settle()
            assert queue.batcher.is_running
            assert await queue.ask("b") == ["b!"]

    in_loop(walk())
