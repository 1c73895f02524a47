"""Every rule of the queue, with a worker that is a few lines: neither a server nor torch."""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher
from service.errors import (
    DeadlineExpired,
    NotReady,
    OutOfRange,
    PredictionFailed,
    QueueFull,
    Refused,
    TooLarge,
)


class FakeWorker:
    """Answers "A!" to "A"; fails on a batch with "poison" in it, and on the row "nan" alone.

    While `gate` is closed every batch waits in the forward pass, as on a busy device.
    """

    def __init__(self):
        self.batches = []
        self.log = []
        self.learned = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.crash_in_adapt = False

    async def predict(self, stream, items):
        self.batches.append((stream, list(items)))
        self.log.append(("predict", *items))
        self.started.set()
        await self.gate.wait()
        if "poison" in items:
            raise RuntimeError("the model broke")
        return [PredictionFailed("not a number.") if i == "nan" else f"{i}!" for i in items]

    async def adapt(self, stream, *, learn):
        self.log.append(("adapt", *self.batches[-1][1]))
        self.learned.append(learn)
        if self.crash_in_adapt:
            raise RuntimeError("adapting broke")


class FakeObserver:
    def __init__(self):
        self.closed = []
        self.waits = []

    def batch_closed(self, reason, images):
        self.closed.append((reason, images))

    def waited(self, seconds):
        self.waits.append(seconds)


class Queue:
    """A batcher at work, and requests as the service makes them."""

    def __init__(self, kind=Batcher, **options):
        self.worker, self.observer = FakeWorker(), FakeObserver()
        chosen = {"max_batch": 4, "max_wait": 0.0, "max_images": 100} | options
        self.batcher = kind(self.worker, self.observer, **chosen)

    async def __aenter__(self):
        self.loop = asyncio.create_task(self.batcher.run())
        await settle()
        return self

    async def __aexit__(self, *error):
        self.worker.gate.set()
        self.batcher.drain()
        await asyncio.wait_for(self.loop, 10)

    def enter(self, images, stream="s", **options):
        """Take a place for images still to be decoded."""
        place = self.batcher.enter(stream, **options)
        place.count(len(images))
        return place

    def ask(self, images, stream="s", **options):
        """Send a whole request; a string is one image a letter. The task has its answers."""
        place = self.enter(images, stream, **options)
        place.fill(list(images))
        return self.wait(place)

    def wait(self, place, note=None):
        return asyncio.create_task(self._wait(place, note))

    async def _wait(self, place, note):
        try:
            answers = await place.answers()
            if note is not None:
                note()
            return answers
        finally:
            place.leave()  # as the service does when the answer has left or nobody waits

    async def make_busy(self, stream="busy"):
        """Put a request into the forward pass and keep it there until the gate opens."""
        self.worker.gate.clear()
        self.worker.started.clear()
        task = self.ask(["first"], stream)
        await self.worker.started.wait()
        return task

    @property
    def batches(self):
        """Each batch but the one that kept the worker busy: its stream, its images."""
        return [batch for batch in self.worker.batches if batch[0] != "busy"]


async def settle():
    """Let every task run until it waits."""
    for _ in range(30):
        await asyncio.sleep(0)


