"""The load test: sends a data set's images to a running service and says how it answered.

- lockstep: one request, its answer, the next: the same batches as an offline evaluation.
- closed: `concurrency` workers, each as in lockstep; a slow server slows the load down.
- open: requests leave on a schedule, whatever the server does, as cameras do. A latency counts
  from the scheduled time: waiting in the client, too, is waiting.
"""

import asyncio
import io
import platform
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import httpx
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from service.client import (
    DEFAULT_TIMEOUT,
    DEFAULT_URL,
    AsyncClient,
    Call,
    ServiceError,
    predict_call,
)
from service.schemas import DEFAULT_STREAM, PredictResponse, StatusResponse
from service.view import View, results_table
from ttc_core.corruptions import CORRUPTIONS, check
from ttc_core.datasets import DataSet, Geometry, Stream, check_corruption, open_data
from ttc_core.files import written_whole
from ttc_core.order import check_order, note_on_runs
from ttc_core.rows import Row, Rows

T = TypeVar("T")
Mode = Literal["lockstep", "closed", "open"]
Arrivals = Literal["poisson", "even"]

TRIES = 10
"""How often lockstep sends a request that is refused with 429 or 503, before it gives up."""
LONGEST_RETRY_WAIT = 60.0
LATE_SECONDS = 0.010
"""An open-loop request that leaves later than this after its time counts as late."""
MOST_BYTES_AHEAD = 256 << 20
"""Requests are made before the first one is sent, up to so many bytes; then as they are used."""

_REFUSED = (429, 503)


@dataclass(frozen=True)
class ReplayPlan:
    """What is sent, how, and where to.

    Attributes:
        data: a DATA spec (see `ttc_core.datasets.SPECS`).
        url: of the service.
        corruptions: one after another; "clean" is one too.
        severity: 1 to 5.
        batch_size: images per request, in every mode.
        limit: the first so many images of each corruption; None: all.
        seed: of corruptions, order and Poisson arrivals.
        mode: lockstep, closed or open.
        concurrency: workers in closed mode.
        rate: images per second in open mode, so rate / batch_size requests per second.
        arrivals: of requests in open mode: Poisson, or evenly spaced.
        stream: the name of the service's stream; None: its default one.
        order: file, iid, sorted or dirichlet:D.
        reset_between: put the stream back to the source before each corruption.
        token: what the server's --token says, if it has one.
        admin_token: what its --admin-token says, for resets.
        timeout: seconds to wait for an answer, and for the server to come to rest.
        most_in_flight: open requests without an answer yet; beyond them, one is dropped.

    Raises:
        ValueError: a value is out of range, or does not go with the mode.
    """

    data: str
    url: str = DEFAULT_URL
    corruptions: tuple[str, ...] = ("clean",)
    severity: int = 5
    batch_size: int = 100
    limit: int | None = None
    seed: int = 0
    mode: Mode = "lockstep"
    concurrency: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    stream: str | None = None
    order: str = "file"
    reset_between: bool = False
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT
    most_in_flight: int = 500

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"The URL {self.url!r} cannot be read: {error}.") from None
        if (url.port or 0) > 65535 or url.query or url.fragment:
            raise ValueError(
                f"url must be like {DEFAULT_URL}, with a port up to 65535 and no ? or #; "
                f"got {self.url!r}."
            )
        if not self.corruptions:
            raise ValueError("corruptions must name at least one; got none.")
        for corruption in self.corruptions:
            check_corruption(corruption)
        check(CORRUPTIONS[0], self.severity, seed=self.seed)
        check_order(self.order)
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be lockstep, closed or open; got {self.mode!r}.")
        if self.arrivals not in get_args(Arrivals):
            raise ValueError(f"arrivals must be poisson or even; got {self.arrivals!r}.")
        if (self.rate is None) == (self.mode == "open"):
            raise ValueError(
                "rate (images per second) is needed in open mode, and used in no other; "
                f"got mode {self.mode} and rate {self.rate}."
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate must be above 0 images per second; got {self.rate}.")
        if self.concurrency != 1 and self.mode != "closed":
            raise ValueError(
                f"concurrency is used in closed mode only; got {self.concurrency} with {self.mode}."
            )
        for name in ("batch_size", "concurrency", "most_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 image; got {self.limit}.")


def schedule(count: int, rate: float, arrivals: Arrivals, seed: int) -> NDArray[np.float64]:
    """When the requests of an open load leave.

    Args:
        count: of requests.
        rate: requests per second, on average.
        arrivals: "even", or "poisson": independent, exponentially distributed gaps.
        seed: of the Poisson arrivals.

    Returns:
        (count,) seconds after the first one, which leaves at 0.
    """
    if arrivals == "even":
        return np.arange(count) / rate
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(count - 1, 0))
    return np.concatenate([np.zeros(min(count, 1)), np.cumsum(gaps)])


