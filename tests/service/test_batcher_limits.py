"""Bounds on count and time: a full queue, deadlines, clients that go away."""

import asyncio
import time

import pytest

from service.errors import DeadlineExpired, PredictionFailed, QueueFull, TooLarge
from tests.fixtures.queue import FakeWorker, Queue, in_loop, settle


# Clients that go away, deadlines


def test_a_cancelled_image_takes_no_place():
    """Who left before the forward pass fills no row."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask(letter) for letter in "abc"]
            await settle()
            tasks[1].cancel()
            await settle()
            queue.worker.gate.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert answers[::2] == [["a!"], ["c!"]]
            assert isinstance(answers[1], asyncio.CancelledError)
            assert queue.batches == [("s", ["a", "c"])]

    in_loop(walk())


def test_leaving_a_slow_decode_lets_the_others_go():
    """The place of a refused or vanished request is given up, and those behind it move on."""

    async def walk():
        async with Queue() as queue:
            slow = queue.enter("a")
            behind = queue.ask("b")
            await settle()
            assert not behind.done()
            slow.leave()
            assert await behind == ["b!"]

    in_loop(walk())


def test_leaving_during_the_forward_pass_breaks_nothing():
    """An answer for nobody is dropped; batch mates and the loop go on."""

    async def walk():
        async with Queue() as queue:
            busy = await queue.make_busy()
            tasks = [queue.ask("a"), queue.ask("b")]
            queue.worker.started.clear()
            queue.worker.gate.set()
            await queue.worker.started.wait()
            queue.worker.gate.clear()
            tasks[0].cancel()
            queue.worker.gate.set()
            assert await tasks[1] == ["b!"]
            assert await queue.ask("c") == ["c!"]
            await busy

    in_loop(walk())


def test_the_rest_of_a_long_request_is_dropped_when_its_client_leaves():
    """Nothing more is computed for a request cut over batches once nobody waits for it."""

    async def walk():
        async with Queue(max_batch=2) as queue:
            queue.worker.gate.clear()
            queue.worker.started.clear()
            long = queue.ask("abcdef")
            await queue.worker.started.wait()
            long.cancel()
            await settle()
            queue.worker.gate.set()
            assert await queue.ask("g") == ["g!"]
            assert queue.batches == [("s", ["a", "b"]), ("s", ["g"])]

    in_loop(walk())


def test_a_client_that_leaves_while_others_are_run_apart_is_not_run():
    """A batch failed; before its turn to be run alone came, the client was gone."""

    class Patient(FakeWorker):
        async def predict(self, stream, items):
            if items == ["poison"]:  # now run alone
                self.leaving.cancel()
                await settle()
            return await super().predict(stream, items)

    async def walk():
        async with Queue() as queue:
            queue.batcher._worker = queue.worker = Patient()
            await queue.make_busy()
            tasks = [queue.ask(["poison"]), queue.ask(["a"]), queue.ask(["b"])]
            queue.worker.leaving = tasks[1]
            queue.worker.gate.set()
            await asyncio.wait(tasks)
            assert tasks[1].cancelled()
            assert tasks[2].result() == ["b!"]
            assert isinstance(tasks[0].exception(), PredictionFailed)
            assert queue.batches == [
                ("s", ["poison", "a", "b"]),
                ("s", ["poison"]),
                ("s", ["b"]),
            ]

    in_loop(walk())


def test_leaving_twice_or_after_the_answer_is_harmless():
    """The service leaves in a finally, whatever came before."""

    async def walk():
        async with Queue() as queue:
            place = queue.enter("a")
            place.fill(["a"])
            assert await queue.wait(place) == ["a!"]
            place.leave()
            place.leave()
            assert place.is_answered
            assert queue.batcher.waiting_images == 0

    in_loop(walk())


def test_an_expired_deadline_is_answered_and_not_run():
    """Its images never reach the worker; its batch mates do."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            late = queue.ask("a", deadline=time.monotonic() + 0.02)
            fine = queue.ask("b", deadline=time.monotonic() + 20)
            await asyncio.sleep(0.05)
            queue.worker.gate.set()
            with pytest.raises(DeadlineExpired):
                await late
            assert await fine == ["b!"]
            assert queue.batches == [("s", ["b"])]

    in_loop(walk())


def test_a_deadline_ends_a_wait_for_company():
    """A request whose deadline comes before max_wait is refused then, not later."""

    async def walk():
        async with Queue(max_wait=20.0) as queue:
            with pytest.raises(DeadlineExpired):
                await asyncio.wait_for(queue.ask("a", deadline=time.monotonic() + 0.03), 10)

    in_loop(walk())