def in_loop(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


@contextlib.contextmanager
def no_logs():
    """Failures that are meant, by the hundred, would bury the log line of a real one."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# Batches: one stream, in order, whole


def test_a_request_is_answered_in_its_own_order():
    """The simplest walk: three images, their three answers."""

    async def walk():
        async with Queue() as queue:
            assert await queue.ask("abc") == ["a!", "b!", "c!"]

    in_loop(walk())


def test_images_gather_while_the_worker_is_busy():
    """Requests that arrive during a batch form the next one, in order of arrival."""

    async def walk():
        async with Queue() as queue:
            busy = await queue.make_busy()
            tasks = [queue.ask(letter) for letter in "abcd"]
            await settle()
            queue.worker.gate.set()
            assert await asyncio.gather(*tasks) == [["a!"], ["b!"], ["c!"], ["d!"]]
            await busy
            assert queue.batches == [("s", list("abcd"))]

    in_loop(walk())


def test_a_batch_holds_one_stream_only():
    """Two cameras never share a batch, however little each has sent."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask(i, stream=s) for i, s in (("a", "x"), ("b", "y"), ("c", "x"))]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            assert queue.batches == [("x", ["a", "c"]), ("y", ["b"])]

    in_loop(walk())


def test_the_oldest_request_is_next_whatever_its_stream():
    """A full batch of a younger stream does not overtake an older single image."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask("a", "old"), queue.ask("bcde", "full"), queue.ask("f", "young")]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            assert [stream for stream, _ in queue.batches] == ["old", "full", "young"]

    in_loop(walk())


def test_no_stream_starves_beside_a_busy_one():
    """A single image of a quiet camera waits for at most what stood before it."""

    async def walk():
        async with Queue(max_batch=2) as queue:
            await queue.make_busy()
            flood = [queue.ask("ab", "flood") for _ in range(5)]
            quiet = queue.ask("q", "quiet")
            flood += [queue.ask("cd", "flood") for _ in range(5)]
            queue.worker.gate.set()
            await asyncio.gather(quiet, *flood)
            assert [stream for stream, _ in queue.batches].index("quiet") == 5

    in_loop(walk())


def test_a_place_is_taken_on_arrival_not_when_decoding_ends():
    """A first request that is slow to decode keeps its turn before a quick second one."""

    async def walk():
        async with Queue() as queue:
            slow = queue.enter("ab")
            quick = queue.ask("c")
            await settle()
            assert queue.worker.batches == []
            slow.fill(list("ab"))
            assert await queue.wait(slow) == ["a!", "b!"]
            assert await quick == ["c!"]
            assert queue.batches == [("s", list("abc"))]

    in_loop(walk())


def test_a_slow_decode_holds_up_its_own_stream_only():
    """Another camera's images are answered meanwhile."""

    async def walk():
        async with Queue() as queue:
            slow = queue.enter("a", "slow")
            assert await queue.ask("b", "other") == ["b!"]
            slow.leave()

    in_loop(walk())


def test_those_before_a_slow_decode_do_not_wait_for_it():
    """The batch ends before the image that is not there yet."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            first = queue.ask("a")
            slow, last = queue.enter("b"), queue.ask("c")
            queue.worker.gate.set()
            assert await first == ["a!"]
            slow.fill(["b"])
            assert await queue.wait(slow) == ["b!"]
            assert await last == ["c!"]
            assert [images for _, images in queue.batches] == [["a"], ["b", "c"]]

    in_loop(walk())


@pytest.mark.parametrize(
    ("requests", "batches"),
    [
        pytest.param(["abc", "de"], ["abc", "de"], id="would-be-cut-so-it-waits"),
        pytest.param(["ab", "cd", "ef"], ["abcd", "ef"], id="fills-exactly"),
        pytest.param(["a", "bcde", "f"], ["a", "bcde", "f"], id="a-full-one-goes-alone"),
        pytest.param(["abcdefgh", "i"], ["abcd", "efgh", "i"], id="a-long-one-in-full-batches"),
        pytest.param(["abcdef", "gh", "i"], ["abcd", "efgh", "i"], id="its-rest-takes-company"),
        pytest.param(["abcdefg", "hi"], ["abcd", "efg", "hi"], id="but-no-cut-company"),
        pytest.param(["ab", "cdefgh"], ["ab", "cdef", "gh"], id="nothing-joins-its-full-batches"),
    ],
)
def test_what_makes_a_batch(requests, batches):
    """At most max_batch images; a request that fits into one batch is never cut."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask(request) for request in requests]
            queue.worker.gate.set()
            answers = await asyncio.gather(*tasks)
            assert answers == [[f"{image}!" for image in request] for request in requests]
            assert ["".join(images) for _, images in queue.batches] == batches

    in_loop(walk())


# When a batch closes


def test_without_max_wait_a_free_worker_takes_what_is_there():
    """max_wait 0 never waits for company."""

    async def walk():
        async with Queue(max_wait=0.0) as queue:
            await queue.ask("a")
            await queue.ask("b")
            assert queue.observer.closed == [("wait", 1), ("wait", 1)]

    in_loop(walk())


def test_a_free_worker_waits_max_wait_for_company():
    """Company that comes within max_wait shares the batch; the oldest waits no less."""

    async def walk():
        async with Queue(max_wait=0.15) as queue:
            started = time.monotonic()
            first = queue.ask("a")
            await asyncio.sleep(0.03)
            second = queue.ask("b")
            await asyncio.gather(first, second)
            assert time.monotonic() - started >= 0.15
            assert queue.observer.closed == [("wait", 2)]

    in_loop(walk())


def test_a_full_batch_closes_at_once():
    """Nothing is gained by waiting once no image can join."""

    async def walk():
        async with Queue(max_wait=20.0) as queue:
            tasks = [queue.ask("abc"), queue.ask("d")]
            await asyncio.wait_for(asyncio.gather(*tasks), 10)
            assert queue.observer.closed == [("full", 4)]

    in_loop(walk())


def test_a_batch_nothing_more_fits_into_closes_at_once():
    """Three images wait and two more come: they cannot join, so the three go."""

    async def walk():
        async with Queue(max_wait=20.0) as queue:
            first, second = queue.ask("abc"), queue.ask("de")
            assert await asyncio.wait_for(first, 10) == ["a!", "b!", "c!"]
            assert queue.observer.closed == [("full", 3)]
            second.cancel()

    in_loop(walk())


def test_one_waiting_stream_does_not_hold_up_a_full_one():
    """max_wait is a stream's own: another's full batch runs meanwhile."""

    async def walk():
        async with Queue(max_wait=20.0) as queue:
            waiting = queue.ask("a", "x")
            assert await asyncio.wait_for(queue.ask("bcde", "y"), 10) == ["b!", "c!", "d!", "e!"]
            assert not waiting.done()
            waiting.cancel()

    in_loop(walk())


def test_the_queue_time_of_each_request_is_told():
    """The observer hears one waiting time a request, also of one cut over batches."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            tasks = [queue.ask("abcdef"), queue.ask("g")]
            await asyncio.sleep(0.02)
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            assert len(queue.observer.waits) == 3
            assert all(seconds >= 0.02 for seconds in queue.observer.waits[1:])

    in_loop(walk())


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
    ("policy", "learned"),
    [
        ("always", [True, True, True]),
        ("idle", [False, False, True]),
        ("never", [False, False, False]),
    ],
)
def test_which_batches_are_learned_from(policy, learned):
    """`idle` learns only when nothing waits behind the batch; the worker hears of every batch."""

    async def walk():
        async with Queue(max_batch=1, adapt=policy) as queue:
            await queue.make_busy()
            tasks = [queue.ask("a"), queue.ask("b")]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            await settle()
            assert queue.worker.learned == learned

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


# All together

REQUEST = st.fixed_dictionaries(
    {
        "stream": st.sampled_from("xyz"),
        "images": st.integers(1, 9),
        "at": st.integers(0, 30),  # in turns of the event loop
        "decode": st.integers(0, 20),
        "leaves": st.none() | st.integers(0, 25),
        "kind": st.sampled_from(["good", "good", "good", "poison", "nan"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(REQUEST, max_size=14), max_batch=st.integers(1, 6), drain=st.booleans())
def test_whatever_arrives_every_request_ends_in_order(requests, max_batch, drain):
    """Random arrivals, sizes, decoding times, failures and departures: the rules hold together.

    Each request ends (answered, failed, left or refused); a batch has one stream and at most
    max_batch images; images of a stream are run in order of arrival; a request that fits is not
    cut, and nobody's failure is another's.
    """
    arrivals = defaultdict(list)
    outcomes = {}

    async def request(queue, number, plan):
        for _ in range(plan["at"]):
            await asyncio.sleep(0)
        images = [(number, index) for index in range(plan["images"])]
        try:
            place = queue.enter(images, plan["stream"])
        except NotReady:
            outcomes[number] = "refused"
            return
        arrivals[plan["stream"]].append(number)
        try:
            for _ in range(plan["decode"]):
                await asyncio.sleep(0)
            place.fill(images)
            outcomes[number] = await place.answers()
        except Refused as error:
            outcomes[number] = error
        except asyncio.CancelledError:
            outcomes[number] = "left"
        finally:
            place.leave()

    async def leave_after(task, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()

    class Worker(FakeWorker):
        async def predict(self, stream, items):
            self.batches.append((stream, list(items)))
            await asyncio.sleep(0)
            kinds = [requests[number]["kind"] for number, _ in items]
            if "poison" in kinds:
                raise RuntimeError("the model broke")
            return [
                PredictionFailed("nan") if kind == "nan" else item
                for item, kind in zip(items, kinds, strict=True)
            ]

    async def walk():
        async with Queue(max_batch=max_batch) as queue:
            queue.batcher._worker = queue.worker = Worker()
            async with asyncio.TaskGroup() as group:
                for number, plan in enumerate(requests):
                    task = group.create_task(request(queue, number, plan))
                    if plan["leaves"] is not None:
                        group.create_task(leave_after(task, plan["at"] + plan["leaves"]))
                if drain:
                    for _ in range(15):
                        await asyncio.sleep(0)
                    queue.batcher.drain()
            assert queue.batcher.waiting_images == 0
        return queue.worker.batches

    with no_logs():
        batches = in_loop(walk())

    for number, plan in enumerate(requests):
        outcome = outcomes.get(number, "left")  # left before it came
        whole = [(number, index) for index in range(plan["images"])]
        if plan["kind"] == "good":
            assert outcome in ("left", "refused", whole)
        else:
            assert outcome in ("left", "refused") or isinstance(outcome, PredictionFailed)
        if outcome not in ("left", "refused") and plan["leaves"] is None and not drain:
            assert outcome == whole or plan["kind"] != "good"
    for stream, images in batches:
        assert 1 <= len(images) <= max_batch
        assert {requests[number]["stream"] for number, _ in images} == {stream}
        sizes = Counter(number for number, _ in images)
        for number, count in sizes.items():
            size = requests[number]["images"]
            assert count == size or size > max_batch
            if count == max_batch < size:
                assert len(sizes) == 1
    for stream, numbers in arrivals.items():
        first_run = list(
            dict.fromkeys(n for s, images in batches if s == stream for n, _ in images)
        )
        assert first_run == [number for number in numbers if number in first_run]
    for number, plan in enumerate(requests):
        run = [item for _, images in batches for item in images if item[0] == number]
        if plan["kind"] == "good" and outcomes.get(number) not in ("left", None):
            assert sorted(set(run)) == sorted(run) or _was_run_apart(requests, batches, number)


def _was_run_apart(requests, batches, number):
    """Whether a batch of the request failed for another's sake, so that it was run again."""
    return any(
        number in (n for n, _ in images) and "poison" in (requests[n]["kind"] for n, _ in images)
        for _, images in batches
    )


def test_the_wait_of_a_queue_with_nothing_in_it_is_endless_not_busy():
    """Without requests the loop sleeps: it looks at the queues once, not again and again."""

    async def walk():
        async with Queue() as queue:
            looks = 0
            expire = queue.batcher._expire

            def counting(now):
                nonlocal looks
                looks += 1
                expire(now)

            queue.batcher._expire = counting
            await asyncio.sleep(0.05)
            assert looks == 0
            assert math.isfinite(queue.batcher.oldest_age)

    in_loop(walk())
