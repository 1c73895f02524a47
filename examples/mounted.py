"""The service inside a FastAPI application of one's own, under /ttc.

    uvicorn mounted:app --timeout-graceful-shutdown 20
        with the TTC_ variables of `ttc serve`: TTC_STATE_DIR, …
    curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/ttc/predict

One process, since each would learn apart. The limits on connections, and the drain's delay, are
those of `ttc serve`'s own server: here they are uvicorn's, which without the option would wait for
ever for whoever is connected to /ttc/events and reads nothing.
"""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import torch
from fastapi import FastAPI

from service.app import build
from service.cli.serve import load_source
from service.settings_reading import read_settings

settings = read_settings({})
if settings.threads:
    # Before the model is made: its weights are laid out for so many.
    torch.set_num_threads(settings.threads)
load = partial(load_source, settings)  # again with POST /ttc/model
ttc = build(settings, load(), load)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Start the queue and the device's thread; at the end answer what waits, and save.

    A mounted application's own lifespan is run by nobody else.
    """
    async with ttc.router.lifespan_context(ttc):
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/ttc", ttc)


@app.get("/")
async def home() -> dict[str, bool]:
    """One's own routes reach the service's parts, without HTTP."""
    return {"ready": ttc.state.service.is_ready}
