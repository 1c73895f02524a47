"""What goes wrong with a batch costs nobody else an answer."""

import asyncio

import pytest

from service import batcher
from service.errors import NotReady, OutOfRange, PredictionFailed, TooManyStreams
from tests.fixtures.queue import FakePass, FakeWorker, Queue, in_loop, no_logs, settle

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
        async def answer(self, items):
            raise OutOfRange("The stream is closed.")

    async def walk():
        async with Queue(Picky()) as queue:
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
            assert [images for _, images in queue.batches][1:] == [
                ["a"],
                ["b", "nan", "c"],
                ["b", "nan"],
                ["c"],
            ]
            await settle()
            assert [entry[1:] for entry in queue.worker.log if entry[0] == "adapt"][1:] == [
                ("a",),
                ("b", "nan"),  # which the worker counts, and learns nothing from
                ("c",),
            ]
            assert queue.worker.learned == [True, True, False, True]

    in_loop(walk())


def test_whoever_fails_costs_the_streams_beside_it_nothing():
    """What is wrong with a stream as a whole, a request or an image is told to whose it is."""

    class Full(FakeWorker):
        async def predict(self, parts, *, learn, shed):
            answered = await super().predict(parts, learn=learn, shed=shed)
            if "full" in dict(parts):
                raise OutOfRange("There are too many streams.")
            return answered

    async def walk():
        async with Queue(Full(), max_batch=16, shares=True) as queue:
            await queue.make_busy()
            plan = [
                ("a", "x"),
                ("b", "full"),
                (["poison"], "y"),
                ("c", "full"),
                (["d", "nan"], "z"),
            ]
            tasks = [
                queue.ask(images, stream) for images, stream in [*plan, ("e", "x"), ("f", "y")]
            ]
            queue.worker.gate.set()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = [end if isinstance(end, list) else type(end) for end in ends]
            assert kinds[:4] == [["a!"], OutOfRange, PredictionFailed, OutOfRange]
            assert kinds[4:] == [PredictionFailed, ["e!"], ["f!"]]
            assert ends[4].index == 1

    in_loop(walk())


@pytest.mark.parametrize("learn", [True, False])
def test_only_the_stream_that_failed_is_run_again(learn):
    """Those beside it are answered and done with the pass that they shared, in one go."""

    async def walk():
        async with Queue(FakeWorker(keeps=True), max_batch=16, shares=True) as queue:
            await queue.make_busy()
            plan = [
                (["a"], "x"),
                (["b"], "y"),
                (["poison"], "y"),
                (["c"], "z"),
                (["d", "nan"], "w"),
            ]
            tasks = [queue.ask(images, stream, learn=learn) for images, stream in plan]
            queue.worker.gate.set()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            failed = PredictionFailed
            kinds = [end if isinstance(end, list) else type(end) for end in ends]
            assert kinds == [["a!"], ["b!"], failed, ["c!"], failed]
            await settle()
            assert queue.passes == [
                [("x", ["a"]), ("y", ["b", "poison"]), ("z", ["c"]), ("w", ["d", "nan"])],
                [("y", ["b", "poison"])],
                [("y", ["b"])],
                [("y", ["poison"])],
                [("w", ["d", "nan"])],
            ]
            adapted = [set(entry[1:]) for entry in queue.worker.log if entry[0] == "adapt"][1:]
            assert adapted == ([{"a", "c"}, {"b"}, {"d", "nan"}] if learn else [])
            assert queue.worker.counted == (0 if learn else 3)

    with no_logs():
        in_loop(walk())


def test_the_pace_is_of_passes_in_which_nothing_failed():
    """What it took to find a culprit is no measure of the images beside it."""

    async def walk():
        worker = FakeWorker(keeps=True)
        async with Queue(worker, max_batch=16, shares=True) as queue:
            await queue.make_busy()
            tasks = [queue.ask([image], image) for image in ("a", "b", "poison")]
            worker.gate.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            pace = queue.batcher._passes.pace
            assert [images for images, _ in pace._known.values()] == [1.0]  # who made it busy

    with no_logs():
        in_loop(walk())


def passes_of_sixteen(bad):
    """Run sixteen requests of one image in a batch; return the passes, the answers, the queue."""

    async def walk():
        async with Queue(max_batch=16) as queue:
            await queue.make_busy()
            tasks = [queue.ask(["poison" if i in bad else f"{i}"]) for i in range(16)]
            queue.worker.gate.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            return queue.batches, answers, queue.observer

    with no_logs():
        return in_loop(walk())