def test_a_deadline_passed_in_the_middle_of_a_long_request_is_no_refusal():
    """Half of it was run already: it is finished, and the loop does not spin meanwhile."""

    async def walk():
        async with Queue(max_batch=2, max_wait=0.3) as queue:
            long = queue.ask("abc", deadline=time.monotonic() + 0.05)
            looks = 0
            next_batch = queue.batcher._compose

            def counting(places):
                nonlocal looks
                looks += 1
                return next_batch(places)

            queue.batcher._compose = counting
            assert await long == ["a!", "b!", "c!"]
            assert queue.batches == [("s", ["a", "b"]), ("s", ["c"])]
            assert looks < 20

    in_loop(walk())


# Limits


def test_a_full_queue_says_when_to_come_back():
    """Beyond max_images there is no place; Retry-After grows with what waits."""

    async def walk():
        async with Queue(max_images=5) as queue:
            busy = await queue.make_busy()
            tasks = [queue.ask("abc"), queue.ask("de")]
            with pytest.raises(QueueFull) as full:
                queue.enter("f")
            assert full.value.retry_after >= 1
            assert "5 of at most 5 images" in str(full.value)
            queue.worker.gate.set()
            await asyncio.gather(busy, *tasks)
            assert await queue.ask("f") == ["f!"]

    in_loop(walk())


def test_a_full_queue_refuses_a_request_that_does_not_fit_but_not_one_that_does():
    """Three images are too many where one has room."""

    async def walk():
        async with Queue(max_images=5) as queue:
            await queue.make_busy()
            waiting = queue.ask("abcd")
            place = queue.batcher.enter("s")
            with pytest.raises(QueueFull):
                place.count(3)
            place.leave()
            small = queue.ask("e")
            queue.worker.gate.set()
            await asyncio.gather(waiting, small)

    in_loop(walk())


def test_a_request_larger_than_the_queue_is_too_large_not_too_early():
    """Coming back would never help, so it is not told to."""

    async def walk():
        async with Queue(max_images=5) as queue:
            place = queue.batcher.enter("s")
            with pytest.raises(TooLarge, match="6 images; at most 5"):
                place.count(6)
            place.leave()

    in_loop(walk())


def test_retry_after_follows_the_measured_rate():
    """With 0.05 s an image measured and 60 waiting, three seconds are about right."""

    async def walk():
        async with Queue(max_batch=1, max_images=60) as queue:
            queue.worker.gate.clear()
            queue.worker.started.clear()
            first = queue.ask("a")
            await queue.worker.started.wait()
            await asyncio.sleep(0.05)
            queue.worker.gate.set()
            await first
            await settle()
            assert queue.batcher.retry_after() == 1
            await queue.make_busy()
            waiting = queue.enter("x" * 60)
            assert 3 <= queue.batcher.retry_after() <= 60
            waiting.leave()

    in_loop(walk())


def test_what_a_long_request_has_behind_it_waits_no_more():
    """Images that were taken into a batch make room for others."""

    async def walk():
        async with Queue(max_batch=2, max_images=4) as queue:
            queue.worker.gate.clear()
            queue.worker.started.clear()
            long = queue.ask("abcd")
            await queue.worker.started.wait()
            assert queue.batcher.waiting_images == 2
            other = queue.ask("ef")
            queue.worker.gate.set()
            await asyncio.gather(long, other)

    in_loop(walk())


def test_more_images_than_counted_are_a_mistake_of_ours():
    """A place that was counted for two cannot be filled with three."""

    async def walk():
        async with Queue() as queue:
            place = queue.enter("ab")
            with pytest.raises(ValueError, match="2 images were counted, 3 came"):
                place.fill(list("abc"))
            place.leave()

    in_loop(walk())


def test_what_others_see_of_the_queue():
    """Waiting images, the age of the oldest and idleness, for status and metrics."""

    async def walk():
        async with Queue() as queue:
            batcher = queue.batcher
            assert (batcher.waiting_images, batcher.oldest_age, batcher.is_idle) == (0, 0.0, True)
            busy = await queue.make_busy()
            assert (batcher.waiting_images, batcher.is_idle) == (0, False)
            tasks = [queue.ask("abc")]
            batcher.enter("s")
            await asyncio.sleep(0.02)
            assert batcher.waiting_images == 4
            assert batcher.oldest_age >= 0.02
            batcher._queues["s"][-1].leave()
            queue.worker.gate.set()
            await asyncio.gather(busy, *tasks)
            await settle()
            assert batcher.is_idle

    in_loop(walk())