async def replay(
    plan: ReplayPlan,
    rows: Rows,
    view: View,
    predictions: Path | None = None,
    *,
    table: bool = True,
) -> list[Row]:
    """Send the corruptions one after another; a row is appended as each is finished.

    Counts of images: answered + refused (429, 503) + errors + dropped make up the stream. On
    interruption the finished rows are kept, and the corruption in hand is shown as partial.

    Args:
        plan: what, how and where to.
        rows: where the result rows go, with arrays (see `_Tally.arrays`) as their details.
        view: where progress and the final table are shown.
        predictions: an .npz file for `predicted`, `labels`, `entropy`, `selected`, `version`, (N,)
            each, in stream order; an image without an answer has -1, nan, False and -1 there.
        table: show one at the end.

    Returns:
        The rows of this replay, in the order of the corruptions.

    Raises:
        ValueError: predictions of more than one corruption are asked for, or a value or the data
            cannot be used (`DataError`).
        ServiceError: nothing answers, or in lockstep a request failed.
    """
    if predictions is not None and len(plan.corruptions) > 1:
        raise ValueError(
            "Predictions are kept of one corruption; "
            f"got {len(plan.corruptions)}: {', '.join(plan.corruptions)}."
        )
    connections = {"lockstep": 2, "closed": plan.concurrency + 1, "open": plan.most_in_flight + 1}
    finished: list[Row] = []
    async with AsyncClient(
        plan.url,
        plan.token,
        plan.timeout,
        connections=connections[plan.mode],
        admin_token=plan.admin_token,
    ) as client:
        status = await _answer(client, client.status(), plan.timeout)
        geometry = Geometry(status.model.size, status.model.crop)
        data = await asyncio.to_thread(
            open_data, plan.data, geometry, status.model.class_names, limit=plan.limit
        )
        history = _History(plan, status)
        try:
            for corruption in plan.corruptions:
                row, tally = await _replay_one(plan, client, data, corruption, view)
                row |= history.of(row)
                finished.append(rows.append(row, tally.arrays()))
                view.finish(row)
                if predictions is not None:
                    tally.save_predictions(predictions)
        except BaseException:
            view.interrupt()
            raise
        finally:
            if finished and table:
                view.table(results_table(finished))
    return finished


class _History:
    """What the stream had seen before each corruption, unless it was reset.

    Its adaptation goes on from there, so that another history is another measurement.
    """

    def __init__(self, plan: ReplayPlan, status: StatusResponse) -> None:
        stream = status.streams.get(plan.stream or DEFAULT_STREAM)
        self._continual, self._severity = not plan.reset_between, plan.severity
        self._images_before = 0 if stream is None else stream.images
        self._earlier: list[str] = []

    def of(self, row: Row) -> Row:
        if not self._continual:
            return {}
        after = self._earlier[:]
        self._earlier.append(row["corruption"])
        return {
            "after": after,
            "after_severity": self._severity,
            "after_images": self._images_before,
        }


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels (H, W, 3), RGB, as a PNG file: lossless, and quick rather than small."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


