"""Fifteen lines of FastAPI with a queue, as tutorials have it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Request
from torch import Tensor

from benchmarks.peers.model import Answer, Asked, Classifier

asked = Asked.read()
classifier = Classifier(asked)
queue: asyncio.Queue[tuple[Tensor, asyncio.Future[Answer]]] = asyncio.Queue()


async def batches() -> None:
    while True:
        batch = [await queue.get()]
        until = time.monotonic() + asked.max_wait
        while len(batch) < asked.max_batch:
            try:
                batch.append(await asyncio.wait_for(queue.get(), until - time.monotonic()))
            except TimeoutError:
                break
        answers = await asyncio.to_thread(classifier.classify, [inputs for inputs, _ in batch])
        for (_, waiting), answer in zip(batch, answers, strict=True):
            waiting.set_result(answer)


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(batches())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request) -> Answer:
    inputs = await asyncio.to_thread(classifier.decode, await request.body())
    waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    queue.put_nowait((inputs, waiting))
    return await waiting


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=asked.port, access_log=False)
