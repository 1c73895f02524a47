"""The model loaded anew while it answers, and other weights exchanged for those that do.

The spec is read again in a thread of its own; between two batches what was read takes over. Until
then nothing has changed, so whatever goes wrong before leaves the former weights at work.
"""

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from service.answering import Image, ImageAnswer
from service.batcher import Batcher
from service.engine import Engine
from service.errors import ModelRefused, NotReady, Refused
from service.intake import Intake
from service.metrics import Metrics
from service.schemas import ReloadResponse
from service.settings import Settings
from ttc_core.errors import UserError, told
from ttc_core.fused import between_passes
from ttc_core.methods import Method
from ttc_core.model import SourceModel
from ttc_core.plugins import guarded

# How far the thread that loads steps back behind those that answer.
STEP_BACK = 10
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
        self._loader = ThreadPoolExecutor(1, "loading", initializer=_step_back)
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
        """End the thread, once it is through with what it reads."""
        self._loader.shutdown()

    async def _reload(self) -> ReloadResponse:
        began = time.monotonic()
        try:
            found: ReloadResponse | str = await self._exchanged()
        except NotReady:
            raise
        except Exception as error:
            known = isinstance(error, UserError | Refused)
            found = str(error) if known else f"The model cannot be loaded anew: {told(error)}."
        # A network is a ring of references, which nobody else would open for hours.
        await asyncio.to_thread(gc.collect)
        if isinstance(found, str):
            raise self._refusal(found)
        return found.model_copy(update={"seconds": round(time.monotonic() - began, 3)})

    def _refusal(self, sentence: str) -> ModelRefused:
        self._metrics.model_loads.labels("refused").inc()
        self._engine.events.note("model_refused", level=logging.ERROR, reason=sentence)
        return ModelRefused(sentence)

    async def _exchanged(self) -> ReloadResponse:
        if self._load is None:
            raise ModelRefused("This server was handed its model, and cannot read it anew.")
        loop, former = asyncio.get_running_loop(), self._engine.source.model
        source = await loop.run_in_executor(self._loader, self._read)
        model = source.model
        names = {"digest": model.digest, "former_digest": former.digest}
        if misfit := _misfit(former, model):
            raise ModelRefused(misfit)
        if model.digest == former.digest:
            self._metrics.model_loads.labels("unchanged").inc()
            self._engine.events.note("model_unchanged", digest=model.digest)
            return ReloadResponse(changed=False, **names)
        saving = await self._engine.prepare(source)
        self._may_end = False
        try:
            left = await self._batcher.between_batches(lambda: self._engine.exchange(saving))
        except BaseException:
            self._engine.give_up(saving)
            raise
        self.since, self._intake.model = time.time(), model
        self._metrics.show_model(model_labels(self._settings, source))
        self._metrics.model_loaded.set(self.since)
        self._metrics.model_loads.labels("loaded").inc()
        aside, dropped = await self._engine.put_away(left)
        response = ReloadResponse(
            changed=True,
            **names,
            streams_kept_aside=aside,
            streams_dropped=dropped,
            streams_brought_back=await self._engine.saved_streams(),
        )
        told_of = response.model_dump(exclude={"changed", "seconds"})
        self._engine.events.note("model_loaded", **told_of)
        self._looking = asyncio.create_task(self._engine.look_at_saved())
        return response

    def _read(self) -> Method:
        """Make the method on the model as it can be read now, in the thread that loads."""
        assert self._load is not None
        between_passes.set(self._engine.between_passes)
        with guarded("The model cannot be loaded anew"):
            source = self._load()
            _ = source.model.digest  # hashing takes its time
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


def _step_back() -> None:
    """Leave the processors to the threads that answer."""
    os.nice(STEP_BACK)
    torch.set_num_threads(1)


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
    if (read.size, read.crop) != (served.size, served.crop):
        return (
            f"What was read takes images of size {read.size} (crop {read.crop}), and what is "
            f"served of size {served.size} (crop {served.crop}): requests are on their way in "
            f"that size. {again}"
        )
    return None
