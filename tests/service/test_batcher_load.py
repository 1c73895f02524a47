"""Under load learning is shed, then the second view, and no answer; who is alone loses nothing."""

import asyncio

import pytest

from service.events import Events
from service.shedding import CALM_SECONDS, Shedding
from tests.fixtures.queue import DeviceClock, FakeWorker, Queue, in_loop, settle


@pytest.fixture
def clock(monkeypatch):
    return DeviceClock(monkeypatch)


class Costly(FakeWorker):
    """An image takes 3 ms; its second view 3 more, learning from it 4 more."""

    def __init__(self, clock, slower=1.0):
        super().__init__()
        self.clock, self.slower = clock, slower
        self.arrive = lambda: None

    async def predict(self, parts, *, learn, shed):
        answered = await super().predict(parts, learn=learn, shed=shed)
        self._take(0.003 if shed == "second_view" else 0.006, len(answered.rows))
        return answered

    async def adapt(self, answered, *, learn):
        await super().adapt(answered, learn=learn)
        await settle()  # who has an answer asks again before it is learned from
        self._take(0.004 if learn else 0, len(answered.rows))

    def _take(self, seconds, images):
        self.clock.now += self.slower * seconds * images
        self.arrive()


def queue_of(clock, *, slower=1.0, **options):
    shedding = Shedding(Events(), clock=clock)
    chosen = {"max_images": 1000, "adapt": "auto", "shedding": shedding} | options
    return Queue(Costly(clock, slower), **chosen)


async def cameras(queue, clock, rate, images, streams=1):
    """Send images at a rate, whatever comes of the others; all answers."""
    began, tasks = clock.now, []

    def arrive():
        while len(tasks) < images and began + len(tasks) / rate <= clock.now:
            tasks.append(queue.ask("i", f"camera {len(tasks) % streams}"))

    queue.worker.arrive = arrive
    while len(tasks) < images:
        if queue.batcher.is_idle:
            clock.now = max(clock.now, began + len(tasks) / rate)
            arrive()
        await settle()
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("streams", [1, 7])
@pytest.mark.parametrize(
    ("rate", "shed"),
    [(80, {None}), (130, {None, "learning"}), (250, {None, "learning", "second_view"})],
)
def test_what_is_shed_is_what_the_rate_asks_for(clock, rate, shed, streams):
    """100 images a second can be learned from, 166 looked at twice, 333 once: all are answered."""

    async def walk():
        async with queue_of(clock) as queue:
            answers = await cameras(queue, clock, rate, 20 * rate, streams)
            assert answers == [["i!"]] * 20 * rate
            assert set(queue.worker.shed) == shed
            first = [what for what in dict.fromkeys(queue.worker.shed) if what]
            assert first == [what for what in ("learning", "second_view") if what in shed]

    in_loop(walk())


def test_from_what_is_told_to_be_shed_nothing_is_learned_and_from_all_else(clock):
    """An answer that says nothing of it was learned from, whatever came meanwhile."""

    async def walk():
        async with queue_of(clock) as queue:
            await cameras(queue, clock, 250, 2000)
            await settle()
            assert queue.worker.learned == [shed is None for shed in queue.worker.shed]
            assert queue.worker.graphs == queue.worker.learned

    in_loop(walk())


def test_with_the_load_gone_all_is_as_before(clock):
    """The second view comes back, then learning; whether or not anybody asks meanwhile."""

    async def walk():
        async with queue_of(clock) as queue:
            await cameras(queue, clock, 250, 2000)
            assert queue.batcher.shed == "second_view"
            for shed in ("learning", None):
                clock.now += CALM_SECONDS
                queue.batcher._look()
                assert queue.batcher.shed == shed
            await queue.ask("i")
            assert queue.worker.shed[-1] is None

    in_loop(walk())


@pytest.mark.parametrize("slower", [1, 1000])
@pytest.mark.parametrize(("clients", "images"), [(1, 1), (1, 4), (1, 40), (2, 4)])
def test_who_waits_for_each_answer_loses_nothing(clock, clients, images, slower):
    """However slow the device is: one client or two in lockstep, also with long requests."""

    async def client(queue, number):
        for _ in range(20):
            await queue.ask("i" * images, f"client {number}")

    async def walk():
        async with queue_of(clock, slower=slower) as queue:
            await asyncio.gather(*(client(queue, number) for number in range(clients)))
            assert set(queue.worker.shed) == {None}

    in_loop(walk())


@pytest.mark.slow
def test_many_who_wait_for_each_answer_lose_nothing_for_long(clock):
    """Behind 300 cameras as many always wait; none for long on a device that is fast."""

    async def client(queue, number):
        for _ in range(150):
            await queue.ask("i", f"client {number}")

    async def walk():
        async with queue_of(clock, slower=0.05, max_batch=100) as queue:
            await asyncio.gather(*(client(queue, number) for number in range(300)))
            assert set(queue.worker.shed[-15_000:]) == {None}

    in_loop(walk(), seconds=200)  # 45,000 questions: 15 of an idle processor


def test_behind_a_picture_that_is_being_decoded_nobody_waits_for_the_device(clock):
    """Others of its stream are no load, however many batches of other streams pass."""

    async def walk():
        async with queue_of(clock) as queue:
            decoding = queue.enter("i", "slow")
            behind = queue.ask("i", "slow")
            for _ in range(100):
                await queue.ask("i", "other")
                clock.now += 0.05
            assert set(queue.worker.shed) == {None}
            decoding.fill(["i"])
            assert await asyncio.gather(queue.wait(decoding), behind) == [["i!"]] * 2

    in_loop(walk())


def test_waiting_for_company_is_no_load(clock):
    """Who may wait for ten seconds does while others come and go."""

    async def walk():
        async with queue_of(clock, max_wait=10.0) as queue:
            lone = queue.ask("i", "lone")
            for _ in range(50):
                await queue.ask("iiii", "other")
            assert set(queue.worker.shed) == {None}
            clock.now += 10
            queue.batcher.drain()
            await lone

    in_loop(walk())


def test_a_queue_that_fills_faster_than_it_ages_sheds_before_it_refuses(clock):
    """Two thousand images a second: a fifth of the room is as much as half a second."""

    async def walk():
        async with queue_of(clock, slower=0.15, max_batch=8) as queue:
            await cameras(queue, clock, 2000, 10_000)  # 2,222 are looked at once
            assert "second_view" in queue.worker.shed

    in_loop(walk())
