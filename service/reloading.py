"""The model loaded anew while it answers, and other weights exchanged for those that do.

The spec is read again in a thread of its own; between two batches what was read takes over. Until
then nothing has changed, so whatever goes wrong before leaves the former weights at work.
"""

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from service.answering import Image, ImageAnswer
from service.batcher import Batcher
from service.decoding import step_back
from service.engine import Engine
from service.errors import ModelRefused, NotReady, Refused
from service.exchanging import Former
from service.intake import Intake
from service.metrics import Metrics
from service.schemas import ReloadResponse
from service.settings import Settings
from ttc_core.errors import UserError, told
from ttc_core.fused import between_passes
from ttc_core.load import at_work
from ttc_core.methods import Method
from ttc_core.model import SourceModel
from ttc_core.plugins import guarded

log = logging.getLogger(__name__)

# Behind those that answer, but not so far that on a busy machine a second's work takes a minute:
# with 10, as where large requests are decoded, whoever had asked gave up.
STEP_BACK = 5

# Of the time to end in, how long a thread that still reads a model is waited for: it may be stuck.
READING_SHARE = 0.1
ENDING = "The service is shutting down; the model was not loaded anew."


class Reloading:
    """Loads the model that is served anew, one time at a time.

    Args:
        load: makes the method on the model, read anew and tried out, or raises what is wrong; None:
            there is no way to.

    Attributes:
        since: when the weights that answer now took over, in seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        batcher: Batcher[Image, ImageAnswer],
        intake: Intake,
        metrics: Metrics,
        load: Callable[[], Method] | None,
    ) -> None:
        self._settings, self._engine, self._batcher = settings, engine, batcher
        self._intake, self._metrics, self._load = intake, metrics, load
        self.since = time.time()
        self._reader: threading.Thread | None = None
        self._task: asyncio.Task[ReloadResponse] | None = None
        # Until what was read takes over, it may be given up at any time.
        self._may_end, self._draining = True, False
        self._looking: asyncio.Task[None] | None = None
        metrics.model_loaded.set(self.since)

    async def reload(self) -> ReloadResponse:
        """Load the model anew; once it returns, other weights answer, unless they are the same.

        Raises:
            ModelRefused: the former weights go on as if nothing had been asked.
            NotReady: the service is shutting down.
        """
        if self._draining:
            raise NotReady(ENDING)
        self.check()
        if self._task is not None:
            raise self._refusal("The model is being loaded anew already; ask again afterwards.")
        self._may_end = True
        # Whoever asked may leave: what was begun goes on.
        task = self._task = asyncio.create_task(self._reload(), name="reloading")
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise NotReady(ENDING) from None
            raise

    def check(self) -> None:
        """Let pass who asks for it where the model is ever loaded anew.

        Raises:
            ModelRefused: it is not, whatever is asked.
        """
        if self._settings.ray:
            raise self._refusal("Replicas load the model when they start: start `ttc serve` anew.")
        if self._load is None:
            raise self._refusal("This server was handed its model, and cannot read it anew.")

    def reload_soon(self) -> None:
        """The same for nobody who waits: events and the log tell what became of it."""

        async def reload() -> None:
            with contextlib.suppress(Refused):
                await self.reload()

        self._asked = asyncio.create_task(reload())

    def _ended(self, task: asyncio.Task[ReloadResponse]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # whoever asked may have gone

    def drain(self) -> None:
        """Load nothing any more; what is being loaded is given up, what takes over does."""
        self._draining = True
        if self._task is not None and self._may_end:
            self._task.cancel()
            self._refusal(ENDING)  # told, whoever asked

    async def settle(self) -> None:
        """Wait until nothing is being exchanged; `drain` came before."""
        for task in (self._task, self._looking):
            if task is not None:
                await asyncio.wait({task})

    def close(self) -> None:
        """Wait for the thread that reads, but not for one that is stuck; it ends with the process.

        Of one that computes meanwhile, the process may not end well.
        """
        if self._reader is not None:
            self._reader.join(READING_SHARE * self._settings.drain_timeout)
            if self._reader.is_alive():
                log.warning("What loads the model anew has not ended, and is left behind.")

    async def _reload(self) -> ReloadResponse:
        began = time.monotonic()
        try:
            found: ReloadResponse | str = await self._exchanged()
        except NotReady as error:
            self._refusal(str(error))  # told, whoever asked
            raise
        except Exception as error:
            known = isinstance(error, UserError | Refused)
            found = str(error) if known else f"The model cannot be loaded anew: {told(error)}."
        # A network is a ring of references, which nobody else would open for hours.
        await asyncio.to_thread(gc.collect)
        if isinstance(found, str):
            raise self._refusal(found)
        self._tell(found)
        return found.model_copy(update={"seconds": round(time.monotonic() - began, 3)})

    def _refusal(self, sentence: str) -> ModelRefused:
        self._metrics.model_loads.labels("refused").inc()
        self._engine.events.note("model_refused", level=logging.ERROR, reason=sentence)
        return ModelRefused(sentence)

    def _tell(self, found: ReloadResponse) -> None:
        """Only once all is done: whoever hears of it may ask for the next."""
        self._metrics.model_loads.labels("loaded" if found.changed else "unchanged").inc()
        if found.changed:
            told_of = found.model_dump(exclude={"changed", "seconds"})
            self._engine.events.note("model_loaded", **told_of)
        else:
            self._engine.events.note("model_unchanged", digest=found.digest)

    async def _exchanged(self) -> ReloadResponse:
        former = self._engine.source.model
        source = await self._read_apart()
        model = source.model
        names = {"digest": model.digest, "former_digest": former.digest}
        if misfit := _misfit(former, model):
            raise ModelRefused(misfit)
        if model.digest == former.digest:
            return ReloadResponse(changed=False, **names)
        exchanging = self._engine.exchanging
        saving = await exchanging.prepare(source)
        self._may_end = False
        try:
            left = await self._batcher.between_batches(lambda: exchanging.exchange(saving))
        except BaseException:
            exchanging.give_up(saving)
            raise
        self.since, self._intake.model = time.time(), model
        self._metrics.show_model(model_labels(self._settings, source))
        self._metrics.model_loaded.set(self.since)
        response = ReloadResponse(changed=True, **names, **await self._streams_after(left))
        self._looking = asyncio.create_task(self._engine.look_at_saved())
        return response

    async def _streams_after(self, left: Former) -> dict[str, int | None]:
        """What became of the streams, as the response has it; None: it is not known.

        The other weights answer already: whatever fails now refuses nothing.
        """
        aside, dropped, brought_back = None, None, None
        try:
            aside, dropped = await self._engine.exchanging.put_away(left)
            brought_back = await self._engine.saved_streams()
        except Exception:
            log.exception("Other weights answer now; what became of the streams is not known:")
        return {
            "streams_kept_aside": aside,
            "streams_dropped": dropped,
            "streams_brought_back": brought_back,
        }

    async def _read_apart(self) -> Method:
        """Read in a thread of its own, which the process does not wait for at its end."""
        found: Future[Method] = Future()

        def run() -> None:
            step_back(STEP_BACK)
            try:
                found.set_result(self._read())
            except BaseException as error:
                found.set_exception(error)

        self._reader = threading.Thread(target=run, name="loading", daemon=True)
        found.set_running_or_notify_cancel()  # whoever waits may give up, and the thread goes on
        self._reader.start()
        return await asyncio.wrap_future(found)

    def _read(self) -> Method:
        """Make the method on the model as it can be read now, in the thread that loads."""
        assert self._load is not None
        between_passes.set(self._engine.between_passes)
        at_work.set(self._engine.source.model.module)
        with guarded("The model cannot be loaded anew"):
            source = self._load()
            # Each takes its time, or passes that the first who ask would wait for.
            _ = source.model.digest, source.model.takes_one, source.shares
        return source


def model_labels(settings: Settings, source: Method) -> dict[str, str]:
    """The labels of `ttc_model_info`."""
    model = source.model
    learns = settings.adapt != "never" and "affine" in source.adapts
    follows = "moving" if "moments" in source.adapts else ""
    return {
        "model": settings.model,
        "digest": model.digest,
        "method": settings.method,
        "device": str(model.device),
        "precision": model.precision,
        "classes": str(model.classes),
        "statistics": str(source.settings.get("statistics", follows)),
        # Whether there are optimizer steps to expect.
        "learns": "yes" if learns else "no",
    }


def _misfit(served: SourceModel, read: SourceModel) -> str | None:
    """Why a model cannot take the place of the one that is served; None: it can."""
    again = "It is served after a restart."
    if read.classes != served.classes:
        return (
            f"What was read has {read.classes:,} classes, and what is served {served.classes:,}: "
            f"labels, class names and metrics are of those. {again}"
        )
    if read.class_names != served.class_names:
        pairs = enumerate(zip(served.class_names, read.class_names, strict=True))
        at, (before, now) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        return (
            f"What was read has other class names than what is served (class {at} is {now!r}, "
            f"not {before!r}): labels and clients go by those. {again}"
        )
    if read.geometry != served.geometry:
        return (
            f"What was read takes {read.geometry}, and what is served {served.geometry}: requests "
            f"are on their way as those. {again}"
        )
    return None
