"""Which images make a batch, in which order, and when it closes."""

import asyncio
import time

import pytest

from tests.fixtures.queue import Queue, in_loop, settle

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


def test_streams_share_a_batch_where_the_worker_answers_several():
    """A thousand cameras of an image each are full batches, in order of arrival."""

    async def walk():
        async with Queue(shares=True, max_images=2000) as queue:
            await queue.make_busy()
            tasks = [queue.ask([number], f"camera {number}") for number in range(1000)]
            queue.worker.gate.set()
            answers = await asyncio.gather(*tasks)
            assert answers == [[f"{number}!"] for number in range(1000)]
            assert [len(parts) for parts in queue.passes] == [4] * 250
            images = [items for _, items in queue.batches]
            assert images == [[number] for number in range(1000)]
            assert queue.observer.closed[1:] == [("full", 4)] * 250

    in_loop(walk())


@pytest.mark.parametrize(
    ("requests", "passes"),
    [
        pytest.param("xa yb xc", "xac+yb", id="a-stream's-images-stay-together"),
        pytest.param("xa ybcd ze", "xa+ybcd ze", id="until-it-is-full"),
        pytest.param("xab ycde zf", "xab ycde+zf", id="who-does-not-fit-is-next"),
        pytest.param("xa ybc ydef", "xa+ybc ydef", id="with-all-of-its-own-batch"),
        pytest.param("xabcd xe yf", "xabcd yf+xe", id="who-had-much-is-behind"),
    ],
)
def test_which_streams_share_a_batch(requests, passes):
    """In their turns, each as it would be alone: nobody is overtaken, or has less for others."""

    async def walk():
        async with Queue(shares=True) as queue:
            await queue.make_busy()
            tasks = [queue.ask(request[1:], request[0]) for request in requests.split()]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            found = ["+".join(s + "".join(i) for s, i in parts) for parts in queue.passes]
            assert " ".join(found) == passes

    in_loop(walk())


def test_only_what_is_due_shares_a_batch():
    """Or what fills one: who waits for company has it, be it of others, and none is overtaken."""

    async def walk():
        async with Queue(shares=True, max_wait=60.0) as queue:
            waiting = queue.ask("a", "waits")
            still = queue.ask("x", "still", learn=False)
            await settle()
            assert await queue.ask("bcde", "full") == ["b!", "c!", "d!", "e!"]
            assert not waiting.done()
            others = [queue.ask(image, image) for image in "fghi"]
            assert await asyncio.gather(waiting, *others[:3]) == [["a!"], ["f!"], ["g!"], ["h!"]]
            await settle()
            assert not others[3].done()
            assert queue.observer.closed == [("full", 4), ("full", 4)]
            gone = [queue.ask(image, image) for image in "jk"]
            await settle()
            for task in gone:
                task.cancel()
            await settle()
            last = queue.ask("l", "l")
            await settle()
            assert not last.done()
            assert not still.done()
            queue.batcher.drain()
            assert await asyncio.gather(still, others[3], last) == [["x!"], ["i!"], ["l!"]]

    in_loop(walk())


def test_what_still_waits_for_company_fills_a_batch_that_closes():
    """It costs nobody anything."""

    async def walk():
        async with Queue(shares=True, max_wait=0.05) as queue:
            tasks = [queue.ask("ab", "due")]
            await asyncio.sleep(0.03)
            tasks.append(queue.ask("c", "later"))
            await asyncio.gather(*tasks)
            assert queue.passes == [[("due", ["a", "b"]), ("later", ["c"])]]
            assert queue.observer.closed == [("wait", 3)]

    in_loop(walk())


def test_what_teaches_and_what_does_not_share_no_batch():
    """It is the batch that is learned from, or not."""

    async def walk():
        async with Queue(shares=True) as queue:
            await queue.make_busy()
            tasks = [queue.ask(s, s, learn=learn) for s, learn in (("a", True), ("b", False))]
            queue.worker.gate.set()
            await asyncio.gather(*tasks)
            assert [len(parts) for parts in queue.passes] == [1, 1]

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
        async with Queue(max_wait=0.6) as queue:
            started = time.monotonic()
            first = queue.ask("a")
            await asyncio.sleep(0.03)
            second = queue.ask("b")
            await asyncio.gather(first, second)
            assert time.monotonic() - started >= 0.6
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