async def _replay_one(
    plan: ReplayPlan, client: AsyncClient, data: DataSet, corruption: str, view: View
) -> tuple[Row, "_Tally"]:
    stream = await asyncio.to_thread(
        data.open,
        corruption,
        plan.severity,
        limit=plan.limit,
        order=plan.order,
        seed=plan.seed,
    )
    at = "" if stream.severity is None else f" {stream.severity}"
    view.start(f"{corruption}{at}", len(stream))
    if note := note_on_runs(stream.labels, plan.order):
        view.say(f"{corruption}: {note}.")
    tally = _Tally(stream.labels, view)
    async with _Outbox(stream, plan.batch_size, plan.stream) as outbox:
        await outbox.filled()
        if plan.reset_between:
            await _answer(client, client.reset(plan.stream), plan.timeout)
        before = await _at_rest(client, plan.timeout, view)
        view.begin()
        await _send_all(plan, client, outbox, tally)
    try:
        after = await _at_rest(client, plan.timeout, view)
    except ServiceError as error:  # the answers are there; what the server counted is not
        view.say(f"{error.detail} Its counters are missing from the row.")
        after = before
    digest = await asyncio.to_thread(lambda: stream.digest)
    return _row(plan, stream, tally, before, after, view) | {"data_digest": digest}, tally


async def _at_rest(client: AsyncClient, timeout: float, view: View) -> StatusResponse:
    """Read the status once nothing is queued, predicted or adapted: counters are then whole."""
    deadline, pause = time.monotonic() + timeout, 0.01
    while not (status := await _answer(client, client.status(), timeout)).idle:
        if time.monotonic() >= deadline:
            view.say(
                f"The server is not at rest after {timeout:g} s (is another client there?): "
                "its counters may be off."
            )
            break
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.5)
    return status


@dataclass(frozen=True)
class _Batch:
    """The images of a stream from `start` on, as one request."""

    start: int
    count: int
    call: Call[PredictResponse]

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.count)