@pytest.mark.parametrize("culprit", [0, 7, 15])
def test_one_culprit_costs_few_passes(culprit):
    """Halves are run, not each request alone: two passes a halving."""
    batches, answers, _ = passes_of_sixteen({culprit})
    assert len(batches) == 1 + 2 * 4
    for number, answer in enumerate(answers):
        assert isinstance(answer, PredictionFailed) == (number == culprit)


def test_culprits_only_cost_at_most_two_passes_each():
    """A client that sends nothing but what fails cannot keep the device for longer."""
    batches, answers, _ = passes_of_sixteen(set(range(16)))
    assert len(batches) == 2 * 16 - 1
    assert all(isinstance(answer, PredictionFailed) for answer in answers)


def test_a_batch_that_is_run_again_is_counted_once():
    """One batch was closed, and each of its requests waited once."""
    _, _, observer = passes_of_sixteen({3, 11})
    assert observer.closed == [("wait", 1), ("full", 16)]
    assert len(observer.waits) == 17


class Together(FakeWorker):
    """Every row of a pass fails with one of them, as under the statistics of the batch."""

    bad = frozenset({"nan"})

    async def answer(self, items):
        if self.bad <= set(items):
            return [PredictionFailed("not a number.") for _ in items]
        return [f"{item}!" for item in items]


@pytest.mark.parametrize("place", [0, 1, 5, 9])
def test_the_image_that_spoils_its_request_is_named(place):
    """All rows failed; passes that add up to two batches find whose fault it is."""
    images = [str(i) for i in range(10)]
    images[place] = "nan"

    async def walk():
        async with Queue(Together(), max_batch=16) as queue:
            with pytest.raises(PredictionFailed) as failed:
                await queue.ask(images)
            assert failed.value.index == place
            assert str(failed.value) == f"Image {place + 1} of 10: not a number."
            assert sum(len(run) for _, run in queue.batches) <= 30

    in_loop(walk())


def test_images_that_fail_together_only_blame_none_of_them():
    """Each is fine alone: the sentence is about the request."""

    async def walk():
        async with Queue(Together(), max_batch=16) as queue:
            queue.worker.bad = frozenset("ad")
            with pytest.raises(PredictionFailed, match="images together: not a number") as failed:
                await queue.ask("abcd")
            assert failed.value.index is None

    in_loop(walk())


@pytest.mark.parametrize("rows", [None, 7, ["one"], "abc", [], [None] * 3], ids=repr)
def test_a_worker_that_answers_nonsense_fails_the_request(rows):
    """Whatever comes back in place of two rows."""

    class Odd(FakeWorker):
        async def answer(self, items):
            return rows

    async def walk():
        async with Queue(Odd()) as queue:
            with pytest.raises(PredictionFailed):
                await queue.ask("ab")

    with no_logs():
        in_loop(walk())


def test_an_error_whose_own_text_fails_is_one_as_any_other():
    """Nothing that a model raises breaks the telling of it."""

    class Unspeakable(Exception):
        def __repr__(self):
            raise RuntimeError("no words")

    class Odd(FakeWorker):
        async def answer(self, items):
            raise Unspeakable

    async def walk():
        async with Queue(Odd()) as queue:
            with pytest.raises(PredictionFailed, match="Image 1 of 1: the model failed on it"):
                await queue.ask("a")

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


@pytest.mark.parametrize(("images", "before"), [("abcdnan", True), ("anan", False)])
def test_a_long_request_that_fails_says_what_was_learned_from(images, before):
    """Its first batches have been: to send it whole again would teach them twice."""
    items = [*images.removesuffix("nan"), "nan"]

    async def walk():
        async with Queue() as queue:
            with pytest.raises(PredictionFailed) as failed:
                await queue.ask(items)
            assert ("The first 4 were learned from." in str(failed.value)) == before

    in_loop(walk())


def test_too_few_answers_are_an_error_not_a_hang():
    """A worker that forgets a row fails the batch; nobody waits for ever."""

    class Forgetful(FakeWorker):
        async def answer(self, items):
            return ["only one"]

    async def walk():
        async with Queue(Forgetful()) as queue:
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
            assert await queue.ask("abcdefghij") == [f"{letter}!" for letter in "abcdefghij"]

    in_loop(walk())


