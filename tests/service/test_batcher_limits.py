"""Bounds on count and time: a full queue, deadlines, clients that go away."""

import asyncio
import sys
import threading
import time

import pytest

from service.errors import DeadlineExpired, PredictionFailed, QueueFull, TooLarge
from service.pace import Pace
from service.settings import DAY
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
        async def answer(self, items):
            if items == ["poison"]:  # now run alone
                self.leaving.cancel()
                await settle()
            return await super().answer(items)

    async def walk():
        async with Queue(Patient()) as queue:
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
            looks = queue.looks()
            assert await long == ["a!", "b!", "c!"]
            assert queue.batches == [("s", ["a", "b"]), ("s", ["c"])]
            assert len(looks) < 20

    in_loop(walk())


def test_a_deadline_is_answered_when_it_passes_not_when_the_device_is_free():
    """The device may be at its batch for a minute; the client asked for less."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            late = queue.ask("a", deadline=time.monotonic() + 0.02)
            with pytest.raises(DeadlineExpired):
                await asyncio.wait_for(late, 10)

    in_loop(walk())


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_a_deadline_that_has_passed_is_not_run(seconds):
    """It is refused, and the loop goes on."""

    async def walk():
        async with Queue() as queue:
            await queue.make_busy()
            late = queue.ask("a", deadline=time.monotonic() + seconds)
            queue.worker.gate.set()
            with pytest.raises(DeadlineExpired):
                await late
            assert await queue.ask("b") == ["b!"]
            assert queue.batches == [("s", ["b"])]

    in_loop(walk())


@pytest.mark.parametrize("seconds", [60.0, DAY])
def test_a_deadline_of_ages_is_no_hindrance(seconds):
    """Nothing is kept of it once the answer is there."""

    async def walk():
        async with Queue() as queue:
            place = queue.enter("a", deadline=time.monotonic() + seconds)
            place.fill(["a"])
            assert await queue.wait(place) == ["a!"]
            assert await queue.ask("abcdefg", deadline=time.monotonic() + seconds)

    in_loop(walk())


def test_a_deadline_that_passes_before_a_second_try_is_kept():
    """Its batch failed for another's sake; by its turn to be run apart its time is over."""

    class Slow(FakeWorker):
        async def answer(self, items):
            await asyncio.sleep(0.1)
            return await super().answer(items)

    async def walk():
        async with Queue(Slow()) as queue:
            await queue.make_busy()
            tasks = [queue.ask(["poison"]), queue.ask("a", deadline=time.monotonic() + 0.15)]
            queue.worker.gate.set()
            bad, late = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(bad, PredictionFailed)
            assert isinstance(late, DeadlineExpired)
            assert [images for _, images in queue.batches] == [["poison", "a"], ["poison"]]

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


def pace_of(*measured, fixed=0.04, each=0.001):
    pace = Pace()
    for images in measured:
        pace.measured(images, fixed + each * images)
    return pace


@pytest.mark.parametrize(
    ("measured", "images"),
    [
        pytest.param([1] * 50, 100, id="a-lone-camera-then-a-burst"),
        pytest.param([100] * 50, 100, id="full-batches"),
        pytest.param([100] * 50, 1, id="full-batches-then-lone-cameras"),
        pytest.param([100, *[1] * 500], 100, id="full-batches-long-ago"),
        pytest.param([100, *[1] * 500], 50, id="a-size-between"),
        pytest.param([1, 2, 3, 4, 3, 2, 1], 100, id="small-ones-that-gathered"),
    ],
)
def test_the_time_of_a_batch_is_told_by_its_size(measured, images):
    """A pass has a cost of its own: seconds an image of lone images say nothing of full batches."""
    true = 0.04 + 0.001 * images
    assert true / 1.5 <= pace_of(*measured).seconds(images) <= 1.5 * true


@pytest.mark.parametrize("each", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("fixed", [0.0, 0.02, 5.0])
def test_two_sizes_tell_all_others(fixed, each):
    """A device whose pass costs nothing, one whose images do, and all between."""
    pace = pace_of(*[1, 64] * 20, fixed=fixed, each=each)
    for images in (1, 8, 64, 128):
        assert pace.seconds(images) == pytest.approx(fixed + each * images, abs=1e-9)


def test_one_slow_batch_promises_nothing_below_zero():
    """A small batch that took longer than a large one, as the first often does."""
    pace = Pace()
    for images, seconds in ((1, 2.0), (4, 0.1), (100, 0.3)):
        pace.measured(images, seconds)
    assert all(0 < pace.seconds(images) <= 3 for images in (1, 2, 3, 4, 50, 100, 200))


def test_retry_after_is_the_time_that_the_queue_takes():
    """Ten full batches of 1 s, or the same images as lone ones of sixty streams."""

    async def walk():
        async with Queue(max_batch=6, max_images=60) as queue:
            for _ in range(10):
                queue.batcher._passes.pace.measured(6, 1.0)
                queue.batcher._passes.pace.measured(1, 0.5)
            assert queue.batcher.retry_after() == 1
            place = queue.enter("x" * 60)
            assert queue.batcher.retry_after() == 10
            place.leave()
            places = [queue.enter("x", stream=str(number)) for number in range(60)]
            with pytest.raises(QueueFull) as full:
                queue.enter("x")
            assert full.value.retry_after == 30
            for place in places:
                place.leave()

    in_loop(walk())


def test_retry_after_sees_that_the_batch_at_hand_takes_longer_than_its_like():
    """The device has become slow: what was measured before is no promise."""

    async def walk():
        async with Queue(max_batch=1, max_images=60) as queue:
            queue.batcher._passes.pace.measured(1, 0.05)
            await queue.make_busy()
            place = queue.enter("x" * 60)
            assert queue.batcher.retry_after() <= 4
            queue.batcher._passes.began -= 0.5
            assert queue.batcher.retry_after() >= 30
            place.leave()

    in_loop(walk())


def test_a_request_has_an_image_or_more():
    """A place that was counted for none could never be answered."""

    async def walk():
        async with Queue() as queue:
            place = queue.batcher.enter("s")
            with pytest.raises(ValueError, match="1 image or more"):
                place.count(0)
            place.leave()

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
            uncounted = batcher.enter("s")
            await asyncio.sleep(0.02)
            assert batcher.waiting_images == 4
            assert batcher.oldest_age >= 0.02
            uncounted.leave()
            queue.worker.gate.set()
            await asyncio.gather(busy, *tasks)
            await settle()
            assert batcher.is_idle

    in_loop(walk())


def test_another_thread_may_ask_how_many_wait():
    """While requests of many streams come and go; a signal's handler and the metrics do."""

    async def walk():
        async with Queue(max_images=10_000) as queue:
            await queue.make_busy()
            seen, stop = [], threading.Event()

            def read():
                while not stop.is_set():
                    seen.append(queue.batcher.waiting_images)

            reader = asyncio.create_task(asyncio.to_thread(read))
            while not seen:
                await asyncio.sleep(0)
            for _ in range(50):
                places = [queue.enter("ab", f"stream {number}") for number in range(50)]
                for place in places:
                    place.leave()
            stop.set()
            await reader
            assert min(seen) >= 0
            assert max(seen) <= 100
            assert queue.batcher.waiting_images == 0

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        in_loop(walk())
    finally:
        sys.setswitchinterval(switch)