class _Outbox:
    """The requests of a stream, in order, made ahead in a worker thread.

    What is made before the first request leaves takes nothing of the measured time, just as the
    time of an offline evaluation has no loading and corrupting in it.
    """

    def __init__(self, stream: Stream, batch_size: int, stream_name: str | None) -> None:
        self._stream, self._batch_size, self._stream_name = stream, batch_size, stream_name
        self._bytes_ahead = 0
        self._ready: asyncio.Queue[_Batch | None] = asyncio.Queue()
        self._room, self._filled = asyncio.Event(), asyncio.Event()
        self._room.set()
        self._error: Exception | None = None

    def __len__(self) -> int:
        return -(-len(self._stream) // self._batch_size)

    async def __aenter__(self) -> Self:
        self._maker = asyncio.create_task(self._make_all())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._maker.cancel()
        await asyncio.wait([self._maker])

    async def filled(self) -> None:
        """Wait until all requests are made, or as many as may lie ahead."""
        await self._filled.wait()

    async def next(self) -> _Batch | None:
        """Take the next request; None after the last.

        Raises:
            DataError: its images cannot be read.
        """
        batch = await self._ready.get()
        if batch is None:
            self._ready.put_nowait(None)  # for the other workers
            if self._error is not None:
                raise self._error
            return None
        self._bytes_ahead -= len(batch.call.body or b"")
        if self._bytes_ahead < MOST_BYTES_AHEAD:
            self._room.set()
        return batch

    async def _make_all(self) -> None:
        try:
            for start in range(0, len(self._stream), self._batch_size):
                await self._room.wait()
                batch = await asyncio.to_thread(self._make, start)
                self._bytes_ahead += len(batch.call.body or b"")
                if self._bytes_ahead >= MOST_BYTES_AHEAD:
                    self._room.clear()
                    self._filled.set()
                self._ready.put_nowait(batch)
        except Exception as error:  # raised where the request is asked for
            self._error = error
        finally:
            self._ready.put_nowait(None)
            self._filled.set()

    def _make(self, start: int) -> _Batch:
        part = slice(start, start + self._batch_size)
        positions, labels = self._stream.positions[part], self._stream.labels[part]
        if self._stream.read_file is not None:
            files = [self._stream.read_file(int(position)) for position in positions]
        else:
            files = [to_png(pixels) for pixels in self._stream.read(positions)]
        call = predict_call(files, labels=labels.tolist(), stream=self._stream_name)
        return _Batch(start, len(files), call)


class _Tally:
    """What became of the images of one stream."""

    def __init__(self, labels: NDArray[np.int64], view: View) -> None:
        count = len(labels)
        self.labels, self._view = labels, view
        self.predicted = np.full(count, -1, np.int64)
        self.entropy = np.full(count, np.nan)
        self.selected = np.zeros(count, bool)
        self.version = np.full(count, -1, np.int64)
        self.latency = np.full(count, np.nan)
        self.latencies: list[float] = []  # seconds, one a request that was answered
        self.lateness: list[float] = []  # seconds, one a request of an open load
        self.refused: Counter[str] = Counter()  # images, by HTTP status
        self.errors: Counter[str] = Counter()  # images, by HTTP status or "no answer"
        self.dropped = self.retries = 0  # images; requests
        self.images = self.correct = self._selected_images = 0
        self._entropy_sum = 0.0
        self._first_version: int | None = None
        self._last_version = 0
        self._first_sent = self._last_answer = 0.0

    @property
    def seconds(self) -> float:
        """From the first send to the last answer."""
        return max(self._last_answer - self._first_sent, 0.0)

    def sends(self) -> float:
        """Note that a request leaves now; returns the time."""
        now = time.perf_counter()
        self._first_sent = self._first_sent or now
        return now

    def answered(self, batch: _Batch, answer: PredictResponse, due: float) -> None:
        """Note an answer that came now to a request that was due then.

        Raises:
            ServiceError: it answers another number of images, or nonsense; nothing is noted.
        """
        now = time.perf_counter()
        answers, places = answer.predictions, batch.places
        if len(answers) != batch.count:
            raise ServiceError(
                200, f"The service gave {len(answers)} answers to {batch.count} images."
            )
        try:
            predicted = np.array([one.class_ for one in answers], np.int64)
            version = np.broadcast_to(np.array(answer.version, np.int64), batch.count)
        except (ValueError, OverflowError) as error:
            raise ServiceError(200, f"The service's answer makes no sense: {error}.") from None
        if predicted.min() < 0 or version.min() < 0:
            raise ServiceError(200, "The service's answer makes no sense: numbers below 0.")
        self._last_answer = now
        self.latencies.append(now - due)
        self.latency[places] = now - due
        self.predicted[places] = predicted
        self.entropy[places] = [one.entropy for one in answers]
        self.selected[places] = [one.selected for one in answers]
        self.version[places] = version
        self.images += batch.count
        self.correct += int((self.predicted[places] == self.labels[places]).sum())
        self._entropy_sum += float(self.entropy[places].sum())
        self._selected_images += int(self.selected[places].sum())
        newest = int(self.version[places].max())
        if self._first_version is None:
            self._first_version = newest
        self._last_version = max(self._last_version, newest)
        self._view.update(
            done=self.images,
            correct=self.correct,
            entropy_sum=self._entropy_sum,
            selected=self._selected_images,
            steps=self._last_version - self._first_version,
            latency=now - due,
        )

    def failed(self, batch: _Batch, error: ServiceError) -> None:
        """Note a request that got no result."""
        kind = "no answer" if error.status is None else str(error.status)
        (self.refused if error.status in _REFUSED else self.errors)[kind] += batch.count

    def percentile(self, percent: float) -> float | None:
        """Seconds within which so many of the answered requests were; None if none was."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """(N,) each, in stream order; `latency` is the request's, in seconds, or nan."""
        return {**self._predictions(), "latency": self.latency}

    def save_predictions(self, path: Path) -> None:
        """Write the arrays that `--predictions` promises."""
        with written_whole(path) as file:
            np.savez_compressed(file, **self._predictions())  # type: ignore[arg-type]  # numpy's allow_pickle

    def _predictions(self) -> dict[str, NDArray[Any]]:
        return {
            "predicted": self.predicted,
            "labels": self.labels,
            "entropy": self.entropy,
            "selected": self.selected,
            "version": self.version,
        }


async def _send_all(plan: ReplayPlan, client: AsyncClient, outbox: _Outbox, tally: _Tally) -> None:
    if plan.mode == "lockstep":
        await _lockstep(client, outbox, tally, plan.timeout)
        return
    try:
        if plan.mode == "closed":
            await _closed(client, outbox, tally, plan)
        else:
            rate = (plan.rate or 0.0) / plan.batch_size
            offsets = schedule(len(outbox), rate, plan.arrivals, plan.seed)
            await _open(client, outbox, tally, offsets, plan)
    except BaseExceptionGroup as group:  # the first is the cause; the task group ended the others
        raise group.exceptions[0] from None


async def _answer(client: AsyncClient, asking: Coroutine[Any, Any, T], timeout: float) -> T:
    """Wait for an answer, whatever is at the other end.

    Raises:
        ServiceError: there is none, none that can be read, or none that ends in time.
    """
    try:
        # The client's own timeout is for each part: one that comes drop by drop never meets it.
        async with asyncio.timeout(2 * timeout):
            return await asking
    except TimeoutError:
        sentence = f"{client.url} did not end its answer within {2 * timeout:g} seconds."
    except (httpx.RequestError, httpx.InvalidURL, OverflowError) as error:
        sentence = f"{client.url} gave no answer that can be read: {error}."
    raise ServiceError(None, sentence)


async def _lockstep(client: AsyncClient, outbox: _Outbox, tally: _Tally, timeout: float) -> None:
    while (batch := await outbox.next()) is not None:
        due, tries = tally.sends(), 1
        while True:
            try:
                answer = await _answer(client, client.send(batch.call), timeout)
                break
            except ServiceError as error:
                if error.status not in _REFUSED or tries == TRIES:
                    raise
                tries += 1
                tally.retries += 1
                await asyncio.sleep(retry_wait(error.retry_after))
        tally.answered(batch, answer, due)


def retry_wait(asked: float | None) -> float:
    """Seconds to wait before a refused request is sent again, whatever the server asks for."""
    if asked is None or not asked > 0:  # not said, or nonsense
        return 1.0
    return min(asked, LONGEST_RETRY_WAIT)


async def _closed(client: AsyncClient, outbox: _Outbox, tally: _Tally, plan: ReplayPlan) -> None:
    async def work() -> None:
        while (batch := await outbox.next()) is not None:
            await _send(client, batch, tally.sends(), tally, plan.timeout)

    async with asyncio.TaskGroup() as workers:
        for _ in range(plan.concurrency):
            workers.create_task(work())


async def _open(
    client: AsyncClient,
    outbox: _Outbox,
    tally: _Tally,
    offsets: NDArray[np.float64],
    plan: ReplayPlan,
) -> None:
    in_flight: set[asyncio.Task[None]] = set()

    async def send_late_or_not(batch: _Batch, due: float) -> None:
        tally.lateness.append(max(tally.sends() - due, 0.0))
        await _send(client, batch, due, tally, plan.timeout)

    async with asyncio.TaskGroup() as requests:
        origin = time.perf_counter()
        for offset in offsets.tolist():
            batch = await outbox.next()
            assert batch is not None, "there are as many times as requests"
            await asyncio.sleep(max(origin + offset - time.perf_counter(), 0.0))
            if len(in_flight) >= plan.most_in_flight:
                tally.dropped += batch.count
                continue
            task = requests.create_task(send_late_or_not(batch, origin + offset))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)