def test_a_failing_loop_starts_again():
    """Who waited gets a refusal to act upon; who comes next is served; readiness comes back."""

    async def walk():
        async with Queue() as queue:
            take = queue.batcher._lines._take

            def failing():
                queue.batcher._lines._take = take
                raise RuntimeError("a mistake of ours")

            queue.batcher._lines._take = failing
            with pytest.raises(NotReady):
                await queue.ask("a")
            await settle()
            assert queue.batcher.is_running
            assert await queue.ask("b") == ["b!"]

    in_loop(walk())


# A worker that does not come back


def test_a_cancelled_loop_leaves_nobody_of_its_batch_waiting():
    """Those on the device end, too, also a request cut over batches; who waited may come back."""

    async def walk():
        queue = Queue(max_batch=2)
        await queue.__aenter__()
        queue.worker.gate.clear()
        tasks = [queue.ask("abcde"), queue.ask("f", "other")]
        await queue.worker.started.wait()
        queue.loop.cancel()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert [type(end) for end in ends] == [PredictionFailed, NotReady]
        assert not queue.batcher.is_running

    in_loop(walk())


@pytest.mark.parametrize("learn", [True, False])
def test_a_request_that_is_answered_in_part_is_not_told_to_come_back(learn):
    """Its first batches were learned from: sent again they would teach twice, unless none did."""

    async def walk():
        async with Queue(max_batch=2) as queue:
            take = queue.batcher._lines._take

            def failing():
                if not queue.worker.batches:
                    return take()
                queue.batcher._lines._take = take
                raise RuntimeError("a mistake of ours")

            queue.batcher._lines._take = failing
            begun = queue.ask("abcde", learn=learn)
            behind = queue.ask("f", "other", learn=learn)
            first, second = await asyncio.gather(begun, behind, return_exceptions=True)
            assert isinstance(first, PredictionFailed if learn else NotReady)
            assert ("the first 2 may have been learned from" in str(first)) == learn
            assert isinstance(second, NotReady)

    in_loop(walk())


@pytest.mark.parametrize(("before", "expected"), [(0, TooManyStreams), (1, PredictionFailed)])
def test_a_stream_refused_in_the_middle_of_a_request_is_not_told_to_come_back(before, expected):
    """Whose first batch is refused may come back; who had answers before may not."""

    class Full(FakeWorker):
        async def predict(self, parts, *, learn, shed):
            if len(self.batches) == before:
                raise TooManyStreams("No place.", retry_after=1)
            return await super().predict(parts, learn=learn, shed=shed)

    async def walk():
        async with Queue(Full(), max_batch=2) as queue:
            with pytest.raises(expected, match=r"^No place\."):
                await queue.ask("abcde")

    in_loop(walk())


@pytest.mark.parametrize("hangs_in", ["predict", "adapt"])
def test_nobody_waits_for_a_worker_that_hangs(monkeypatch, hangs_in):
    """Who waits and who comes gets a 503; it goes on if the worker does.

    Who is in the batch gets a 500: once the worker goes on, the batch is learned from.
    """
    monkeypatch.setattr(batcher, "HUNG_SECONDS", 0.1)

    class Hanging(FakeWorker):
        async def adapt(self, answered, *, learn):
            if hangs_in == "adapt":
                self.started.set()
                await self.gate.wait()

        async def predict(self, parts, *, learn, shed):
            if hangs_in == "predict":
                return await super().predict(parts, learn=learn, shed=shed)
            return FakePass(*[[item for _, items in parts for item in items]] * 2)

    async def walk():
        async with Queue(Hanging()) as queue:
            queue.worker.gate.clear()
            first = queue.ask("a")
            await queue.worker.started.wait()
            behind = queue.ask("b", "other")
            ends = await asyncio.wait_for(asyncio.gather(first, behind, return_exceptions=True), 10)
            assert isinstance(ends[1], NotReady)
            assert isinstance(ends[0], PredictionFailed) or hangs_in == "adapt"
            with pytest.raises(NotReady, match="has not returned"):
                queue.ask("c")
            queue.worker.gate.set()
            await settle()
            assert len(await queue.ask("d")) == 1

    in_loop(walk())
