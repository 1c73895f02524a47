"""Ray Serve, as https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html has it."""

import asyncio
import signal
import threading

import ray
from ray import serve
from starlette.requests import Request
from torch import Tensor

from benchmarks.peers.model import Answer, Asked, Classifier

asked = Asked.read()


# Requests that a replica may have at once: two batches, or none would gather beside the first.
@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=max(128, 2 * asked.max_batch),
    ray_actor_options={"num_cpus": 1},
)
class Peer:
    def __init__(self) -> None:
        self.classifier = Classifier(asked)

    @serve.batch(max_batch_size=asked.max_batch, batch_wait_timeout_s=asked.max_wait)
    async def classify(self, inputs: list[Tensor]) -> list[Answer]:
        return await asyncio.to_thread(self.classifier.classify, inputs)

    async def __call__(self, request: Request) -> Answer:
        body = await request.body()
        return await self.classify(await asyncio.to_thread(self.classifier.decode, body))


if __name__ == "__main__":
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    ray.init(
        include_dashboard=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
        runtime_env={"env_vars": asked.environment},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": asked.port})
    serve.run(Peer.bind(), route_prefix="/predict")
    over.wait()
    serve.shutdown()
    ray.shutdown()
