"""All rules of the queue together, whatever arrives."""

import asyncio
import math
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import NotReady, PredictionFailed, Refused
from tests.fixtures.queue import FakeWorker, Queue, in_loop, no_logs

# All together


def assert_counted(lines):
    """What is counted as it comes and goes is what counting anew would find."""
    waiting = defaultdict(int)
    for place in lines:
        waiting[place.stream] += place.waiting
    sizes = [
        size
        for images in waiting.values()
        for size in [lines._max_batch] * (images // lines._max_batch) + [images % lines._max_batch]
    ]
    if lines._shares:
        full, rest = divmod(lines.images, lines._max_batch)
        sizes = [lines._max_batch] * full + [rest]
    assert lines.images == sum(waiting.values())
    assert dict(lines.batches) == dict(Counter(size for size in sizes if size))
    assert len(lines) == len(waiting)
    arrivals = [place.arrived for place in lines]
    assert arrivals == sorted(arrivals)


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
@given(
    requests=st.lists(REQUEST, max_size=14),
    max_batch=st.integers(1, 6),
    drain=st.booleans(),
    shares=st.booleans(),
    keeps=st.booleans(),
)
def test_whatever_arrives_every_request_ends_in_order(requests, max_batch, drain, shares, keeps):
    """Random arrivals, sizes, decoding times, failures and departures: the rules hold together.

    Each request ends (answered, failed, left or refused); a batch has at most max_batch images, of
    one stream or, where they share, of each stream at most one part; images of a stream are run in
    order of arrival; a request that fits is not cut, and nobody's failure is another's, nor, where
    the worker can tell streams apart, a second pass for another's.
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
        def is_bad(self, item):
            return requests[item[0]]["kind"] != "good"

        async def answer(self, items):
            await asyncio.sleep(0)
            assert_counted(self.lines)
            kinds = [requests[number]["kind"] for number, _ in items]
            if "poison" in kinds:
                raise RuntimeError("the model broke")
            return [
                PredictionFailed("nan") if kind == "nan" else item
                for item, kind in zip(items, kinds, strict=True)
            ]

    async def walk():
        async with Queue(Worker(keeps=keeps), max_batch=max_batch, shares=shares) as queue:
            queue.worker.lines = queue.batcher._lines
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
        return queue.worker.batches, queue.worker.passes

    with no_logs():
        batches, passes = in_loop(walk())

    for number, plan in enumerate(requests):
        outcome = outcomes.get(number, "left")  # left before it came
        whole = [(number, index) for index in range(plan["images"])]
        if plan["kind"] == "good":
            assert outcome in ("left", "refused", whole)
        else:
            assert outcome in ("left", "refused") or isinstance(outcome, PredictionFailed)
        if outcome not in ("left", "refused") and plan["leaves"] is None and not drain:
            assert outcome == whole or plan["kind"] != "good"
    for parts in passes:
        assert len(parts) == 1 or shares
        assert len({stream for stream, _ in parts}) == len(parts)
        assert sum(len(images) for _, images in parts) <= max_batch
    for stream, images in batches:
        assert 1 <= len(images) <= max_batch
        assert {requests[number]["stream"] for number, _ in images} == {stream}
        sizes = Counter(number for number, _ in images)
        for number, count in sizes.items():
            size = requests[number]["images"]
            # Who failed may be run in parts, to find which of the images is at fault.
            assert count == size or size > max_batch or requests[number]["kind"] != "good"
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
            # Whose stream is sound is answered with it, where the worker can tell.
            beside = [[part] for parts in passes for part in parts] if keeps else passes
            assert sorted(set(run)) == sorted(run) or _was_run_apart(requests, beside, number)


def _was_run_apart(requests, passes, number):
    """Whether a batch of the request failed for another's sake, so that it was run again."""
    together = [{n for _, images in parts for n, _ in images} for parts in passes]
    return any(
        number in numbers and {requests[n]["kind"] for n in numbers} & {"poison", "nan"}
        for numbers in together
    )


def test_the_wait_of_a_queue_with_nothing_in_it_is_endless_not_busy():
    """Without requests the loop sleeps: it looks at the queues once, not again and again."""

    async def walk():
        async with Queue() as queue:
            looks = queue.looks()
            await asyncio.sleep(0.05)
            assert looks == []
            assert math.isfinite(queue.batcher.oldest_age)

    in_loop(walk())