async def _send(
    client: AsyncClient, batch: _Batch, due: float, tally: _Tally, timeout: float
) -> None:
    try:
        tally.answered(batch, await _answer(client, client.send(batch.call), timeout), due)
    except ServiceError as error:
        tally.failed(batch, error)


def _row(
    plan: ReplayPlan,
    stream: Stream,
    tally: _Tally,
    before: StatusResponse,
    after: StatusResponse,
    view: View,
) -> Row:
    def grown(counter: str) -> int:
        return int(after.counters.get(counter, 0) - before.counters.get(counter, 0))

    images, seconds = tally.images, tally.seconds
    labelled, server_correct = grown("labelled_images_total"), grown("correct_images_total")
    restarted = labelled < 0
    if images < len(stream):
        view.say(f"{len(stream) - images:,} of {len(stream):,} images have no answer.")
    if restarted:
        view.say(
            "The server was started anew in the midst: the answers are of two states, which the "
            "row and the report say."
        )
    elif labelled != images:
        view.say(
            f"The server counted {labelled:,} labelled images, this client has {images:,} answers: "
            "another client was there, or answers were lost."
        )
    elif server_correct != tally.correct:
        view.say(
            f"The server counted {server_correct:,} images as right, this client {tally.correct:,}."
        )
    got = ~np.isnan(tally.latency)
    # SOURCE, NORM and T3A select nothing, which is not the same as a rate of 0.
    selects = bool(tally.selected.any()) or grown("considered_images_total") > 0
    opened = plan.mode == "open"
    return {
        "method": after.method,
        "data": plan.data,
        "model": after.model.spec,
        "model_digest": after.model.digest,
        "corruption": stream.corruption,
        "severity": stream.severity,
        "order": plan.order,
        "protocol": "episodic" if plan.reset_between else "continual",
        "batch_size": plan.batch_size,
        "limit": plan.limit,
        "images": images,
        "asked": len(stream),
        "correct": tally.correct,
        "accuracy": tally.correct / images if images else None,
        "entropy": float(tally.entropy[got].mean()) if images else None,
        "selection_rate": float(tally.selected[got].mean()) if images and selects else None,
        "steps": None if restarted or after is before else grown("optimizer_steps_total"),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else None,
        "seed": plan.seed,
        "settings": after.settings.get("method", after.settings),
        "versions": {**after.versions, **_client_versions()},
        "device": after.device,
        "server": after.settings.get("server"),
        "mode": plan.mode,
        "stream": plan.stream,
        "concurrency": plan.concurrency if plan.mode == "closed" else None,
        "rate": plan.rate,
        "arrivals": plan.arrivals if opened else None,
        "server_accuracy": server_correct / labelled if labelled > 0 else None,
        "latency_p50": tally.percentile(50),
        "latency_p90": tally.percentile(90),
        "latency_p99": tally.percentile(99),
        "latency_max": tally.percentile(100),
        "lateness_p99": float(np.percentile(tally.lateness, 99)) if tally.lateness else None,
        "late": sum(late > LATE_SECONDS for late in tally.lateness) if opened else None,
        "refused": dict(tally.refused),
        "errors": dict(tally.errors),
        "dropped": tally.dropped,
        "retries": tally.retries,
        "restarted": restarted or None,
    }


def _client_versions() -> dict[str, str]:
    try:
        client = version("ttc-service")
    except PackageNotFoundError:  # run from a checkout that is not installed
        client = "unknown"
    return {
        "client": client,
        "client_python": platform.python_version(),
        "client_numpy": np.__version__,
        "client_pillow": PIL.__version__,
        "client_httpx": httpx.__version__,
    }
